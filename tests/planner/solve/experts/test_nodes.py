"""Experts over several nodes: copies near the sender are found where they save time, and bounded with the rest."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from planner.check.findings import errors
from planner.check.run import run_choice
from planner.check.validate import check_choice
from planner.errors import InputError
from planner.evaluate.evaluation import evaluate
from planner.plan import choice_to_dict, plan_space
from planner.problem import Problem, load_problem
from planner.report.words import ffn_words
from planner.search import search
from planner.solve.experts.nodes import node_placements
from planner.solve.experts.searched import any_placement_bound
from planner.solve.optimum import SpaceSearch
from planner.workload import load_workload, workload_to_dict
from search_spaces.experts import ExpertPlacement, legal_placement, most_held
from tests.planner.solve.experts.test_search import MODEL, ONE_STAGE, env_of

LOAD = [40.0, 30, 12, 11, 10, 9, 8, 7]


def problem(cluster: str = "2x2-h100", batch: int = 16, **experts: object) -> Problem:
    workload = {"phase": "prefill", "batch": batch, "prompt": 256, "expert_load": LOAD}
    space = {**ONE_STAGE, "experts": {**ONE_STAGE["experts"], **experts}}  # type: ignore[dict-item]
    return load_problem(model=MODEL, cluster=cluster, workload=workload, space=space)  # type: ignore[arg-type]


@pytest.mark.parametrize(("groups", "near", "slots"), [(4, 2, 3), (8, 4, 2), (8, 2, 2), (6, 2, 3)])
def test_the_hottest_experts_stand_on_every_node(groups: int, near: int, slots: int) -> None:
    loads = np.random.default_rng(groups).exponential(1.0, (5, 8))
    found = node_placements(loads, groups, near, slots)
    assert found is not None
    for row, placement in zip(loads, found, strict=True):
        assert legal_placement(placement, 8, groups)
        assert max(np.bincount([g for held in placement for g in held])) <= slots
        copied = [e for e, held in enumerate(placement) if len(held) > 1]
        assert copied
        assert min(row[copied]) >= max((row[e] for e in range(8) if e not in copied), default=0.0)
        assert all(len({g // near for g in placement[e]}) == groups // near for e in copied)


def test_no_room_no_copies() -> None:
    assert node_placements(np.ones((1, 8)), 4, 2, 2) is None


def test_copies_that_serve_their_own_node_are_found_where_the_network_is_slow() -> None:
    best, turns = search(problem(), details=False), search(problem(serve_within=0), details=False)
    assert best.choice is not None
    assert best.choice.stages[0].experts.serve_within == 2  # type: ignore[union-attr]
    assert best.value < 0.99 * turns.value  # type: ignore[operator]
    assert best.bound <= best.value  # type: ignore[operator]
    assert ffn_words(best.choice.stages[0], best.problem.space.sizes)[-1].endswith("serve the 2 GPUs around them first")
    written = choice_to_dict(best.choice, best.problem.space.sizes)
    assert best.choice in list(plan_space(written, problem().space, "").choices())
    inside = search(problem("1x4-h100"), details=False)
    assert inside.choice.stages[0].experts.serve_within == 0  # type: ignore[union-attr]


@pytest.mark.parametrize("batch", [1, 4, 64])
def test_no_placement_and_no_service_goes_below_the_bound(batch: int) -> None:
    asked = problem(batch=batch)
    plain = replace(asked.space, experts=replace(asked.space.experts, placement=((),)))
    env, rng = env_of(asked), np.random.default_rng(batch)
    bound = any_placement_bound(SpaceSearch(env, plain), plain)
    choice = SpaceSearch(env, plain).run().choice
    assert choice is not None
    stage, least = choice.stages[0], np.inf
    for _ in range(60):
        placement = tuple(tuple(sorted(rng.choice(4, rng.choice((1, 1, 2)), replace=False).tolist())) for _ in LOAD)
        if max(np.bincount([g for held in placement for g in held])) > most_held(8, 4):
            continue
        for within in (0, 2) if any(len(held) > 1 for held in placement) else (0,):
            experts = ExpertPlacement("dispatch", 1, 0, placement, serve_within=within)
            least = min(
                least, evaluate(env, asked.space.sizes, replace(choice, stages=(replace(stage, experts=experts),))).latency_s
            )
    assert bound <= least
    assert bound > 0.5 * least


@pytest.mark.parametrize(
    ("wrong", "field"),
    [
        ({"form": "local", "serve_within": 2}, "serve_within"),
        ({"serve_within": 4}, "serve_within"),
        ({"serve_within": 3, "tensor_ways": 2}, "serve_within"),
        ({"serve_within": -1}, "serve_within"),
        ({"serve_within": "near"}, "serve_within"),
    ],
)
def test_neighbours_that_cannot_be_are_refused_by_name(wrong: dict[str, object], field: str) -> None:
    groups = 2 if wrong.get("tensor_ways") == 2 else 4
    placed = [[0, 1], *([e % groups] for e in range(1, 8))]
    experts = {"form": "dispatch", "tensor_ways": 1, "placement": placed, "replicas": [2, *[1] * 7], **wrong}
    stage = {"layers": 4, "devices": [0, 1, 2, 3], "attention": {"head_groups": 4}, "experts": experts}
    plan = {"schema": "planner.plan/1", "replicas": 1, "micro_batches": 1, "stages": [stage]}
    with pytest.raises(InputError, match=field):
        plan_space(plan, problem().space, "plan")


@pytest.mark.parametrize(
    ("form", "tokens", "load", "placed", "ffn"),
    [
        ("dispatch", (1, 64), (0, 0, 0, 1, 1, 1, 1, 0), (0, 1, 2, 0, 1, 2, 3, 3), {"top_k": 1, "hidden": 128}),
        ("local", (16, 4096), (100, 100, 98, 98, 2, 2, 0, 0), (2, 3, 0, 1, 2, 3, 0, 1), {"hidden": 128, "shared_hidden": 4097}),
    ],
)
def test_the_bound_holds_to_the_last_token_and_column(
    form: str, tokens: tuple[int, int], load: tuple[float, ...], placed: tuple[int, ...], ffn: dict[str, int]
) -> None:
    model = {**MODEL, "layers": 1, "hidden": 1024, "ffn": {**MODEL["ffn"], **ffn}}  # type: ignore[dict-item]
    workload = {"phase": "prefill", "batch": tokens[0], "prompt": tokens[1], "expert_load": load}
    space = {**ONE_STAGE, "experts": {"form": form, "tensor_ways": 1}}
    asked = load_problem(model=model, cluster="1x4-h100", workload=workload, space=space)  # type: ignore[arg-type]
    plain = replace(asked.space, experts=replace(asked.space.experts, placement=((),)))
    env = env_of(asked)
    choice = SpaceSearch(env, plain).run().choice
    assert choice is not None
    experts = ExpertPlacement(form, 1, 0, tuple((group,) for group in placed))  # type: ignore[arg-type]
    found = evaluate(env, asked.space.sizes, replace(choice, stages=(replace(choice.stages[0], experts=experts),)))
    assert any_placement_bound(SpaceSearch(env, plain), plain) <= found.latency_s * (1 + 1e-12)


def test_a_search_keeps_to_the_neighbours_that_were_asked_for() -> None:
    result = search(problem(serve_within=2), details=False)
    assert result.choice is not None
    assert result.choice.stages[0].experts.serve_within == 2  # type: ignore[union-attr]
    assert result.status == "feasible" or result.gap == pytest.approx(0.0, abs=1e-9)
    assert 0 < result.bound <= result.value  # type: ignore[operator]
    with pytest.raises(InputError, match="serve_within"):
        search(problem("4x2-h100", serve_within=4), details=False)


def test_a_copy_on_the_other_node_is_busier_than_two_on_one() -> None:
    asked = problem()
    placed = ((0, 1, 2), (1,), (0,), (1,), (2,), (3,), (3,), (3,))
    choice = (
        SpaceSearch(env_of(asked), replace(asked.space, experts=replace(asked.space.experts, placement=((),)))).run().choice
    )
    assert choice is not None
    experts = ExpertPlacement("dispatch", 1, 0, placed, serve_within=2)
    plan = replace(choice, stages=(replace(choice.stages[0], experts=experts),))
    assert not errors(check_choice(env_of(asked), asked.space.sizes, plan))


@pytest.mark.parametrize("form", ["local", "dispatch"])
def test_a_gpu_whose_experts_were_never_chosen_still_runs(form: str) -> None:
    workload = {"phase": "prefill", "batch": 4, "prompt": 24, "expert_load": [1, 1, 1, 1, 1, 1, 0, 0]}
    space = {**ONE_STAGE, "experts": {"form": form, "tensor_ways": 1, "placement": "consecutive"}}
    asked = load_problem(model=MODEL, cluster="1x4-h100", workload=workload, space=space)  # type: ignore[arg-type]
    assert load_workload(workload_to_dict(asked.workload)) == asked.workload
    choice = search(asked, details=False).choice
    assert choice is not None
    assert not errors(check_choice(env_of(asked), asked.space.sizes, choice))
    assert run_choice(env_of(asked), asked.space.sizes, choice).matches_unsplit_model
