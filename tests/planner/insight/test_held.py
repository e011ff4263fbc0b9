"""The best plan with a decision held is a plan that has it, at the value that the solver gives."""

from __future__ import annotations

import math

import pytest

from planner.insight.changes import plan_latency
from planner.insight.held import best_held
from planner.solve.decisions import pins
from planner.solve.optimum import SpaceSearch
from tests.oracle import random_problem


@pytest.mark.parametrize("seed", range(24))
def test_held_values_are_the_solvers(seed: int) -> None:
    """For every pin of every decision, every branch and every stage count."""
    env, space = random_problem(seed)
    search = SpaceSearch(env, space)
    whole = search.run(prove=False)
    found = best_held(search, {})
    assert (found is None) == (whole.choice is None)
    if found is None:
        return
    assert found.seconds == pytest.approx(whole.value, rel=1e-9)
    for _, values in pins(search):
        for _, pin in values:
            held, value = best_held(search, pin), search.pinned_value(pin)
            assert (held.seconds if held else math.inf) == pytest.approx(value, rel=1e-9)
            if held is not None:
                assert plan_latency(env, space.sizes, held.choice) == pytest.approx(held.seconds, rel=1e-9)
                assert space.contains(held.choice)
    for count, value in search.by_stage_count():
        held = best_held(search, {}, stages=(count,))
        assert (held.seconds if held else math.inf) == pytest.approx(value, rel=1e-9)
        assert held is None or len(held.choice.stages) == count
    for branch in space.branches:
        held = best_held(search, {}, [branch])
        assert held is None or (held.choice.replicas, held.choice.micro_batches) == branch
