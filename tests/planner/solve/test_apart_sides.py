"""Closed-form floors of plans with experts apart, against their candidates priced one by one."""

from __future__ import annotations

import numpy as np

from planner.evaluate.setting import Setting, setting
from planner.graph.experts import moe_rows, moe_table
from planner.graph.moe import expert_role
from planner.solve.apart import ApartSpace
from planner.solve.optimum import SpaceSearch
from search_spaces.experts import ExpertPlacement
from search_spaces.space import SearchSpace
from tests.oracle import random_problem
from tests.oracle_problems import case_setting, random_case


def problems() -> list[tuple[Setting, SearchSpace]]:
    """Small problems, among them some with unequal loads, several kinds of GPU and fixed stages."""
    cases = [random_case(seed) for seed in range(100)]
    return [*(random_problem(seed) for seed in range(60)), *((case_setting(case), case.space) for case in cases)]


def test_a_floor_is_never_above_a_candidate() -> None:
    """On every split of the GPUs, and stronger where the experts count than the attention side alone."""
    stronger = uneven = 0
    for env, space in problems():
        apart = SpaceSearch(env, space).apart
        for replicas, micro_batches in space.branches if apart.splits else ():
            floors, near = (apart.floors(replicas, micro_batches, experts=experts) for experts in (True, False))
            least = np.full(len(apart.splits), np.inf)
            waves = micro_batches // max(space.waves(micro_batches), default=1)
            for candidates in ApartSpace._branch(apart, replicas, micro_batches):
                seconds = np.maximum(waves * candidates.chain, micro_batches * candidates.load)
                np.minimum.at(least, candidates.split, seconds)
            assert (near <= floors).all()
            reachable = np.isfinite(floors)
            assert (floors[reachable] <= least[reachable]).all(), (env.model.name, replicas, micro_batches)
            stronger += bool((floors > near).any())
            uneven += any(kind.load for kind in env.kinds)
    assert stronger > 20
    assert uneven > 5


def test_a_branch_that_a_floor_excludes_is_not_tabulated() -> None:
    """A cutoff at the floor leaves nothing to do; one above every plan finds the best."""
    tried = 0
    for env, space in problems()[:40]:
        search = SpaceSearch(env, space)
        for replicas, micro_batches in space.branches if search.apart.splits else ():
            floor = search.apart.floor(replicas, micro_batches)
            fresh = SpaceSearch(env, space).apart
            assert fresh.best(replicas, micro_batches, floor) is None
            assert not fresh._branches
            best = search.apart.best(replicas, micro_batches, np.inf)
            tried += best is not None
            assert best is None or floor <= best.value
    assert tried > 5


def test_experts_exchange_nothing_among_themselves() -> None:
    """The floors count on it: where the GPUs of the experts are changes nothing of their seconds."""
    problem = random_case(next(seed for seed in range(60) if random_case(seed).sizes.moe))
    env = setting(problem.model, problem.workload, problem.cluster)
    layer = next(kind.layer for kind in env.kinds if kind.moe)
    one = np.ones(1, dtype=np.int64)
    for side in ("attention", "expert"):
        placement = ExpertPlacement("separate", devices=1, router_side=side)
        rows = moe_rows(moe_table(layer.ffn, [(placement, 1)], ()), 0 * one, one, one, one, layer.ffn.top_k)
        assert all(op.group is None for op in expert_role(env.context, layer, rows, side == "attention").ops)
