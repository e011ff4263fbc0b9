"""The GPU-seconds of a plan: five shares that add up to one."""

from __future__ import annotations

import math

import pytest
from hypothesis import given, settings

from planner.api import choose
from planner.evaluate.evaluation import evaluate
from planner.insight.waiting import plan_machines, waiting
from tests.planner.plans import Case, cases


@settings(max_examples=60, deadline=None)
@given(cases())
def test_shares_add_up(case: Case) -> None:
    """Work, communication, bubble and both kinds of imbalance are all of the time, and none is negative."""
    found = waiting(case.env, case.sizes, case.choice, evaluate(case.env, case.sizes, case.choice))
    shares = (found.busy, found.communication, found.bubble, found.stages, found.gpus)
    assert math.fsum(shares) == pytest.approx(1.0, rel=1e-9)
    assert min(shares) >= -1e-9
    used = [rank for machine in found.machines for rank in machine.devices]
    assert sorted(used) == sorted(rank for stage in case.choice.stages for rank in stage.devices)


def test_a_balanced_pipeline_has_the_textbook_bubble() -> None:
    """Equal stages and M micro-batches: all but M of M + stages - 1 slots are bubble, hand-overs aside."""
    chosen = choose("layer_wise:one_layer_per_gpu", sets=("plan.micro_batches=64",))
    env, sizes, choice = chosen.env, chosen.problem.sizes, chosen.choice
    found = waiting(env, sizes, choice, evaluate(env, sizes, choice))
    stages = [m.seconds for m in plan_machines(env, sizes, choice) if m.devices]
    sends = math.fsum(m.seconds for m in plan_machines(env, sizes, choice) if not m.devices)
    assert max(stages) == pytest.approx(min(stages), rel=1e-9) and found.stages == pytest.approx(0.0, abs=1e-9)
    chain = math.fsum(stages) + sends
    assert found.bubble == pytest.approx((chain - stages[0]) / (chain + 63 * stages[0]), rel=1e-9)
    assert 15 / 79 < found.bubble < 1.05 * 15 / 79


def test_the_slower_side_of_separate_experts_is_named() -> None:
    """The attention GPUs of the twelve-and-four plan wait for the four with experts."""
    chosen = choose("ma_separation:ma_12_4")
    env, sizes, choice = chosen.env, chosen.problem.sizes, chosen.choice
    found = waiting(env, sizes, choice, evaluate(env, sizes, choice))
    assert found.slowest == "experts GPUs" and found.stages > 0.1
