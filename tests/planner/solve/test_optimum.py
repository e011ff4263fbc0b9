"""Pins, stage counts, objectives, ties and determinism of the search."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from planner.evaluate.evaluation import evaluate
from planner.evaluate.setting import Setting, setting
from planner.problem import load_problem
from planner.solve.blocks import PricedSpace
from planner.solve.branch import Branch
from planner.solve.dp import PipelineTable
from planner.solve.exact import branch_optimum, stage_count_optima
from planner.solve.objective import Objective
from planner.solve.optimum import SpaceSearch
from search_spaces.attention import AttentionDomain
from search_spaces.space import SearchSpace
from tests.oracle import brute_force, random_problem

SMALL = {
    "schema": "planner.problem/1",
    "name": "small",
    "model": {
        "name": "small", "layers": 5, "hidden": 2048, "vocab": 1000,
        "attention": {"heads": 12, "kv_heads": 4, "head_dim": 128},
        "ffn": {"kind": "dense", "hidden": 8192, "activation": "silu"},
    },
    "workload": {"phase": "prefill", "batch": 8, "prompt": 512},
    "cluster": "2x4-h100",
    "space": {"replicas": 1},
}  # fmt: skip


@pytest.fixture(scope="module")
def small() -> tuple[Setting, SearchSpace]:
    """Five layers on two nodes of four GPUs."""
    problem = load_problem(SMALL)
    return setting(problem.model, problem.workload, problem.cluster), problem.space


@pytest.mark.parametrize("stages", [1, 2, 3, 5])
def test_stage_counts_pinned_agree_with_the_space_that_pins_them(small: tuple[Setting, SearchSpace], stages: int) -> None:
    """The row of the decision table is the optimum of the narrower space."""
    env, space = small
    row = dict(SpaceSearch(env, space).by_stage_count())[stages]
    assert row == pytest.approx(SpaceSearch(env, replace(space, stages=(stages,))).run().value, rel=1e-9)


@pytest.mark.parametrize(("groups", "segments"), [(1, 1), (2, 1), (4, 1), (2, 2)])
def test_a_pinned_partition_agrees_with_the_space_that_pins_it(
    small: tuple[Setting, SearchSpace], groups: int, segments: int
) -> None:
    """Holding a decision on a priced space is the same as searching the narrower space."""
    env, space = small
    held = SpaceSearch(env, space).pinned_value({"head_groups": groups, "dimension_segments": segments})
    narrow = replace(space, attention=AttentionDomain(head_groups=(groups,), dimension_segments=(segments,)))
    assert held == pytest.approx(SpaceSearch(env, narrow).run().value, rel=1e-9)


def test_every_stage_count_agrees_with_its_own_sweeps(small: tuple[Setting, SearchSpace]) -> None:
    """All stage counts at once give what each gives alone."""
    env, space = small
    branch = Branch(PricedSpace(env, space), 1, 4)
    arrays, objective = branch.arrays(), Objective("latency", False, 4)
    together = stage_count_optima(PipelineTable(branch, arrays), objective, 4, np.full(4, np.inf))
    for count in range(1, 5):
        alone = branch_optimum(PipelineTable(branch, arrays, (count,)), objective)
        assert together[count - 1] == pytest.approx(alone.value, rel=1e-12)


def test_throughput_never_exceeds_what_the_slowest_stage_allows(small: tuple[Setting, SearchSpace]) -> None:
    """In steady state the objective is the slowest machine, at most the latency of the same plan."""
    env, space = small
    steady = SpaceSearch(env, space, "throughput").run()
    latency = SpaceSearch(env, space, "latency").run()
    assert steady.value <= latency.value
    assert steady.choice is not None
    assert evaluate(env, space.sizes, steady.choice).latency_s >= steady.value * (1 - 1e-9)


def test_cost_weighs_the_gpus_in_use(small: tuple[Setting, SearchSpace]) -> None:
    """Cost is latency times the price of the GPUs in use, and no plan by latency is cheaper."""
    env, space = small
    cheapest = SpaceSearch(env, space, "cost").run()
    assert cheapest.choice is not None
    used = [r for stage in cheapest.choice.stages for r in stage.devices]
    price = sum(env.cluster.kind_of(r).price_per_hour for r in used) / 3600
    assert cheapest.value == pytest.approx(evaluate(env, space.sizes, cheapest.choice).latency_s * price, rel=1e-9)
    assert cheapest.bound == pytest.approx(cheapest.value, rel=1e-6)


def test_the_same_question_has_the_same_answer(small: tuple[Setting, SearchSpace]) -> None:
    """Two searches give the same choice, value and bound."""
    env, space = small
    assert SpaceSearch(env, space).run().choice == SpaceSearch(env, space).run().choice


def test_less_memory_is_never_faster() -> None:
    """Taking memory away cannot make the best plan faster; taking all of it leaves none."""
    for seed in range(12):
        env, space = random_problem(seed)
        full = SpaceSearch(env, space).run()
        less = SpaceSearch(env, space, extra_memory=-0.5e9).run()
        none = SpaceSearch(env, space, extra_memory=-1e15).run()
        assert none.choice is None
        if less.choice is not None:
            assert full.choice is not None and full.value <= less.value * (1 + 1e-9)


def test_the_missing_bytes_are_what_it_takes() -> None:
    """Where nothing fits, granting the reported bytes makes something fit, and a little less does not."""
    seen = 0
    for seed in range(60):
        env, space = random_problem(seed)
        found = SpaceSearch(env, space).run()
        if found.choice is None and np.isfinite(found.excess_bytes):
            seen += 1
            assert SpaceSearch(env, space, extra_memory=found.excess_bytes + 1).run().choice is not None
            assert SpaceSearch(env, space, extra_memory=found.excess_bytes * 0.99).run().choice is None
            assert brute_force(env, space)[0] == float("inf")
    assert seen > 0


def test_cost_considers_experts_on_their_own_gpus() -> None:
    """Where only plans with experts apart are allowed, cost has an answer, and it is latency times price."""
    problem = load_problem("ma_separation", sets=["space.experts.form=separate", "workload.batch=64"])
    env = setting(problem.model, problem.workload, problem.cluster)
    found = SpaceSearch(env, problem.space, "cost").run()
    assert found.choice is not None and found.choice.stages[0].separate
    price = sum(env.cluster.kind_of(r).price_per_hour for r in found.choice.stages[0].devices) / 3600
    assert found.value == pytest.approx(evaluate(env, problem.sizes, found.choice).latency_s * price, rel=1e-9)
    fastest = SpaceSearch(env, problem.space).run()
    assert fastest.choice is not None
    dearer = sum(env.cluster.kind_of(r).price_per_hour for r in fastest.choice.stages[0].devices) / 3600
    assert found.value <= fastest.value * dearer * (1 + 1e-9)
