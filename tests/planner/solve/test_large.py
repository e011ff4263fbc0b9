"""Rules and search of large clusters against brute force: the threshold is a field of the space, so tiny ones will do."""

from __future__ import annotations

import math
import random
import time
from dataclasses import replace

import pytest

from planner.evaluate.evaluation import evaluate
from planner.evaluate.setting import Setting, setting
from planner.models import load_model
from planner.problem import load_problem, sizes_of
from planner.solve.answer import Limits
from planner.solve.objective import Caps
from planner.solve.optimum import SpaceSearch
from planner.workload import Workload
from search_spaces.attention import AttentionDomain
from search_spaces.space import SearchSpace
from tests.oracle import brute_force, random_problem, small_cluster

CHUNK = 6


def pipelines(seed: int) -> tuple[Setting, SearchSpace]:
    """Up to six layers on up to twelve GPUs in nodes of two to four, few ways to run a stage: many shapes of pipelines."""
    rng = random.Random(seed)
    hidden, vocab = rng.choice([128, 1024]), rng.choice([0, 1001, 50_000])
    attention = {"heads": 4, "kv_heads": rng.choice([1, 4]), "head_dim": 64}
    dense = {"kind": "dense", "hidden": 4 * hidden, "activation": "silu"}
    model = load_model(
        {"name": "m", "layers": rng.choice([3, 4, 6]), "hidden": hidden, "vocab": vocab, "attention": attention, "ffn": dense}
    )
    name = rng.choice(["1x6-h100", "1x8-h100", "2x6-h100", "1x4-h100+1x4-a100-80gb"])
    tight = int(1.2e9 + model.parameters * 2 * rng.choice([0.1, 0.3, 0.6])) if rng.random() < 0.5 else 0
    cluster = small_cluster(name, rng.choice([2, 3, 4]), tight)
    logits = "none" if vocab == 0 else "last"
    workload = (
        Workload("prefill", 4, prompt=rng.choice([64, 700]), logits=logits)
        if rng.random() < 0.5
        else Workload("decode", 4, context=4000, logits=logits)
    )
    domain = AttentionDomain(
        dimension_segments=(1,), context_parts=(1,), batch_parts=(1,), output_projection=("row",), sequence_parallel=(False,)
    )
    space = SearchSpace(
        sizes_of(model, workload, cluster), replicas=rng.choice([None, (1,)]), micro_batches=(1, 4), attention=domain,
        mlp_ways=(1, 2), use_all=rng.random() < 0.2, large=1,
    )  # fmt: skip
    return setting(model, workload, cluster), space


def agree(env: Setting, space: SearchSpace, seed: int) -> bool:
    """Whether the search finds what brute force finds; False where there are too many plans to list."""
    if space.size() > 6000:
        return False
    best, plans = brute_force(env, space)
    assert plans == space.size(), seed
    found = SpaceSearch(env, space).run()
    assert (found.choice is None) == math.isinf(best), seed
    if found.choice is not None:
        assert space.contains(found.choice), seed
        assert found.value == pytest.approx(best, rel=1e-9), seed
        assert found.bound == pytest.approx(best, rel=1e-6), seed
        assert found.bound <= found.value, seed
        assert evaluate(env, space.sizes, found.choice).latency_s == pytest.approx(best, rel=1e-9), seed
    return True


@pytest.mark.parametrize("first", range(0, 2 * CHUNK, CHUNK))
def test_brute_force_agrees_under_the_rules_of_large_clusters(first: int) -> None:
    """Value, bound and feasibility on the random problems of the oracle, as if their few GPUs were many."""
    for seed in range(first, first + CHUNK):
        env, space = random_problem(seed)
        agree(env, replace(space, large=1), seed)


@pytest.mark.parametrize("first", range(0, 2 * CHUNK, CHUNK))
def test_brute_force_agrees_on_pipelines(first: int) -> None:
    """The same on longer pipelines over several nodes, of one GPU kind or two, with tight memory."""
    assert sum(agree(*pipelines(seed), seed) for seed in range(first, first + CHUNK)) > 0


@pytest.mark.parametrize("objective", ["latency", "throughput", "cost"])
def test_the_rules_can_only_cost(objective: str) -> None:
    """The best plan under the rules is no better than without them, and the same where one stage is best."""
    for seed in range(0, 40, 3):
        env, space = pipelines(seed)
        large = SpaceSearch(env, space, objective).run()  # type: ignore[arg-type]
        free = SpaceSearch(env, replace(space, large=64), objective).run()  # type: ignore[arg-type]
        if large.choice is not None:
            assert free.choice is not None
            assert free.value <= large.value * (1 + 1e-9), seed


