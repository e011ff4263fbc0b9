"""Options of a stage that no proof needs: beside another one that is at most as dear in every single cost of every layer."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from planner.evaluate.tables import Bill, StageTable

Array = NDArray[np.float64]
Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]


def needed(costs: Array) -> Ints:
    """Rows of `costs` [N, C] such that every row has one of them that is nowhere above it, ascending."""
    order = np.lexsort((np.arange(len(costs)), costs.sum(axis=1)))  # what is nowhere above a row has no larger sum
    kept = list[int]()
    while order.size:
        least = order[0]
        kept.append(int(least))
        order = order[(costs[order] < costs[least]).any(axis=1)]
    return np.array(sorted(kept), dtype=np.int64)


def needed_pairs(table: StageTable, batch: int, allowed: Bools, split: Ints, resident: Array) -> tuple[Ints, Ints]:
    """Partitions and FFN options [N] of the allowed pairs [A, F] of the first site that no proof can do without.

    Seconds and memory of a stage never fall when a cost of a layer rises, so the least seconds of any layers under any limit on
    the memory are those of a pair that is kept. Partitions are compared that split the residual stream alike (`split` [A]) and
    go with the same FFN options; `resident` [A] are the sequences whose cache a GPU keeps.
    """
    near = _near_costs(table, batch, resident)
    groups: dict[tuple[int, bytes], list[int]] = {}
    for a in np.nonzero(allowed.any(axis=1))[0].tolist():
        groups.setdefault((int(split[a]), allowed[a].tobytes()), []).append(a)
    found = []
    for (shard, _), members in groups.items():
        some, others = np.array(members), np.nonzero(allowed[members[0]])[0]
        rows, columns = some[needed(near[some])], others[needed(_far_costs(table, batch, shard, others))]
        found.append(np.stack([np.repeat(rows, columns.size), np.tile(columns, rows.size)]))
    pairs = np.concatenate(found, axis=1) if found else np.zeros((2, 0), dtype=np.int64)
    return pairs[0], pairs[1]


def _near_costs(table: StageTable, batch: int, resident: Array) -> Array:
    """What attention of every partition costs in a layer of each kind, as columns [A, C]."""
    columns = [resident] if _others_keep_cache(table) else []
    for bill in _distinct(table.attention):
        held = bill.weights[0, batch] + bill.cache[0, batch] * resident
        columns += [bill.seconds[0, batch], held, bill.peak[0, batch]]
    return np.stack(columns, axis=1)


def _far_costs(table: StageTable, batch: int, shard: int, ffns: Ints) -> Array:
    """What some FFN options cost in a layer of each kind, as columns [F, C]."""
    columns = []
    for bill, own in zip(table.ffn, table.own, strict=True):
        at = (0, batch, shard, own[ffns])
        columns += [bill.seconds[at], bill.weights[at], bill.cache[at], bill.peak[at]]
    return np.stack(columns, axis=1)


def _others_keep_cache(table: StageTable) -> bool:
    """Whether anything but attention keeps a cache, so that the sequences resident on a GPU are a cost of their own."""
    others = [*table.ffn, table.embedding, table.receive, table.head]
    return any(bill is not None and bool(np.any(bill.cache)) for bill in others)


def _distinct(bills: tuple[Bill, ...]) -> list[Bill]:
    """Every bill once: kinds of layers that differ in their experts alone share those of attention."""
    return list({id(bill): bill for bill in bills}.values())
