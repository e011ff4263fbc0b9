"""What the verifier derives on its own equals brute force: nothing below the best plan, and something just above it."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from planner.certify.apart import ApartPlans
from planner.certify.branch import Branch, TooLargeError
from planner.certify.pipelines import pipeline_below
from planner.certify.question import INF, Most, Question
from planner.certify.sample import Sampler, values
from planner.certify.stages import StageTimes
from planner.certify.verify import verify
from planner.evaluate.measures import measures
from planner.problem import load_problem
from planner.solve.objective import NAMES
from search_spaces.space import SearchSpace
from tests.oracle_problems import MOST_PLANS, brute_forces, case_setting, random_case
from tests.planner.certify.tamper import written

SEEDS = range(0, 120, 3)


def least_below(problem, space: SearchSpace, objective: str, below: float, most: Most = Most()) -> bool:  # noqa: B008
    """Whether the verifier finds a plan below a value in any branch."""
    env = case_setting(problem)
    question, times, apart = Question(env, objective, most), StageTimes(env, space, INF), ApartPlans(env, space, INF)
    for replicas, micro_batches in space.branches:
        branch = Branch(space, replicas, micro_batches)
        found = pipeline_below(times, question, branch, below), apart.below(question, branch, below)
        if any(value is not None and value < below for value in found):
            return True
    return False


@pytest.mark.parametrize("large", [64, 1])
@pytest.mark.parametrize("first", SEEDS[::4])
def test_nothing_below_the_best_plan_and_something_above(first: int, large: int) -> None:
    """For every objective, by growing pipelines and, under the rules of large clusters, by runs of equal stages."""
    for seed in SEEDS[SEEDS.index(first) : SEEDS.index(first) + 4]:
        problem = random_case(seed)
        space = replace(problem.space, large=large)
        if space.size() > MOST_PLANS:
            continue
        brute = brute_forces(case_setting(problem), space)
        for name in NAMES:
            best = brute.least[name]
            if math.isinf(best):
                assert not least_below(problem, space, name, INF), (seed, name)
            else:
                assert not least_below(problem, space, name, best * (1 - 1e-8)), (seed, name)
                assert least_below(problem, space, name, best * (1 + 1e-8)), (seed, name)


@pytest.mark.parametrize("large", [64, 1])
def test_the_rules_of_large_clusters_are_those_of_the_space(large: int) -> None:
    """With few choices but many layers: two runs of stages where the rules hold, any stages where they do not."""
    model = {"name": "deep", "layers": 7, "hidden": 256, "vocab": 0, "attention": {"heads": 2, "kv_heads": 2, "head_dim": 32},
             "ffn": {"kind": "dense", "hidden": 512}}  # fmt: skip
    narrow = {"attention": {"head_groups": 1, "dimension_segments": 1, "context_parts": 1}, "mlp": {"ways": 1}, "replicas": 1}
    problem = load_problem({
        "model": model, "workload": {"phase": "prefill", "batch": 4, "prompt": 64, "logits": "none"}, "cluster": "1x4-h100",
        "space": narrow,
    })  # fmt: skip
    space = replace(problem.space, large=large)
    best = brute_forces(case_setting(problem), space).least
    for name in NAMES:
        assert not least_below(problem, space, name, best[name] * (1 - 1e-8))
        assert least_below(problem, space, name, best[name] * (1 + 1e-8))


def test_limits_hold_in_what_is_derived() -> None:
    """Where a limit excludes the best plan, nothing as good is found under it."""
    problem = load_problem({
        "model": "gpt2", "workload": "prefill:batch=4,prompt=64", "cluster": "1x2-h100", "space": {"replicas": 1, "stages": 1},
    })  # fmt: skip
    best = brute_forces(case_setting(problem), problem.space).least["latency"]
    assert least_below(problem, problem.space, "latency", best * 1.01)
    assert not least_below(problem, problem.space, "latency", INF, Most(latency_s=best * 0.99))
    assert not least_below(problem, problem.space, "latency", INF, Most(gpus=0))
    assert not least_below(problem, problem.space, "latency", INF, Most(dollars=1e-12))


@pytest.mark.parametrize("large", [64, 1])
def test_every_plan_drawn_is_of_the_space_and_priced_as_by_the_evaluator(large: int) -> None:
    """Samples are plans; their price together is that of each alone."""
    for seed in range(8):
        problem = random_case(seed)
        space, env = replace(problem.space, large=large), case_setting(problem)
        drawn = Sampler(space, seed).draws(12)
        assert space.size() == 0 or drawn
        assert drawn == Sampler(space, seed).draws(12)
        question = Question(env, "latency")
        for choice, value in zip(drawn, values(env, question, space.sizes, drawn), strict=True):
            assert space.contains(choice)
            assert value == pytest.approx(measures(env, space.sizes, choice).latency_s, rel=1e-9)


def test_what_is_too_large_is_said_to_be(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is called derived that was not."""
    monkeypatch.setattr("planner.certify.pipelines.MOST_PARTIAL", 0)
    monkeypatch.setattr("planner.certify.runs.MOST_WALKED", 0)
    for large in (64, 1):
        problem = random_case(1)
        with pytest.raises(TooLargeError, match="more than 0 "):
            least_below(problem, replace(problem.space, large=large), "latency", INF)
    found = verify(written(), samples=5)
    assert found.verified and not found.whole and not found.to_dict()["whole"]
    assert "NOT derived anew, only drawn from" in next(c.detail for c in found.checks if c.name == "pipelines")
