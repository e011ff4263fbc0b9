"""Caps: the optimum under them is that of brute force, and where nothing is left the smallest relaxation is named."""

from __future__ import annotations

import math
import random
import re
from dataclasses import replace

import numpy as np
import pytest

from planner.evaluate.measures import measures
from planner.evaluate.setting import Setting, setting
from planner.problem import load_problem
from planner.solve.answer import Limits
from planner.solve.objective import NAMES, NO_CAPS, Caps, Name, Objective
from planner.solve.optimum import SpaceSearch
from planner.solve.relaxation import relaxation
from search_spaces.space import SearchSpace
from tests.measured import check_caps, random_caps, small_problem
from tests.planner.solve.test_optimum import SMALL

SEEDS = range(2000, 2048)
CHUNK = 4


@pytest.fixture(scope="module")
def small() -> tuple[Setting, SearchSpace]:
    """Five layers on two nodes of four GPUs."""
    problem = load_problem(SMALL)
    return setting(problem.model, problem.workload, problem.cluster), problem.space


@pytest.mark.parametrize("first", range(SEEDS.start, SEEDS.stop, CHUNK))
def test_brute_force_agrees_under_random_caps(first: int) -> None:
    """Value, bound, feasibility and fewest GPUs, for every objective, under caps on all of them, memory and GPUs."""
    for seed in range(first, first + CHUNK):
        problem = small_problem(seed)
        for at, name in enumerate(NAMES if problem is not None else ()):
            check_caps(3 * seed + at, name, *problem)


def test_the_random_caps_ask_for_everything_and_leave_some_problems_without_a_plan() -> None:
    """What the comparison with brute force promises to cover."""
    asked, left = set(), set()
    for seed in SEEDS:
        problem = small_problem(seed)
        if problem is None or not problem[2]:
            continue
        for at in range(3):
            caps = random_caps(random.Random(3 * seed + at), problem[2])
            asked |= {f for f in Caps.__slots__ if math.isfinite(getattr(caps, f))}
            left.add(any(plan.within(caps) for plan in problem[2]))
    assert asked == set(Caps.__slots__) and left == {True, False}


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("decode", [False, True])
def test_an_objective_never_falls_and_is_infinite_above_a_cap(name: Name, decode: bool) -> None:
    """Elementwise and one at a time, which the proofs rest on."""
    chain, slowest = np.meshgrid(np.linspace(1.0, 9.0, 9), np.linspace(0.5, 4.5, 9), indexing="ij")
    free, capped = Objective(name, decode, 4), Objective(name, decode, 4, latency_s=12.0, steady_s=10.0)
    for values in (free.values(chain, slowest), capped.values(chain, slowest)):
        with np.errstate(invalid="ignore"):
            steps = np.concatenate([np.diff(values, axis=0).ravel(), np.diff(values, axis=1).ravel()])
        assert not (steps < 0).any()
    latency = np.maximum(chain, 4 * slowest) if decode else chain + 3 * slowest
    steady = latency if decode else 4 * slowest
    assert (np.isfinite(capped.values(chain, slowest)) == ((latency <= 12.0) & (steady <= 10.0))).all()
    assert capped.value(2.0, 1.0) == free.value(2.0, 1.0) and capped.value(1.0, 4.5) == math.inf


def test_a_cap_at_the_optimum_changes_nothing_and_one_below_leaves_nothing(small: tuple[Setting, SearchSpace]) -> None:
    """Also for experts on GPUs of their own; the bound holds relative to the cap."""
    for env, space in (small, _apart()):
        best = SpaceSearch(env, space).run()
        met = SpaceSearch(env, space, limits=Limits(caps=Caps(latency_s=best.value))).run()
        assert met.value == best.value and met.bound == pytest.approx(best.value, rel=1e-6)
        assert SpaceSearch(env, space, limits=Limits(caps=Caps(latency_s=best.value * (1 - 1e-6)))).run().choice is None


def _apart() -> tuple[Setting, SearchSpace]:
    problem = load_problem("ma_separation", sets=["space.experts.form=separate", "workload.batch=16"])
    return setting(problem.model, problem.workload, problem.cluster), problem.space


def test_caps_bind_on_fixed_stages_and_on_experts_apart() -> None:
    """A plan whose stages are given is capped as well, and GPUs are those of both sides."""
    problem = load_problem("helix", sets=["workload.batch=64"])
    env, plan = setting(problem.model, problem.workload, problem.cluster), problem.plans["m4n4_exact"]
    best = SpaceSearch(env, plan).run()
    assert best.choice is not None
    for caps in (Caps(gpus=15), Caps(latency_s=best.value / 2), Caps(dollars=1e-9), Caps(memory_bytes=1e9)):
        assert SpaceSearch(env, plan, limits=Limits(caps=caps)).run().choice is None, caps
    env, space = _apart()
    few = SpaceSearch(env, space, limits=Limits(caps=Caps(gpus=5))).run()
    assert few.choice is not None and measures(env, space.sizes, few.choice).gpus <= 5
    assert SpaceSearch(env, space, limits=Limits(caps=Caps(gpus=1))).run().choice is None


