"""The numeric run of training plans: gradients equal those of the unsplit model, and faults of a backward pass are found."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import HealthCheck, given, settings

from planner.check.findings import errors
from planner.check.run import run_training
from planner.check.run.book import is_weight_gradient
from planner.graph.nodes import Graph
from search_spaces.attention import AttentionPartition
from search_spaces.experts import ExpertPlacement
from search_spaces.training import TrainingChoice
from tests.planner.plans import MOE, gqa, mla
from tests.planner.trained import Trained, trained, trained_cases

PARTS = AttentionPartition(2, batch_parts=2)
SEQUENCE = AttentionPartition(2, batch_parts=2, sequence_parallel=True)
SHARED = replace(MOE, shared_hidden=70, shared_gate=True)


def run(case: Trained, change=None):
    return run_training(case.env, case.sizes, case.choice, change)


@pytest.mark.parametrize(
    "case",
    [
        trained(gqa(heads=8, kv_heads=2, sinks=True, softcap=5.0, qk_norm="head", o_bias=True), part=AttentionPartition(4)),
        trained(part=AttentionPartition(1, context_parts=4)),
        trained(mla(), part=AttentionPartition(2, context_parts=2, sequence_parallel=True)),
        trained(ffn=replace(SHARED, scoring="sigmoid", bias=True), part=SEQUENCE, norms=4),
        trained(ffn=SHARED, part=SEQUENCE, experts=ExpertPlacement("dispatch", tensor_ways=2)),
        trained(ffn=replace(MOE, scale_input=True), part=PARTS, experts=ExpertPlacement("dispatch")),
        trained(training=TrainingChoice("zb_h1"), stages=2, layers=4, micro=4),
        trained(training=TrainingChoice("interleaved", 2, "full"), stages=2, layers=4, micro=4),
        trained(training=TrainingChoice(zero=3), part=SEQUENCE),
        trained(training=TrainingChoice(zero=1), part=PARTS, stages=2, tied_embeddings=True, positions=64),
    ],
    ids=["shared keys", "ring", "latent ring", "mixture", "dispatch", "scaled", "zero bubble", "chunks", "sharded", "tied"],
)
def test_gradients_are_those_of_the_unsplit_model(case):
    found = run(case)
    assert found.executed and found.matches_unsplit_model, found.findings
    assert [f.code for f in found.findings] == ["NUM002"] and found.max_abs_error <= found.tolerance


@settings(max_examples=15, suppress_health_check=[HealthCheck.too_slow])
@given(trained_cases())
def test_every_training_plan_computes_the_gradients(case):
    found = run(case)
    assert found.executed and found.matches_unsplit_model, found.findings


def test_a_model_without_a_loss_is_not_run():
    found = run_training(*_headless())
    assert not found.executed and found.findings[0].code == "NUM005"


def _headless():
    case = trained()
    bare = replace(case, model=replace(case.model, vocab=0))
    return bare.env, bare.sizes, bare.choice


def without(graph: Graph, lost) -> Graph:
    """The graph without some data edges."""
    edges = tuple(edge for edge in graph.edges if not lost(graph.by_id[edge.src], graph.by_id[edge.dst], edge))
    assert len(edges) < len(graph.edges)
    return Graph(graph.nodes, edges)


def without_nodes(graph: Graph, gone) -> Graph:
    """The graph without some nodes: who read what they wrote reads nothing."""
    left = tuple(node for node in graph.nodes if not gone(node))
    assert len(left) < len(graph.nodes)
    known = {node.id for node in left}
    return Graph(left, tuple(edge for edge in graph.edges if edge.src in known and edge.dst in known))


def departs(found, text: str) -> None:
    assert found.executed and not found.matches_unsplit_model
    assert text in errors(found.findings)[0].message, errors(found.findings)[0]


def test_a_gradient_that_is_not_reduced_is_found():
    departs(run(trained(part=PARTS), lambda g: without_nodes(g, lambda n: n.name.startswith("reduce"))), "gradient of")


def test_norms_that_are_not_finished_under_sequence_parallelism_are_found():
    case = trained(part=AttentionPartition(2, sequence_parallel=True))
    departs(run(case, lambda g: without_nodes(g, lambda n: n.name.startswith("finish"))), "_norm")


def test_a_micro_batch_that_is_not_added_is_found():
    def lost(source, target, edge):
        return source.name == target.name == "up_proj_wgrad" and source.layer == 1

    departs(run(trained(), lambda g: without(g, lost)), "gradient of up")


def test_the_gradient_of_another_shard_is_found():
    """GPU 1 multiplies the activations with the gradient of its norm's input instead of its own columns'."""

    def swapped(graph: Graph) -> Graph:
        def other(node):
            if node.name != "k_proj_wgrad" or node.layer != 0:
                return node
            return replace(node, name="v_proj_wgrad")

        return Graph(tuple(map(other, graph.nodes)), graph.edges)

    departs(run(trained(gqa(heads=8, kv_heads=8, rope="none")), swapped), "")


def test_a_gradient_that_is_not_summed_over_the_tensor_group_is_found():
    def bypassed(graph: Graph) -> Graph:
        gone = {n.id: n for n in graph.nodes if n.name == "x_grad_all_reduce" and n.layer == 1}
        edges = []
        for edge in graph.edges:
            if edge.dst in gone:
                continue
            if edge.src in gone and edge.kind == "data" and edge.tensor:
                inputs = [e for e in graph.into[edge.src] if e.kind == "data" and e.tensor]
                edges += [replace(e, dst=edge.dst) for e in inputs]
            elif edge.src not in gone:
                edges.append(edge)

        def reading(node):
            own = node.layer == 1 and node.role == "attention_backward"
            pieces = tuple(replace(p, name="q_proj.grad") if p.name == "xg.grad" and own else p for p in node.inputs)
            return replace(node, inputs=pieces)

        return Graph(tuple(reading(n) for n in graph.nodes if n.id not in gone), tuple(edges))

    found = run(trained(), bypassed)
    departs(found, "dx on GPU")


def test_a_tensor_that_is_not_kept_is_found():
    """The backward pass reads what the next layer has written over."""

    def lost(source, target, edge):
        return edge.tensor == "active" and target.name == "down_proj_wgrad"

    departs(run(trained(), lambda g: without(g, lost)), "it writes [10, 10]")


def test_only_the_last_micro_batch_of_weight_gradients_is_exchanged():
    case = trained(part=PARTS)
    from planner.graph.expand_training import expand_training

    graph = expand_training(case.model, case.workload, case.sizes, case.choice)
    assert {n.micro_batch for n in graph.nodes if n.role == "exchange"} == {1}
    assert any(is_weight_gradient(n) for n in graph.nodes)
