"""A placement of the experts for every layer: found where loads differ, priced, written, checked and run like any other."""

from __future__ import annotations

from dataclasses import replace
from itertools import islice

import numpy as np
import pytest

from planner.check.run.numeric import run_choice
from planner.check.validate import check_choice
from planner.errors import InputError
from planner.evaluate.evaluation import evaluate
from planner.plan import choice_to_dict, plan_space
from planner.problem import Problem
from planner.solve.optimum import SpaceSearch
from search_spaces.experts import ExpertPlacement, Placement
from search_spaces.stages import Choice
from tests.planner.solve.experts.test_load import placements
from tests.planner.solve.experts.test_search import LOAD, env_of, found, problem

LOADS = [LOAD, LOAD[::-1], [1.0] * 8, [9.0, 1, 1, 1, 9, 1, 1, 1]]
SHARED: Placement = ((0,), (1,), (2,), (3,), (3,), (2,), (1,), (0,))
OTHER: Placement = ((0, 1), (2,), (3,), (3,), (2,), (2,), (1,), (0, 3))
THIRD: Placement = ((3,), (2, 0), (1,), (0,), (0,), (1,), (2,), (3,))


def chosen(asked: Problem, placed: object) -> Choice:
    """The plan with a placement."""
    space = replace(asked.space, experts=replace(asked.space.experts, placement=(placed,)))  # type: ignore[arg-type]
    (choice,) = islice(space.choices(), 2)
    return choice


def pinned(asked: Problem) -> Problem:
    """All but the placement is fixed."""
    grid = replace(asked.space.attention, head_groups=(4,), batch_parts=(1,), context_parts=(1,), dimension_segments=(1,),
                   output_projection=("row",), sequence_parallel=(False,), order=("segments_inner",), softmax=("repeated",),
                   heads_per_group=((8, 8, 8, 8),))  # fmt: skip
    return replace(asked, space=replace(asked.space, attention=grid, mlp_ways=(4,)))


def test_every_layer_is_priced_with_its_own_placement() -> None:
    asked = pinned(problem(load=LOADS))
    env, sizes = env_of(asked), asked.sizes
    rows = (SHARED, OTHER, SHARED, THIRD)
    whole = [evaluate(env, sizes, chosen(asked, row)).latency_s for row in (SHARED, OTHER, THIRD)]
    mixed = evaluate(env, sizes, chosen(asked, rows)).latency_s
    alone = [problem(load=[load]) for load in LOADS]
    parts = [evaluate(env_of(one), sizes, chosen(pinned(one), row)).latency_s / 4 for one, row in zip(alone, rows, strict=True)]
    assert mixed == pytest.approx(sum(parts), rel=1e-9)
    assert mixed not in whole
    space = replace(asked.space, experts=replace(asked.space.experts, placement=(SHARED, rows)))
    assert SpaceSearch(env, space).run().value == pytest.approx(min(mixed, whole[0]), rel=1e-9)


@pytest.mark.parametrize("form", ["local", "dispatch"])
def test_such_a_plan_computes_the_model_and_is_read_back(form: str) -> None:
    asked = pinned(problem(load=LOADS, prompt=64, form=form))
    choice = chosen(asked, (SHARED, OTHER, SHARED, THIRD))
    env, sizes = env_of(asked), asked.sizes
    assert not [f for f in check_choice(env, sizes, choice) if f.severity == "error"]
    run = run_choice(env, sizes, choice)
    assert run.matches_unsplit_model
    assert not [f for f in run.findings if f.severity == "error"]
    written = choice_to_dict(choice, sizes)
    assert list(plan_space(written, asked.space, "").choices()) == [choice]


def test_a_layer_placed_as_another_is_found_by_the_checks() -> None:
    asked = pinned(problem(load=LOADS))
    env, sizes = env_of(asked), asked.sizes
    short = chosen(asked, (SHARED, OTHER, SHARED, THIRD))
    stage = short.stages[0]
    wrong = replace(short, stages=(replace(stage, experts=ExpertPlacement("dispatch", 1, 0, (SHARED, OTHER))),))
    assert "STRUCT010" in {finding.code for finding in check_choice(env, sizes, wrong)}
    empty = replace(short, stages=(replace(stage, experts=ExpertPlacement("dispatch", 1, 0, (SHARED,) * 3 + (((9,),) * 8,))),))
    assert "STRUCT010" in {finding.code for finding in check_choice(env, sizes, empty)}


@pytest.mark.parametrize(
    ("rows", "word"),
    [
        ([[0] * 8] * 3, "each of the 4 layers"),
        ([[0] * 8, [0] * 7, [0] * 8, [0] * 8], "each of the 8 experts"),
        ([[0] * 8, [[0, 0], *[0] * 7], [0] * 8, [0] * 8], "different groups"),
        ("any", "each of the 4 layers"),
    ],
)
def test_wrong_rows_are_refused(rows: object, word: str) -> None:
    with pytest.raises(InputError, match=word):
        problem(load=LOADS, placement_by_layer=rows)


def test_layers_with_equal_loads_share_a_placement() -> None:
    with pytest.raises(InputError, match="same expert loads"):
        problem(
            load=[LOAD, LOAD, LOAD[::-1], LOAD], placement_by_layer=[[0, 1, 2, 3, 0, 1, 2, 3], *[[0, 0, 1, 1, 2, 2, 3, 3]] * 3]
        )
    with pytest.raises(InputError, match="beside placement_by_layer"):
        problem(load=LOADS, placement_by_layer=[[0, 1, 2, 3, 0, 1, 2, 3]] * 4, replicas=2)


def test_a_search_finds_a_placement_for_every_layer_better_than_any_shared_one() -> None:
    asked = pinned(problem(load=[LOAD, LOAD[::-1]] * 2))
    result = found(asked)
    assert result.choice is not None
    assert result.choice.stages[0].experts is not None
    assert result.choice.stages[0].experts.by_layer
    shared = list(placements(8, 4, 3))[::150]
    space = replace(asked.space, experts=replace(asked.space.experts, placement=tuple(shared)))
    best = SpaceSearch(env_of(asked), space).run().value
    assert result.value is not None
    assert result.value < best * (1 - 1e-3)
    assert result.bound is not None
    assert result.bound <= result.value
    assert np.isclose(evaluate(env_of(asked), asked.sizes, result.choice).latency_s, result.value, rtol=1e-9)
