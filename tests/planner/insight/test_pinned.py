"""A plan as a space with one decision open: nothing else moves, and the plan itself stays in it."""

from __future__ import annotations

from dataclasses import fields
from itertools import islice

import pytest

from planner.api import choose
from planner.insight.changes import plan_latency
from planner.insight.pinned import GRID, freed_spaces, pinned_space, value_of
from planner.solve.optimum import SpaceSearch
from tests.oracle import random_problem

PLANS = ("helix:m4n4_exact", "ma_separation:ma_12_4", "cross_node_ep:ep16", "helix_two_stage:tp8_pp2")


@pytest.mark.parametrize("plan", PLANS)
def test_a_pinned_plan_is_its_whole_space(plan: str) -> None:
    """Everything pinned leaves the plan alone, at its own latency."""
    chosen = choose(plan)
    space = pinned_space(chosen.problem.space, chosen.choice)
    assert space.size() == 1
    found = SpaceSearch(chosen.env, space).run(prove=False)
    assert found.choice == chosen.choice
    assert found.value == pytest.approx(plan_latency(chosen.env, chosen.problem.sizes, chosen.choice), rel=1e-9)


@pytest.mark.parametrize("seed", range(40))
def test_a_freed_decision_alone_moves(seed: int) -> None:
    """The best plan with one decision free is no slower, in the space, and equal in every other field."""
    env, space = random_problem(seed)
    start = next((c for c in islice(space.choices(), 40) if _fits(env, space, c)), None)
    if start is None:
        return
    latency = plan_latency(env, space.sizes, start)
    for freed in freed_spaces(space, start):
        found = SpaceSearch(env, freed.space).run(prove=False)
        assert found.choice is not None, freed.name
        assert found.value <= latency * (1 + 1e-9), freed.name
        assert space.contains(found.choice), freed.name
        assert freed.now == value_of(freed.name, start)
        part, _, field = freed.name.partition(".")
        if part != "attention":
            continue
        allowed = set(GRID) if field == "grid" else {field}
        for before, after in zip(start.stages, found.choice.stages, strict=True):
            moved = {
                f.name
                for f in fields(before.attention)
                if getattr(before.attention, f.name) != getattr(after.attention, f.name)
            }
            assert moved <= (
                allowed | {"order", "softmax", "output_projection", "sequence_parallel"} if field == "grid" else allowed
            )
            assert (before.layers, before.devices, before.mlp_ways) == (after.layers, after.devices, after.mlp_ways)


def _fits(env: object, space: object, choice: object) -> bool:
    return SpaceSearch(env, pinned_space(space, choice)).run(prove=False).choice is not None  # type: ignore[arg-type]