def test_stage_counts_and_pins_agree_with_the_spaces_that_pin_them() -> None:
    """A row of a decision table on a large cluster is the optimum of the narrower space."""
    for seed in (1, 4, 6):
        env, space = pipelines(seed)
        search = SpaceSearch(env, space)
        for count, value in search.by_stage_count():
            assert value == pytest.approx(SpaceSearch(env, replace(space, stages=(count,))).run().value, rel=1e-9)
        held = search.pinned_value({"head_groups": 2})
        narrow = replace(space, attention=replace(space.attention, head_groups=(2,)))
        assert held == pytest.approx(SpaceSearch(env, narrow).run().value, rel=1e-9)


def test_caps_hold_on_large_clusters() -> None:
    """Throughput under a latency limit: the limit holds, and a looser one is never worse."""
    env, space = pipelines(6)
    fastest = SpaceSearch(env, space).run().value
    before = math.inf
    for looser in (1.0, 1.2, 2.0, 10.0):
        found = SpaceSearch(env, space, "throughput", Limits(caps=Caps(latency_s=fastest * looser))).run()
        assert found.choice is not None
        assert evaluate(env, space.sizes, found.choice).latency_s <= fastest * looser * (1 + 1e-6)
        assert found.value <= before * (1 + 1e-9)
        before = found.value


def test_the_missing_bytes_are_what_it_takes_on_large_clusters() -> None:
    """Where nothing fits, granting the reported bytes makes something fit, and a little less does not."""
    seen = 0
    for seed in range(60):
        env, space = random_problem(seed)
        space = replace(space, large=1)
        found = SpaceSearch(env, space).run()
        if found.choice is None and math.isfinite(found.excess_bytes):
            seen += 1
            assert SpaceSearch(env, space, extra_memory=found.excess_bytes + 1).run().choice is not None
            assert SpaceSearch(env, space, extra_memory=found.excess_bytes * 0.99).run().choice is None
    assert seen > 0


def test_128_gpus_are_proven_without_a_cp_model() -> None:
    """Llama-3.1-405B on sixteen nodes: optimal, every branch closed by a bound or by the exact program."""
    problem = load_problem(model="llama-3.1-405b", cluster="16x8-h100", workload="decode:batch=128,context=8192")
    env = setting(problem.model, problem.workload, problem.cluster)
    found = SpaceSearch(env, problem.space).run()
    assert found.complete and found.choice is not None
    assert found.gap <= 1e-6
    assert found.counts.iterations == 0
    assert problem.space.contains(found.choice)
    assert evaluate(env, problem.sizes, found.choice).latency_s == pytest.approx(found.value, rel=1e-9)


@pytest.mark.slow
def test_4096_gpus_are_proven_in_time_and_memory() -> None:
    """DeepSeek-V3 on 512 nodes, experts apart included; replicas are alike, so what is best is what is best on fewer nodes."""
    values = {}
    for nodes in (32, 512):
        problem = load_problem(
            model="deepseek-v3", cluster=f"{nodes}x8-h100", workload=f"decode:batch={32 * nodes},context=8192"
        )
        env, start = setting(problem.model, problem.workload, problem.cluster), time.process_time()
        found = SpaceSearch(env, problem.space, "throughput").run()
        assert time.process_time() - start < 60.0
        assert found.complete and found.choice is not None
        assert found.gap <= 1e-6
        assert problem.space.contains(found.choice)
        values[nodes] = found.value
    assert values[512] <= values[32] * (1 + 1e-9)


def test_two_kinds_of_nodes_on_a_large_cluster() -> None:
    """Eight nodes of H100 and eight of A100: no stage has GPUs of both, and more GPUs are never worse."""
    slower = load_problem(model="llama-3.1-70b", cluster="8x8-h100", workload="prefill:batch=8,prompt=2048")
    problem = load_problem(model="llama-3.1-70b", cluster="8x8-h100+8x8-a100-80gb", workload="prefill:batch=8,prompt=2048")
    env = setting(problem.model, problem.workload, problem.cluster)
    found = SpaceSearch(env, problem.space, "throughput").run()
    assert found.complete and found.choice is not None and problem.space.contains(found.choice)
    kinds = problem.cluster.device_kinds
    assert all(len({kinds[rank] for rank in stage.devices}) == 1 for stage in found.choice.stages)
    alone = setting(slower.model, slower.workload, slower.cluster)
    best = SpaceSearch(alone, replace(slower.space, large=1, replicas=(1,)), "throughput").run()
    assert found.value <= best.value * (1 + 1e-9)


def test_decisions_of_a_large_cluster_are_told_up_to_a_multiple_of_the_best() -> None:
    """Values that are far from the best are not searched to the end."""
    env, space = pipelines(6)
    search = SpaceSearch(env, space)
    best = search.run()
    assert search.pinned_value({}, most=best.value * 1.25) == pytest.approx(best.value, rel=1e-9)
    assert search.pinned_value({}, most=best.value * 0.99) == math.inf
    assert all(value == math.inf or value < 1.25 * best.value for _, value in search.by_stage_count(None, 1.25 * best.value))
