"""The solver's optimum equals brute force over every plan of a small space."""

from __future__ import annotations

import math

import pytest

from planner.evaluate.evaluation import evaluate
from planner.solve.optimum import SpaceSearch
from tests.oracle import brute_force, random_problem

PROBLEMS = 240
CHUNK = 10


@pytest.mark.parametrize("first", range(0, PROBLEMS, CHUNK))
def test_brute_force_agrees(first: int) -> None:
    """Value, bound and feasibility agree on random problems, and the plan found is in the space."""
    for seed in range(first, first + CHUNK):
        env, space = random_problem(seed)
        if space.size() > 4000:
            continue
        best, plans = brute_force(env, space)
        assert plans == space.size(), seed
        found = SpaceSearch(env, space).run()
        if math.isinf(best):
            assert found.choice is None, seed
            continue
        assert found.choice is not None, seed
        assert space.contains(found.choice), seed
        assert found.value == pytest.approx(best, rel=1e-6), seed
        assert found.bound == pytest.approx(best, rel=1e-6), seed
        assert found.bound <= found.value, seed


def test_random_problems_cover_what_they_promise() -> None:
    """The random problems hold dense and mixture models, both phases, two GPU kinds, tight memory and infeasible ones."""
    problems = [random_problem(seed) for seed in range(PROBLEMS)]
    sizes = [space.sizes for _, space in problems]
    assert {s.phase for s in sizes} == {"prefill", "decode"}
    assert any(s.moe for s in sizes) and any(s.dense for s in sizes) and any(s.latent for s in sizes)
    assert any(len(set(s.kind_of_device)) == 2 for s in sizes)
    assert any(s.heads % 2 for s in sizes), "uneven heads"


@pytest.mark.parametrize("seed", range(0, 40))
def test_the_evaluator_prices_the_optimum_alike(seed: int) -> None:
    """The evaluator's latency of the plan found is the value that the solver proved."""
    env, space = random_problem(seed)
    found = SpaceSearch(env, space).run()
    if found.choice is not None:
        evaluation = evaluate(env, space.sizes, found.choice)
        assert evaluation.latency_s == pytest.approx(found.value, rel=1e-9)
        assert evaluation.over_capacity_bytes == 0
