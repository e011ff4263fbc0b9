"""Placements for nodes: the hottest experts have a copy on every node, which serves the tokens of its own GPUs."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from planner.solve.experts.costs import Placement

Array = NDArray[np.float64]


def node_placements(loads: Array, groups: int, near: int, slots: int) -> list[Placement] | None:
    """Placements of every layer's experts, loads [L, E], on groups with `slots` slots each, `near` consecutive ones to a node:
    as many of the hottest as there is room for on every node, the others once; None where there is room for none.

    First the others, then the hottest: each in falling order to the group with least load that has room. So what comes from
    other nodes, the tokens of experts without a copy, is as even as the load.
    """
    layers, experts = loads.shape
    nodes, copied = groups // near, experts
    while copied and near * (slots - _others(experts, copied, groups)) < copied:
        copied -= 1
    if not copied:
        return None
    order = np.argsort(-loads, axis=1, kind="stable")
    room = np.full((layers, groups), _others(experts, copied, groups))
    held, every = np.zeros((layers, groups)), np.arange(layers)
    where: list[list[list[int]]] = [[[] for _ in range(experts)] for _ in range(layers)]

    def put(rank: int, first: int, last: int, part: float) -> None:
        expert, free = order[:, rank], room[:, first:last] > 0
        group = first + np.where(free, held[:, first:last], np.inf).argmin(axis=1)
        held[every, group] += loads[every, expert] * part
        room[every, group] -= 1
        for layer, (e, g) in enumerate(zip(expert.tolist(), group.tolist(), strict=True)):
            where[layer][e].append(g)

    for rank in range(copied, experts):
        put(rank, 0, groups, 1.0)
    room += slots - _others(experts, copied, groups)
    for rank in range(copied):
        for first in range(0, groups, near):
            put(rank, first, first + near, 1.0 / nodes)
    return [tuple(tuple(held) for held in row) for row in where]


def _others(experts: int, copied: int, groups: int) -> int:
    """Experts without copies on a group, at most."""
    return -(-(experts - copied) // groups)
