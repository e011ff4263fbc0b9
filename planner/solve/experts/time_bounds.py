"""Lower bounds of the slowest GPU's seconds, whatever the copies and the packing: whole experts per GPU, not the mean load.

A limit of seconds is refuted by any of these: an expert needs more copies than there are slots; the experts that must be
read and the pairs that must be routed do not fit all GPUs at that limit, when each reads a whole number; or the hottest
experts cannot share a GPU, and do not fit GPUs of their own with the coldest experts in the other slots.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from planner.graph.least import BELOW
from planner.solve.experts.bounds import load_bounds
from planner.solve.experts.costs import CLEAR, CostTable, Mixture, cost_table

Array = NDArray[np.float64]
Ints = NDArray[np.int64]
STEPS = 24
INTERVALS, WIDER = 8, 1.05
"""Intervals of the busiest GPU's part of the pairs: each reaches so much further than the one before, the last to the end."""
SLACK = 2 * CLEAR
"""Pairs and experts that a bound forgives, so that it is none too sharp where a price is rounded."""


def time_bounds(mixture: Mixture, shares: Array, slots: int, seconds: Array) -> Array:
    """Lower bounds [L] of the slowest GPU for shares [L, E] of all pairs; `seconds` [L] are those of known placements.

    The busiest GPU's part of the pairs decides the all-to-all and how many copies there must be: the bound is taken over
    intervals of that part, each with the least all-to-all and the fewest copies that it allows. What a GPU sends grows
    with the groups that a token goes to, a concave function of the parts: least where they are as unequal as can be.
    """
    least, found = load_bounds(shares, mixture.groups, slots), []
    for row, part, known in zip(shares, least.tolist(), seconds.tolist(), strict=True):
        parts = part * np.append(WIDER ** np.arange(INTERVALS), np.inf)
        most, falling, cases = min(1.0, 2.0 * part * WIDER**INTERVALS), np.sort(row)[::-1], []
        for low, cap in zip(parts[:-1].tolist(), parts[1:].tolist(), strict=True):
            whole = min(cap, 1.0)  # parts of at most this much: a token goes to the fewest groups where they are largest
            spread, reach = mixture.reach(whole) / whole * BELOW, mixture.reach(low)
            table = cost_table(mixture, slots, most, spread, reach, mixture.floor(row, slots, spread, reach))
            cases.append(_Case(mixture, table, falling, slots, cap))
        found.append(_time_bound(cases, known))
    return np.array(found)


def _time_bound(cases: list[_Case], seconds: float) -> float:
    """The largest limit found that every interval refutes."""
    low, high = 0.0, seconds * (1.0 - 1e-9)
    if all(case.refuted(high) for case in cases):
        return high
    for _ in range(STEPS):
        middle = 0.5 * (low + high)
        low, high = (middle, high) if all(case.refuted(middle) for case in cases) else (low, middle)
    return low


def fractional_bound(mixture: Mixture, shares: Array, slots: int) -> float:
    """The price of a GPU with the mean of pairs and experts read: what a bound by mean load says of shares [E]."""
    part = float(load_bounds(shares[None], mixture.groups, slots)[0])
    table = cost_table(mixture, slots, min(1.0, 2.0 * part), 0.0, mixture.reach(part))
    weights = mixture.copy_weights(shares, np.ones(shares.shape, dtype=np.int64)).sum(axis=1) / mixture.groups
    return float(table.blended(weights))


