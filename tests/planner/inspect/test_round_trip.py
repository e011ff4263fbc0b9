"""What we write we read back: a whole graph is the same graph, each box and arrow of a drawing says what it stood for."""

from __future__ import annotations

import re
from collections import defaultdict
from dataclasses import dataclass

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from planner.errors import InputError
from planner.evaluate.evaluation import evaluate
from planner.evaluate.expanded import longest_path, price_graph
from planner.export.attributes import from_attributes, to_attributes
from planner.export.dot import dag_dot, quoted
from planner.export.full import full_dot
from planner.export.views import VIEWS, picture
from planner.graph.expand import expand
from planner.graph.nodes import Edge, Graph, Node, Piece
from planner.graph.ops import Kind
from planner.inspect.inspection import inspect_text
from planner.inspect.labels import unescaped
from planner.inspect.operators import operators_of
from planner.inspect.own import graph_of, seconds_of
from planner.inspect.parse import parse_dot
from planner.inspect.words import BLOCK, MOVES
from tests.planner.export.test_dot import PIPELINE
from tests.planner.plans import cases


def drawn(case, **changes):
    graph = expand(case.model, case.workload, case.sizes, case.choice, **changes)
    seconds = price_graph(case.env, graph)
    return graph, seconds, longest_path(graph, seconds)


@settings(max_examples=25)
@given(cases())
def test_a_whole_graph_read_back_is_the_same_graph(case):
    graph, seconds, longest = drawn(case)
    text = full_dot(graph, seconds, "a plan")
    dot = parse_dot(text)
    assert graph_of(dot) == graph
    assert seconds_of(dot) == seconds
    found = inspect_text(text)
    assert found.own == "graph" and found.acyclic and not found.findings and not found.unread
    assert found.seconds == pytest.approx(longest.seconds, rel=1e-12)
    assert sum(found.prices[index].seconds for index in found.path) == pytest.approx(longest.seconds, rel=1e-12)


@settings(max_examples=15)
@given(cases())
def test_inspecting_a_whole_graph_agrees_with_the_evaluator(case):
    graph, seconds, _ = drawn(case)
    found, priced = inspect_text(full_dot(graph, seconds, "a plan")), evaluate(case.env, case.sizes, case.choice)
    flops, computing = defaultdict(float), defaultdict(float)
    for operator, price in zip(found.operators, found.prices, strict=True):
        for rank in operator.devices:
            computing[rank] += 0.0 if operator.kind in MOVES else price.seconds
    for node in graph.nodes:
        for rank in node.devices:
            flops[rank] += node.flops
    assert {load.rank: load.flops for load in found.loads} == pytest.approx(flops)
    assert sum(load.flops for load in found.loads) == pytest.approx(priced.flops_total)
    busy = {device.rank: device.busy_s for device in priced.devices if device.rank in computing}
    assert dict(computing) == pytest.approx(busy, rel=1e-9)
    if case.workload.phase == "prefill":
        assert found.seconds == pytest.approx(priced.latency_s, rel=1e-9)


@settings(max_examples=15)
@given(cases())
def test_pricing_a_whole_graph_anew_gives_what_it_states(case):
    graph, seconds, longest = drawn(case, micro_batches=1)
    found = inspect_text(full_dot(graph, dict.fromkeys(seconds, 0.0), "a plan"), case.cluster)
    again = {operator.id: price.seconds for operator, price in zip(found.operators, found.prices, strict=True)}
    assert again == pytest.approx(seconds, rel=1e-9)
    assert found.seconds == pytest.approx(longest.seconds, rel=1e-9)


@settings(max_examples=25)
@given(cases(), st.sampled_from(VIEWS))
def test_every_box_and_arrow_of_a_drawing_is_read_back(case, view):
    graph, seconds, longest = drawn(case, micro_batches=1)
    shown = picture(graph, seconds, longest.path, view)
    dot = parse_dot(dag_dot(graph, seconds, longest.path, view, "t", case.cluster.domain_of))
    operators = {operator.id: operator for operator in operators_of(dot)}
    assert operators.keys() == {box.id for box in shown.boxes}
    for box in shown.boxes:
        found, node = operators[box.id], box.members[0]
        assert found.own and not found.missing
        assert found.kind == (BLOCK if box.style == "role" else node.kind.value)
        assert found.devices == box.devices
        assert found.seconds == pytest.approx(box.seconds, rel=1e-9)
        if box.style != "role" and node.m:
            assert (found.product.m, found.product.k, found.product.n, found.product.batch) == (
                node.m,
                node.k,
                node.n,
                node.batch,
            )
        if box.style == "collective":
            assert found.bytes == pytest.approx(node.bytes, rel=1e-9)
    arrows = [
        (e.source, e.target, float(e.attributes.get("bytes", 0)), e.attributes.get("style") == "dashed") for e in dot.edges
    ]
    assert [arrow[:2] + arrow[3:] for arrow in arrows] == [(a.source, a.target, a.dashed) for a in shown.links]
    assert [arrow[2] for arrow in arrows] == pytest.approx([a.bytes for a in shown.links], rel=1e-9)
    labels = [unescaped(edge.attributes.get("label", "")).strip() for edge in dot.edges]
    assert labels == [link.text.strip() for link in shown.links]


