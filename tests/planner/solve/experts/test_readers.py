"""Who asks for plans besides a search gets placed experts, too: fronts, plans that leave the placement open, explanations."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from planner import api
from planner.front import pareto
from planner.insight.explain import explain
from planner.search import search
from planner.solve.experts.options import AMONG
from tests.planner.solve.experts.test_search import LOAD, MODEL, ONE_STAGE, problem

DEVICES = [{"layers": 4, "devices": [0, 1, 2, 3]}]


@pytest.fixture
def asked(tmp_path: Path) -> Path:
    """A problem with unequal loads and a plan that does not say where its experts are."""
    plan = {"stages": DEVICES, "experts": {"form": "dispatch", "tensor_ways": 1}, "micro_batches": 1}
    written = {
        "schema": "planner.problem/1", "name": "tiny", "model": MODEL, "cluster": "1x4-h100",
        "workload": {"phase": "prefill", "batch": 16, "prompt": 2048, "expert_load": LOAD}, "space": ONE_STAGE,
        "plans": {"open": plan, "in_a_row": {"like": "open", "experts": {"placement": "consecutive"}}},
    }  # fmt: skip
    path = tmp_path / "tiny.yaml"
    path.write_text(yaml.safe_dump(written))
    return path


def test_a_plan_that_leaves_the_placement_open_gets_a_better_one_than_in_a_row(asked: Path) -> None:
    placed, plain = (api.evaluate(f"{asked}:{name}").latency_s for name in ("open", "in_a_row"))
    assert placed < 0.8 * plain
    chosen = api.choose(f"{asked}:open").choice
    assert chosen.stages[0].experts is not None
    assert chosen.stages[0].experts.placement


def test_a_hand_designed_plan_is_completed_with_placed_experts(asked: Path) -> None:
    told = {hand.name: hand for hand in search(api.load_problem(asked)).hand_designed}
    assert told["open"].ratio_to_best == pytest.approx(1.0, rel=0.05)
    assert told["in_a_row"].ratio_to_best is not None
    assert told["in_a_row"].ratio_to_best > 1.2


def test_a_front_has_placed_experts_and_says_among_which_its_points_are_proven() -> None:
    found = pareto(problem(), objectives=("latency", "cost"), points=2)
    plain = pareto(problem(placement="consecutive"), objectives=("latency", "cost"), points=2)
    assert found.points[0].values[0] < 0.8 * plain.points[0].values[0]
    assert AMONG in found.problem.restrictions
    assert AMONG not in plain.problem.restrictions
    assert search(problem(), details=False).value <= found.points[0].values[0] * (1 + 1e-9)  # type: ignore[operator]


def test_an_explanation_compares_with_placed_experts(asked: Path) -> None:
    found = explain(f"{asked}:in_a_row")
    assert AMONG in found.assumptions
    assert found.best.seconds is not None
    assert found.best.seconds < 0.8 * found.evaluation.latency_s
