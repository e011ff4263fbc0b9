"""The solver's optimum equals brute force over every plan of a small space."""

from __future__ import annotations

import pytest

from planner.evaluate.evaluation import evaluate
from planner.solve.optimum import SpaceSearch
from tests.oracle import random_problem
from tests.oracle_problems import DECISIONS, MOST_PLANS, brute_forces, case_setting, disagreements, random_case, tiered_case

PROBLEMS = 208
TIERED = 24
CHUNK = 8
NEAR = (192, 243, 393, 439)
"""Problems in which copies of experts may serve the GPUs around them first."""


@pytest.mark.parametrize("first", range(0, PROBLEMS, CHUNK))
def test_brute_force_agrees(first: int) -> None:
    """Value, bound, feasibility and plan agree for every objective on random problems over every decision."""
    for seed in range(first, first + CHUNK):
        problem = random_case(seed)
        if problem.space.size() <= MOST_PLANS:
            brute = brute_forces(case_setting(problem), problem.space)
            assert not disagreements(problem, brute), f"seed {seed}"


@pytest.mark.parametrize("first", range(0, TIERED, CHUNK))
def test_brute_force_agrees_on_several_tiers(first: int) -> None:
    """The same on mixed clusters, where it matters which axis of a grid lies on neighbouring ranks."""
    seen: set[str] = set()
    for seed in range(first, first + CHUNK):
        problem = tiered_case(seed)
        if problem.space.size() <= MOST_PLANS:
            brute = brute_forces(case_setting(problem), problem.space)
            assert not disagreements(problem, brute), f"seed {seed}"
            seen |= brute.decisions
    assert {"mixed GPUs", "unequal domains", "strided batch", "strided context"} <= seen


@pytest.mark.parametrize("seed", NEAR)
def test_brute_force_agrees_where_copies_serve_their_neighbours(seed: int) -> None:
    problem = random_case(seed)
    brute = brute_forces(case_setting(problem), problem.space)
    assert not disagreements(problem, brute)
    assert "copies near the sender" in brute.decisions


def test_random_problems_cover_every_decision() -> None:
    """Each decision, tight memory and no plan at all come up; this looks at the spaces alone where it can."""
    seen: set[str] = set()
    for seed in range(8):
        problem = tiered_case(seed)
        if problem.space.size() <= 400:
            seen |= brute_forces(case_setting(problem), problem.space).decisions
    for seed in (*range(60), *NEAR):
        problem = random_case(seed)
        if problem.space.size() <= 400 and not set(DECISIONS) <= seen:
            seen |= brute_forces(case_setting(problem), problem.space).decisions
    assert seen == set(DECISIONS)
    sizes = [random_case(seed).sizes for seed in range(60)]
    assert {s.phase for s in sizes} == {"prefill", "decode"}
    assert any(s.moe for s in sizes) and any(s.dense for s in sizes) and any(s.latent for s in sizes)


@pytest.mark.parametrize("seed", range(0, 40))
def test_the_evaluator_prices_the_optimum_alike(seed: int) -> None:
    """The evaluator's latency of the plan found is the value that the solver proved."""
    env, space = random_problem(seed)
    found = SpaceSearch(env, space).run()
    if found.choice is not None:
        evaluation = evaluate(env, space.sizes, found.choice)
        assert evaluation.latency_s == pytest.approx(found.value, rel=1e-9)
        assert evaluation.over_capacity_bytes == 0