@settings(max_examples=25)
@given(cases(), st.sampled_from(VIEWS))
def test_drawings_of_sound_plans_have_no_findings(case, view):
    graph, seconds, longest = drawn(case, micro_batches=1)
    found = inspect_text(dag_dot(graph, seconds, longest.path, view, "t", case.cluster.domain_of))
    assert found.sound and not found.unread
    assert {finding.code for finding in found.findings} <= {"DAG001"}  # a view may hold a role without the arrows around it


@pytest.mark.parametrize("text", ["a", 'a"b', "a\\b", "a\\", "a\nb", '\\"', "é漢", "a\\nb", "{|}<>"])
def test_any_name_survives(text):
    node = Node(text, text, Kind.MATMUL, "", 0, None, 0, (0,), inputs=(Piece(text, (1, 2), "bf16"),), m=1, k=2, n=3)
    graph = Graph((node,), (Edge(text, text, "data", text, 1.5),))
    assert graph_of(parse_dot(full_dot(graph, {text: 1e-7}, "t"))) == graph
    assert unescaped(parse_dot(f"digraph {{ {quoted(text)} }}").nodes[0].id) == text


NODE = '"a" [name="a", op="matmul", role="r", stage="0", micro_batch="0", devices="0", m="1"]'


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('op="matmul"', 'op="matmull"', "node a.op is 'matmull'; allowed: one of matmul, grouped_matmul"),
        ('m="1"', 'm="x"', "node a.m is 'x'; allowed: a whole number"),
        ('m="1"', f'm="{"9" * 5000}"', "node a.m is"),
        ('devices="0"', 'devices="0;1"', "node a.devices is '0;1'; allowed: whole numbers such as 0,1,2"),
        ('m="1"', 'inputs="["', "node a.inputs is '['; allowed: JSON"),
        ('m="1"', f'inputs="{"[" * 100000}"', "node a.inputs is"),
        ('m="1"', 'inputs="[{}]"', "node a.inputs is"),
        ('m="1"', 'inputs="[3]"', "node a.inputs is"),
        ('m="1"', 'attention="[]"', "node a.attention is"),
        ('name="a", ', "", "node a.name is 'missing'; allowed: text"),
        ("planner.graph/1", "planner.graph/2", "schema is 'planner.graph/2'; allowed: planner.graph/1"),
    ],
)
def test_a_file_that_says_it_is_ours_and_is_not_is_refused(old, new, message):
    text = f'digraph {{ schema="planner.graph/1";\n{NODE} }}'
    assert inspect_text(text).own == "graph"
    with pytest.raises(InputError, match=re.escape(message)):
        inspect_text(text.replace(old, new), source="f.dot")


def test_a_dimension_changed_in_our_file_is_found():
    piece, other = Piece("x", (4, 8), "bf16"), Piece("x", (4, 6), "bf16")
    nodes = [Node(n, n, Kind.ELEMENTWISE, "", 0, None, 0, (0,), inputs=i, outputs=o) for n, i, o in
             (("a", (), (piece,)), ("b", (piece,), ()), ("c", (other,), ()))]  # fmt: skip
    edges = [Edge("a", n, "data", "x", 64.0) for n in ("b", "c")]
    found = inspect_text(full_dot(Graph(tuple(nodes), tuple(edges)), {}, "t"))
    assert [(f.code, f.where) for f in found.findings] == [("SHAPE001", "a -> c")]


def test_a_dimension_changed_in_our_drawing_is_found():
    case = PIPELINE
    graph, seconds, longest = drawn(case, layers=[0], ends=False)
    dot = dag_dot(graph, seconds, longest.path, "mha", "t")
    node = next(n for n in graph.nodes if n.name == "v_proj")
    rows, columns = node.output.shape
    changed = dot.replace(f"out v [{rows}, {columns}]", f"out v [{rows}, {columns + 1}]", 1)
    assert changed != dot and inspect_text(dot).sound
    assert {f.code for f in inspect_text(changed).findings} == {"SHAPE001"}


@dataclass(frozen=True)
class Newer:
    """A class with fields that no node has today."""

    name: str
    inner: tuple[Piece, ...] = ()
    pairs: tuple[tuple[int, ...], ...] = ()
    maybe: float | None = None
    flag: bool = False
    words: tuple[str, ...] = ()


@given(st.builds(
    Newer, st.text(), st.lists(st.builds(Piece, st.text(), st.tuples(st.integers(0, 9)), st.text()), max_size=2).map(tuple),
    st.lists(st.lists(st.integers(), max_size=3).map(tuple), max_size=2).map(tuple),
    st.none() | st.floats(allow_nan=False, allow_infinity=False), st.booleans(), st.lists(st.text(), max_size=2).map(tuple),
))  # fmt: skip
def test_fields_to_come_are_written_and_read(value):
    assert from_attributes(Newer, to_attributes(value)) == value
