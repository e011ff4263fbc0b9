"""Many different loads: a few of them stand for all while plans are compared, a few that none goes below bound them all."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from planner.evaluate.setting import Setting
from planner.graph.experts import Load
from planner.solve.experts.load import largest_load
from planner.solve.experts.options import different_loads, open_to_search
from planner.workload import Workload
from search_spaces.experts import contiguous_placement, of_row
from search_spaces.space import SearchSpace

MOST = 6
"""Different loads that plans are compared under, at most."""
RULE = (
    f"more than {MOST} different expert loads: plans are compared under {MOST} of them, each for the layers that are about as "
    "unequal; the best one is priced, placed and bounded under all. The table of decisions is left out"
)


def lighter(env: Setting, space: SearchSpace) -> Workload | None:
    """The workload with a few of its expert loads in the place of all; None where there are few, or nothing to place."""
    rows = env.workload.expert_load
    if len(different_loads(env)) <= MOST or not open_to_search(env, space):
        return None
    order = np.argsort(_fullest(rows, space), kind="stable")
    chosen = list(rows)
    for alike in np.array_split(order, MOST):
        for layer in alike.tolist():
            chosen[layer] = rows[int(alike[alike.size // 2])]
    return replace(env.workload, expert_load=tuple(chosen))


def _fullest(rows: tuple[Load, ...], space: SearchSpace) -> NDArray[np.float64]:
    """The fullest group's part of every load, where experts are in the place that all loads together were balanced in."""
    domains = [pin.experts for pin in space.layout] or [space.experts]
    found = [pair for domain in domains for pair in domain.searched]
    groups, (placed, *_) = (
        max(found, key=lambda pair: pair[0]) if found else (2, (contiguous_placement(space.sizes.experts, 2),))
    )
    placement = of_row(placed, 0)
    return np.array([largest_load(np.array(row) / sum(row), placement, groups) for row in rows])


def floor_load(rows: tuple[Load, ...]) -> Load:
    """One load under which no GPU's mean work is more than under any of the rows.

    The mean work grows with the experts in use, a sum over experts of a concave function of their shares, which is least
    where the shares are most unequal (Schur-concave; Marshall and Olkin, Inequalities, 1979). This load majorizes all rows:
    its k largest shares sum to the concave hull of the largest such sum of any row.
    """
    falling = -np.sort(-np.array(rows), axis=1)
    sums = np.cumsum(falling / falling.sum(axis=1, keepdims=True), axis=1).max(axis=0)
    hull = [(0, 0.0)]
    for point in enumerate(np.minimum(sums, 1.0).tolist(), start=1):
        while len(hull) > 1 and _below(hull[-2], hull[-1], point):
            hull.pop()
        hull.append(point)
    heights = np.interp(np.arange(sums.size + 1), *np.array(hull).T)
    return tuple(np.maximum(np.diff(heights), 0.0).tolist())


def _below(left: tuple[int, float], middle: tuple[int, float], right: tuple[int, float]) -> bool:
    """Whether the middle point is on or below the line between the others."""
    return (middle[1] - left[1]) * (right[0] - left[0]) <= (right[1] - left[1]) * (middle[0] - left[0])


def floor_workload(workload: Workload) -> Workload:
    """The workload with a few loads that bound its own, each those of the layers about as unequal, where these are many."""
    rows = workload.expert_load
    if len(set(rows)) <= MOST:
        return workload
    shares = np.array(rows)
    order = np.argsort(((shares / shares.sum(axis=1, keepdims=True)) ** 2).sum(axis=1), kind="stable")
    found = list(rows)
    for alike in np.array_split(order, MOST):
        least = floor_load(tuple(rows[layer] for layer in alike.tolist()))
        for layer in alike.tolist():
            found[layer] = least
    return replace(workload, expert_load=tuple(found))
