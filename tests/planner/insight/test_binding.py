"""What binds an operator, asked of the price source."""

from __future__ import annotations

import math

import pytest
from hypothesis import given, settings

from planner.api import choose
from planner.evaluate.evaluation import evaluate
from planner.evaluate.term import evaluate_expression
from planner.insight.binding import Parts, busiest_gpu, path_binding
from planner.insight.classes import operator_classes
from planner.insight.resources import Resource, better
from tests.planner.plans import Case, cases

CLEAR = [
    ("Get_Time(65536, 8192, 8192)", Resource.COMPUTE),
    ("Get_Time(1, 8192, 8192)", Resource.MEMORY),
    ("Get_Time(1, 8, 8)", Resource.OVERHEAD),
    ("Memory(4000000000)", Resource.MEMORY),
    ("Memory(64)", Resource.OVERHEAD),
    ("Attention(4, 32, 32, 8192, 8192, 128, 128)", Resource.COMPUTE),
    ("Attention(256, 32, 32, 1, 8192, 128, 128)", Resource.MEMORY),
    ("AllReduce(4000000000, ranks=8, domains=1, per_domain=8, crossing=1, narrowest=8, link=0)", Resource.INSIDE),
    ("AllReduce(4000000000, ranks=2, domains=2, per_domain=1, crossing=1, narrowest=1, link=0)", Resource.BETWEEN),
    ("AllReduce(64, ranks=8, domains=1, per_domain=8, crossing=1, narrowest=8, link=0)", Resource.LATENCY),
    ("Transfer(4000000000, 4000000000, 1, 1, 1.0)", Resource.BETWEEN),
    ("Transfer(4000000000, 4000000000, 1, 1, 0)", Resource.INSIDE),
]


@pytest.mark.parametrize(("term", "resource"), CLEAR, ids=[term[:40] for term, _ in CLEAR])
def test_clear_cases(term: str, resource: Resource) -> None:
    """Large products are bound by arithmetic, narrow ones by memory, tiny ones by their launch, and so on."""
    env = choose("helix:m4n4_exact").env
    assert Parts(env).of_term(term) is resource
    twice = evaluate_expression(term, better(env, {resource: 2.0}).pricer)
    assert twice < 0.75 * evaluate_expression(term, env.pricer)


@settings(max_examples=25, deadline=None)
@given(cases())
def test_seconds_add_up(case: Case) -> None:
    """All of the path is bound by something; the busiest GPU's seconds and its waiting are the latency."""
    found = evaluate(case.env, case.sizes, case.choice)
    parts = Parts(case.env)
    path, ops = path_binding(parts, found.critical_path, operator_classes(case.env, case.sizes, case.choice))
    assert math.fsum(path.values()) == pytest.approx(found.latency_s, rel=1e-9)
    assert math.fsum(op.seconds for op in ops) == pytest.approx(found.latency_s, rel=1e-9)
    busiest = busiest_gpu(case.env, case.sizes, case.choice, parts, found)
    report = next(report for report in found.devices if report.rank == busiest.rank)
    assert math.fsum(busiest.seconds.values()) == pytest.approx(report.busy_s + report.communication_s, rel=1e-9)
    assert math.fsum([*busiest.seconds.values(), busiest.waiting_s]) == pytest.approx(found.latency_s, rel=1e-9)
    assert report.busy_s + report.communication_s == max(r.busy_s + r.communication_s for r in found.devices)
