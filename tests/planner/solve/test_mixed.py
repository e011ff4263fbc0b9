"""Mixed clusters with real models: kinds of GPU, a slow node, a small domain; the price follows the ranks of each group."""

from __future__ import annotations

from collections.abc import Mapping

import pytest

from planner.costs.groups import group_shape
from planner.evaluate.evaluation import evaluate
from planner.evaluate.expanded import price_graph
from planner.evaluate.setting import Setting, setting
from planner.graph.expand import expand
from planner.problem import Problem, load_problem
from planner.solve.answer import Optimum
from planner.solve.optimum import SpaceSearch
from search_spaces.attention import AttentionPartition
from search_spaces.experts import ExpertPlacement
from search_spaces.stages import Choice, StageChoice
from tests.oracle_problems import brute_forces, case_setting, disagreements

DECODE = {"phase": "decode", "batch": 64, "context": 8192}
LONG = {"phase": "decode", "batch": 4, "context": 100_000}
PLAIN = {"batch_parts": 1, "context_parts": 1, "dimension_segments": 1, "sequence_parallel": False, "output_projection": "row"}
H100_A100 = "1x8-h100+1x8-a100-80gb"
H20_L40S = {"name": "h20-l40s", "nodes": [{"kind": "h20", "gpus": 4}, {"kind": "l40s", "gpus": 4}]}
L40S_H20 = {"name": "l40s-h20", "nodes": [{"kind": "l40s", "gpus": 4}, {"kind": "h20", "gpus": 4}]}
SLOW_NODE = {
    "name": "slow-node",
    "nodes": [{"kind": "h100", "gpus": 4}, {"kind": "slow", "gpus": 4}],
    "kinds": {"slow": {"like": "h100", "memory_tb_per_s": 2.0, "peak_tflops": {"bf16": 500}}},
}
SMALL_DOMAIN = {
    "name": "small-domain",
    "nodes": [{"kind": "h100", "gpus": 8}, {"kind": "h100", "gpus": 4}, {"kind": "h100", "gpus": 8}],
}
REDUCED = {
    "kinds": {
        "model": "Llama-3.1-70B", "cluster": H100_A100, "workload": DECODE,
        "space": {"stages": 2, "replicas": 1, "micro_batches": [1, 2], "use_all": True, "attention": PLAIN},
    },
    "apart": {
        "model": "mixtral-8x7b", "cluster": L40S_H20, "workload": DECODE,
        "space": {"stages": 1, "replicas": 1, "micro_batches": [2, 4], "use_all": True, "attention": PLAIN,
                  "experts": {"form": "separate"}},
    },
    "slow node": {
        "model": "Llama-3.1-70B", "cluster": SLOW_NODE, "workload": DECODE,
        "space": {"stages": 2, "replicas": 1, "micro_batches": 2, "use_all": True, "attention": PLAIN},
    },
    "small domain": {
        "model": "mixtral-8x7b", "cluster": SMALL_DOMAIN, "workload": LONG,
        "space": {"stages": 1, "replicas": 1, "micro_batches": 1,
                  "attention": PLAIN | {"batch_parts": "any", "context_parts": "any"},
                  "experts": {"form": "local", "tensor_ways": 1}},
    },
}  # fmt: skip
"""The four clusters, in spaces of which every plan can be priced."""


def problem(raw: Mapping[str, object], **space: object) -> Problem:
    """A problem, the fields of its space replaced by `space`."""
    own = raw.get("space", {})
    assert isinstance(own, Mapping)
    return load_problem({"name": "mixed", **raw, "space": {**own, **space}})


def solved(asked: Problem) -> Optimum:
    """The proven optimum."""
    found = SpaceSearch(case_setting(asked), asked.space).run()
    assert found.choice is not None
    assert found.bound == pytest.approx(found.value, rel=1e-6)
    return found


@pytest.mark.parametrize("name", REDUCED)
def test_the_optimum_is_that_of_brute_force(name: str) -> None:
    asked = problem(REDUCED[name])
    assert asked.space.size() <= 5000
    assert not disagreements(asked, brute_forces(case_setting(asked), asked.space))


def test_the_faster_kind_gets_more_layers_and_so_does_the_faster_node() -> None:
    """Decode is bound by memory: layers go by memory bandwidth (A100 2.04 TB/s and the slow node 2.0, H100 3.35)."""
    for cluster in (H100_A100, SLOW_NODE):
        found = solved(problem({"model": "Llama-3.1-70B", "cluster": cluster, "workload": DECODE}, replicas=1, stages=2))
        fast, slow = (stage.layers for stage in found.choice.stages)  # type: ignore[union-attr]
        assert slow < fast
        assert slow / fast == pytest.approx(2.0 / 3.35, rel=0.15)


def test_no_plan_on_the_slow_node_is_missed_where_it_would_help() -> None:
    """With the slow node a decode step is faster than on the fast node alone, slower than on two fast ones."""
    alone, two = (solved(problem({"model": "Llama-3.1-70B", "cluster": c, "workload": DECODE})).value
                  for c in ("1x4-h100", "2x4-h100"))  # fmt: skip
    mixed = solved(problem({"model": "Llama-3.1-70B", "cluster": SLOW_NODE, "workload": DECODE})).value
    assert two < mixed < alone


