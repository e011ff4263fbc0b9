"""What objectives measure of a plan is what stepping through it gives."""

from __future__ import annotations

import pytest

from planner.evaluate.evaluation import evaluate
from planner.evaluate.measures import measures
from tests.measured import small_problem


@pytest.mark.parametrize("seed", range(5000, 5012))
def test_plans_are_measured_as_they_step(seed: int) -> None:
    """Seconds of a pass and in steady state, dollars and GPUs, for plans of every kind; the evaluator has the same latency."""
    env, space, plans = small_problem(seed) or (None, None, [])
    for plan in plans[:: max(1, len(plans) // 20)]:
        own = measures(env, space.sizes, plan.choice)
        assert own.latency_s == pytest.approx(plan.latency_s, rel=1e-9)
        assert own.steady_s == pytest.approx(plan.steady_s, rel=1e-9) and own.steady_s <= own.latency_s * (1 + 1e-9)
        assert (own.dollars, own.gpus) == (pytest.approx(plan.dollars, rel=1e-9), plan.gpus)
    for plan in plans[:2]:
        found = evaluate(env, space.sizes, plan.choice)
        assert found.latency_s == pytest.approx(plan.latency_s, rel=1e-9) and len(found.devices) == plan.gpus
