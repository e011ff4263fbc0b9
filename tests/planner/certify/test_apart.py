"""Certificates of plans whose experts have GPUs of their own, on a large cluster: what holds, and what is refused."""

from __future__ import annotations

import copy
from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import pytest

from planner.certify.apart import ApartBranch, ApartPlans
from planner.certify.branch import Branch
from planner.certify.document import read_certificate
from planner.certify.proof import Proof
from planner.certify.question import INF, Most, Question
from planner.certify.refusal import RefusedError
from planner.certify.verify import verify
from planner.certify.write import certificate
from planner.evaluate.capacity import over_capacity
from planner.evaluate.measures import Measures, measures
from planner.evaluate.setting import Setting, setting
from planner.problem import load_problem
from planner.search import search
from planner.solve.answer import Limits
from planner.solve.objective import NAMES, Caps, Name
from search_spaces.space import SearchSpace
from search_spaces.stages import Choice
from tests.planner.certify.small import MIXED_MODEL
from tests.planner.certify.tamper import change, signed

APART: dict[str, Any] = {
    "schema": "planner.problem/1", "name": "apart", "model": "mixtral-8x7b",
    "workload": {"phase": "decode", "batch": 64, "context": 1024}, "cluster": "9x8-h100",
    "space": {"experts": {"form": "separate"}, "replicas": [1, 2]},
}  # fmt: skip
MIXED = {
    "model": MIXED_MODEL,
    "workload": {"phase": "prefill", "batch": 4, "prompt": 256},
    "space": {
        "replicas": [1, 2], "micro_batches": [1, 2], "experts": {"form": "separate", "tensor_ways": 1}, "in_flight": [1, 2],
        "attention": {"context_parts": 1, "dimension_segments": 1, "output_projection": "row"},
    },
}  # fmt: skip


@cache
def _written(objective: Name) -> dict[str, Any]:
    return certificate(search(load_problem(APART), objective=objective, details=False))


def written(objective: Name = "latency") -> dict[str, Any]:
    """The certificate, to be changed as one likes."""
    return copy.deepcopy(_written(objective))


def refusal(raw: dict[str, Any]) -> str:
    """Why a certificate is refused once its digests are right; empty where it is not."""
    return verify(signed(raw), samples=0).reason


@pytest.mark.parametrize("objective", NAMES)
def test_the_certificate_holds_and_is_checked_whole(objective: Name) -> None:
    """The plan has its experts apart, and every branch is gone through."""
    raw = written(objective)
    found = verify(raw, samples=10)
    assert found.verified and found.whole, found.reason
    assert raw["plan"]["stages"][0]["experts"]["form"] == "separate"
    told = {check.name: check.detail for check in found.checks}
    assert told["experts apart"] == f"{len(raw['branches'])} branches tabulated: no plan is below its bound"


@pytest.mark.parametrize("caps", [Caps(latency_s=0.012), Caps(memory_bytes=30e9)])
def test_with_limits_it_holds_and_not_without_them(caps: Caps) -> None:
    """Where a limit costs something, the same certificate is refused for the question without it."""
    raw = certificate(search(load_problem(APART), objective="cost", limits=Limits(caps=caps), details=False))
    assert refusal(raw) == ""
    free = written("cost")
    assert raw["objective"]["least"] > free["objective"]["least"]
    told = refusal({**raw, "limits": free["limits"]})
    assert "a plan with experts apart is worth" in told and "below its bound" in told


@pytest.mark.parametrize(
    "narrow", [{"in_flight": 1}, {"replicas": 1, "micro_batches": 1}, {"experts": {"form": "separate", "tensor_ways": 1}}]
)
def test_a_worse_plan_that_is_called_the_best_is_refused(narrow: dict[str, Any]) -> None:
    """The best plan of a part of the space, with its value for a bound everywhere: a plan with experts apart lies below it."""
    raw = written()
    worse = certificate(search(load_problem({**APART, "space": {**APART["space"], **narrow}}), details=False))
    assert worse["objective"]["least"] > raw["objective"]["least"] * (1 + 1e-6)
    forged = {**raw, "plan": worse["plan"], "objective": worse["objective"], "cp_model": None}
    for branch in forged["branches"]:
        branch["experts_apart"]["bound"] = worse["objective"]["least"]
    assert refusal(forged).startswith("experts apart: ") and "a plan with experts apart is worth" in refusal(forged)


def test_every_raised_bound_is_refused_for_a_plan_below_it() -> None:
    """Branches all over the list are said to have no plan: refused where they have one."""
    checked = 0
    for index, branch in list(enumerate(written()["branches"]))[::4]:
        proof = Proof(read_certificate(change(written(), ("branches", index, "experts_apart", "bound"), None)))
        own = Branch(proof.space, branch["replicas"], branch["micro_batches"])
        if proof.apart.below(proof.question, own, INF) is not None:
            name = f"{own.replicas} replicas x {own.micro_batches} micro-batches"
            with pytest.raises(RefusedError, match=f"{name}: a plan with experts apart is worth .* said to be none"):
                proof.check_apart()
            checked += 1
    assert checked > 1


