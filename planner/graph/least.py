"""Least: what no placement of a mixture's experts goes below on its fullest GPU, wherever they are (a bound)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from planner.graph.experts import Load, MoeTable
from planner.graph.flows import Floor
from planner.graph.rows import Ints
from planner.model import Ffn
from search_spaces.experts import ExpertPlacement, most_held

EVERYTHING = (1.0, np.inf)
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

    Some GPU gets at least the lower end of it, for one expert or more. Some GPU reads at least the mean of the experts in use,
    rounded up, with a pair for each. Some GPU holds at least the mean of the experts. The groups that a token goes to grow with
    the groups' parts of its pairs, a concave function: they are fewest where as few groups as can be have the largest part.

    Where copies may serve the `neighbours` GPUs around them first, a group's part of the pairs of one block of GPUs may be as
    many times larger as there are blocks, and what stays in a domain is what the experts get that fit there at most.
    """
    weights = np.array([load or (1.0,) * ffn.experts for load in loads]).reshape(len(loads), ffn.experts)
    weights = weights / weights.sum(axis=1, keepdims=True)
    ways, tensor, blocks = (
        np.tile(np.array(column, dtype=np.int64).repeat(2), len(loads))
        for column in zip(*((ways, p.tensor_ways, _blocks(p, ways, neighbours)) for p, ways in placements), strict=True)
    )
    groups, owner = ways // tensor, np.arange(len(placements) * len(loads)).repeat(2)
    low, high = (np.minimum(1.0, end / groups) for end in fullest)
    most = np.minimum(1.0, high * blocks)
    spread = _chance(most, ffn.top_k) / most
    reach = _chance(np.minimum(1.0, low * blocks), ffn.top_k) / blocks
    reads = np.arange(owner.size) % 2 == 1
    shares = np.where(reads[:, None], weights.repeat(2 * len(placements), axis=0), 0.0)
    shares[:, 0] = np.where(reads, shares[:, 0], low)
    part = np.where(reads, 1.0 / groups, 1.0)
    flows = _floors(ffn, weights, groups[::2], tensor[::2], blocks[::2], spread[::2])
    return MoeTable(owner, ways, tensor, -(-ffn.experts // groups), np.zeros_like(owner), spread, reach, shares, part, flows)


def _blocks(placement: ExpertPlacement, ways: int, neighbours: int) -> int:
    """Blocks of GPUs whose copies may serve their own tokens first; 1: copies take turns."""
    near = placement.form == "dispatch" and neighbours and neighbours % placement.tensor_ways == 0
    return -(-ways // neighbours) if near else 1


def _chance(part: NDArray[np.float64], top_k: int) -> NDArray[np.float64]:
    """Chance that a token goes to a group with a part of its pairs, of which it has `top_k` (see `planner.graph.experts`)."""
    return np.asarray(1.0 - (1.0 - part) ** top_k)


def _floors(
    ffn: Ffn, weights: NDArray[np.float64], groups: Ints, tensor: Ints, blocks: Ints, spread: NDArray[np.float64]
) -> tuple[Floor, ...]:
    """The floor of every owner's flow."""
    kept = [(0.0, *row) for row in np.cumsum(-np.sort(-weights, axis=1), axis=1).tolist()]
    each = len(groups) // len(weights)
    held = [most_held(ffn.experts, g) if b > 1 else 0 for g, b in zip(groups.tolist(), blocks.tolist(), strict=True)]
    columns = enumerate(zip(held, tensor.tolist(), spread.tolist(), strict=True))
    return tuple(Floor(kept[at // each], *row) for at, row in columns)
