"""Explanations of the library's plans: what binds, what would help, how far from the bounds."""

from __future__ import annotations

import json
import math
from functools import cache

import pytest

from planner.evaluate.evaluation import evaluate
from planner.insight.changes import plan_latency
from planner.insight.classes import Class
from planner.insight.explain import Explanation, explain
from planner.insight.resources import Resource, better
from planner.solve.answer import Limits
from planner.solve.optimum import SpaceSearch


@cache
def helix() -> Explanation:
    return explain("helix:m4n4_exact")


def test_the_score_exchange_of_the_segments_binds() -> None:
    """The partial scores of the segments take most of the time, over the links inside a node."""
    found = helix()
    assert max(found.path, key=lambda r: found.path[r]) is Resource.INSIDE
    first, second = found.operators[:2]
    assert (first.op, first.kind, first.resource) == ("score_reduce_scatter", Class.REDUCE_SCATTER, Resource.INSIDE)
    assert second.op == "probabilities_all_gather"
    assert first.seconds + second.seconds > 0.5 * found.latency_s


def test_the_grid_is_what_to_change_inside_the_stage() -> None:
    """Without segments and with all else kept the plan is more than twice as fast; changes come best first and are true."""
    found = helix()
    env, sizes = found.chosen.env, found.chosen.problem.sizes
    grid = next(change for change in found.changes if change.decision == "attention.grid")
    assert grid.gain > 2
    assert {s.attention.dimension_segments for s in grid.choice.stages} == {1}
    assert grid.choice.micro_batches == found.chosen.choice.micro_batches
    assert [c.gain for c in found.changes] == sorted((c.gain for c in found.changes), reverse=True)
    for change in found.changes:
        priced = evaluate(env, sizes, change.choice)
        assert priced.latency_s == pytest.approx(change.latency_s, rel=1e-9) and priced.over_capacity_bytes == 0
        assert change.gain == pytest.approx(found.latency_s / change.latency_s) and change.gain > 1


def test_better_hardware_is_searched_again() -> None:
    """Both columns are what the evaluator and a search say on the changed description; nothing gets slower."""
    found = helix()
    chosen = found.chosen
    assert [s.resource for s in found.sensitivity] == list(Resource)
    for s in found.sensitivity:
        env = better(chosen.env, {s.resource: 2.0})
        assert s.latency_s == plan_latency(env, chosen.problem.sizes, chosen.choice)
        assert s.best_latency_s is not None and s.best_latency_s <= (found.best.seconds or 0) * (1 + 1e-9)
    network = next(s for s in found.sensitivity if s.resource is Resource.INSIDE)
    again = SpaceSearch(better(chosen.env, {Resource.INSIDE: 2.0}), chosen.problem.space).run()
    assert network.best_latency_s == pytest.approx(again.value, rel=1e-9)


def test_other_values_hold_the_optimum() -> None:
    """Every decision has a value that the best plan has, one that this plan has, and none that is faster than the best."""
    found = helix()
    best = found.best.seconds or 0
    for name in {other.decision for other in found.others}:
        values = [other for other in found.others if other.decision == name]
        assert min(o.latency_s or math.inf for o in values) == pytest.approx(best, rel=1e-9)
        assert sum(o.own for o in values) == 1, name
        assert len({o.value for o in values}) == len(values)


def test_distances_are_to_true_bounds() -> None:
    """Ordered as they must be; the plan is above all of them."""
    bounds = {bound.name: bound.seconds for bound in helix().bounds}
    assert bounds["optimum"] == pytest.approx(helix().best.seconds or 0, rel=1e-9)
    assert max(bounds.values()) == bounds["optimum"] < helix().latency_s
    assert bounds["work"] <= bounds["optimum"] and bounds["chain"] <= bounds["chain and load"]


def test_json_says_the_same() -> None:
    """The dictionary is JSON, with the shares adding up."""
    data = json.loads(json.dumps(helix().to_dict()))
    assert data["schema"] == "planner.explanation/1" and data["cut"] == []
    assert math.fsum(data["binding"]["critical_path"].values()) == pytest.approx(data["latency_s"], rel=1e-9)
    assert math.fsum(data["binding"]["gpu_seconds"].values()) == pytest.approx(1.0, rel=1e-9)
    busiest = data["binding"]["busiest_gpu"]
    assert math.fsum(v for k, v in busiest.items() if k != "rank") == pytest.approx(data["latency_s"], rel=1e-9)
    assert data["best"]["ratio"] == pytest.approx(data["latency_s"] / data["best"]["latency_s"])
    assert all(row["plan"]["stages"] for row in data["changes"])


def test_the_best_plan_has_nothing_to_change() -> None:
    """A proven optimum is told so: no single change helps, memory does not bind."""
    found = explain("helix", sets=("workload.batch=16", "workload.prompt=256"))
    assert found.changes == () and found.asked_every_change
    assert found.best.seconds == pytest.approx(found.latency_s, rel=1e-9)
    assert found.capacity.binds is False


def test_memory_that_binds_is_told() -> None:
    """The published grid with little memory: cut into more micro-batches than it would be without the limit."""
    found = explain("helix:m4n4_exact", sets=("space.stages=1",))
    assert found.capacity.own_unlimited_micro_batches is not None
    assert found.capacity.own_unlimited_micro_batches < found.chosen.choice.micro_batches
    assert found.fullest.memory.total_bytes <= found.fullest.memory.capacity_bytes


def test_a_time_limit_is_honest() -> None:
    """Without time the price, what binds and the hardware's bounds are still told, and the rest is named."""
    found = explain("helix:m4n4_exact", limits=Limits(seconds=0.0))
    assert found.latency_s == helix().latency_s and found.path == helix().path
    assert found.changes == () and not found.asked_every_change
    assert "the best plan with unlimited memory" in found.cut and found.capacity.binds is None
    assert [bound.name for bound in found.bounds][:2] == ["work", "bandwidth"]
    assert all(s.best_latency_s is None or s.resource is Resource.CAPACITY for s in found.sensitivity)
