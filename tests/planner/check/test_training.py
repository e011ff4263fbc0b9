"""Checks of training graphs: sound ones have no findings, broken ones do."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import HealthCheck, given, settings

from planner.check.findings import errors
from planner.check.training import check_training
from planner.graph.expand_training import expand_training
from planner.graph.nodes import Graph
from search_spaces.attention import AttentionPartition
from search_spaces.training import TrainingChoice
from tests.planner.plans import MOE
from tests.planner.trained import trained, trained_cases


def graph_of(case) -> Graph:
    return expand_training(case.model, case.workload, case.sizes, case.choice)


def check(case, graph):
    return errors(check_training(case.env, case.sizes, case.choice, graph))


@settings(max_examples=15, suppress_health_check=[HealthCheck.too_slow])
@given(trained_cases())
def test_graphs_of_plans_are_sound(case):
    assert check(case, graph_of(case)) == []


@pytest.mark.parametrize(
    ("lost", "training"),
    [("up_proj_wgrad", TrainingChoice()), ("o_proj_dgrad", TrainingChoice()), ("down_proj", TrainingChoice(recompute="full"))],
)
def test_a_product_that_is_missing_is_found(lost, training):
    case = trained(training=training)
    graph = graph_of(case)

    def gone(node):
        return node.name == lost and (lost != "down_proj" or node.role.endswith("_again"))

    left = {node.id: node for node in graph.nodes if not gone(node)}
    edges = tuple(edge for edge in graph.edges if edge.src in left and edge.dst in left)
    assert "WORK001" in {finding.code for finding in check(case, Graph(tuple(left.values()), edges))}


def test_a_shard_of_another_size_is_found():
    case = trained()
    graph = graph_of(case)
    wide = [replace(n, weights=tuple(replace(w, shape=(w.shape[0], w.shape[1] * 2)) for w in n.weights))
            if n.name == "q_proj_dgrad" else n for n in graph.nodes]  # fmt: skip
    assert "WORK005" in {finding.code for finding in check(case, Graph(tuple(wide), graph.edges))}


def test_two_exchanges_at_once_are_found():
    case = trained(ffn=MOE, part=AttentionPartition(2, batch_parts=2), replicas=2)
    graph = graph_of(case)
    names = {node.id for node in graph.nodes if node.role == "exchange"}
    edges = tuple(edge for edge in graph.edges if not (edge.src in names and edge.dst in names))
    assert "CYCLE003" in {finding.code for finding in check(case, Graph(graph.nodes, edges))}
