"""A training problem from its words to its checked plan."""

from __future__ import annotations

import re

import pytest

from planner import api
from planner.errors import InputError
from planner.problem import load_problem
from planner.report import markdown_report, search_report
from planner.search import Result, search
from planner.solve.objective import TIE_RULE, TRAINING_TIE_RULE
from planner.solve.training import Found
from search_spaces.attention import AttentionPartition
from search_spaces.space import RULES
from search_spaces.stages import Choice, StageChoice
from search_spaces.training import TrainingChoice
from search_spaces.training_space import TRAINING_RULES

MODEL = {
    "name": "small", "layers": 3, "hidden": 256, "vocab": 1000, "attention": {"heads": 4, "kv_heads": 2},
    "ffn": {"hidden": 512},
}  # fmt: skip
PROBLEM = {"name": "small", "model": MODEL, "cluster": "1x4-h100", "workload": "training:global_batch=8,sequence=256"}


@pytest.fixture(scope="module")
def found() -> Result:
    return search(load_problem(PROBLEM))


def test_best_plan_is_proven_and_told(found: Result) -> None:
    told = found.to_dict()
    assert found.status == "optimal" and told["objective"]["gap"] == 0
    assert told["plan"]["schedule"] in ("1f1b", "gpipe", "interleaved", "zb_h1") and told["plan"]["zero"] in (0, 1, 2, 3)
    low, high = told["evaluation"]["interval_s"]
    assert low < told["evaluation"]["latency_s"] < high
    assert all(d["memory"]["optimizer_bytes"] > 0 for d in told["evaluation"]["devices"])
    report = " ".join(search_report(found).split())
    assert re.search(r"\d frames? \(replicas x micro-batches x stages and their split\) opened", report)
    names = {decision["name"] for decision in told["decisions"]}
    assert {"replicas", "stages", "recompute", "zero"} <= names
    for decision in told["decisions"]:
        assert min(v["objective"] for v in decision["values"] if v["objective"] is not None) == pytest.approx(found.value)


@pytest.mark.parametrize(
    "pins",
    [
        {"stages": 2, "replicas": 2, "micro_batches": 4, "schedule": "zb_h1", "zero": 1},
        {"stages": 1, "replicas": 1, "attention": {"head_groups": 4, "sequence_parallel": True}, "recompute": "full"},
    ],
)
def test_pinned_plans_compute_the_gradients_of_the_model(pins: dict[str, object]) -> None:
    problem = load_problem({**PROBLEM, "plans": {"mine": pins}})
    choice = search(load_problem({**PROBLEM, "space": pins}), details=False).choice
    assert choice is not None and problem.plans["mine"].contains(choice)
    env = api.setting(problem.model, problem.workload, problem.cluster)
    validation = api.validate(api.Chosen(problem, env, "mine", choice))
    assert validation.valid and validation.run.executed and validation.run.matches_unsplit_model


@pytest.mark.parametrize(
    ("plan", "words"),
    [
        ({"attention": {"dimension_segments": 2}}, "dimension_segments"),
        ({"attention": {"output_projection": "gather"}}, "output_projection"),
        ({"schedule": "forward"}, "schedule"),
        ({"zero": 4}, "zero"),
    ],
)
def test_plans_that_cannot_be_trained_are_refused(plan: dict[str, object], words: str) -> None:
    with pytest.raises(InputError, match=words):
        load_problem({**PROBLEM, "plans": {"mine": plan}})


def test_rules_and_ties_are_those_of_training(found: Result) -> None:
    told, text = found.to_dict()["space"], " ".join(markdown_report(found).split())
    assert told["rules"] == list(TRAINING_RULES) and told["ties"] == TRAINING_TIE_RULE != TIE_RULE
    assert f"Ties: {TRAINING_TIE_RULE}." in text and all(rule in text for rule in TRAINING_RULES)
    shared = [rule for rule in RULES if rule in told["rules"]]
    assert len(shared) == 1 and shared[0].startswith("replicas are blocks")
    assert "neighbouring ranks" not in text and "GPUs of their own" not in text and TIE_RULE not in text
    pinned = load_problem({**PROBLEM, "space": {"stages": 2}})
    assert pinned.restrictions == (*TRAINING_RULES, "the space has stages = 2")


def test_ties_are_settled_as_told() -> None:
    def plan(width: int = 1, stages: int = 1, micro: int = 1, replicas: int = 1, training: str = "zb_h1") -> Found:
        found = tuple(StageChoice(1, tuple(range(width)), AttentionPartition(width), width) for _ in range(stages))
        return Found(1.0, Choice(replicas, micro, found, 1, TrainingChoice(training)))  # type: ignore[arg-type]

    ordered = [
        plan(), plan(micro=2), plan(replicas=2), plan(replicas=2, micro=2), plan(stages=2, training="1f1b"), plan(stages=2),
        plan(width=3, training="gpipe"), plan(width=3),
    ]  # fmt: skip
    for index, better in enumerate(ordered):
        assert all(better.better(worse) and not worse.better(better) for worse in ordered[index + 1 :])
        assert not better.better(better), "the one found first stays"
