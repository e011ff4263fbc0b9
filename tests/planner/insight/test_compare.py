"""Plans side by side."""

from __future__ import annotations

import json
import math

import pytest

from planner import api
from planner.errors import InputError
from planner.insight.compare import Missing, compare


def test_two_plans_of_a_problem() -> None:
    """Ratios, differences by class and findings; the order is that of the question."""
    data = json.loads(json.dumps(compare(["helix:m4n4", "helix:m4n4_exact"]).to_dict()))
    assert data["schema"] == "planner.comparison/1" and data["problem_differences"] == []
    published, exact = data["plans"]
    assert (data["fastest"], published["ratio_to_fastest"]) == ("helix:m4n4", 1.0)
    assert exact["ratio_to_fastest"] == pytest.approx(exact["latency_s"] / published["latency_s"])
    for plan in (published, exact):
        assert math.fsum(plan["classes"].values()) == pytest.approx(plan["latency_s"], rel=1e-9)
        assert math.fsum(plan["tiers"].values()) == pytest.approx(plan["communication_s"], rel=1e-12)
        assert math.fsum(plan["gpu_seconds"].values()) == pytest.approx(1.0, rel=1e-9)
        assert plan["gpus_used"] == 16
        assert plan["cost_dollars"] == pytest.approx(16 * 3.0 / 3600 * plan["latency_s"])
    apart = exact["against_fastest"]
    assert math.fsum(apart.values()) == pytest.approx(exact["latency_s"] - published["latency_s"], rel=1e-9)
    assert any(finding["severity"] == "error" for finding in published["findings"])
    assert not any(finding["severity"] == "error" for finding in exact["findings"])


def test_other_problems_are_told() -> None:
    """Plans of two problems may stand side by side; what differs is named."""
    found = compare(["helix:m4n4_exact", "cross_node_ep:ep16"])
    facts = {difference.fact: difference.values for difference in found.differences}
    assert facts["model.layers"] == ("2", "4")
    assert not any(fact.startswith("cluster.") for fact in facts)
    assert all(len(set(values)) > 1 for values in facts.values())


def test_a_plan_without_a_price_is_a_column() -> None:
    """A space that its rules leave nothing of is told beside the plans that have a price."""
    found = compare(["helix", "helix:m4n4_exact"], sets=("space.stages=2", "space.attention.head_groups=16"))
    first, second = found.columns
    assert isinstance(first, Missing) and "no plan obeys" in first.reason
    assert found.fastest is second
    column = found.to_dict()["plans"][0]
    assert (column["priced"], column["label"]) == (False, "helix")


def test_a_plan_that_does_not_fit_keeps_its_price() -> None:
    """Over the memory of a GPU is a fact of the column, not an error."""
    found = compare(["helix:m4n4_exact", "helix:m4n4_exact"], sets=("plan.micro_batches=1",))
    assert all(side.evaluation.over_capacity_bytes > 0 for side in found.sides)
    assert found.fastest is found.sides[0]


def test_one_plan_is_refused() -> None:
    """A comparison needs two."""
    with pytest.raises(InputError, match="2 to 20 plans"):
        compare(["helix:m4n4"])
    with pytest.raises(InputError):
        compare(["helix:m4n4", "helix:nothing"])


def test_chosen_plans_may_be_given() -> None:
    """What the API has chosen is compared as it is."""
    chosen = api.choose("helix:m4n4_exact")
    found = compare([chosen, "helix"])
    assert found.sides[0].chosen is chosen
    assert found.fastest is found.sides[1]
