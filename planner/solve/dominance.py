"""Options that can be left out: another one is no worse in seconds, in every kind of bytes, and in bytes sent.

A stage's seconds, memory and bytes sent never fall when a part of them rises, so the best option of any stage on any layers
is among those that remain; of equal ones the first does.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from planner.evaluate.tables import Bill, StageTable
from planner.solve.blocks import Allowed

Array = NDArray[np.float64]
Ints = NDArray[np.int64]
FEW = 48
"""So few options are priced faster than they are compared."""


def undominated(data: Array) -> Ints:
    """Rows of `data` [N, C] that no other row is at most equal to in every column (of equal rows the first), ascending."""
    order = np.argsort(data.sum(axis=1), kind="stable")  # a row is never dominated by one with a greater sum
    kept = []
    while order.size:
        kept.append(int(order[0]))
        rest = order[1:]
        order = rest[~(data[order[0]] <= data[rest]).all(axis=1)]
    return np.array(sorted(kept), dtype=np.int64)


def undominated_pairs(table: StageTable, allowed: Allowed, batch: int, replica_batch: int) -> tuple[Ints, Ints]:
    """Partitions and FFN options [N] of the allowed pairs that no other pair dominates on all sites, ordered by both.

    First among partitions of the same residual split and among FFN options beside it, then among the pairs.
    """
    if allowed.count() <= FEW:
        rows, columns = np.nonzero(allowed.matrix())
        return rows, columns
    resident = np.ceil(replica_batch / np.array([p.batch_parts for p in table.block.partitions]))
    near = _columns(table.attention, batch, resident)
    partitions, ffns = [], []
    for shard in range(len(table.block.shards)):
        some, others = np.nonzero(allowed.rows & (allowed.shard == shard))[0], np.nonzero(allowed.pairs[shard])[0]
        if some.size and others.size:
            far = np.concatenate(
                [_columns((bill,), batch, None, shard)[own[others]] for bill, own in zip(table.ffn, table.own, strict=True)],
                axis=1,
            )
            a, f = some[undominated(near[some])], others[undominated(far)]
            partitions.append(np.repeat(a, f.size))
            ffns.append(np.tile(f, a.size))
    first, second = (np.concatenate(x) if x else np.zeros(0, dtype=np.int64) for x in (partitions, ffns))
    if first.size > FEW:
        keep = undominated(_pair_columns(table, allowed.shard[first], first, second, batch, resident))
        first, second = first[keep], second[keep]
    order = np.lexsort((second, first))
    return first[order], second[order]


def _columns(bills: tuple[Bill, ...], batch: int, resident: Array | None, shard: int | None = None) -> Array:
    """Every cost of options as columns [N, C]: seconds, weights, peak, cache and bytes sent, per layer kind and site."""
    found = []
    for bill in bills:
        for name in Bill.__slots__:
            values = getattr(bill, name)[:, batch] if shard is None else getattr(bill, name)[:, batch, shard]
            found.append((values * resident if name == "cache" and resident is not None else values).T)
    return np.concatenate(found, axis=1)


def _pair_columns(table: StageTable, shard: Ints, a: Ints, f: Ints, batch: int, resident: Array) -> Array:
    """The same for whole pairs, the ends of the pipeline included."""
    found = []
    for name in Bill.__slots__:
        for bill in (table.embedding, table.receive, table.head):
            if bill is not None:
                found.append(getattr(bill, name)[:, batch][:, shard].T)
        for attention, ffn, own in zip(table.attention, table.ffn, table.own, strict=True):
            near, far = getattr(attention, name)[:, batch][:, a], getattr(ffn, name)[:, batch][:, shard, own[f]]
            if name == "peak":
                found.append(np.maximum(near, far).T)
            else:
                found.append(((near + far) * (resident[a] if name == "cache" else 1.0)).T)
    return np.concatenate(found, axis=1)
