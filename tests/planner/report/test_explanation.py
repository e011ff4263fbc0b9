"""The sentences of an explanation hold the numbers of its JSON."""

from __future__ import annotations

from functools import cache

import pytest

from planner.insight.explain import Explanation, explain
from planner.insight.resources import Resource
from planner.report.explanation import RESOURCES, explanation_report, memory_text, summary_text, waiting_text
from planner.report.show import gigabytes, percent, seconds
from planner.solve.answer import Limits

PLANS = ("helix:m4n4_exact", "helix_two_stage:tp8_pp2")


@cache
def told(plan: str) -> Explanation:
    return explain(plan)


@pytest.mark.parametrize("plan", PLANS)
def test_the_summary_holds_the_numbers(plan: str) -> None:
    found = told(plan)
    data, text = found.to_dict(), summary_text(found)
    latency = data["latency_s"]
    path = data["binding"]["critical_path"]
    most = max(path, key=lambda name: path[name])
    assert f"takes {seconds(latency)}" in text
    assert f"{percent(path[most], latency)} of its longest path ({seconds(path[most])})" in text
    assert RESOURCES[Resource(most)] in text
    largest = data["binding"]["operators"][0]
    assert f"{largest['op']} ({seconds(largest['seconds'])}" in text
    change = data["changes"][0]
    assert f"{change['decision']}, from {change['from']} to {change['to']}" in text and f"{change['gain']:.2f} times" in text
    helps = max(data["sensitivity"], key=lambda row: row["gain"])
    assert f"{seconds(helps['latency_s'])} ({helps['gain']:.2f} times as fast)" in text
    assert f"{data['best']['ratio']:.2f} times the proven best of its space ({seconds(data['best']['latency_s'])})" in text
    work = next(bound for bound in data["bounds"] if bound["name"] == "work")
    assert f"{work['ratio']:.2f} times the bound of the work alone ({seconds(work['seconds'])})" in text


@pytest.mark.parametrize("plan", PLANS)
def test_memory_and_waiting_hold_the_numbers(plan: str) -> None:
    found = told(plan)
    binding = found.to_dict()["binding"]
    memory, shares = binding["memory"], binding["gpu_seconds"]
    text = memory_text(found)
    assert f"{gigabytes(memory['total_bytes'])} of {gigabytes(memory['capacity_bytes'])} GB" in text
    assert ("does not bind" in text) == (memory["binds"] is False)
    for name in ("busy", "communication", "pipeline_bubble", "waiting_for_slowest_stage", "waiting_inside_stage"):
        assert percent(shares[name], 1) in waiting_text(found)


@pytest.mark.parametrize("plan", PLANS)
def test_the_report_shows_every_row(plan: str) -> None:
    found = told(plan)
    text = explanation_report(found)
    for row in found.to_dict()["sensitivity"]:
        assert seconds(row["latency_s"]) in text
    for bound in found.bounds:
        assert seconds(bound.seconds) in text
    for other in found.others:
        assert other.latency_s is None or seconds(other.latency_s) in text
    assert "LEFT OUT" not in text


def test_what_was_cut_is_told() -> None:
    text = explanation_report(explain("helix:m4n4_exact", limits=Limits(seconds=0.0)))
    assert "LEFT OUT OR CUT SHORT BY THE TIME LIMIT" in text and "the time was up" in text
