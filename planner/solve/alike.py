"""Sites of a stage table that cost the same: kept once, so that their options are compared and their best chosen once."""

from __future__ import annotations

from dataclasses import fields, replace

import numpy as np
from numpy.typing import NDArray

from planner.evaluate.tables import Bill, StageTable

Ints = NDArray[np.int64]


def distinct_sites(table: StageTable) -> tuple[StageTable, Ints]:
    """The table of the sites that differ from every earlier one in some bill, and for every site its number in it [sites].

    A stage over two nodes often costs the same whichever of them has more of its GPUs.
    """
    every = [bill for bill in (*table.attention, *table.ffn, table.embedding, table.receive, table.head) if bill is not None]
    columns = [getattr(bill, field.name) for bill in every for field in fields(Bill)]
    number: dict[tuple[bytes, ...], int] = {}
    first, of = list[int](), list[int]()
    for site in range(len(table.block.places)):
        key = tuple(column[site].tobytes() for column in columns)
        if key not in number:
            number[key] = len(first)
            first.append(site)
        of.append(number[key])
    return (table if len(first) == len(of) else _of_sites(table, first)), np.array(of, dtype=np.int64)


def _of_sites(table: StageTable, some: list[int]) -> StageTable:
    """The table of some sites."""

    def cut(bill: Bill) -> Bill:
        return Bill(*(getattr(bill, field.name)[some] for field in fields(Bill)))

    block = replace(table.block, places=tuple(table.block.places[site] for site in some))
    return StageTable(
        block, tuple(map(cut, table.attention)), tuple(map(cut, table.ffn)), table.own,
        None if table.embedding is None else cut(table.embedding), cut(table.receive),
        None if table.head is None else cut(table.head),
    )  # fmt: skip
