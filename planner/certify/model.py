"""Solving the CP model of the chosen branch once more, over stages priced anew: none below the bound is what must come out.

This is the one place where verifying asks the solver; the legs and their times are the verifier's own.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from planner.certify.pipelines import PipelineTimes
from planner.certify.question import Question
from planner.solve.cp import MAX_LEGS, PipelineModel
from planner.solve.dp import Leg
from planner.solve.objective import Name, Objective

Array = NDArray[np.float64]
BELOW = 1e-8
"""How far below the bound, relatively, the pipelines are that the model asks for: its ticks are coarser than floats."""


@dataclass(frozen=True)
class Table:
    """What the model reads of a branch."""

    layers: int
    widths: tuple[int, ...]
    counts: tuple[int, ...] | None
    send: Array
    feedback: Array


def legs_below(times: PipelineTimes, question: Question, below: float) -> list[tuple[Leg, float]]:
    """Stages with their seconds that some pipeline below a value, or about it, may use."""
    before, after = _before(times), times.to_come(slowest=False)
    branch, found = times.branch, []
    for w, width in enumerate(times.widths):
        room = times.ranks + 1 - width
        stage = times.stage[:-1, :, :room, w]
        ends = np.arange(room) + width
        through = before[:-1, None, :room, w] + stage + after[None, :, width:, w]
        with np.errstate(invalid="ignore"):
            value = question.of_pipeline(branch.replicas, branch.micro_batches, ends, through, stage)
        for start, stop, first in zip(*np.nonzero(value <= below), strict=True):
            found.append((Leg(int(start), int(stop), int(first), width), float(stage[start, stop, first])))
    return found


def _before(times: PipelineTimes) -> Array:
    """Least chain before a stage that starts at [layers + 1, ranks + 1, widths], its hand-over included."""
    found = np.full((times.layers + 1, times.ranks + 1, len(times.widths)), np.inf)
    found[0, 0] = 0.0
    for layer in range(1, times.layers):
        ended = np.full((times.ranks + 1, len(times.widths)), np.inf)
        for w, width in enumerate(times.widths):
            room = times.ranks + 1 - width
            ended[width:, w] = (found[:layer, :room, w] + times.stage[:layer, layer, :room, w]).min(axis=0)
        found[layer] = (ended[:, :, None] + times.send).min(axis=1)
    return found


def solve_again(
    times: PipelineTimes, question: Question, bound_s: float, near: float, used: int, how: tuple[int, int, float]
) -> tuple[str, int]:
    """(what CP-SAT says of pipelines below `bound_s` seconds, legs): `INFEASIBLE` proves the bound.

    `near`: the value up to which stages take part, in what is minimized; `how`: seed, workers, deterministic effort. Where GPUs
    are paid for, the pipelines are those on `used` ranks of each replica: seconds are worth the same on all of them.
    """
    branch, most = times.branch, question.most
    legs, latency_s = legs_below(times, question, near), most.latency_s
    if question.objective == "cost" or np.isfinite(most.dollars):
        legs = [(leg, s) for leg, s in legs if leg.stop < times.layers or leg.first + leg.width == used]
        rate = branch.replicas * float(question.rate_of_first[used])
        latency_s = min(latency_s, most.dollars / rate if rate else np.inf)
    if not legs:
        return "INFEASIBLE", 0
    if len(legs) > MAX_LEGS:
        return "too large", len(legs)
    counts = branch.space.stage_counts(branch.space.stride(branch.replicas)) if branch.space.stages is not None else None
    table = Table(times.layers, times.widths, counts, times.send, times.back)
    minimized: Name = "throughput" if question.objective == "throughput" else "latency"
    objective = Objective(minimized, question.decode, branch.micro_batches, latency_s, most.steady_s)
    model = PipelineModel(cast(Any, table), objective, legs, bound_s * (1 - BELOW))
    return model.solve(*how).status, len(legs)
