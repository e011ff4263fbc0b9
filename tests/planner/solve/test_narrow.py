"""Stages that no pipeline within a limit has are told apart before they are priced: none too many, and most of them."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest

from planner.evaluate.setting import setting
from planner.problem import load_problem
from planner.solve.answer import Limits
from planner.solve.decisions import pins
from planner.solve.dp import PipelineTable
from planner.solve.exact import branch_optimum
from planner.solve.narrow import stages_within
from planner.solve.objective import NAMES, SAME, Caps, Name
from planner.solve.optimum import SpaceSearch
from tests.oracle_problems import random_case


def _search(seed: int, objective: Name, caps: Caps | None = None) -> SpaceSearch:
    asked = random_case(seed)
    limits = Limits(caps=caps or Caps())
    return SpaceSearch(setting(asked.model, asked.workload, asked.cluster), asked.space, objective, limits)


@pytest.mark.parametrize(("objective", "first"), list(product(NAMES[:2], range(0, 40, 10))))
def test_a_branch_has_the_same_optimum_among_the_stages_that_are_left(objective: Name, first: int) -> None:
    """Under limits on and around the optimum, with and without a cap on the latency."""
    compared = 0
    for seed in range(first, first + 10):
        search = _search(seed, objective)
        free = search.run()
        if search.space.layout or search.space.regular or free.choice is None:
            continue
        asked = [search, _search(seed, objective, Caps(latency_s=_latency(search) * 1.05))]
        for some, (r, m) in product(asked, search.space.branches):
            branch = some.branch(r, m)
            most = some._most_ranks(branch)
            goal = some._objective(branch, most)
            whole = branch_optimum(PipelineTable(branch, branch.arrays(), some.space.stages), goal)
            for factor in (1 - 1e-5, 1.0, 1.03, 1.5) if whole.path is not None else ():
                limit = whole.value * factor
                stages = stages_within(branch, goal, limit, most)
                arrays = branch.some(stages.columns, stages.keep)
                table = PipelineTable(branch, arrays, some.space.stages)
                found = branch_optimum(table, goal, limit * (1 + 2 * SAME)) if arrays.widths else None
                if factor < 1:
                    assert found is None or found.path is None
                else:
                    assert found is not None
                    assert found.value == pytest.approx(whole.value, rel=1e-12)
                    compared += 1
    assert compared > 10


def _latency(search: SpaceSearch) -> float:
    return search.asking("latency", Caps()).run(prove=False).value


def test_little_is_left_of_a_wide_cluster() -> None:
    """A few percent above the optimum one stage in ten needs a price, and below the bound of the branch none does."""
    asked = load_problem(model="llama-3.1-8b", cluster="4x8-h100", workload="prefill:batch=32,prompt=4096")
    search = SpaceSearch(setting(asked.model, asked.workload, asked.cluster), asked.space, "throughput")
    best = search.run(prove=False).value
    branch = search.branch(1, 4)
    goal, every = search._objective(branch, branch.stride), np.isfinite(branch.arrays().seconds).sum()
    left = stages_within(branch, goal, 1.03 * best, branch.stride).keep.sum()
    assert left < 0.1 * every
    assert stages_within(branch, goal, 0.999 * search.bound(branch), branch.stride).keep.sum() == 0


@pytest.mark.parametrize("first", range(0, 24, 8))
def test_a_decision_held_is_worth_as_much_among_the_stages_that_are_left(first: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Up to 1.25 times the best; beyond there is none. Stage counts, too."""
    told = 0
    for seed in range(first, first + 8):
        plain = _search(seed, "latency")
        best = plain.run().value
        if plain.space.layout or plain.space.regular or not np.isfinite(best):
            continue
        most = 1.25 * best
        held = [pin for _, values in pins(plain) for _, pin in values][:12]
        every = [plain.pinned_value(pin) for pin in held]
        counts = plain.by_stage_count()
        with monkeypatch.context() as patch:
            patch.setattr("planner.solve.branches.FEW_STAGES", 0)
            sieved = _search(seed, "latency")
            few = [sieved.pinned_value(pin, most=most) for pin in held]
            some = sieved.by_stage_count(below=most)
        for value, other in [*zip(every, few, strict=True), *((a[1], b[1]) for a, b in zip(counts, some, strict=True))]:
            assert other == (pytest.approx(value, rel=1e-12) if value < most else np.inf)
            told += value < most
    assert told > 10
