"""The composed price of a training step is the longest path of its expanded graph."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import HealthCheck, given, settings

from planner.evaluate.expanded import longest_path, price_graph
from planner.evaluate.training import StepPricing
from planner.evaluate.training_stage import training_stages
from planner.graph.expand_training import expand_training
from planner.graph.ops import Kind
from search_spaces.attention import AttentionPartition
from search_spaces.training import TrainingChoice
from tests.planner.plans import MOE
from tests.planner.trained import Trained, trained, trained_cases


def passes(case: Trained) -> tuple[float, float]:
    """Seconds until the last pass of any stage is done: composed, and in the graph."""
    graph = expand_training(case.model, case.workload, case.sizes, case.choice)
    seconds = price_graph(case.env, graph)
    start = longest_path(graph, seconds).start
    stages = training_stages(case.env, case.sizes, case.choice, fused=True)
    done = max(start[node.id] for node in graph.nodes if node.kind == Kind.BARRIER and node.role != "step")
    return max(StepPricing(case.env, case.sizes, case.choice, stages).ends()), done


@settings(max_examples=25, suppress_health_check=[HealthCheck.too_slow])
@given(trained_cases(equal=True))
def test_passes_take_what_their_graph_takes(case):
    """Schedules, splits and recomputation; nothing of the exchange is between the passes where no copies share weights."""
    case = replace(case, choice=replace(case.choice, training=replace(case.choice.training, zero=0)))
    composed, found = passes(case)
    assert composed == pytest.approx(found, rel=1e-9)


@pytest.mark.parametrize(
    "case",
    [
        trained(stages=2, layers=4, part=AttentionPartition(2, batch_parts=2), micro=4),
        trained(stages=2, layers=4, micro=4, training=TrainingChoice("interleaved", 2, "full")),
        trained(stages=2, layers=4, micro=4, training=TrainingChoice("zb_h1"), ffn=replace(MOE, experts=8)),
    ],
)
def test_schedules_take_what_their_graph_takes(case):
    composed, found = passes(case)
    assert composed == pytest.approx(found, rel=1e-9)
