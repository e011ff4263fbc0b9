"""Certificates of 1,024 GPUs: every branch is derived anew, and what was tampered with is refused for its reason."""

from __future__ import annotations

import copy
from functools import cache
from typing import Any

import numpy as np
import pytest

from planner.certify.branch import Branch
from planner.certify.places import Places
from planner.certify.stages import StageTimes
from planner.certify.verify import verify
from planner.certify.write import certificate
from planner.evaluate.pipeline import feedback_seconds, send_seconds
from planner.evaluate.setting import setting
from planner.problem import load_problem
from planner.search import search
from planner.solve.objective import Name
from tests.planner.certify.tamper import change, signed

LARGE = {
    "schema": "planner.problem/1", "name": "large", "model": "llama-3.1-8b",
    "workload": {"phase": "prefill", "batch": 256, "prompt": 2048}, "cluster": "128x8-h100",
    "space": {"replicas": [4, 16, 64], "attention": {"batch_parts": 1, "context_parts": 1}},
}  # fmt: skip
CLAIMS = ("value", "bound", "least", "at_least")


@cache
def _written(objective: Name) -> dict[str, Any]:
    return certificate(search(load_problem(LARGE), objective=objective, details=False))


def written(objective: Name = "latency") -> dict[str, Any]:
    """The certificate, to be changed as one likes."""
    return copy.deepcopy(_written(objective))


def refusal(raw: dict[str, Any]) -> str:
    """Why a certificate is refused once its digests are right; empty where it is not."""
    return verify(signed(raw), samples=0).reason


@pytest.mark.parametrize("objective", ["latency", "throughput"])
def test_every_branch_is_derived_anew(objective: Name) -> None:
    """Nothing is too large: branches are closed by a formula that is computed again, or gone through."""
    found = verify(written(objective), samples=20)
    assert found.verified and found.whole, found.reason
    told = {check.name: check.detail for check in found.checks}
    assert "5 branches gone through" in told["pipelines"] or objective == "throughput"
    assert not any("NOT derived" in detail for detail in told.values())


@pytest.mark.parametrize("factor", [0.999, 1.001])
def test_another_value_is_refused(factor: float) -> None:
    """Value, bound and every branch's bound changed together still meet the price of the plan."""
    raw = written()
    for name in CLAIMS:
        raw["objective"][name] *= factor
    for branch in raw["branches"]:
        branch["pipelines"]["bound"] *= factor
    assert refusal(raw).startswith(("plan: the plan is worth", "closed forms: "))


def test_another_bound_is_refused() -> None:
    """The bound is that of the branches, and in both units the same."""
    for name in CLAIMS[1:]:
        raw = written()
        raw["objective"][name] *= 1.001
        assert refusal(raw).startswith(("statement: ", "plan: ")), name


def test_a_raised_bound_of_a_branch_is_refused_for_the_plan_below_it() -> None:
    """Branches all over the list are said to have no plan: those that a formula had closed, and those gone through."""
    for index, branch in list(enumerate(written()["branches"]))[::3]:
        raw = written()
        raw["branches"][index]["pipelines"] |= {"bound": None, "closed_by": "exact program"}
        told = refusal(raw)
        assert f"{branch['replicas']} replicas x {branch['micro_batches']} micro-batches: a pipeline is worth" in told, told
        assert "though there is said to be none" in told


def test_a_bound_just_above_the_best_plan_is_refused_in_its_branch() -> None:
    """The winner's own branch: a claim a hair above its value falls to a pipeline, not to rounding."""
    raw = written()
    own = (raw["plan"]["replicas"], raw["plan"]["micro_batches"])
    index = next(i for i, b in enumerate(raw["branches"]) if (b["replicas"], b["micro_batches"]) == own)
    for factor, holds in ((1.0 + 1e-7, False), (1.0, True), (0.9, False)):
        wrong = written()
        wrong["branches"][index]["pipelines"] |= {"bound": raw["objective"]["least"] * factor, "closed_by": "exact program"}
        told = refusal(wrong)
        assert (told == "") is holds, (factor, told)
        assert holds or told.startswith("pipelines: " if factor > 1 else "statement: ")


