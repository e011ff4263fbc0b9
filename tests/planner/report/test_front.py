"""The report of a front: every number of its points, and what is known of them."""

from __future__ import annotations

from dataclasses import replace
from xml.etree import ElementTree

from planner.front import pareto
from planner.report.front import COMPLETE, PARTIAL, PROVEN, UNPROVEN, front_headline, front_report, front_svg
from planner.report.show import objective_value
from planner.solve.answer import Limits
from planner.solve.objective import TIE_RULE, Caps
from tests.planner.report.small import tiny_problem

LONG = {"phase": "prefill", "batch": 16, "prompt": 4096, "keep_kv_cache": False, "logits": "none"}


def long_problem(**changes):
    """Prompts long enough that more GPUs help."""
    return tiny_problem(workload=LONG, **changes)


def test_every_point_is_told() -> None:
    """Values with units, plans in words, the sketch with as many points, the rule for ties."""
    front = pareto(long_problem(), objectives=("latency", "cost"))
    text = front_report(front)
    flat = " ".join(text.split())
    assert PROVEN in flat and COMPLETE in flat and f"Ties: {TIE_RULE}" in flat
    for point in front.points:
        assert objective_value("latency", point.values[0]) in text and objective_value("cost", point.values[1]) in text
    assert front_headline(front) == f"tiny: {len(front.points)} points of latency against cost, all proven, complete"
    assert 1 <= text.split("SEARCH SPACE")[0].count("*") <= len(front.points)


def test_what_is_not_proven_or_missing_is_said() -> None:
    """A front that was cut short."""
    front = pareto(long_problem())
    open_points = (replace(front.points[0], status="feasible"), *front.points[1:])
    cut = replace(front, status="feasible", complete=False, points=open_points, interrupted=True)
    flat = " ".join(front_report(cut).split())
    assert UNPROVEN in flat and PARTIAL in flat and front_headline(cut).endswith("interrupted")
    assert front_svg(cut).count('class="open"') == 1


def test_limits_and_reasons_are_told() -> None:
    """Where nothing fits: which limit, and its smallest relaxation."""
    front = pareto(long_problem(), limits=Limits(caps=Caps(latency_s=1e-6)))
    flat = " ".join(front_report(front).split())
    assert "At most: latency 1 us." in flat and "no plan is under 1 us: the fastest takes" in flat
    assert "Smallest change that would let a plan fit: a latency of" in flat
    assert "timeout" not in flat and "before the time limit" in front_headline(replace(front, status="timeout"))
    assert "interrupted before a plan" in front_headline(replace(front, status="timeout", interrupted=True))


def test_the_drawing_is_well_formed_and_complete() -> None:
    """One circle for each point, its plan as the tooltip, whatever the problem is called."""
    problem = long_problem(name='a<b & "c"')
    front = pareto(problem, objectives=("throughput", "cost"))
    root = ElementTree.fromstring(front_svg(front))
    titles = [e.text for e in root.iter() if e.tag.endswith("title")]
    assert len(titles) == len(front.points) and all("GPU" in title for title in titles)
    assert any(e.text and e.text.startswith('a<b & "c"') for e in root.iter())
