"""Placements that balance load: experts and their copies over GPUs so that the fullest one has little, with a bound."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from planner.solve.experts.bounds import load_bounds
from planner.solve.experts.copies import even_copies
from planner.solve.experts.exact import SMALL, least_load
from planner.solve.experts.packing import Packing, improve, load_cost, pack_longest_first, shake

Array = NDArray[np.float64]
Ints = NDArray[np.int64]
Placement = tuple[tuple[int, ...], ...]

CLOSE = 1e-4
"""Relative distance from the bound at which a packing is left as it is."""
FEWER = (0.0, 0.5)
"""Shares of the spare slots that are tried besides all of them, where a layer is not close to its bound."""
SHAKEN = 1e-3
"""Relative distance from the bound above which a packing is shaken: `CLONES` at a time, `GENERATIONS` times at most."""
CLONES, GENERATIONS = 16, 12


@dataclass(frozen=True, slots=True)
class Balanced:
    """One layer's placement (GPUs of every expert), the load of its fullest GPU, and what no placement goes below.

    Loads are in the unit they came in; `mean` is the load of all experts over the GPUs. `copies` counts those beyond one
    each. `proof` says how the bound was found: `bound` in closed form, `exact` by CP-SAT.
    """

    placement: Placement
    largest: float
    mean: float
    bound: float
    copies: int
    proof: str = "bound"

    @property
    def gap(self) -> float:
        """Relative distance of the bound."""
        return (self.largest - self.bound) / self.largest if self.largest > 0 else 0.0


def balance(loads: Array, groups: int, slots: int, *, exact: bool = True) -> tuple[Balanced, ...]:
    """Placements of every layer's experts, loads [L, E], on `groups` GPUs with `slots` slots each.

    Copies of an expert share its load equally and stand on different GPUs; slots may stay empty. Longest first, then
    exchanges (`packing`), with as many copies as there is room for and with fewer; `exact` closes small layers by CP-SAT.
    Raises `ValueError` where the experts do not fit the slots.
    """
    experts = loads.shape[1]
    if groups * slots < experts:
        raise ValueError(f"{experts} experts do not fit {groups} x {slots} slots")
    bounds = load_bounds(loads, groups, slots)
    goal = bounds * (1.0 + CLOSE)
    best = packed(loads, groups, slots, goal, even_copies(loads, groups * slots - experts, groups))
    for share in FEWER:
        value = best.sums[0].max(axis=1)
        far = np.nonzero(value > bounds * (1.0 + SHAKEN))[0]
        if far.size and groups * slots > experts:
            fewer = even_copies(loads[far], int(share * (groups * slots - experts)), groups)
            other = packed(loads[far], groups, slots, goal[far], fewer)
            better = np.nonzero(other.sums[0].max(axis=1) < value[far])[0]
            best.put(far[better], other.take(better))
    shake(best, load_cost, bounds * (1.0 + SHAKEN), CLONES, GENERATIONS)
    found = []
    for layer, placement in enumerate(best.placements()):
        copies = sum(map(len, placement)) - experts
        mean = float(loads[layer].sum() / groups)
        answer = Balanced(placement, largest_load(loads[layer], placement, groups), mean, float(bounds[layer]), copies)
        if exact and answer.gap > CLOSE and groups * slots <= SMALL:
            answer = _closed(answer, loads[layer], groups, slots)
        found.append(answer)
    return tuple(found)


def packed(loads: Array, groups: int, slots: int, goal: Array, copies: Ints) -> Packing:
    """Copies packed and improved down to `goal` [L] where that works."""
    size = loads / copies
    packing = pack_longest_first(size[None], copies, groups, slots, load_cost, size)
    improve(packing, load_cost, goal)
    return packing


def largest_load(loads: Array, placement: Placement, groups: int) -> float:
    """Load of the fullest GPU of a placement, loads [E]; copies share equally."""
    held = np.zeros(groups)
    for expert, places in enumerate(placement):
        held[list(places)] += loads[expert] / len(places)
    return float(held.max())


def _closed(answer: Balanced, loads: Array, groups: int, slots: int) -> Balanced:
    """A small layer's answer closed by CP-SAT: a better placement, a higher bound, or both."""
    solved = least_load(loads, groups, slots, answer.placement)
    placement, largest = answer.placement, answer.largest
    if solved.placement is not None:
        value = largest_load(loads, solved.placement, groups)
        if value < largest:
            placement, largest = solved.placement, value
    bound = min(max(answer.bound, solved.bound), largest)
    return Balanced(placement, largest, answer.mean, bound, sum(map(len, placement)) - loads.size, "exact")
