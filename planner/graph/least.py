"""Least: what no placement of a mixture's experts goes below on its fullest GPU, wherever they are (a bound)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from planner.graph.experts import Load, MoeTable
from planner.graph.flows import Floor, chance, smallest_block
from planner.graph.rows import Ints
from planner.model import Ffn
from search_spaces.experts import ExpertPlacement, most_held, serves

EVERYTHING = (1.0, np.inf)
BELOW = 1.0 - 1e-9
"""So that what is rounded up to whole tokens is not one more by the last digit of a number."""
INTERVALS = ((1.0, 1.2), (1.2, 1.6), (1.6, 3.0), (3.0, np.inf))
"""Intervals that the fullest group's pairs may lie in, over the mean of all groups: the least of all of them is a bound."""


def least_table(ffn: Ffn, placements: Sequence[tuple[ExpertPlacement, int]], load: Load) -> MoeTable:
    """Two entries for each (placement, GPUs) that no placement on as many groups goes below on its fullest GPU."""
    return least_tables(ffn, placements, [load])


def least_tables(
    ffn: Ffn,
    placements: Sequence[tuple[ExpertPlacement, int]],
    loads: Sequence[Load],
    fullest: tuple[float, float] = EVERYTHING,
    neighbours: int = 0,
) -> MoeTable:
    """The same for several loads, one after another (see `moe_tables`), of placements whose fullest group gets a part of all
    routed pairs in the interval `fullest`, over the mean of the groups.

    Some GPU gets at least the lower end of it, for the fewest experts that get as much (those with most). Some GPU reads at
    least the mean of the experts in use, rounded up, with a pair for each. Some GPU holds at least the mean of the experts, and
    every GPU the columns of a shared expert that the last one has. The groups that a token goes to grow with the groups' parts
    of its pairs, a concave function: they are fewest where as few groups as can be have the largest part.

    Where copies may serve the `neighbours` GPUs around them first, a group may get all pairs of experts with copies from its
    own block of GPUs; there are no more such experts than slots beyond one for each.
    """
    weights = np.array([load or (1.0,) * ffn.experts for load in loads]).reshape(len(loads), ffn.experts)
    weights = weights / weights.sum(axis=1, keepdims=True)
    ways, tensor, within = (
        np.tile(np.array(column, dtype=np.int64).repeat(2), len(loads))
        for column in zip(*((ways, p.tensor_ways, _within(p, ways, neighbours)) for p, ways in placements), strict=True)
    )
    groups, owner = ways // tensor, np.arange(len(placements) * len(loads)).repeat(2)
    low, high = (np.minimum(1.0, end / groups) for end in fullest)
    part = np.where(within > 0, smallest_block(ways, within) / ways, 1.0)  # of all senders
    kept = np.concatenate([np.zeros((len(loads), 1)), np.cumsum(-np.sort(-weights, axis=1), axis=1)], axis=1)
    spare = np.where(within > 0, groups * _most_held(ffn.experts, groups) - ffn.experts, 0)
    copied = kept[owner // len(placements), np.minimum(spare, ffn.experts)]
    spread = ((1.0 - copied) * chance(high, ffn.top_k) + copied * part * chance(high / part, ffn.top_k)) / high * BELOW
    reach = part * chance(low / part, ffn.top_k)
    reads = np.arange(owner.size) % 2 == 1
    falling, first = np.diff(kept, axis=1)[owner // len(placements)], kept[owner // len(placements), :-1]
    shares = np.where(reads[:, None], falling, np.clip(low[:, None] - first, 0.0, falling))
    busiest = tensor * np.maximum(spread, groups * reach)
    columns = (column[::2].tolist() for column in (spare, within, tensor, busiest))
    floors = enumerate(zip(*columns, strict=True))
    flows = tuple(Floor(tuple(kept[at // len(placements)].tolist()), ffn.top_k, *row) for at, row in floors)
    read = np.where(reads, 1.0 / groups, 1.0)
    return MoeTable(owner, ways, tensor, -(-ffn.experts // groups), ways - 1, spread, reach, shares, read, flows)


def _within(placement: ExpertPlacement, ways: int, neighbours: int) -> int:
    """GPUs that may serve one another's tokens first; 0: copies take turns."""
    near = placement.form == "dispatch" and serves(neighbours, placement.tensor_ways, ways)
    return neighbours if near else 0


def _most_held(experts: int, groups: Ints) -> Ints:
    return np.array([most_held(experts, count) for count in groups.tolist()], dtype=np.int64)
