"""The exact optimum of one branch: sweeps of the dynamic program with a falling limit on the slowest time."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from planner.solve.dp import LevelSweep, Path, PipelineTable
from planner.solve.objective import Objective

Array = NDArray[np.float64]
SAME = 1e-9
"""Values this close, relative to each other, are a tie."""


@dataclass(frozen=True)
class BranchOptimum:
    """The best pipeline of a branch that beats the cutoff (None if none does), and how many sweeps it took."""

    path: Path | None
    value: float
    sweeps: int
    least_chain: float
    least_slowest: float


def branch_optimum(
    table: PipelineTable, objective: Objective, cutoff: float = np.inf, first_end: int = 1, last_end: int | None = None
) -> BranchOptimum:
    """Least objective below `cutoff` of pipelines that use at least `first_end` and at most `last_end` ranks.

    A sweep finds the least chain under a limit. Any pipeline whose slowest time is at least that of the one found has
    no smaller chain, so it is no better: the limit falls below it. The sweeps end when even the least slowest time
    cannot make up for the chain.
    """
    end = table.ranks if last_end is None else last_end
    slowest = float(table.sweep(minimax=True).final[first_end : end + 1].min())
    best, path, sweeps, limit, least = cutoff, None, 1, np.inf, np.inf
    while np.isfinite(slowest) and slowest <= limit:
        sweep = table.sweep(limit)
        sweeps += 1
        final = sweep.final[first_end : end + 1]
        chain = float(final.min())
        least = min(least, chain)
        if not np.isfinite(chain) or objective.value(chain, slowest) >= best:
            break
        at = np.unravel_index(int((final > chain * (1 + SAME)).argmin()), final.shape)
        found = sweep.path(first_end + int(at[0]), int(at[1]))
        value = objective.value(found.chain, found.slowest)
        if value < best:
            best, path = value, found
        limit = float(np.nextafter(found.slowest, 0.0))
    return BranchOptimum(path, best if path else np.inf, sweeps, least, slowest)


def stage_count_optima(table: PipelineTable, objective: Objective, levels: int, cutoffs: Array) -> Array:
    """Least objective of pipelines of 1, 2, ... `levels` stages, where it beats that count's cutoff (else inf) [levels].

    The sweeps are those of `branch_optimum` under one limit for all counts, which falls below the largest slowest time of
    the counts that are still open.
    """
    best, found, limit = cutoffs.copy(), np.full(levels, np.inf), np.inf
    slowest = LevelSweep(table, levels, minimax=True).final[:, 1:].min(axis=(1, 2))
    active = np.isfinite(slowest)
    while active.any():
        sweep, longest = LevelSweep(table, levels, limit), 0.0
        chain = sweep.final[:, 1:].min(axis=(1, 2))
        for level in np.nonzero(active)[0].tolist():
            if not np.isfinite(chain[level]) or objective.value(float(chain[level]), float(slowest[level])) >= best[level]:
                active[level] = False
                continue
            end, w = np.unravel_index(int(sweep.final[level, 1:].argmin()), sweep.final[level, 1:].shape)
            time = sweep.slowest(level, int(end) + 1, int(w))
            value, longest = objective.value(float(chain[level]), time), max(longest, time)
            if value < best[level]:
                best[level] = found[level] = value
        limit = float(np.nextafter(longest, 0.0))
        active &= slowest <= limit
    return found
