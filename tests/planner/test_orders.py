"""The order of a cluster's nodes in its file never decides how good the best plan is; plans say which GPUs they mean."""

from __future__ import annotations

import json
import math
from functools import lru_cache
from itertools import chain, permutations, product
from pathlib import Path

import pytest

from planner.api import choose, evaluate
from planner.certify.verify import verify
from planner.certify.write import certificate
from planner.check.findings import errors
from planner.check.validate import check_choice
from planner.errors import InputError
from planner.evaluate.evaluation import evaluate as price
from planner.evaluate.setting import setting
from planner.front import pareto
from planner.problem import Problem, load_problem
from planner.report import markdown_report, search_report
from planner.report.front import front_report
from planner.search import Result, search
from planner.store import write_run
from search_spaces.orders import FRONT_RULE, LISTED_RULE
from tests.oracle_problems import brute_forces, case_setting, tiered_case
from tests.planner.certify.tamper import signed

DECODE = {"phase": "decode", "batch": 16, "context": 8192}
KINDS = {"slow": {"like": "h100", "memory_tb_per_s": 1.6, "peak_tflops": {"bf16": 400}}}
FAST, SLOW, SMALL, A100, L40S = ("h100", 2), ("slow", 2), ("h100", 1), ("a100-80gb", 2), ("l40s", 2)
Nodes = tuple[tuple[str, int], ...]


def problem(nodes: Nodes, **space: object) -> Problem:
    """A 7B model on a few nodes."""
    listed = [{"kind": kind, "gpus": gpus} for kind, gpus in nodes]
    cluster = {"name": "nodes", "nodes": listed, "kinds": KINDS}
    return load_problem(model="qwen2.5-7b", cluster=cluster, workload=DECODE, space=space)


@lru_cache(maxsize=32)
def solved(nodes: Nodes) -> Result:
    """The proven answer; its plan is sound, and its value what its graph costs in the order that it has."""
    found = search(problem(nodes), details=False)
    assert found.status == "optimal"
    assert found.choice is not None
    asked = found.problem
    env = setting(asked.model, asked.workload, asked.cluster)
    assert not errors(check_choice(env, asked.sizes, found.choice))
    assert price(env, asked.sizes, found.choice).latency_s == pytest.approx(found.value, rel=1e-9)
    return found


@pytest.mark.parametrize(
    "nodes", [(FAST, FAST, SLOW), (FAST, A100), (FAST, FAST, SMALL), (FAST, A100, L40S)], ids=["slow", "two", "small", "three"]
)
def test_the_optimum_is_the_same_in_whatever_order_the_nodes_are_listed(nodes: Nodes) -> None:
    """A slow node, two kinds of GPU, a domain smaller than the rest, three tiers: first, in the middle or last."""
    orders = sorted(set(permutations(nodes)))
    values = {order: solved(order).value for order in orders}
    assert max(values.values()) == pytest.approx(min(values.values()), rel=1e-8)  # type: ignore[type-var]
    assert {len(solved(order).orders) for order in orders} == {len(orders)}


def test_a_slow_node_in_the_middle_can_be_left_idle() -> None:
    """Taken as listed, the stages behind the slow node cannot be had without it."""
    listed, found = search(problem((FAST, SLOW, FAST), gpus="listed"), details=False), solved((FAST, SLOW, FAST))
    assert listed.value is not None
    assert found.value is not None
    assert found.value < 0.99 * listed.value
    assert found.orders[0].value == pytest.approx(listed.value, rel=1e-9)
    assert len(listed.orders) == 1
    assert int(found.space_size) > int(listed.space_size)


def test_equal_nodes_have_one_order() -> None:
    asked = problem((FAST, FAST, FAST))
    assert asked.orders.gpus == ((),)
    assert not any("orders" in rule for rule in search(asked, details=False).problem.restrictions)


def every_order(asked: Problem) -> list[tuple[int, ...]]:
    """All ways to count the GPUs with every domain together, those that look alike included."""
    inside = [list(permutations(domain.ranks)) for domain in asked.cluster.domains]
    return [tuple(chain.from_iterable(order)) for line in permutations(inside) for order in product(*line)]