def test_a_closed_form_of_other_terms_is_refused() -> None:
    """Chain, work and what they give are derived again on 1,024 GPUs as on four."""
    raw = written()
    at = next(i for i, branch in enumerate(raw["branches"]) if branch["pipelines"]["closed_by"] == "closed form")
    for name in ("chain_s", "work_s", "bound"):
        path = ("branches", at, "pipelines", name)
        assert refusal(change(raw, path, raw["branches"][at]["pipelines"][name] * 1.01)).startswith("closed forms: "), name


def test_a_dropped_or_repeated_branch_is_refused() -> None:
    """The list is that of the space, whichever branch is missing."""
    raw = written()
    for index in range(len(raw["branches"])):
        left = raw["branches"][:index] + raw["branches"][index + 1 :]
        assert "is missing from the list" in refusal({**raw, "branches": left})
    assert "listed twice" in refusal({**raw, "branches": [*raw["branches"], raw["branches"][-1]]})


def test_another_stage_of_the_winner_is_refused() -> None:
    """Fewer layers, other GPUs, another split of a stage: no plan, or not of this worth."""
    raw = written()
    stages = raw["plan"]["stages"]
    assert len(stages) > 1
    assert refusal(change(raw, ("plan", "stages", 0, "layers"), stages[0]["layers"] + 1)).startswith("plan: ")
    assert refusal(change(raw, ("plan", "stages"), [stages[1], stages[0], *stages[2:]])).startswith("plan: ")
    assert refusal(change(raw, ("plan", "stages"), stages[:-1])).startswith("plan: ")
    assert refusal({**raw, "plan": written("throughput")["plan"]}).startswith("plan: ")


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("problem", "space", "replicas"), [4, 16]), (("problem", "space", "attention", "batch_parts"), 2),
        (("problem", "cluster"), "64x8-h100"), (("problem", "workload", "prompt"), 1024), (("space", "size"), "1"),
        (("space", "rules"), []),
    ],
)  # fmt: skip
def test_another_problem_or_space_is_refused(path: tuple[object, ...], value: object) -> None:
    """What was searched is what is claimed of."""
    assert refusal(change(written(), path, value)).startswith("problem: ")


@pytest.mark.parametrize("phase", ["prefill", "decode"])
def test_hand_overs_of_all_places_are_those_of_the_evaluator(phase: str) -> None:
    """Inside a node and between nodes, and the sampled tokens' way back: as the evaluator prices each alone."""
    length = {"prompt": 128} if phase == "prefill" else {"context": 128}
    problem = load_problem({**LARGE, "cluster": "9x8-h100", "workload": {"phase": phase, "batch": 256, **length}})
    env = setting(problem.model, problem.workload, problem.cluster)
    branch = Branch(problem.space, 4, 2)
    ranks = problem.space.stride(4)
    places = Places(StageTimes(env, problem.space, np.inf), branch, ranks)
    for end in range(1, ranks + 1):
        alone = feedback_seconds(env, (end - 1,), (0,), branch.sequences) if phase == "decode" else 0.0
        assert places.back[end] == pytest.approx(alone, rel=1e-12)
    checked = 0
    for i, before in enumerate(places.widths.tolist()):
        for j, after in enumerate(places.widths.tolist()):
            for at in range(before, ranks - after + 1):
                if problem.space.placed(at - before, before) and problem.space.placed(at, after):
                    alone = send_seconds(env, tuple(range(at - before, at)), tuple(range(at, at + after)), branch.sequences)
                    found = places.send(np.array([at]), np.array([i]), np.array([j]))
                    assert found[0] == pytest.approx(alone, rel=1e-12)
                    assert places.least_send[i, j] <= alone * (1 + 1e-12)
                    checked += 1
    assert checked > 20
