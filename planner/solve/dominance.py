"""Options that can be left out: another one is no slower, needs no more memory, and where it is as fast sends no more.

A stage's seconds and memory never fall when a part of them rises, so the best option of any stage on any layers is among
those that remain; of equal ones the first does.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from planner.evaluate.tables import Bill, StageTable
from planner.solve.options import Allowed

Array = NDArray[np.float64]
Ints = NDArray[np.int64]
FEW = 48
"""So few options are priced faster than they are compared."""
COLUMNS = 48
"""Columns that are compared at once."""
MOST = 192
"""And pairs are compared with so many at most."""


def undominated(data: Array, most: int | None = None) -> Ints:
    """Rows of `data` [N, C] that no other row is at most equal to in every column (of equal rows the first), ascending.

    After `most` of them whatever is left is kept, too: to compare it would take longer than it saves.
    """
    order = np.argsort(data.sum(axis=1), kind="stable")  # a row is never dominated by one with a greater sum
    parts = [np.ascontiguousarray(data[order, first : first + COLUMNS]) for first in range(0, data.shape[1], COLUMNS)]
    at, kept = np.arange(order.size), list[int]()
    while order.size and len(kept) != most:
        kept.append(int(order[0]))
        open_, left = np.zeros(order.size, dtype=np.bool_), np.arange(1, order.size)
        for part in parts:  # one smaller value will do, and is mostly found among the first columns
            below = (part[at[left]] < part[at[0]]).any(axis=1)
            open_[left[below]], left = True, left[~below]
            if not left.size:
                break
        order, at = order[open_], at[open_]
    return np.array(sorted([*kept, *order.tolist()]), dtype=np.int64)


def undominated_pairs(table: StageTable, allowed: Allowed, batch: int, replica_batch: int) -> tuple[Ints, Ints]:
    """Partitions and FFN options [N] of the allowed pairs that no other pair dominates on all sites, ordered by both.

    First among partitions of the same residual split and among FFN options beside it, then among the pairs.
    """
    if allowed.count() <= FEW:
        rows, columns = np.nonzero(allowed.matrix())
        return rows, columns
    resident = np.ceil(replica_batch / np.array([p.batch_parts for p in table.block.partitions]))
    near = np.concatenate([_columns(bill, batch, resident) for bill in table.attention], axis=1)
    partitions, ffns = [], []
    for shard in range(len(table.block.shards)):
        some, others = np.nonzero(allowed.rows & (allowed.shard == shard))[0], np.nonzero(allowed.pairs[shard])[0]
        if some.size and others.size:
            far = [_columns(bill, (batch, shard))[own[others]] for bill, own in zip(table.ffn, table.own, strict=True)]
            a, f = some[undominated(near[some])], others[undominated(np.concatenate(far, axis=1))]
            partitions.append(np.repeat(a, f.size))
            ffns.append(np.tile(f, a.size))
    first, second = (np.concatenate(x) if x else np.zeros(0, dtype=np.int64) for x in (partitions, ffns))
    if first.size > FEW:
        keep = undominated(_pair_columns(table, allowed.shard[first], first, second, batch, resident), MOST)
        first, second = first[keep], second[keep]
    order = np.lexsort((second, first))
    return first[order], second[order]


def _columns(bill: Bill, batch: int | tuple[int, int], resident: Array | float = 0.0) -> Array:
    """What options cost as columns [N, sites x 3]: order by seconds and bytes sent, bytes held per layer, peak bytes."""
    at = (slice(None), *(batch if isinstance(batch, tuple) else (batch,)))
    held = bill.weights[at] + bill.cache[at] * resident
    return np.concatenate([_order(bill.seconds[at], bill.sent[at]), held.T, bill.peak[at].T], axis=1)


def _pair_columns(table: StageTable, shard: Ints, a: Ints, f: Ints, batch: int, resident: Array) -> Array:
    """The same for whole pairs [N, columns], the ends of the pipeline included."""
    found = []
    for bill in (table.embedding, table.receive, table.head):
        if bill is not None:
            found.append(_columns(bill, batch)[shard])
    for attention, ffn, own in zip(table.attention, table.ffn, table.own, strict=True):
        near, far = (slice(None), batch, a), (slice(None), batch, shard, own[f])
        seconds, sent = attention.seconds[near] + ffn.seconds[far], attention.sent[near] + ffn.sent[far]
        held = attention.weights[near] + ffn.weights[far] + (attention.cache[near] + ffn.cache[far]) * resident[a]
        found += [_order(seconds, sent), held.T, np.maximum(attention.peak[near], ffn.peak[far]).T]
    return np.concatenate(found, axis=1)


def _order(seconds: Array, sent: Array) -> Array:
    """Place of each option [N, sites] in the order of seconds, then of bytes sent; equal ones share a place."""
    places = np.empty(seconds.shape)
    for site, (own, bytes_sent) in enumerate(zip(seconds, sent, strict=True)):
        order = np.lexsort((bytes_sent, own))
        new = (np.diff(own[order]) != 0) | (np.diff(bytes_sent[order]) != 0)
        places[site, order] = np.concatenate(([0], np.cumsum(new)))
    return places.T
