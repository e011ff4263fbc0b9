"""The classes of a plan's operators add up to its latency, and its tiers to its communication."""

from __future__ import annotations

import math

import pytest
from hypothesis import given, settings

from planner.api import choose
from planner.evaluate.evaluation import evaluate
from planner.insight.classes import COMMUNICATION, Class, Tier, operator_classes, path_split
from planner.problem import library_names, load_problem
from tests.planner.plans import Case, cases

NAMES = {
    "q_proj": Class.PROJECTIONS, "kv_a_proj": Class.PROJECTIONS, "q_absorb": Class.PROJECTIONS, "v_absorb": Class.PROJECTIONS,
    "o_proj": Class.PROJECTIONS, "attention": Class.CORE, "scores": Class.CORE, "attention_value": Class.CORE,
    "softmax": Class.CORE, "index_score": Class.CORE, "index_q": Class.PROJECTIONS, "up_proj": Class.FFN,
    "shared_up_proj": Class.FFN, "expert_up_proj": Class.EXPERTS, "expert_down_proj": Class.EXPERTS, "router": Class.ROUTER,
    "top_k": Class.ROUTER, "attention_norm": Class.ELEMENTWISE, "ffn_residual": Class.ELEMENTWISE, "rope": Class.ELEMENTWISE,
    "activation": Class.ELEMENTWISE, "embedding": Class.ENDS, "lm_head": Class.ENDS, "score_all_reduce": Class.ALL_REDUCE,
    "gather_tokens": Class.ALL_GATHER, "score_reduce_scatter": Class.REDUCE_SCATTER, "ring_1": Class.SEND,
    "merge_all_to_all": Class.ALL_TO_ALL,
}  # fmt: skip
PLANS = [f"{name}:{plan}" for name in library_names() for plan in load_problem(name).plans]


@pytest.mark.parametrize("plan", PLANS)
def test_classes_of_a_library_plan_add_up(plan: str) -> None:
    """Every second of the longest path has a class, every second of communication a tier."""
    chosen = choose(plan)
    found = evaluate(chosen.env, chosen.problem.sizes, chosen.choice)
    split = path_split(found.critical_path, operator_classes(chosen.env, chosen.problem.sizes, chosen.choice))
    assert math.fsum(split.classes.values()) == pytest.approx(found.latency_s, rel=1e-9)
    assert math.fsum(split.tiers.values()) == pytest.approx(split.communication_s, rel=1e-12)


@settings(max_examples=60, deadline=None)
@given(cases())
def test_classes_add_up_for_any_plan(case: Case) -> None:
    """The same for plans of every kind, and operators have the class that their name says."""
    found = evaluate(case.env, case.sizes, case.choice)
    classes = operator_classes(case.env, case.sizes, case.choice)
    split = path_split(found.critical_path, classes)
    assert math.fsum(split.classes.values()) == pytest.approx(found.latency_s, rel=1e-9)
    assert math.fsum(split.tiers.values()) == pytest.approx(split.communication_s, rel=1e-12)
    assert {name: classes[name] for name in NAMES if name in classes} == {n: c for n, c in NAMES.items() if n in classes}
    busy = math.fsum(seconds for name, seconds in split.classes.items() if name not in COMMUNICATION)
    assert busy + split.communication_s == pytest.approx(found.latency_s, rel=1e-9)


def test_tiers_follow_the_gpus() -> None:
    """A grid whose segments share a node sums its scores inside it, and gathers its heads over the network."""
    chosen = choose("helix:m4n4_exact")
    found = evaluate(chosen.env, chosen.problem.sizes, chosen.choice)
    classes = operator_classes(chosen.env, chosen.problem.sizes, chosen.choice)
    scores = [item for item in found.critical_path if item.op.startswith("score_")]
    split = path_split(scores, classes)
    assert split.tiers[Tier.INSIDE] > 0 and split.tiers[Tier.BETWEEN] == 0
    rest = path_split([item for item in found.critical_path if item.op == "gather_heads"], classes)
    assert rest.tiers[Tier.BETWEEN] > 0 and rest.tiers[Tier.INSIDE] == 0
