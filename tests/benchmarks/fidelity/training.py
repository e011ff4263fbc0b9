"""Training rows: the planner's price of the step, its memory, and an interval."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

from planner.costs.intervals import relative_interval
from planner.costs.training import PLAIN, Stack, TrainingPricer, calibrated, fitted_models, load_stack, training_spreads
from planner.errors import PlannerError
from planner.evaluate.setting import Setting
from planner.evaluate.training import StepPricing
from planner.evaluate.training_classes import class_seconds
from planner.evaluate.training_parts import Passes, StageCase, StageParts, stage_parts
from planner.evaluate.training_stage import assemble
from planner.problem.sizes import sizes_of
from search_spaces.sizes import Sizes
from search_spaces.stages import Choice
from tests.benchmarks.fidelity.clusters import Machines
from tests.benchmarks.fidelity.rows import Row, Unusable, text
from tests.benchmarks.fidelity.training_rows import Job, job_of

SHARES = (0.125, 0.25, 0.375, 0.5, 0.625, 0.75, 0.875, 1.0)  # of the layers that may be computed again


@dataclass(frozen=True, slots=True)
class Prediction:
    """The price of one training step: seconds of the whole step, bytes of the fullest GPU, an 80 % interval (low, high) of
    the seconds, whether the plan fits its GPUs (None: nothing is said), and whether constants have seen the row's model.
    """

    step_time_s: float
    memory_bytes: float | None = None
    interval: tuple[float, float] | None = None
    fits: bool | None = None
    fitted: bool = False


class TrainingPrices:
    """Prices jobs under a stack; what their stages are made of is priced once for all rows that share it."""

    def __init__(self, stack: Stack | None = None, data: Mapping[str, Any] | None = None) -> None:
        self.stack, self.data = stack, calibrated() if data is None else data
        self._parts: dict[Hashable, StageParts] = {}

    def pricing(self, job: Job) -> StepPricing:
        """The stages of a job, priced; `PlannerError` where the planner refuses it."""
        stack = self.stack or load_stack(job.stack)
        pricer = TrainingPricer(job.cluster, stack, data=self.data)
        env, sizes = Setting(job.model, job.workload, job.cluster, pricer), sizes_of(job.model, job.workload, job.cluster)
        parts = [self._part(env, sizes, job, index) for index in range(len(job.choice.stages))]
        training = job.choice.training
        assert training is not None
        found = _assembled(env, sizes, job.choice, parts)
        if job.recompute_open:  # it ran: as many layers as needed were computed again
            for share in SHARES:
                if found.over_capacity() <= 0.0:
                    break
                found = _assembled(env, sizes, job.choice, [_partly(own, share) for own in parts])
        return found

    def _part(self, env: Setting, sizes: Sizes, job: Job, index: int) -> StageParts:
        stage, cluster, choice = job.choice.stages[index], job.cluster, job.choice
        sequences = job.workload.batch // choice.replicas // choice.micro_batches
        first = cluster.domain_of[stage.devices[0]]
        pattern = tuple(cluster.domain_of[rank] - first for rank in stage.devices)
        machine = (
            cluster.device_kinds[0],
            cluster.gpus_per_node,
            cluster.network,
            cluster.nics_per_node,
            len(cluster.domains) > 1,
        )
        split = (stage.attention, stage.mlp_ways, stage.experts, sequences, pattern)
        key = (job.model, job.workload.prompt, job.workload.training, job.fused, job.stack, machine, split)
        if key not in self._parts:
            case = StageCase(stage.devices, stage.attention, stage.mlp_ways, stage.experts, sequences)
            self._parts[key] = stage_parts(env, sizes, [case], job.fused)[0]
        return self._parts[key]


_PRICES = TrainingPrices()


def _partly(parts: StageParts, share: float) -> StageParts:
    """The parts of a stage when a share of its layers is computed again in the backward pass."""
    layers = []
    for part in parts.layers:
        kept, again = part.passes["none"], part.passes["full"]
        mixed = {f.name: (1.0 - share) * getattr(kept, f.name) + share * getattr(again, f.name) for f in fields(Passes)}
        layers.append(replace(part, passes={**part.passes, "none": Passes(**mixed)}))
    return replace(parts, layers=tuple(layers))


def _assembled(env: Setting, sizes: Sizes, choice: Choice, parts: Sequence[StageParts]) -> StepPricing:
    training = choice.training
    assert training is not None
    return StepPricing(env, sizes, choice, assemble(env, [s.layers for s in choice.stages], parts, training, choice.replicas))


def predict_training(row: Row, machines: Machines, prices: TrainingPrices = _PRICES) -> Prediction | Unusable:
    """The price of the plan in a row of `training.csv`; `machines` turns its GPU into a cluster."""
    job = job_of(row, machines)
    if isinstance(job, Unusable):
        return job
    try:
        pricing = prices.pricing(job)
        step = pricing.step()
    except PlannerError as error:
        return Unusable(f"refused: {error}"[:100])
    low, high = relative_interval(class_seconds(step, job.choice.micro_batches), training_spreads())
    interval = (step.seconds * low, step.seconds * high)
    most = max(memory.total for memory in step.memory)
    silent = not text(row, "recompute") and not job.recompute_open  # nothing is known of what was kept
    fits = None if silent and text(row, "status") != "OOM" else pricing.over_capacity() <= 0.0
    return Prediction(step.seconds, most, interval, fits, text(row, "model") in fitted_models())


def uncalibrated(row: Row, machines: Machines) -> float | None:
    """Seconds of a step by lone prices alone: a baseline."""
    found = predict_training(row, machines, _LONE)
    return None if isinstance(found, Unusable) else found.step_time_s


_LONE = TrainingPrices(PLAIN)
