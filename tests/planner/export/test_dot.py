"""Drawings: every view of every kind of plan is DOT that Graphviz takes, says what it shows, and holds no surprise."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from planner.errors import InputError
from planner.evaluate.expanded import longest_path, price_graph
from planner.export.dag_json import dag_json
from planner.export.dot import dag_dot, dag_png, dag_svg, quoted
from planner.export.views import VIEWS, picture
from planner.graph.expand import expand
from planner.graph.nodes import Graph
from search_spaces.attention import AttentionPartition
from search_spaces.experts import ExpertPlacement
from search_spaces.stages import StageChoice
from tests.planner.check.test_validate import DENSE, MIXED, case

PIPELINE = case(stages=tuple(StageChoice(2, tuple(range(f, f + 4)), AttentionPartition(2, 2), 4) for f in (0, 4)))
APART = case(MIXED, (StageChoice(2, tuple(range(8)), AttentionPartition(6), 6, ExpertPlacement("separate", 1, 2)),))
DISPATCH = case(MIXED, (StageChoice(2, tuple(range(4)), AttentionPartition(4), 4, ExpertPlacement("dispatch")),))
PLANS = {"pipeline": PIPELINE, "apart": APART, "dispatch": DISPATCH}


def drawn(plan, **changes):
    graph = expand(plan.model, plan.workload, plan.sizes, plan.choice, micro_batches=1, **changes)
    seconds = price_graph(plan.env, graph)
    return graph, seconds, longest_path(graph, seconds).path


def boxes_of(dot: str):
    pygraphviz = pytest.importorskip("pygraphviz")
    return pygraphviz.AGraph(string=dot)


@pytest.mark.parametrize("view", VIEWS)
@pytest.mark.parametrize("name", PLANS)
def test_every_view_is_dot_with_a_red_path(name, view):
    plan = PLANS[name]
    graph, seconds, path = drawn(plan)
    dot = dag_dot(graph, seconds, path, view, f"{name} {view}", plan.cluster.domain_of)
    assert dot == dag_dot(graph, seconds, path, view, f"{name} {view}", plan.cluster.domain_of)
    found = boxes_of(dot)
    shown = picture(graph, seconds, path, view)
    assert len(found.nodes()) == len(shown.boxes)
    assert len(found.edges()) == len(shown.links)
    missing = {"pipeline": "moe", "apart": "mlp", "dispatch": "mlp"}[name]
    assert (not shown.boxes) == (view == missing)
    assert any(box.critical for box in shown.boxes) or view == missing


def test_a_gpu_is_a_frame_inside_its_node():
    graph, seconds, path = drawn(PIPELINE, layers=[0], ends=False)
    found = boxes_of(dag_dot(graph, seconds, path, "mha", "t", PIPELINE.cluster.domain_of))
    frames = {sub.name: [inner.name for inner in sub.subgraphs()] for sub in found.subgraphs()}
    assert frames == {"cluster_node_0": [f"cluster_gpu_{rank}" for rank in range(4)]}


def test_every_operator_tells_its_dimensions_and_gpu():
    graph, seconds, path = drawn(PIPELINE, layers=[0], ends=False)
    for box in picture(graph, seconds, path, "mha").boxes:
        node = box.members[0]
        assert any(line.startswith("GPU ") for line in box.lines)
        assert f"out {node.output.text}" in box.lines
        if node.m:
            assert node.sizes in box.lines


def test_equal_gpus_are_merged_and_different_ones_stand_apart():
    uneven = case(stages=(StageChoice(4, (0, 1, 2), AttentionPartition(3), 3),))
    graph, seconds, path = drawn(uneven, layers=[0], ends=False)
    gpus = sorted(box.lines[1] for box in picture(graph, seconds, path, "layer").boxes if box.lines[0] == "q_proj")
    assert gpus == ["GPU 0-1", "GPU 2"]  # 3, 3 and 2 heads


def test_collectives_of_a_family_are_one_box_of_the_communication():
    graph, seconds, path = drawn(PIPELINE, layers=[0], ends=False)
    lines = [box.lines for box in picture(graph, seconds, path, "communication").boxes]
    assert any(text[0] == "score_all_reduce (all_reduce)" and text[1] == "GPU 0-1 | 2-3" for text in lines)
    assert all(box.members[0].communicates for box in picture(graph, seconds, path, "communication").boxes)


def test_a_long_model_is_a_box_for_each_stage():
    layers = (DENSE.layers[0],) * 40
    stages = tuple(StageChoice(20, tuple(range(f, f + 4)), AttentionPartition(4), 4) for f in (0, 4))
    plan = case(replace(DENSE, layers=layers), stages)
    shown = picture(*drawn(plan), "model")
    assert len(shown.boxes) == 3  # two stages and the send between them
    assert "layers 0-19" in shown.boxes[0].lines


def test_large_stages_are_drawn_by_what_their_gpus_do():
    graph = drawn(PIPELINE, layers=[0], ends=False)[0]
    wide = Graph(
        tuple(
            replace(n, id=f"{n.id}+{k}", devices=tuple(d + 8 * k for d in n.devices)) for k in range(20) for n in graph.nodes
        ),
        tuple(replace(e, src=f"{e.src}+{k}", dst=f"{e.dst}+{k}") for k in range(20) for e in graph.edges),
    )
    shown = picture(wide, {n.id: 1.0 for n in wide.nodes}, (), "mha")
    assert not shown.by_gpu and len(shown.boxes) < 40


def test_arrows_carry_tensor_bytes_and_collective():
    graph, seconds, path = drawn(PIPELINE, layers=[0], ends=False)
    texts = [link.text for link in picture(graph, seconds, path, "mha").links]
    assert any(text.startswith("all_reduce: scores ") and text.endswith("B") for text in texts)


@pytest.mark.parametrize("text", ['a"b', "a\\", "\\N", "<b>x</b>", "a\nb", "]; n [label=x", "a\x00\x1bb", "é漢"])
def test_names_stay_text(text):
    pygraphviz = pytest.importorskip("pygraphviz")
    found = pygraphviz.AGraph(string=f"digraph g {{ n [label={quoted(text)}]; }}")
    assert [str(n) for n in found.nodes()] == ["n"]
    graph, seconds, path = drawn(PIPELINE, layers=[0], ends=False)
    svg = dag_svg(dag_dot(graph, seconds, path, "layer", text)).decode()
    assert "<b>" not in svg


def test_svg_is_the_same_bytes_and_names_no_version():
    graph, seconds, path = drawn(PIPELINE, layers=[0], ends=False)
    dot = dag_dot(graph, seconds, path, "layer", "title")
    svg = dag_svg(dot)
    assert svg == dag_svg(dot) and svg.rstrip().endswith(b"</svg>")
    assert b"<!--" not in svg and b"raphviz version" not in svg
    assert dag_png(dot).startswith(b"\x89PNG")


def test_an_unknown_view_is_refused():
    with pytest.raises(InputError, match="mlp"):
        picture(Graph((), ()), {}, (), "mpl")


def test_json_holds_every_node_and_edge():
    graph, seconds, path = drawn(APART)
    found = json.loads(json.dumps(dag_json(graph, seconds, path)))
    assert [n["id"] for n in found["nodes"]] == [n.id for n in graph.nodes]
    assert len(found["edges"]) == len(graph.edges)
    assert found["latency_s"] == pytest.approx(longest_path(graph, seconds).seconds, rel=1e-9)
