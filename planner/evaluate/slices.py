"""Stage tables by micro-batch size, so that problems that differ in their batch price each size once; and by site, so that
orders of a cluster's GPUs price alike places once.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, fields, replace
from functools import partial
from typing import Any

import numpy as np

from planner.evaluate import tables
from planner.evaluate.setting import Setting
from planner.evaluate.shared import shared_sites
from planner.evaluate.tables import Array, Bill, Block, StageTable
from planner.graph.rows import Ints


@dataclass(frozen=True)
class Slice:
    """A stage table for one micro-batch size: attention and FFN per layer kind, own options, the ends; without the axis."""

    attention: tuple[Bill, ...]
    ffn: tuple[Bill, ...]
    own: tuple[Ints, ...]
    embedding: Bill | None
    receive: Bill
    head: Bill | None


def price_blocks(env: Setting, blocks: Sequence[Block]) -> list[StageTable]:
    """The tables of `tables.price_blocks`; in a sweep only the micro-batch sizes are priced that no problem had before, and of
    several orders of the GPUs only the sites that look like none before.
    """
    if env.rooms is None:
        known = shared_sites()
        return tables.price_blocks(env, blocks) if known is None else _by_site(env, blocks, known)
    kept = [env.room(("tables", b.options)) for b in blocks]
    lacking = [tuple(s for s in b.sequences if s not in room) for b, room in zip(blocks, kept, strict=True)]
    fresh = [replace(b, sequences=sizes) for b, sizes in zip(blocks, lacking, strict=True) if sizes]
    found = iter(tables.price_blocks(env, fresh) if fresh else ())
    for room, sizes in zip(kept, lacking, strict=True):
        table = next(found) if sizes else None
        for at, size in enumerate(sizes):
            if table is not None:
                room[size] = _cut(table, at)
    return [_joined(b, [room[size] for size in b.sequences]) for b, room in zip(blocks, kept, strict=True)]


def _by_site(env: Setting, blocks: Sequence[Block], known: dict[Hashable, Any]) -> list[StageTable]:
    """The tables, put together from those of single sites: what is lacking in `known` is priced first."""
    fixed = env.workload, env.any_placement, env.least
    kept: list[dict[Hashable, StageTable]] = [known.setdefault((fixed, replace(block, places=())), {}) for block in blocks]
    looks = [[env.pricer.places.look(place) for place in block.places] for block in blocks]
    lacking = [
        {look: place for look, place in zip(own, block.places, strict=True) if look not in room}
        for block, own, room in zip(blocks, looks, kept, strict=True)
    ]
    fresh = [replace(block, places=tuple(new.values())) for block, new in zip(blocks, lacking, strict=True) if new]
    found = iter(tables.price_blocks(env, fresh) if fresh else ())
    for room, new in zip(kept, lacking, strict=True):
        table = next(found) if new else None
        for at, look in enumerate(new):
            if table is not None:
                room[look] = _combined(table.block, [table], partial(_site, at))
    return [
        _combined(block, [room[look] for look in own], np.concatenate)
        for block, own, room in zip(blocks, looks, kept, strict=True)
    ]


def _site(at: int, arrays: Sequence[Array]) -> Array:
    """One site of an array [sites, ...]."""
    return np.ascontiguousarray(arrays[0][at : at + 1])


def _combined(block: Block, parts: Sequence[StageTable], combine: Callable[[Sequence[Array]], Array]) -> StageTable:
    """A table of which every array is made from those of the parts."""

    def bill(bills: Sequence[Bill]) -> Bill:
        return Bill(*(combine([getattr(bill, f.name) for bill in bills]) for f in fields(Bill)))

    def end(bills: Sequence[Bill | None]) -> Bill | None:
        there = [bill for bill in bills if bill is not None]
        return bill(there) if there else None

    return StageTable(
        block,
        tuple(bill(bills) for bills in zip(*(part.attention for part in parts), strict=True)),
        tuple(bill(bills) for bills in zip(*(part.ffn for part in parts), strict=True)),
        parts[0].own,
        end([part.embedding for part in parts]),
        bill([part.receive for part in parts]),
        end([part.head for part in parts]),
    )


def _cut(table: StageTable, at: int) -> Slice:
    """One micro-batch size of a table."""

    def cut(bill: Bill) -> Bill:
        return Bill(*(np.ascontiguousarray(getattr(bill, f.name)[:, at]) for f in fields(bill)))

    return Slice(
        tuple(map(cut, table.attention)), tuple(map(cut, table.ffn)), table.own,
        None if table.embedding is None else cut(table.embedding), cut(table.receive),
        None if table.head is None else cut(table.head),
    )  # fmt: skip


def _joined(block: Block, slices: Sequence[Slice]) -> StageTable:
    """The table of all micro-batch sizes of a block."""

    def join(bills: Sequence[Bill]) -> Bill:
        return Bill(*(np.stack([getattr(bill, f.name) for bill in bills], axis=1) for f in fields(Bill)))

    def end(bills: Sequence[Bill | None]) -> Bill | None:
        there = [bill for bill in bills if bill is not None]
        return join(there) if there else None

    return StageTable(
        block,
        tuple(join(bills) for bills in zip(*(s.attention for s in slices), strict=True)),
        tuple(join(bills) for bills in zip(*(s.ffn for s in slices), strict=True)),
        slices[0].own,
        end([s.embedding for s in slices]),
        join([s.receive for s in slices]),
        end([s.head for s in slices]),
    )
