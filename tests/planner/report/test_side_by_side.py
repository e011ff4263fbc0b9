"""The text of a comparison holds the numbers of its JSON."""

from __future__ import annotations

from planner.insight.compare import compare
from planner.report.show import gigabytes, percent, seconds
from planner.report.side_by_side import CLASSES, comparison_report


def test_every_number_is_shown() -> None:
    found = compare(["helix:m4n4_exact", "helix:m4n4"])
    text = comparison_report(found)
    for side, column in zip(found.sides, found.to_dict()["plans"], strict=True):
        assert column["label"] in text and seconds(column["latency_s"]) in text
        assert f"{column['ratio_to_fastest']:.3f}" in text
        for name, own in side.split.classes.items():
            if own:
                assert CLASSES[name] in text and f"{seconds(own)} ({percent(own, column['latency_s'])})" in text
        assert gigabytes(column["fullest_gpu"]["total_bytes"]) in text
    assert "All plans are priced on the same model, workload and cluster." in text


def test_a_plan_without_a_price_has_a_column() -> None:
    sets = ("space.stages=2", "space.attention.head_groups=16")
    text = comparison_report(compare(["helix", "helix:m4n4_exact"], sets=sets))
    header = next(line for line in text.splitlines() if "helix:m4n4_exact" in line and "fastest" not in line)
    assert "helix " in header and "no plan, see below" in text and "no plan obeys" in text


def test_the_same_plan_twice_and_other_problems() -> None:
    text = comparison_report(compare(["helix:m4n4", "helix:m4n4", "cross_node_ep:ep16"]))
    assert "helix:m4n4 (1)" in text and "helix:m4n4 (2)" in text
    assert "These plans belong to problems that differ" in text and "model.layers" in text
