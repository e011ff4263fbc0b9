"""Placements that make the slowest GPU fast: weight reads, tiles and the all-to-all as the planner prices them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from planner.solve.experts.copies import even_copies
from planner.solve.experts.costs import CostTable, Mixture, Placement, cost_table
from planner.solve.experts.load import balance
from planner.solve.experts.packing import Packing, improve, pack_longest_first, shake
from planner.solve.experts.time_bounds import fractional_bound, time_bounds

Array = NDArray[np.float64]
Ints = NDArray[np.int64]

SHARES = (0.0, 0.125, 0.25, 0.5, 1.0)
"""Shares of the spare slots that are tried: a copy costs another read of its weights."""
CLONES, GENERATIONS = 8, 4
CLOSE = 1e-3
EQUAL = 1e-6
"""Part of a time that is not worth a copy."""


@dataclass(frozen=True, slots=True)
class Timed:
    """One layer's placement, the seconds of its slowest GPU for one micro-batch, and what no placement goes below.

    `bound` counts whole experts per GPU, `fractional` only the mean of all GPUs; `greedy_s` is the best start of the
    search: longest first by time. `copies` counts those beyond one each, `extra_bytes` the memory that they take on the
    GPU with most experts.
    """

    placement: Placement
    seconds: float
    bound: float
    fractional: float
    greedy_s: float
    copies: int
    extra_bytes: float

    @property
    def gap(self) -> float:
        """Relative distance of the bound."""
        return (self.seconds - self.bound) / self.seconds if self.seconds > 0 else 0.0


def fastest(mixture: Mixture, loads: Array, slots: int, effort: int = GENERATIONS) -> tuple[Timed, ...]:
    """Placements of every layer's experts, loads [L, E], on the groups of `mixture` with `slots` slots each.

    Each is priced by the role of the mixture itself; the search goes by tables of that price (`costs`). `effort` says how
    often a layer that stays above its bound is shaken.
    """
    spare = mixture.groups * slots - loads.shape[1]
    counts = [int(share * spare) for share in (SHARES if spare else SHARES[:1])]
    shares, names = loads / loads.sum(axis=1, keepdims=True), [tuple(row) for row in loads.tolist()]
    table, greedy, seconds, best = _packed_fast(mixture, loads, slots, counts)
    bounds = time_bounds(mixture, shares, slots, seconds)
    far = np.nonzero(seconds > bounds * (1.0 + CLOSE))[0]
    if far.size and effort:
        again = _packed(mixture, shares, best, slots).take(far)
        shake(again, table.whole, bounds[far], CLONES, effort, pairs=False)
        seconds[far], some = _better(mixture, again, [names[i] for i in far], seconds[far], [best[i] for i in far])
        for at, placement in zip(far.tolist(), some, strict=True):
            best[at] = placement
    fractional = np.array([fractional_bound(mixture, row, slots) for row in shares])
    return _answers(mixture, best, seconds, np.minimum(bounds, seconds), fractional, greedy)


def quickly(mixture: Mixture, loads: Array, slots: int, copies: int) -> list[Placement]:
    """Placements of many layers, loads [L, E], with so many copies at most: packed and improved, without bounds."""
    return _packed_fast(mixture, loads, slots, [copies])[-1]


def _packed_fast(
    mixture: Mixture, loads: Array, slots: int, counts: Sequence[int]
) -> tuple[CostTable, Array, Array, list[Placement]]:
    """The cost table, seconds [L] of the best greedy start, and the seconds [L] and placements that are best after swaps, with
    each of these numbers of copies tried.
    """
    shares, groups = loads / loads.sum(axis=1, keepdims=True), mixture.groups
    even = balance(loads, groups, slots, exact=False)
    largest = max(answer.largest / answer.mean for answer in even) / groups
    table = cost_table(mixture, slots, min(1.0, 2.0 * largest), 0.0, mixture.reach(largest))
    names = [tuple(row) for row in loads.tolist()]
    best = [answer.placement for answer in even]
    seconds = mixture.placed_seconds(best, names)
    greedy = np.full(seconds.shape, np.inf)
    for count in counts:
        packing = _start(mixture, table, shares, even_copies(loads, count, groups), slots)
        greedy = np.minimum(greedy, mixture.placed_seconds(packing.placements(), names))
        seconds, best = _better(mixture, packing, names, seconds, best)
        for cost in (table.blended, table.whole):
            improve(packing, cost, np.zeros(len(names)), pairs=False)
            seconds, best = _better(mixture, packing, names, seconds, best)
    return table, greedy, seconds, best


def _start(mixture: Mixture, table: CostTable, shares: Array, copies: Ints, slots: int) -> Packing:
    """Copies packed longest first, by the time of a GPU that holds one alone."""
    weights = mixture.copy_weights(shares, copies)
    return pack_longest_first(weights, copies, mixture.groups, slots, table.blended, table.blended(weights))


def _packed(mixture: Mixture, shares: Array, placements: list[Placement], slots: int) -> Packing:
    """Known placements as a packing."""
    layers, experts = shares.shape
    copies = np.array([[len(held) for held in placement] for placement in placements], dtype=np.int64)
    weights = np.concatenate([mixture.copy_weights(shares, copies), np.zeros((2, layers, 1))], axis=2)
    held = np.zeros((layers, experts + 1, mixture.groups), dtype=bool)
    place = np.full((layers, mixture.groups, slots), experts, dtype=np.int64)
    for layer, placement in enumerate(placements):
        count = np.zeros(mixture.groups, dtype=np.int64)
        for expert, groups in enumerate(placement):
            at = np.array(groups)
            held[layer, expert, at] = True
            place[layer, at, count[at]] = expert
            count[at] += 1
    sums = np.einsum("dle,leg->dlg", weights, held.astype(np.float64))
    return Packing(place, weights, sums, held)


def _better(
    mixture: Mixture, packing: Packing, loads: list[tuple[float, ...]], seconds: Array, best: list[Placement]
) -> tuple[Array, list[Placement]]:
    """Whichever is faster, layer by layer; of those as good as equal the one with fewer copies."""
    other = packing.placements()
    priced = mixture.placed_seconds(other, loads)
    fewer = np.array([sum(map(len, new)) < sum(map(len, old)) for new, old in zip(other, best, strict=True)])
    taken = priced < seconds * np.where(fewer, 1.0 + EQUAL, 1.0 - EQUAL)
    chosen = [new if own else old for new, old, own in zip(other, best, taken.tolist(), strict=True)]
    return np.where(taken, priced, seconds), chosen


def _answers(
    mixture: Mixture, best: list[Placement], seconds: Array, bounds: Array, fractional: Array, greedy: Array
) -> tuple[Timed, ...]:
    found, each = [], mixture.expert_bytes()
    for placement, *numbers in zip(best, seconds.tolist(), bounds.tolist(), fractional.tolist(), greedy.tolist(), strict=True):
        held = np.bincount([g for groups in placement for g in groups], minlength=mixture.groups)
        without = -(-len(placement) // mixture.groups)
        copies = sum(map(len, placement)) - len(placement)
        extra = max(0, int(held.max()) - without) * each
        found.append(Timed(placement, numbers[0], numbers[1], numbers[2], numbers[3], copies, extra))
    return tuple(found)
