"""The composed price of a plan is the longest path of its expanded graph, to the last digits."""

from __future__ import annotations

import pytest
from hypothesis import given, settings

from planner.evaluate.evaluation import evaluate
from planner.evaluate.expanded import longest_path, price_graph
from planner.evaluate.pipeline import feedback_seconds, makespan, send_seconds
from planner.evaluate.setting import Setting
from planner.evaluate.stage import intervals, stage_price, view
from planner.evaluate.tables import Block, FfnOption, price_blocks
from planner.graph.expand import expand
from search_spaces.sizes import Sizes
from search_spaces.space import token_split
from search_spaces.stages import Choice
from tests.planner.plans import Case, cases


def composed(env: Setting, sizes: Sizes, choice: Choice) -> float:
    """Seconds by stage tables and the pipeline formula."""
    sequences, start, times = sizes.batch // choice.replicas // choice.micro_batches, 0, []
    for stage in choice.stages:
        kind = env.cluster.device_kinds[stage.devices[0]]
        ffn = FfnOption(stage.mlp_ways, stage.experts)
        splits = (token_split(sizes, stage.attention),)
        block = Block(kind, (stage.devices,), (sequences,), (stage.attention,), (ffn,), splits)
        seen = view(env, sizes, price_blocks(env, [block])[0], 0, 0, sizes.batch)
        times.append(float(stage_price(seen, intervals(env, [(start, start + stage.layers)])).seconds[0, 0, 0]))
        start += stage.layers
    pairs = list(zip(choice.stages, choice.stages[1:], strict=False))
    sends = [send_seconds(env, a.devices, b.devices, sequences) for a, b in pairs]
    decode = env.workload.phase == "decode"
    if decode and pairs:
        sends.append(feedback_seconds(env, choice.stages[-1].devices, choice.stages[0].devices, sequences))
    return makespan(times, sends, choice.micro_batches, decode)


def expanded(case: Case, steps: int = 1) -> float:
    graph = expand(case.model, case.workload, case.sizes, case.choice, steps=steps)
    return longest_path(graph, price_graph(case.env, graph)).seconds


@settings(max_examples=100)
@given(cases(separate=False))
def test_a_pipeline_costs_what_its_graph_takes(case):
    found = expanded(case)
    if case.workload.phase == "decode":  # in steady state a step takes what a second step adds
        found = expanded(case, steps=2) - found
    assert composed(case.env, case.sizes, case.choice) == pytest.approx(found, rel=1e-9)
    assert evaluate(case.env, case.sizes, case.choice).latency_s == pytest.approx(found, rel=1e-9)


@settings(max_examples=50)
@given(cases(separate=True))
def test_experts_apart_cost_what_their_graph_takes(case):
    assert evaluate(case.env, case.sizes, case.choice).latency_s == pytest.approx(expanded(case), rel=1e-9)
