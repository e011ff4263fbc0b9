"""Stage tables by micro-batch size, so that problems that differ in their batch price each size once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace

import numpy as np

from planner.evaluate import tables
from planner.evaluate.setting import Setting
from planner.evaluate.tables import Bill, Block, StageTable
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
    """The tables of `tables.price_blocks`; in a sweep only the micro-batch sizes are priced that no problem had before."""
    if env.rooms is None:
        return tables.price_blocks(env, blocks)
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
