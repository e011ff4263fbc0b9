"""The exact optimum of a branch: sweeps of the dynamic program under limits on the slowest time, halved where it matters.

A sweep under a limit gives the least chain of any pipeline whose stages and sends all stay within it. So a pipeline whose
slowest time lies in (low, high] is worth at least the objective of that chain with `low`: intervals that cannot beat the
best value known are closed, the others are halved at the times that stages and sends really have.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from planner.solve.dp import LevelSweep, Path, PipelineTable
from planner.solve.objective import SAME, Objective

Array = NDArray[np.float64]

Sweep = Callable[[float], tuple[Array, Array]]
"""Least chain and slowest time of the pipeline that has it, per lane, under a limit (inf where there is none)."""


@dataclass(frozen=True)
class BranchOptimum:
    """The best pipeline of a branch that beats the cutoff (None if none does), and how many sweeps it took."""

    path: Path | None
    value: float
    sweeps: int


class _Search:
    """Best values per lane, by halving intervals of limits that lanes share."""

    def __init__(self, sweep: Sweep, objective: Objective, times: Array, slowest: Array, cutoffs: Array) -> None:
        self.sweep, self.objective, self.times, self.slowest = sweep, objective, times, slowest
        self.best, self.sweeps = cutoffs.copy(), 0

    def run(self) -> Array:
        """Least value per lane that beats its cutoff, else the cutoff."""
        if np.isfinite(self.slowest).any():
            low = int(np.searchsorted(self.times, self.slowest.min() * (1 - SAME)))
            self._close(low - 1, self.times.size - 1, *self._probe(self.times.size - 1))
        return self.best

    def _probe(self, index: int) -> tuple[Array, Array]:
        """Sweep with the limit `times[index]` and keep what is better than the best known."""
        self.sweeps += 1
        chain, slowest = self.sweep(float(self.times[index]))
        value = np.where(np.isfinite(chain), self.objective.values(chain, np.where(np.isfinite(chain), slowest, 0.0)), np.inf)
        self.best = np.minimum(self.best, value)
        return chain, slowest

    def _close(self, low: int, high: int, chain: Array, slowest: Array) -> None:
        """Close the pipelines whose slowest time is one of `times[low + 1 .. high]`; `chain` is the least under the latter."""
        while True:
            finite = np.isfinite(chain)
            floor = np.where(finite, np.maximum(self.slowest, self.times[low + 1]), 0.0)
            bound = np.where(finite, self.objective.values(np.where(finite, chain, 0.0), floor), np.inf)
            open_lanes = bound < self.best * (1 - SAME)
            if not open_lanes.any():
                return
            high = min(high, int(np.searchsorted(self.times, slowest[open_lanes].max())) - 1)
            if high <= low:
                return
            middle = (low + high) // 2 if high - low > 1 else high
            found = self._probe(middle)
            if middle == high:
                chain, slowest = found
                continue
            self._close(middle, high, chain, slowest)
            high, (chain, slowest) = middle, found


def branch_optimum(
    table: PipelineTable, objective: Objective, cutoff: float = np.inf, first_end: int = 1, last_end: int | None = None
) -> BranchOptimum:
    """Least objective below `cutoff` of pipelines that use at least `first_end` and at most `last_end` ranks."""
    ends = slice(first_end, (table.ranks if last_end is None else last_end) + 1)
    least = table.sweep(minimax=True, ends=ends).final[ends].min()
    found: list[Path] = []

    def sweep(limit: float) -> tuple[Array, Array]:
        run = table.sweep(limit, ends=ends)
        final = run.final[ends]
        chain = float(final.min())
        if not np.isfinite(chain):
            return np.array([np.inf]), np.array([np.inf])
        at = np.unravel_index(int((final > chain * (1 + SAME)).argmin()), final.shape)
        found.append(run.path(first_end + int(at[0]), int(at[1])))
        return np.array([found[-1].chain]), np.array([found[-1].slowest])

    search = _Search(sweep, objective, table.times, np.array([least]), np.array([cutoff]))
    search.run()
    better = [path for path in found if objective.value(path.chain, path.slowest) < cutoff]
    if not better:
        return BranchOptimum(None, np.inf, search.sweeps)
    best = min(better, key=lambda path: objective.value(path.chain, path.slowest))
    return BranchOptimum(best, objective.value(best.chain, best.slowest), search.sweeps)


def stage_count_optima(
    table: PipelineTable, objective: Objective, levels: int, cutoffs: Array, last_end: int | None = None
) -> Array:
    """Least objective of pipelines of 1, 2, ... `levels` stages on at most `last_end` ranks, or that count's cutoff where
    none beats it [levels].
    """
    ends = slice(1, (table.ranks if last_end is None else last_end) + 1)
    least = LevelSweep(table, levels, minimax=True).final[:, ends].min(axis=(1, 2), initial=np.inf)

    def sweep(limit: float) -> tuple[Array, Array]:
        run = LevelSweep(table, levels, limit)
        final = run.final[:, ends]
        chain, slowest = final.min(axis=(1, 2), initial=np.inf), np.full(levels, np.inf)
        for level in np.nonzero(np.isfinite(chain))[0].tolist():
            end, w = np.unravel_index(int(final[level].argmin()), final[level].shape)
            slowest[level] = run.slowest(level, int(end) + 1, int(w))
        return chain, slowest

    return _Search(sweep, objective, table.times, least, cutoffs).run()
