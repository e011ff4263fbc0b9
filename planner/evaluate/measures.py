"""What objectives measure of one plan: seconds of a pass, seconds in steady state, dollars, GPUs in use."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

from planner.evaluate.capacity import stage_total
from planner.evaluate.pipeline import feedback_seconds, makespan, send_seconds
from planner.evaluate.setting import Setting
from planner.evaluate.training import training_step
from planner.evaluate.waves import waves_path
from search_spaces.sizes import Sizes
from search_spaces.stages import Choice


@dataclass(frozen=True, slots=True)
class Measures:
    """`latency_s`: of the batch, in decode of an output token, in training of a step. `steady_s`: what throughput divides the
    tokens of a pass by: the slowest stage or send times the micro-batches; in decode, in training, and with experts on GPUs of
    their own, the latency. `dollars`: the latency at the price of the GPUs in use.
    """

    latency_s: float
    steady_s: float
    dollars: float
    gpus: int


def measures(env: Setting, sizes: Sizes, choice: Choice) -> Measures:
    """Measure a plan; it must be sound (see `planner.check`)."""
    ranks = [rank for stage in choice.stages for rank in stage.devices]
    latency, steady = _seconds(env, sizes, choice)
    rate = choice.replicas * sum(env.cluster.kind_of(rank).price_per_hour for rank in ranks) / 3600.0
    return Measures(latency, steady, latency * rate, choice.replicas * len(ranks))


def _seconds(env: Setting, sizes: Sizes, choice: Choice) -> tuple[float, float]:
    """(latency, steady) seconds; of a training plan both are those of a step."""
    if choice.training is not None:
        step = training_step(env, sizes, choice).seconds
        return step, step
    if choice.stages[0].separate:
        whole = waves_path(env, sizes, choice).latency_s
        return whole, whole
    sequences, decode = sizes.batch // choice.replicas // choice.micro_batches, sizes.phase == "decode"
    places = [stage.attention_devices for stage in choice.stages]
    stages = [stage_total(env, sizes, choice, index)[0] for index in range(len(places))]
    sends = [send_seconds(env, a, b, sequences) for a, b in pairwise(places)]
    if decode and len(places) > 1:
        sends.append(feedback_seconds(env, places[-1], places[0], sequences))
    latency = makespan(stages, sends, choice.micro_batches, decode)
    return latency, latency if decode else choice.micro_batches * max(*stages, *sends, 0.0)