def test_a_bound_a_hair_above_the_best_plan_is_refused_and_the_value_itself_is_not() -> None:
    """The winner's own branch: neither rounding nor a floor that is too low lets a claim pass."""
    raw = written()
    own = (raw["plan"]["replicas"], raw["plan"]["micro_batches"])
    index = next(i for i, b in enumerate(raw["branches"]) if (b["replicas"], b["micro_batches"]) == own)
    for factor, holds in ((1 + 1e-7, False), (1.0, True)):
        wrong = change(raw, ("branches", index, "experts_apart", "bound"), raw["objective"]["least"] * factor)
        assert (refusal(wrong) == "") is holds, factor


def test_a_lowered_bound_is_refused_where_the_statement_rests_on_it() -> None:
    """A branch that leaves room below the bound contradicts it, and a lower bound of all no longer proves an optimum."""
    raw = written()
    low = change(raw, ("branches", 0, "experts_apart", "bound"), raw["branches"][0]["experts_apart"]["bound"] * 0.9)
    assert refusal(low).startswith("statement: the bound")
    low["objective"] |= {"at_least": raw["objective"]["at_least"] * 0.9, "bound": raw["objective"]["bound"] * 0.9}
    assert refusal(low).startswith("statement: ")
    low["objective"]["gap"] = 0.1
    assert "optimal, with a gap" in refusal(low)


def test_an_omitted_group_is_refused() -> None:
    """A branch left out, or nothing said of its plans with experts apart, whichever branch it is."""
    raw = written()
    for index, branch in enumerate(raw["branches"]):
        before, after = raw["branches"][:index], raw["branches"][index + 1 :]
        with pytest.raises(RefusedError, match="is missing from the list"):
            Proof(read_certificate({**raw, "branches": before + after})).check_branches()
        with pytest.raises(RefusedError, match="with experts on GPUs of their own"):
            Proof(read_certificate({**raw, "branches": [*before, {**branch, "experts_apart": None}, *after]})).check_branches()


@cache
def priced(cluster: str, large: int) -> tuple[Setting, SearchSpace, list[tuple[Choice, Measures, float]]]:
    """Every plan of a small problem with what it measures and by how many bytes it is beyond its memory."""
    problem = load_problem({**MIXED, "cluster": cluster})
    env, space = setting(problem.model, problem.workload, problem.cluster), replace(problem.space, large=large)
    every = [choice for choice in space.choices() if choice.stages[0].separate]
    return env, space, [(c, measures(env, space.sizes, c), over_capacity(env, space.sizes, c)) for c in every]


@pytest.mark.parametrize(("cluster", "large"), [("2x2-h100", 1), ("1x3-h100+1x1-a100-80gb", 64)])
@pytest.mark.parametrize("limit", ["none", "latency", "gpus", "memory"])
def test_the_least_of_every_branch_is_that_of_its_plans_one_by_one(cluster: str, large: int, limit: str) -> None:
    """Floors and thinned options leave out no best plan: on one kind of GPU and two, under limits, for every objective."""
    env, space, every = priced(cluster, large)
    least_over = sorted(over for _, _, over in every)[len(every) // 3]
    memory = env.cluster.kind_of(0).memory_bytes + (least_over if limit == "memory" else 0.0)
    latency = sorted(found.latency_s for _, found, _ in every)[len(every) // 10] if limit == "latency" else INF
    most = Most(latency_s=latency, gpus=3 if limit == "gpus" else INF, memory_bytes=memory if limit == "memory" else INF)
    if limit == "memory" and len(env.cluster.kinds) > 1:
        return  # excess is told of the fuller of two kinds of GPU
    plans, finite = ApartPlans(env, space, most.memory_bytes), 0
    for name in NAMES:
        question = Question(env, name, most)
        for replicas, micro_batches in space.branches:
            own = [
                question.of_plan(found)
                for choice, found, over in every
                if (choice.replicas, choice.micro_batches) == (replicas, micro_batches)
                and (limit != "memory" or over <= least_over)
            ]
            least = plans.below(question, Branch(space, replicas, micro_batches), INF)
            best = min(own, default=INF)
            assert (INF if least is None else least) == pytest.approx(best, rel=1e-9), (name, replicas, micro_batches)
            finite += best < INF
    assert finite


def test_floors_of_both_sides_are_below_the_price_of_every_plan() -> None:
    """For each split alone: what the two sides need by themselves is no more than what any plan on it takes."""
    env, space, every = priced("2x2-h100", 1)
    plans, question, tight = ApartPlans(env, space, INF), Question(env, "latency"), []
    for choice, found, _ in every[::3]:
        stage = choice.stages[0]
        looked = ApartBranch(plans, question, Branch(space, choice.replicas, choice.micro_batches), INF)
        split = next(
            s for s in looked._open() if (*s.near, *s.far) == stage.devices and len(s.far) == len(stage.expert_devices)
        )
        near, far = looked._fastest(plans.near[split.near]), float(looked._far(split).seconds.min())
        floor = float(looked._floor(np.array(split.used), np.array(split.rate), np.array(near + far), np.array(max(near, far))))
        assert floor <= found.latency_s
        tight.append(floor / found.latency_s)
    assert max(tight) > 0.5