@pytest.mark.parametrize("seed", [0, 3, 5, 8, 12, 14, 20])
def test_brute_force_over_all_orders_agrees(seed: int) -> None:
    """Every plan in every order of the GPUs: none is better than the search's, for each objective."""
    asked = tiered_case(seed)
    alike: dict[object, Problem] = {}
    for gpus in every_order(asked):
        ordered = asked.in_order(gpus)
        alike.setdefault((ordered.cluster.device_kinds, ordered.cluster.domain_of, ordered.cluster.tiers), ordered)
    assert len(alike) == len(asked.orders.gpus)
    assert asked.orders.every
    brutes = [brute_forces(case_setting(one), one.space) for one in alike.values()]
    for objective in ("latency", "cost"):
        found, best = search(asked, objective=objective, details=False), min(brute.least[objective] for brute in brutes)  # type: ignore[arg-type]
        assert (found.value is None) == math.isinf(best)
        if found.value is not None:
            assert found.value == pytest.approx(best, rel=1e-8)
            assert found.bound == pytest.approx(best, rel=1e-7)
    assert int(found.space_size) == sum(brute.plans for brute in brutes)


def test_nodes_that_differ_by_their_link_alone_are_told_apart() -> None:
    """The same GPUs, half of them on a slow link: two stages, or two replicas, are not alike."""
    slow = {"kind": "h100", "gpus": 4, "link": {"gb_per_s": 20}}
    nodes = [{"kind": "h100", "gpus": 4}, slow]
    for space in ({"stages": 2, "replicas": 1, "use_all": True}, {"replicas": 2}, {}):
        found = [
            search(load_problem(model="qwen2.5-7b", cluster={"nodes": some}, workload=DECODE, space=space), details=False)
            for some in (nodes, nodes[::-1])
        ]
        for one in found:
            assert one.evaluation is not None
            assert one.evaluation.latency_s == pytest.approx(one.value, rel=1e-9)
        assert found[0].value == pytest.approx(found[1].value, rel=1e-8)


def test_a_stored_plan_says_which_gpus_it_means_and_is_read_back(tmp_path: Path) -> None:
    found = solved((FAST, SLOW, FAST))
    folder = write_run(found, tmp_path, {}, {})
    stored = json.loads((folder / "result.json").read_text())
    assert stored["plan"]["gpus"] == "0-1, 4-5, 2-3"
    assert stored["space"]["orders"][0]["gpus"] == "as listed"
    for name in ("result.json", "plan.yaml"):
        chosen = choose(folder / name)
        assert chosen.choice == found.choice
        assert chosen.problem.cluster.gpus == found.problem.cluster.gpus
        assert chosen.problem.cluster.domains == found.problem.cluster.domains
        assert evaluate(folder / name).latency_s == pytest.approx(found.value, rel=1e-9)
    report = markdown_report(found)
    assert "in the order 0-1, 4-5, 2-3" in report
    assert "= 2-3 as listed" in search_report(solved((SLOW, FAST)))
    assert "as the cluster lists them the best plan comes to" in search_report(found)


@pytest.mark.parametrize("gpus", ["0-1, 4-5", "0-1, 4-5, 2-2, 2-3", "0, 2, 1, 3, 4-5", "5-0", "0-9999999", 7, "x"])
def test_an_order_that_is_none_is_refused(tmp_path: Path, gpus: object) -> None:
    """GPUs missing, twice, a domain torn apart, or no ranges at all."""
    found = solved((FAST, SLOW, FAST)).to_dict()
    path = tmp_path / "result.json"
    path.write_text(json.dumps({**found, "plan": {**found["plan"], "gpus": gpus}}))
    with pytest.raises(InputError, match=r"plan\.gpus"):
        choose(path)


