"""Sites that cost the same, told apart from those that do not."""

from __future__ import annotations

from dataclasses import fields

import numpy as np
import pytest

from planner.evaluate.setting import setting
from planner.evaluate.tables import Bill, StageTable
from planner.problem import load_problem
from planner.solve import blocks
from planner.solve.alike import distinct_sites
from planner.solve.blocks import PricedSpace


def bills(table: StageTable) -> list[Bill]:
    """All bills of a table."""
    return [b for b in (*table.attention, *table.ffn, table.embedding, table.receive, table.head) if b is not None]


def test_every_site_keeps_its_bills(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever its number: bit for bit, no two that are kept are equal, and every slot of the space finds its own."""
    problem = load_problem(model="qwen3-0.6b", cluster="2x8-h100", workload="decode:batch=4,context=256")
    env = setting(problem.model, problem.workload, problem.cluster)
    monkeypatch.setattr(blocks, "distinct_sites", lambda table: (table, np.arange(len(table.block.places))))
    plain = PricedSpace(env, problem.space)
    monkeypatch.undo()
    merged, fewer = PricedSpace(env, problem.space), 0
    assert merged.priced == plain.priced
    assert list(merged.slots) == list(plain.slots)
    for table in plain.tables:
        if table is not None:
            few, of = distinct_sites(table)
            fewer += len(few.block.places) < len(table.block.places)
            keys = [
                tuple(getattr(b, f.name)[site].tobytes() for b in bills(few) for f in fields(b)) for site in range(max(of) + 1)
            ]
            assert len(set(keys)) == len(keys) == len(few.block.places)
    assert fewer > 0
    for ranks, slot in merged.slots.items():
        other = plain.slots[ranks]
        assert slot.devices == other.devices == ranks and slot.block == other.block
        one, two = merged.tables[slot.block], plain.tables[slot.block]
        assert (one is None) == (two is None)
        for bill, same in zip(bills(one), bills(two), strict=True) if one is not None and two is not None else ():
            for field in fields(bill):
                assert np.array_equal(getattr(bill, field.name)[slot.site], getattr(same, field.name)[other.site])
