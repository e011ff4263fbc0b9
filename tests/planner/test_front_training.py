"""The front of training plans: every point of it is one of brute force over all plans, and none of those is missing."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace
from functools import cache

import pytest

from planner.evaluate.measures import Measures, measures
from planner.evaluate.setting import setting
from planner.evaluate.training import StepPricing
from planner.evaluate.training_stage import training_stages
from planner.front import pareto
from planner.problem import Problem, load_problem
from planner.solve.answer import Limits
from planner.solve.objective import NAMES, NO_CAPS, Caps, Name
from planner.solve.training import TrainingSearch
from search_spaces.training import TrainingDomain
from search_spaces.training_space import TrainingSpace

NEAR = 1e-6


@cache
def problem(cluster: str = "1x3-h100") -> Problem:
    """A model small enough that every plan can be priced, long enough that more GPUs help."""
    model = {"name": "m", "layers": 2, "hidden": 1024, "vocab": 4000, "attention": {"heads": 4, "kv_heads": 2},
             "ffn": {"hidden": 4096}}  # fmt: skip
    found = load_problem(model=model, cluster=cluster, workload="training:global_batch=2,sequence=2048")
    assert isinstance(found.space, TrainingSpace)
    domain = TrainingDomain(recompute=("none", "full"), zero=(0, 1))
    return replace(found, space=replace(found.space, training=domain))


@cache
def every_plan(asked: str, caps: Caps) -> list[tuple[float, float]]:
    """(seconds of a step, dollars) of all plans that fit and stay within the limits on memory and GPUs."""
    found = []
    for own, pricing in priced_plans(asked):
        if own.gpus <= caps.gpus and pricing.over_capacity(caps.memory_bytes) <= 0:
            found.append((own.latency_s, own.dollars))
    return found


@cache
def priced_plans(cluster: str) -> list[tuple[Measures, StepPricing]]:
    """Every plan of the space, priced alone."""
    asked = problem(cluster)
    env = setting(asked.model, asked.workload, asked.cluster)
    return [
        (measures(env, asked.sizes, c), StepPricing(env, asked.sizes, c, training_stages(env, asked.sizes, c)))
        for c in asked.space.choices()
    ]


def front_of(points: list[tuple[float, float]]) -> list[tuple[float, float]]:
    """Those that no other beats in one without losing in the other, by the first; of near ties the first."""
    found: list[tuple[float, float]] = []
    for first, second in sorted(points):
        if not found or second < found[-1][1] * (1 - NEAR):
            found.append((first, second))
    return found


CAPS = [NO_CAPS, Caps(gpus=2), Caps(memory_bytes=5e9)]


@pytest.mark.parametrize(("cluster", "caps"), list(itertools.product(["1x3-h100", "1x2-h100+1x1-a100-80gb"], CAPS)))
def test_the_front_is_that_of_brute_force(cluster: str, caps: Caps) -> None:
    """Points, their bounds, and both ends, under limits on GPUs and memory as well."""
    asked = problem(cluster)
    found = pareto(asked, objectives=("latency", "cost"), points=50, limits=Limits(caps=caps))
    expected = front_of(every_plan(cluster, caps))
    assert [point.values for point in found.points] == [pytest.approx(point, rel=NEAR) for point in expected]
    assert found.status == "optimal" and found.complete
    for point in found.points:
        assert point.status == "optimal" and point.bounds == pytest.approx(point.values, rel=1e-6)
        own = measures(setting(asked.model, asked.workload, asked.cluster), asked.sizes, point.choice)
        assert (own.latency_s, own.dollars) == pytest.approx(point.values, rel=1e-9) and own.gpus == point.gpus


@pytest.mark.parametrize("objective", NAMES)
def test_every_objective_under_every_limit_is_that_of_brute_force(objective: Name) -> None:
    """Limits that bind on step time, dollars, both, and such as nothing meets; the priced space is asked again and again."""
    asked = problem()
    env, plans = setting(asked.model, asked.workload, asked.cluster), every_plan("1x3-h100", NO_CAPS)
    assert isinstance(asked.space, TrainingSpace)
    priced, at = TrainingSearch(env, asked.space), 1 if objective == "cost" else 0
    seconds, dollars = (sorted(plan[i] for plan in plans)[len(plans) // 4] for i in (0, 1))
    limits = [{}, {"latency_s": seconds}, {"steady_s": seconds}, {"dollars": dollars},
              {"dollars": dollars, "latency_s": seconds}, {"dollars": min(d for _, d in plans) / 2}]  # fmt: skip
    for limit in limits:
        most = min(limit.get("latency_s", math.inf), limit.get("steady_s", math.inf))
        left = [p[at] for p in plans if p[0] <= most and p[1] <= limit.get("dollars", math.inf)]
        found = priced.asking(objective, Caps(**limit)).run()
        assert found.complete and found.value == pytest.approx(min(left, default=math.inf), rel=1e-9)


def test_nothing_above_the_cutoff_is_an_answer() -> None:
    """A search that must beat a value answers with none that does not."""
    asked = problem()
    assert isinstance(asked.space, TrainingSpace)
    priced = TrainingSearch(setting(asked.model, asked.workload, asked.cluster), asked.space)
    best = priced.run().value
    assert priced.asking("latency", NO_CAPS).run(best * (1 - 1e-6)).choice is None
    assert priced.asking("latency", NO_CAPS).run(best * (1 + 1e-6)).value == best


def test_nothing_fits() -> None:
    """A reason instead of points."""
    found = pareto(problem(), limits=Limits(caps=Caps(memory_bytes=1e9)))
    assert found.status == "infeasible" and not found.points and found.infeasibility is not None
