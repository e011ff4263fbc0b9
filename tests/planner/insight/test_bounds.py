"""Lower bounds are below the optimum, on every random small problem."""

from __future__ import annotations

import pytest

from planner.evaluate.evaluation import model_flops
from planner.evaluate.setting import setting
from planner.insight.bounds import lower_bounds, required, shared_seconds
from planner.insight.resources import Resource
from planner.problem import load_problem
from planner.solve.optimum import SpaceSearch
from tests.oracle import random_problem
from tests.planner.report.small import infeasible_result

CHUNK, PROBLEMS = 30, 240


@pytest.mark.parametrize("first", range(0, PROBLEMS, CHUNK))
def test_no_bound_exceeds_the_optimum(first: int) -> None:
    """Work, bytes, chain, and chain with load, for every problem that some plan fits."""
    checked = 0
    for seed in range(first, first + CHUNK):
        env, space = random_problem(seed)
        search = SpaceSearch(env, space)
        optimum = search.run(prove=False)
        if optimum.choice is None:
            continue
        bounds = {bound.name: bound.seconds for bound in lower_bounds(env, search, optimum)}
        assert set(bounds) == {"work", "bandwidth", "chain", "chain and load", "optimum"}
        for name, seconds in bounds.items():
            assert 0 < seconds <= optimum.value * (1 + 1e-9), (seed, name)
        assert bounds["chain"] <= bounds["chain and load"] * (1 + 1e-9), seed
        checked += 1
    assert checked > CHUNK // 3


def test_what_is_required_is_the_unsplit_model() -> None:
    """FLOPs are those of the model, bytes its weights once."""
    for name in ("helix", "ma_separation", "cross_node_ep"):
        problem = load_problem(name)
        env = setting(problem.model, problem.workload, problem.cluster)
        work, read = required(env, problem.sizes)
        assert sum(work.values()) == pytest.approx(model_flops(problem.model, problem.workload), rel=1e-6)
        norms = sum(w.parameters for _, w in problem.model.weights() if len(w.shape) == 1 or w.module == "norm")
        table = problem.model.vocab * problem.model.hidden
        assert sum(read.values()) == pytest.approx(2.0 * (problem.model.parameters - norms - table), rel=1e-3)


def test_more_gpus_share_the_work() -> None:
    """Twice the GPUs halve the bounds of the hardware; slower ones beside them help less, by their rates."""
    seconds = {}
    for cluster in ("1x8-h100", "2x8-h100", "1x8-h100+1x8-a100-80gb"):
        problem = load_problem("helix", cluster=cluster)
        env = setting(problem.model, problem.workload, problem.cluster)
        seconds[cluster] = shared_seconds(env, required(env, problem.sizes)[0], Resource.COMPUTE)
    one, two, mixed = seconds.values()
    assert two == pytest.approx(one / 2, rel=1e-9)
    assert two < mixed < one


def test_nothing_fits() -> None:
    """Where no plan fits there is no optimum to be bound by; the hardware's bounds stay."""
    problem = infeasible_result().problem
    env = setting(problem.model, problem.workload, problem.cluster)
    search = SpaceSearch(env, problem.space)
    names = [bound.name for bound in lower_bounds(env, search, search.run(prove=False))]
    assert names[:2] == ["work", "bandwidth"] and "optimum" not in names
