"""A space whose stages are fixed: each takes its fastest option that fits, since no stage's choice touches another's."""

from __future__ import annotations

from itertools import pairwise

import numpy as np

from planner.evaluate.pipeline import feedback_seconds, send_seconds
from planner.solve.blocks import StageSlot
from planner.solve.branch import Branch
from planner.solve.objective import Objective
from search_spaces.stages import Choice, StageChoice


def pinned_pipeline(branch: Branch, objective: Objective) -> tuple[float, Choice] | None:
    """(seconds, plan) of the fixed stages as a linear pipeline; None where one of them has no option that fits."""
    seconds, stages, start = [], [], 0
    for pin in branch.priced.space.layout:
        slot = _slot(branch, pin.devices)
        if slot is None:
            return None
        times, option, _ = branch.best(slot)
        row = branch.priced.spans[1][start, start + pin.layers]
        if not np.isfinite(times[row]):
            return None
        chosen = branch.option_at(slot, int(option[row]))
        seconds.append(float(times[row]))
        stages.append(StageChoice(pin.layers, pin.devices, chosen.attention, chosen.mlp_ways, chosen.experts))
        start += pin.layers
    times_all = [*seconds, *_sends(branch, objective)]
    value = objective.value(sum(times_all), max(times_all))
    return value, Choice(branch.replicas, branch.micro_batches, tuple(stages))


def pinned_excess(branch: Branch) -> float:
    """Bytes that every GPU would need besides for the fixed stages to fit (inf where one has no option at all)."""
    worst, start = 0.0, 0
    for pin in branch.priced.space.layout:
        slot = _slot(branch, pin.devices)
        row = branch.priced.spans[1][start, start + pin.layers]
        worst = max(worst, float(branch.best(slot)[2][row]) if slot is not None else np.inf)
        start += pin.layers
    return worst


def _slot(branch: Branch, devices: tuple[int, ...]) -> StageSlot | None:
    """The slot of a fixed stage, if its ranks are among those of a replica."""
    return branch.priced.slots.get(devices) if max(devices) < branch.stride else None


def _sends(branch: Branch, objective: Objective) -> list[float]:
    """Hand-overs between the fixed stages, and in decode the sampled tokens' way back."""
    places, env = [pin.devices for pin in branch.priced.space.layout], branch.priced.env
    sends = [send_seconds(env, a, b, branch.sequences) for a, b in pairwise(places)]
    if objective.decode and len(places) > 1:
        sends.append(feedback_seconds(env, places[-1], places[0], branch.sequences))
    return sends
