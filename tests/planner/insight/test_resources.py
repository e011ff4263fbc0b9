"""Better hardware is a changed description that the same evaluator prices."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings

from planner.api import choose
from planner.clusters import load_cluster
from planner.costs import GroupShape
from planner.evaluate.setting import setting
from planner.insight.changes import plan_latency
from planner.insight.resources import FREE, TIMED, Resource, alone, better, measured
from planner.solve.optimum import SpaceSearch
from tests.planner.plans import Case, cases
from tests.planner.report.small import env_of, tiny_problem

PLANS = (
    "helix:m4n4_exact",
    "helix_two_stage:tp8_pp2",
    "ma_separation:ma_12_4",
    "cross_node_ep:ep16",
    "layer_wise:one_layer_per_gpu",
)
FIXED = (Resource.OVERHEAD, Resource.LATENCY)


@pytest.mark.parametrize("plan", PLANS)
def test_everything_twice_as_good_takes_half_as_long(plan: str) -> None:
    """No seconds come from anywhere else than the resources."""
    chosen = choose(plan)
    env, sizes, choice = chosen.env, chosen.problem.sizes, chosen.choice
    now = plan_latency(env, sizes, choice)
    assert plan_latency(better(env, dict.fromkeys(TIMED, 2.0)), sizes, choice) == pytest.approx(now / 2, rel=1e-12)


@settings(max_examples=25, deadline=None)
@given(cases())
def test_one_resource_twice_as_good_helps_by_two_at_most(case: Case) -> None:
    """A better resource never slows a plan, and no single one more than halves it; capacity changes no time."""
    now = plan_latency(case.env, case.sizes, case.choice)
    for resource in Resource:
        then = plan_latency(better(case.env, {resource: 2.0}), case.sizes, case.choice)
        assert now / 2 * (1 - 1e-12) <= then <= now * (1 + 1e-12)
    assert plan_latency(better(case.env, {Resource.CAPACITY: 2.0}), case.sizes, case.choice) == now


def test_rates_twice_as_good_halve_what_no_fixed_time_binds() -> None:
    """One stage of prefill kernels inside one node is a sum: its fixed times stay, the rest halves."""
    problem = tiny_problem(cluster="1x4-h100")
    env, sizes = env_of(problem), problem.sizes
    choice = SpaceSearch(env, problem.plans["grid"]).run(prove=False).choice
    assert choice is not None
    rates = [resource for resource in TIMED if resource not in FIXED]
    now = plan_latency(env, sizes, choice)
    fixed = plan_latency(better(env, dict.fromkeys(rates, FREE)), sizes, choice)
    then = plan_latency(better(env, dict.fromkeys(rates, 2.0)), sizes, choice)
    assert 0 < fixed < now
    assert then == pytest.approx(fixed + (now - fixed) / 2, rel=1e-9)


def test_a_description_changes_where_it_should_and_nowhere_else() -> None:
    """Each factor touches its own figures of the cluster."""
    env = choose("helix:m4n4_exact").env
    old, kind = env.cluster, env.cluster.kinds["h100"]
    compute = better(env, {Resource.COMPUTE: 2.0}).cluster
    assert compute.kinds["h100"].peak_flops["bf16"] == 2 * kind.peak_flops["bf16"]
    assert compute.kinds["h100"].memory_bandwidth == kind.memory_bandwidth and compute.network == old.network
    inside = better(env, {Resource.INSIDE: 2.0}).cluster
    assert inside.domains[0].link.bandwidth == 2 * old.domains[0].link.bandwidth and inside.network == old.network
    between = better(env, {Resource.BETWEEN: 2.0, Resource.LATENCY: 2.0}).cluster.network
    assert (between.bandwidth, between.latency_s) == (2 * old.network.bandwidth, old.network.latency_s / 2)
    assert better(env, {Resource.CAPACITY: 2.0}).cluster.kinds["h100"].memory_bytes == 2 * kind.memory_bytes


def test_a_resource_alone_is_its_part_of_a_price() -> None:
    """With everything else free a kernel that moves bytes takes bytes over bandwidth, or its launch."""
    env = choose("helix:m4n4_exact").env
    whole = float(env.pricer.sources["h100"].elementwise(1e9))
    parts = {resource: float(alone(env, resource).pricer.sources["h100"].elementwise(1e9)) for resource in TIMED}
    assert parts[Resource.MEMORY] + parts[Resource.OVERHEAD] == pytest.approx(whole, rel=1e-9)
    assert all(parts[r] < 1e-9 * whole for r in TIMED if r not in (Resource.MEMORY, Resource.OVERHEAD))


def test_measurements_are_named() -> None:
    """The embedded source can be scaled; the library has no other."""
    assert measured(choose("helix:m4n4_exact").env) == ()


def test_measured_prices_change_as_the_formula_changes(tmp_path: Path) -> None:
    """A table that is twice as slow as the formula stays so on better hardware, in products and collectives alike."""
    env = choose("helix:m4n4_exact").env
    pricer = env.pricer
    size, shape = (40_000, 8192, 512), GroupShape(16, 2, 8)
    product = float(pricer.sources["h100"].get_time(*size))
    reduced = float(pricer.collectives.time("all_reduce", 1e8, shape))
    path = tmp_path / "slow.csv"
    path.write_text(
        "op,m,k,n,dtype,ranks,nodes,bytes,seconds\n"
        f"gemm,40000,8192,512,bf16,,,,{2 * product}\nall_reduce,,,,,16,2,100000000,{2 * reduced}\n",
        encoding="utf-8",
    )
    cluster = load_cluster({"nodes": [{"kind": "h100", "count": 2}], "gemm_table": str(path), "comm_table": str(path)})
    own = setting(env.model, env.workload, cluster)
    for resource in (Resource.COMPUTE, Resource.BETWEEN):
        there, plain = better(own, {resource: 2.0}).pricer, better(env, {resource: 2.0}).pricer
        again = better(better(own, {}), {resource: 2.0}).pricer
        for one in (there, again):
            assert one.sources["h100"].get_time(*size) == pytest.approx(2 * plain.sources["h100"].get_time(*size))
            times = (each.collectives.time("all_reduce", 1e8, shape) for each in (one, plain))
            assert next(times) == pytest.approx(2 * next(times))
    assert measured(own) == ("h100",)