def apart(cluster: object, **more: object) -> Optimum:
    """Mixtral with its experts on GPUs of their own."""
    raw = {"model": "mixtral-8x7b", "cluster": cluster, "workload": DECODE}
    return solved(problem(raw, stages=1, replicas=1, experts={"form": "separate"}, **more))


def test_attention_is_on_the_gpus_with_the_faster_memory_whichever_come_first() -> None:
    """H20: 4 TB/s and little compute; L40S: 0.86 TB/s. The order of the nodes in the file changes nothing."""
    found = {str(c["name"]): apart(c, use_all=True) for c in (H20_L40S, L40S_H20)}
    for name, optimum in found.items():
        (stage,) = optimum.choice.stages  # type: ignore[union-attr]
        assert set(stage.attention_devices) == set(range(4) if name == "h20-l40s" else range(4, 8))
    assert found["h20-l40s"].value == pytest.approx(found["l40s-h20"].value, rel=1e-9)


def test_attention_on_the_other_side_is_slower() -> None:
    """The best plan with attention on the four L40S and experts on the four H20, against the best the other way round."""
    sides = {"l40s": [*range(8)], "h20": [4, 5, 6, 7, 0, 1, 2, 3]}
    plans = {
        name: {"replicas": 1, "stages": [{"layers": 32, "devices": ranks}], "experts": {"form": "separate", "devices": 4}}
        for name, ranks in sides.items()
    }
    asked = problem({"model": "mixtral-8x7b", "cluster": L40S_H20, "workload": DECODE, "plans": plans})
    found = {name: SpaceSearch(case_setting(asked), space).run().value for name, space in asked.plans.items()}
    assert found["l40s"] > 1.02 * found["h20"]
    assert found["h20"] == pytest.approx(apart(L40S_H20, use_all=True).value, rel=1e-9)


def strided(order: str) -> tuple[Setting, Choice]:
    """Mixtral on two nodes of four: four context parts and two head groups, laid out one way or the other."""
    asked = problem({"model": "mixtral-8x7b", "cluster": "2x4-h100", "workload": LONG})
    grid = AttentionPartition(2, 1, 1, 4, order=order)  # type: ignore[arg-type]
    return case_setting(asked), Choice(1, 1, (StageChoice(32, tuple(range(8)), grid, 8, ExpertPlacement("local")),))


@pytest.mark.parametrize(("order", "domains"), [("segments_inner", 2), ("context_inner", 1)])
def test_a_group_is_priced_by_the_ranks_it_has(order: str, domains: int) -> None:
    """The exchange between context parts costs what the collective costs over just these ranks."""
    env, choice = strided(order)
    graph = expand(env.model, env.workload, problem({"model": "mixtral-8x7b", "cluster": "2x4-h100", "workload": LONG}).sizes,
                   choice, layers=[0])  # fmt: skip
    prices = price_graph(env, graph)
    merges = [node for node in graph.nodes if node.name == "merge_all_to_all"]
    assert len(merges) == 2
    for node in merges:
        assert len({env.cluster.domain_of[rank] for rank in node.devices}) == domains
        shape = group_shape(env.cluster, node.family)
        assert prices[node.id] == pytest.approx(float(env.pricer.collectives.time("all_to_all", node.bytes, shape)), rel=1e-9)


def test_strided_groups_cost_more_where_both_hold_the_same() -> None:
    """Context parts on neighbouring ranks exchange inside a node; with heads there instead, every exchange leaves it."""
    seconds = {}
    for order in ("segments_inner", "context_inner"):
        env, choice = strided(order)
        seconds[order] = evaluate(
            env, problem({"model": "mixtral-8x7b", "cluster": "2x4-h100", "workload": LONG}).sizes, choice
        ).latency_s
    assert seconds["context_inner"] < seconds["segments_inner"]


def test_context_parts_inside_a_node_are_the_best_plan_of_a_long_context() -> None:
    """Two nodes, one stage, 100,000 tokens of context: the order of the grid is worth 5 %."""
    raw = {"model": "mixtral-8x7b", "cluster": "2x8-h100", "workload": LONG}
    best = solved(problem(raw, stages=1, replicas=1))
    plain = solved(problem(raw, stages=1, replicas=1, attention={"order": ["segments_inner", "heads_inner"]}))
    assert {stage.attention.order for stage in best.choice.stages} == {"context_inner"}  # type: ignore[union-attr]
    assert best.value < 0.96 * plain.value


def test_stages_keep_clear_of_the_edges_of_a_small_domain() -> None:
    """Nodes of 8, 4 and 8 GPUs: no stage of the best plan lies in two of them, and the small one has the fewest layers."""
    found = solved(problem({"model": "Llama-3.1-70B", "cluster": SMALL_DOMAIN, "workload": DECODE}))
    env = setting(*(getattr(problem({"model": "Llama-3.1-70B", "cluster": SMALL_DOMAIN, "workload": DECODE}), name)
                    for name in ("model", "workload", "cluster")))  # fmt: skip
    stages = found.choice.stages  # type: ignore[union-attr]
    assert all(len({env.cluster.domain_of[rank] for rank in stage.devices}) == 1 for stage in stages)
    small = [stage.layers for stage in stages if set(stage.devices) <= set(range(8, 12))]
    assert all(layers <= min(stage.layers for stage in stages if len(stage.devices) == 8) for layers in small)
