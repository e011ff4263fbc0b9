"""`planner.pareto`: its answer in the objectives' own units, and what it refuses."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

import planner
from planner.errors import InputError
from planner.evaluate.measures import measures
from planner.front import pareto
from planner.solve.answer import Limits
from planner.solve.objective import Caps
from tests.planner.report.small import env_of, tiny_problem

LONG = {"phase": "prefill", "batch": 16, "prompt": 4096, "keep_kv_cache": False, "logits": "none"}


def long_problem():
    """Prompts long enough that more GPUs help."""
    return tiny_problem(workload=LONG)


@pytest.mark.parametrize("pair", [("latency", "cost"), ("throughput", "cost"), ("throughput", "latency")])
def test_the_ends_are_what_search_finds(pair: tuple[str, str]) -> None:
    """Each end is the optimum of its objective, in the same unit; every value is that of the plan beside it."""
    problem, front = long_problem(), pareto(long_problem(), objectives=pair)
    assert front.status == "optimal" and front.complete and len(front.points) >= 3
    for name, end in zip(pair, (0, -1), strict=True):
        alone = planner.search(problem, objective=name, details=False)
        assert front.points[end].values[pair.index(name)] == pytest.approx(alone.value, rel=1e-9)
    tokens = problem.workload.batch * problem.workload.prompt
    for point in front.points:
        own = measures(env_of(problem), problem.sizes, point.choice)
        told = {"latency": own.latency_s, "throughput": tokens / own.steady_s, "cost": own.dollars}
        assert point.values == pytest.approx([told[name] for name in pair], rel=1e-9)
        assert point.bounds == pytest.approx(point.values, rel=1e-6) and point.gpus == own.gpus
        assert point.status == "optimal"


def test_bounds_are_on_the_better_side() -> None:
    """No more throughput and no less latency than proven."""
    front = pareto(long_problem(), objectives=("latency", "throughput"))
    for point in front.points:
        assert point.bounds[0] <= point.values[0] and point.bounds[1] >= point.values[1]


def test_the_same_question_has_the_same_bytes() -> None:
    """Nothing of the answer depends on the run."""
    told = [json.dumps(pareto(long_problem()).to_dict()) for _ in range(2)]
    assert told[0] == told[1]


def test_json_has_the_promised_shape() -> None:
    """Schema, objectives, points by objective, and the rules the proof is relative to."""
    told = planner.pareto(long_problem(), objectives=["cost", "latency"], limits=Limits(caps=Caps(gpus=2))).to_dict()
    assert told["schema"] == "planner.pareto/1" and told["objectives"] == ["cost", "latency"]
    assert told["constraints"] == {"max_latency_ms": None, "max_memory_gb": None, "gpus_at_most": 2}
    assert told["complete"] is True and told["rules"] and "GPUs" in told["ties"]
    for point in told["points"]:
        assert set(point) == {"plan", "values", "bounds", "gpus", "status"}
        assert list(point["values"]) == ["cost", "latency"] and point["gpus"] <= 2
        assert point["plan"]["stages"]


def test_a_problem_by_name_and_with_changes() -> None:
    """As everywhere else in the library."""
    front = planner.pareto("helix", sets=["workload.batch=8", "workload.prompt=64"], points=2)
    assert len(front.points) == 2 and front.problem.workload.batch == 8


def test_where_nothing_fits() -> None:
    """An answer, not an error, with the smallest relaxation."""
    front = pareto(long_problem(), limits=Limits(caps=Caps(latency_s=1e-9)))
    assert (front.status, front.points) == ("infeasible", ()) and front.infeasibility is not None
    assert "the fastest takes" in front.infeasibility.constraint


def test_out_of_time() -> None:
    """No point, and not called infeasible."""
    front = pareto(long_problem(), limits=Limits(seconds=0.0))
    assert (front.status, front.points, front.infeasibility, front.complete) == ("timeout", (), None, False)


@pytest.mark.parametrize(
    "objectives", [("latency",), ("latency", "latency"), ("latency", "speed"), ("latency", "cost", "throughput"), "cost", ()]
)
def test_objectives_that_are_no_pair(objectives: object) -> None:
    """Two different known names, nothing else."""
    with pytest.raises(InputError, match="objectives"):
        pareto(long_problem(), objectives=objectives)


@pytest.mark.parametrize("points", [1, 0, -3, 2.5, True])
def test_points_that_are_no_number(points: object) -> None:
    """A front has two ends."""
    with pytest.raises(InputError, match="points"):
        pareto(long_problem(), points=points)


def test_cost_needs_prices() -> None:
    """Free GPUs have no least cost; the other objectives do not mind."""
    problem = long_problem()
    kinds = {name: replace(kind, price_per_hour=0.0) for name, kind in problem.cluster.kinds.items()}
    free = replace(problem, cluster=replace(problem.cluster, kinds=kinds))
    for pair in (("cost", "latency"), ("latency", "cost")):
        with pytest.raises(InputError, match="price_per_hour"):
            pareto(free, objectives=pair)
    assert pareto(free, objectives=("latency", "throughput")).points
