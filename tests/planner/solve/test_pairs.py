"""Plans with experts apart, pair by pair, against the same plans tabulated; and what large clusters price once."""

from __future__ import annotations

from dataclasses import fields, replace

import numpy as np
import pytest

from planner.evaluate import parts
from planner.evaluate.pipeline import crossing_fraction
from planner.evaluate.setting import setting
from planner.problem import load_problem
from planner.solve import pairs
from planner.solve.blocks import PricedSpace
from planner.solve.optimum import SpaceSearch
from tests.oracle import random_problem
from tests.planner.solve.test_large import pipelines

SEEDS = (7, 12, 20, 28, 31, 44, 57)


@pytest.mark.parametrize("objective", ["latency", "throughput", "cost"])
def test_pairs_find_what_tables_find(objective: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Value, feasibility and missing bytes, whatever is tabulated."""
    compared = 0
    for seed in SEEDS:
        env, space = random_problem(seed)
        monkeypatch.setattr(pairs, "MANY", 10**9)
        tabulated = SpaceSearch(env, space, objective).run()  # type: ignore[arg-type]
        monkeypatch.setattr(pairs, "MANY", -1)
        search = SpaceSearch(env, space, objective)  # type: ignore[arg-type]
        paired = search.run()
        compared += bool(search.apart.splits)
        assert (tabulated.choice is None) == (paired.choice is None), seed
        assert paired.value == pytest.approx(tabulated.value, rel=1e-12), seed
        assert paired.excess_bytes == pytest.approx(tabulated.excess_bytes, abs=1.0), seed
    assert compared >= 2


def test_a_bound_with_memory_is_never_above_the_optimum() -> None:
    """Of every branch, in the general space and under the rules of large clusters."""
    stronger = 0
    for env, space in (*map(random_problem, range(0, 24, 3)), *map(pipelines, range(24))):
        for large in (64, 1):
            search = SpaceSearch(env, replace(space, large=large), "throughput")
            for branch in (search.branch(*b) for b in space.branches):
                best = min((found.value for found in search._linear(branch, np.inf)), default=np.inf)
                tight = search.tight(branch, np.inf)
                assert tight <= best * (1 + 1e-9), (space, large)
                stronger += tight > search.bound(branch) * (1 + 1e-9)
    assert stronger > 0


def test_batch_parts_are_priced_once_at_the_same_price(monkeypatch: pytest.MonkeyPatch) -> None:
    """Bit for bit what pricing every stage as a whole gives."""
    problem = load_problem(model="llama-3.1-8b", cluster="12x8-h100", workload="prefill:batch=24,prompt=512")

    def priced() -> PricedSpace:
        return PricedSpace(setting(problem.model, problem.workload, problem.cluster), problem.space)

    once = priced()
    monkeypatch.setattr(parts, "node_size", lambda cluster: 0)
    for table, other in zip(once.tables, priced().tables, strict=True):
        assert table is not None and other is not None
        for bill, same in zip(table.attention, other.attention, strict=True):
            for field in fields(bill):
                assert np.array_equal(getattr(bill, field.name), getattr(same, field.name)), table.block.width


def test_crossing_shares_are_those_of_the_slices() -> None:
    """Against slices counted one by one."""
    domains = tuple(rank // 4 for rank in range(24))
    for first, split, last in ((0, 4, 12), (0, 3, 11), (2, 8, 10), (0, 8, 24), (5, 6, 7)):
        source, target = tuple(range(first, split)), tuple(range(split, last))
        slices, total, leaving = max(len(source), len(target)), dict[int, int](), dict[int, int]()
        for t in range(slices):
            pair = source[t * len(source) // slices], target[t * len(target) // slices]
            for rank in pair:
                total[rank] = total.get(rank, 0) + 1
                leaving[rank] = leaving.get(rank, 0) + (domains[pair[0]] != domains[pair[1]])
        assert crossing_fraction(domains, source, target) == max(leaving[rank] / total[rank] for rank in total)
    assert crossing_fraction(domains, (0,), (0,)) == 0.0
