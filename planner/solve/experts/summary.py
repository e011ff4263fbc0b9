"""What the placement of a plan comes to: the fullest GPU in load and in time, with bounds, and the memory paid for copies."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace

import numpy as np

from planner.evaluate.setting import Setting
from planner.solve.experts.bounds import load_bounds
from planner.solve.experts.load import largest_load
from planner.solve.experts.options import different_loads, mixture_of
from planner.solve.experts.time_bounds import time_bounds
from search_spaces.experts import contiguous_placement, of_row
from search_spaces.sizes import Sizes
from search_spaces.stages import Choice

MOST = 8
"""Different loads that are looked at, at most: the first ones."""


@dataclass(frozen=True, slots=True)
class PlacementSummary:
    """One stage under the loads of its layers, the worst layer of each figure.

    Loads are those of the fullest GPU over the mean: of the plan, of consecutive experts, and what no placement with as
    many slots goes below. Seconds are those of the mixture for one micro-batch on its slowest GPU, likewise. `copies` counts
    experts beyond one each, `extra_bytes` the weights that they take on the GPU that holds most, in every layer.
    """

    stage: int
    groups: int
    load: float
    consecutive_load: float
    load_bound: float
    seconds: float
    consecutive_s: float
    seconds_bound: float
    copies: int
    extra_bytes: float

    @property
    def load_gap(self) -> float:
        """Relative distance of the load's bound."""
        return (self.load - self.load_bound) / self.load

    @property
    def time_gap(self) -> float:
        """Relative distance of the time's bound."""
        return (self.seconds - self.seconds_bound) / self.seconds


def summaries(env: Setting, sizes: Sizes, choice: Choice) -> tuple[PlacementSummary, ...]:
    """A summary of every stage whose GPUs share experts under unequal loads."""
    return tuple(found for index in range(len(choice.stages)) for found in [_summary(env, sizes, choice, index)] if found)


def _summary(env: Setting, sizes: Sizes, choice: Choice, index: int) -> PlacementSummary | None:
    stage, start = choice.stages[index], sum(stage.layers for stage in choice.stages[:index])
    own = {env.layers[layer].load for layer in range(start, start + stage.layers)}
    loads = [load for load in different_loads(env) if load in own][:MOST]
    rows_at = [next(kind.row for kind in env.kinds if kind.load == load) for load in loads]
    mixture = mixture_of(env, sizes, choice, stage, loads[0]) if loads else None
    if mixture is None or mixture.groups < 2 or stage.experts is None:
        return None
    groups, plain = mixture.groups, contiguous_placement(sizes.experts, mixture.groups)
    placed = [of_row(stage.experts.placement, row) or plain for row in rows_at]
    slots = max(max(Counter(g for places in placement for g in places).values()) for placement in placed)
    rows = np.array(loads)
    mean = rows.sum(axis=1) / groups
    served = replace(mixture, within=stage.experts.serve_within)
    load = served.placed_load(placed, loads)
    consecutive = np.array([largest_load(row, plain, groups) for row in rows]) / mean
    seconds, plainly = served.placed_seconds(placed, loads), mixture.placed_seconds([plain] * len(loads), loads)
    bounds = time_bounds(served, rows / rows.sum(axis=1, keepdims=True), slots, seconds)
    worst, slowest = int(load.argmax()), int(seconds.argmax())
    copies = max(sum(map(len, placement)) for placement in placed) - sizes.experts
    return PlacementSummary(
        index, groups, float(load[worst]), float(consecutive[worst]), float((load_bounds(rows, groups, slots) / mean)[worst]),
        float(seconds[slowest]), float(plainly[slowest]), float(bounds[slowest]), copies,
        max(0, slots + (-sizes.experts // groups)) * mixture.expert_bytes(),
    )  # fmt: skip