@dataclass(frozen=True)
class _Case:
    """A layer whose experts are sorted by falling share [E], no GPU with more than `cap` of all pairs.

    `table` is priced with the least all-to-all that a placement of this kind can have.
    """

    mixture: Mixture
    table: CostTable
    shares: Array
    slots: int
    cap: float

    def refuted(self, limit: float) -> bool:
        """Whether no placement has every GPU done within `limit` seconds."""
        copies = self._copies(limit)
        groups = self.mixture.groups
        if copies is None or int(copies.sum()) > groups * self.slots:
            return True
        room = _Room(self.table, limit, self.cap * self.mixture.pairs)
        routed, read = self.mixture.copy_weights(self.shares, copies)
        if self.mixture.within:  # copies near the sender are not equally busy: no more is sure than that each expert is read
            reads = float(self.mixture.copy_weights(self.shares, np.ones_like(copies))[1].sum())
        else:
            reads = float((read * copies).sum())
        if not room.holds(groups, reads, float((routed * copies).sum())):
            return True
        return groups * self.slots == self.shares.size and self._hottest_refuted(room, routed, read, limit)

    def _copies(self, limit: float) -> Ints | None:
        """Fewest copies [E] of each expert that a GPU can hold within the limit; None where even the most are too few."""
        fits = self._single <= limit
        return np.asarray(fits.argmax(axis=0) + 1) if fits.any(axis=0).all() else None

    @cached_property
    def _single(self) -> Array:
        """Least seconds [copies, E] of a GPU with one of 1, 2, ... copies; inf where it is more than its part of the pairs."""
        spare = self.mixture.groups * self.slots - self.shares.size
        counts = np.arange(1, min(self.mixture.groups, 1 + spare) + 1)[:, None]
        weights = self.mixture.copy_weights(np.broadcast_to(self.shares, (counts.size, self.shares.size)), counts)
        return np.where(self.shares / counts > self.cap * (1.0 + SLACK), np.inf, self._least(weights))

    def _least(self, weights: Array) -> Array:
        """Lower bound of a GPU that holds at least these weights [2, ...]."""
        routed = np.minimum(np.ceil(weights[0] - SLACK).astype(np.int64), self.table.grid[-1])
        active = np.minimum(np.ceil(weights[1] - SLACK).astype(np.int64), self.slots)
        return np.asarray(self.table.least[active, self.table.below[routed]])

    def _hottest_refuted(self, room: _Room, routed: Array, read: Array, limit: float) -> bool:
        """No spare slot: the k hottest on GPUs of their own, or two of them on one, with the coldest in the other slots."""
        weights = np.stack([routed, read])
        zero = np.zeros((2, 1))
        hottest = np.concatenate([zero, np.cumsum(weights, axis=1)], axis=1)
        coldest = np.concatenate([zero, np.cumsum(weights[:, ::-1], axis=1)], axis=1)
        for k in range(1, self.mixture.groups + 1):
            if k > 1:
                pair = weights[:, k - 1] + weights[:, k - 2] + coldest[:, max(self.slots - 2, 0)]
                if self.slots > 1 and self._least(pair[:, None])[0] <= limit:
                    return False
            total = hottest[:, k] + coldest[:, k * (self.slots - 1)]
            if not room.holds(k, float(total[1]), float(total[0])):
                return True
        return False


class _Room:
    """Most pairs that a GPU can take within a limit, by the number of experts it reads."""

    def __init__(self, table: CostTable, limit: float, cap: float) -> None:
        fits = table.least <= limit
        last = fits.sum(axis=1) - 1  # the envelope does not fall along a row
        beyond = np.append(table.grid[1:] - 1, np.iinfo(np.int64).max // 4).astype(np.float64)
        most = np.where(last >= 0, np.minimum(beyond[np.maximum(last, 0)], cap), -np.inf)
        self.counts = np.nonzero(np.isfinite(most))[0]
        self.most = most[self.counts]

    def holds(self, gpus: int, read: float, routed: float) -> bool:
        """Whether `gpus` GPUs may read at least `read` experts in all, whole ones on each, and take `routed` pairs."""
        needed = int(np.ceil(read - SLACK))
        if not self.counts.size or needed > int(self.counts[-1]) * gpus:
            return False
        return self._most_pairs(needed / gpus) * gpus >= routed - SLACK

    def _most_pairs(self, mean: float) -> float:
        """Most pairs per GPU where GPUs read `mean` experts on average or more: on the hull of what single GPUs can do."""
        more = self.counts >= mean
        best = float(self.most[more].max(initial=-np.inf))
        low, high = self.counts[~more][:, None], self.counts[more][None, :]
        if not low.size or not high.size:
            return best
        part = (mean - low) / (high - low)
        return max(best, float(((1.0 - part) * self.most[~more][:, None] + part * self.most[more]).max()))