def test_a_plan_inside_a_problem_counts_the_gpus_as_listed() -> None:
    stages = [{"layers": 28, "devices": [0, 1]}]
    with pytest.raises(InputError, match="only a plan in a file of its own"):
        load_problem({**problem((SLOW, FAST)).raw, "plans": {"own": {"gpus": "2-3, 0-1", "stages": stages}}})
    asked = load_problem({**problem((SLOW, FAST)).raw, "plans": {"own": {"stages": stages}}})
    found = search(asked)
    (own,) = found.hand_designed
    listed = asked.listed
    env = setting(listed.model, listed.workload, listed.cluster)
    assert found.problem.sizes.gpus == (2, 3, 0, 1)
    assert own.best_completion.choice is not None
    assert price(env, listed.sizes, own.best_completion.choice).latency_s == pytest.approx(own.best_completion.latency_s)
    assert own.ratio_to_best is not None
    assert own.ratio_to_best > 1.5
    assert "gpus" not in found.to_dict()["hand_designed"][0]["best_completion"]["plan"]


def test_a_certificate_covers_every_order_and_is_refused_where_one_is_tampered_with() -> None:
    raw = certificate(solved((FAST, SLOW, FAST)))
    assert len(raw["other_orders"]) == 2
    found = verify(raw, samples=10)
    assert found.verified, found.reason
    assert found.whole
    better = {**raw["other_orders"][0]["branches"][0]["pipelines"], "bound": 1.0, "closed_by": "exact program"}
    branches = [{**raw["other_orders"][0]["branches"][0], "pipelines": better}, *raw["other_orders"][0]["branches"][1:]]
    lied = {**raw, "other_orders": [{**raw["other_orders"][0], "branches": branches}, raw["other_orders"][1]]}
    refused = verify(signed(lied), samples=10)
    assert not refused.verified
    assert "order 2 of the GPUs" in refused.reason
    for others in ([], raw["other_orders"][:1], [{**raw["other_orders"][0], "gpus": "4-5, 0-3"}, raw["other_orders"][1]]):
        assert not verify(signed({**raw, "other_orders": others}), samples=0).verified
    with pytest.raises(InputError, match="gpus"):
        verify(signed({**raw, "other_orders": [{**raw["other_orders"][0], "gpus": "5-0"}]}))


def test_an_interrupt_between_two_orders_leaves_what_is_known_of_the_first() -> None:
    """Nothing is claimed of the orders that were not searched."""

    def stop(text: str) -> None:
        if text.startswith("order 2 of 3"):
            raise KeyboardInterrupt

    found = search(problem((FAST, SLOW, FAST)), progress=stop)
    assert found.interrupted
    assert found.status == "feasible"
    assert found.value == pytest.approx(found.orders[0].value)
    assert len(found.orders) == 1
    assert LISTED_RULE in found.problem.restrictions
    assert "1 of 3 of them" in search_report(found)
    assert verify(certificate(found), samples=10).verified


def test_training_takes_any_order_too() -> None:
    """Replicas find their blocks on the faster node wherever it is listed."""
    values = []
    for kinds in (("h100", "a100-80gb"), ("a100-80gb", "h100")):
        cluster = {"name": "two", "nodes": [{"kind": kind, "gpus": 2} for kind in kinds]}
        workload = {"phase": "training", "global_batch": 8, "sequence": 1024}
        found = search(load_problem(model="qwen3-0.6b", cluster=cluster, workload=workload), details=False)
        assert found.status == "optimal"
        values.append(found.value)
    assert values[0] == pytest.approx(values[1], rel=1e-9)


def test_a_front_takes_the_order_that_is_best_for_its_first_objective() -> None:
    front = pareto(problem((SLOW, FAST)), points=2)
    assert front.points[0].values[0] == pytest.approx(solved((SLOW, FAST)).value, rel=1e-6)
    assert front.problem.sizes.gpus == (2, 3, 0, 1)
    assert front.to_dict()["points"][0]["plan"]["gpus"] == "2-3, 0-1"
    assert "in the order 2-3, 0-1." in front_report(front)
    assert FRONT_RULE in front.problem.restrictions
    assert FRONT_RULE not in pareto(problem((FAST, FAST)), points=2).problem.restrictions