def test_throughput_under_a_latency_cap_keeps_both(small: tuple[Setting, SearchSpace]) -> None:
    """Between the two optima: as fast as asked, slower in steady state than without the cap, and faster than the quickest."""
    env, space = small
    quick, steady = SpaceSearch(env, space).run(), SpaceSearch(env, space, "throughput").run()
    own = measures(env, space.sizes, steady.choice)
    middle = (quick.value + own.latency_s) / 2
    found = SpaceSearch(env, space, "throughput", Limits(caps=Caps(latency_s=middle))).run()
    told = measures(env, space.sizes, found.choice)
    assert told.latency_s <= middle and told.steady_s == pytest.approx(found.value, rel=1e-9)
    assert steady.value <= found.value <= measures(env, space.sizes, quick.choice).steady_s * (1 + 1e-9)


def test_asking_anew_is_searching_anew(small: tuple[Setting, SearchSpace]) -> None:
    """One priced space gives every objective and cap the answer that a new one gives, in any order."""
    env, space = small
    asked = SpaceSearch(env, space)
    for name, caps in (("throughput", NO_CAPS), ("latency", Caps(gpus=3)), ("cost", Caps(latency_s=1.0)), ("latency", NO_CAPS)):
        assert asked.asking(name, caps).run() == SpaceSearch(env, space, name, Limits(caps=caps)).run()
    with pytest.raises(ValueError, match="memory"):
        asked.asking("latency", Caps(memory_bytes=1e9))


def test_several_stage_counts_and_few_ranks() -> None:
    """The best plan on few ranks may have another stage count than the best on all of them."""
    problem = load_problem(SMALL)
    env = setting(problem.model, problem.workload, problem.cluster)
    space = replace(problem.space, stages=(1, 4))
    one = SpaceSearch(env, replace(space, stages=(1,)), limits=Limits(caps=Caps(gpus=2))).run()
    both = SpaceSearch(env, space, limits=Limits(caps=Caps(gpus=2))).run()
    assert both.choice is not None and both.value == one.value


def _relaxed(small: tuple[Setting, SearchSpace], caps: Caps, pattern: str, objective: Name = "latency") -> float:
    env, space = small
    asked = SpaceSearch(env, space, objective, Limits(caps=caps))
    found = asked.run()
    assert found.choice is None
    told = relaxation(asked, found)
    number = re.search(pattern, told.change)
    assert number is not None, told
    return float(number.group(1))


def test_the_relaxation_named_is_the_smallest(small: tuple[Setting, SearchSpace]) -> None:
    """What is named fits, and a little less does not: latency, memory and GPUs."""
    env, space = small

    def fits(caps: Caps) -> bool:
        return SpaceSearch(env, space, limits=Limits(caps=caps)).run().choice is not None

    slow = _relaxed(small, Caps(latency_s=1e-5, gpus=2), r"a latency of ([\d.]+) ms") / 1e3
    assert fits(Caps(latency_s=slow, gpus=2)) and not fits(Caps(latency_s=slow * 0.999, gpus=2))
    large = _relaxed(small, Caps(memory_bytes=2e9, gpus=2), r"([\d.]+) GB of memory") * 1e9
    assert fits(Caps(memory_bytes=large, gpus=2)) and not fits(Caps(memory_bytes=large - 1e7, gpus=2))
    latency = SpaceSearch(env, space, limits=Limits(caps=Caps(gpus=4))).run().value
    many = _relaxed(small, Caps(latency_s=latency * 1.001, gpus=1), r"or (\d+) GPUs")
    assert fits(Caps(latency_s=latency * 1.001, gpus=many)) and not fits(Caps(latency_s=latency * 1.001, gpus=many - 1))


def test_what_no_single_relaxation_mends_is_said(small: tuple[Setting, SearchSpace]) -> None:
    """Two caps of which each alone leaves nothing."""
    env, space = small
    fastest = SpaceSearch(env, space).run().value
    asked = SpaceSearch(env, space, limits=Limits(caps=Caps(latency_s=fastest / 2, memory_bytes=1e9)))
    told = relaxation(asked, asked.run())
    assert "together" in told.constraint and told.then is None


def test_fixed_stages_cost_what_their_own_gpus_cost() -> None:
    """A stage pinned to the dearer half of a mixed cluster is not priced as the cheaper half."""
    half = {"stages": [{"layers": 5, "devices": [2, 3]}]}
    problem = load_problem({**SMALL, "cluster": "1x2-l40s+1x2-h100", "plans": {"far": half}})
    env, space = setting(problem.model, problem.workload, problem.cluster), problem.plans["far"]
    found = SpaceSearch(env, space, "cost").run()
    assert found.value == pytest.approx(measures(env, space.sizes, found.choice).dollars, rel=1e-9)


@pytest.mark.parametrize("cluster", ["2x8-h100", "16x8-h100"])
def test_a_latency_far_below_every_plan_opens_no_branch(cluster: str) -> None:
    """The closed forms tell that nothing is left, with and without the rules of a large cluster; why is told all the same."""
    problem = load_problem(model="llama-3.1-8b", cluster=cluster, workload="decode:batch=256,context=2048")
    env, caps = setting(problem.model, problem.workload, problem.cluster), Caps(latency_s=1e-5)
    search = SpaceSearch(env, problem.space, "throughput", Limits(caps=caps))
    found = search.run()
    assert found.choice is None and found.complete
    assert found.counts.branches == 0
    assert all(np.isinf(search.floors[branch]) for branch in problem.space.branches)
    told, free = relaxation(search, found), SpaceSearch(env, problem.space, "latency").run()
    assert told.constraint.startswith("no plan is under 10 us: the fastest takes")
    least_ms = re.fullmatch(r"a latency of (.*) ms", told.change)
    assert least_ms is not None
    assert free.value * 1e3 <= float(least_ms[1]) <= free.value * 1e3 * 1.001
