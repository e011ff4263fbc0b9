"""Graphs that others wrote: what is read, what is found, what a path takes, and what is said not to be known."""

from __future__ import annotations

import contextlib
import json
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from planner.clusters import load_cluster
from planner.costs.get_time import Roofline
from planner.costs.pricer import Pricer
from planner.errors import InputError
from planner.inspect import operators as module
from planner.inspect.inspection import inspect_text
from planner.inspect.shapes import Product
from planner.report.inspection import inspection_report
from tests.planner.inspect.foreign import BROKEN, HELIX, PYTHON, RECORDS

H100 = Roofline(load_cluster("2x8-h100").kinds["h100"])


def named(found) -> dict:
    return {operator.id: operator for operator in found.operators}


def codes(found) -> list[tuple[str, str]]:
    return [(finding.code, finding.where) for finding in found.findings]


def times(found) -> dict[str, float]:
    return {operator.id: price.seconds for operator, price in zip(found.operators, found.prices, strict=True)}


def test_a_graph_with_frames_and_named_sizes():
    found = inspect_text(HELIX)
    nodes = named(found)
    assert found.sound and found.acyclic and found.own == ""
    assert {name: node.kind for name, node in nodes.items()} == {
        "model_input": "input", "q_proj_0": "matmul", "scores_0": "matmul", "softmax_0": "softmax", "out_0": "block",
        "q_proj_1": "matmul", "concat": "concat", "reduce": "all_reduce", "model_output": "output",
    }  # fmt: skip
    assert [nodes[n].devices for n in ("model_input", "q_proj_0", "q_proj_1", "concat", "reduce")] == [
        (0, 1), (0,), (1,), (0, 1), (),
    ]  # fmt: skip
    assert nodes["q_proj_0"].product == nodes["q_proj_1"].product == Product(8000, 1024, 512)
    assert nodes["scores_0"].product == Product(1000, 128, 1000, 32)
    assert not found.findings
    assert dict(found.unread) == {"out_0": ("the operators inside it, with their sizes",), "reduce": ("its GPUs",)}


def test_times_are_those_of_get_time_and_the_collectives():
    found = inspect_text(HELIX)
    cluster = load_cluster("2x8-h100")
    moved = 2 * 8 * 4 * 1000 * 1000 * 2
    seconds = times(found)
    assert seconds["q_proj_0"] == pytest.approx(float(H100.get_time(8000, 1024, 512)))
    assert seconds["scores_0"] == pytest.approx(float(H100.get_time(1000, 128, 1000, 32)))
    assert seconds["softmax_0"] == pytest.approx(float(H100.elementwise(moved)))
    group = Pricer(cluster).shape((0, 1), 1, 2)
    reduced = float(Pricer(cluster).collectives.time("all_reduce", 8 * 1000 * 1024 * 2, group))
    assert seconds["reduce"] == pytest.approx(reduced)
    assert seconds["out_0"] == seconds["model_input"] == 0.0
    path = [found.operators[index].id for index in found.path]
    assert path == ["model_input", "q_proj_0", "scores_0", "softmax_0", "out_0", "concat", "reduce", "model_output"]
    assert found.seconds == pytest.approx(sum(seconds[name] for name in path))
    assert [found.operators[index].id for index in found.unknown] == ["out_0"]
    assert any("joins those of the nodes next to it (1 node)" in text for text in found.assumptions)
    assert any("bf16" in text for text in found.assumptions)


def test_another_cluster_gives_other_times():
    near, far = inspect_text(PYTHON, "1x2-h100"), inspect_text(PYTHON, "2x1-a100-80gb")
    assert near.seconds < far.seconds and (near.cluster, far.cluster) == ("1x2-h100", "2x1-a100-80gb")
    with pytest.raises(InputError, match="2x8-h1000"):
        inspect_text(PYTHON, "2x8-h1000")


def test_a_graph_written_by_a_program():
    found = inspect_text(PYTHON)
    nodes = named(found)
    assert found.sound
    assert nodes["fc1_gpu1"].devices == (1,) and nodes["fc1_gpu1"].product == Product(1024, 8192, 16384)
    assert nodes["fc2_gpu0"].product == nodes["fc2_gpu1"].product == Product(1024, 16384, 8192)
    assert nodes["allreduce"].bytes == 16.8e6
    one = 2.0 * 1024 * 8192 * 16384
    assert [(load.rank, load.flops) for load in found.loads] == [(0, 2 * one), (1, 2 * one)]
    assert [(p, len(where)) for p, where in found.products] == [
        (Product(1024, 8192, 16384), 2),
        (Product(1024, 16384, 8192), 2),
    ]


def test_records_attributes_ports_and_ranks():
    found = inspect_text(RECORDS)
    nodes = named(found)
    assert found.sound, found.findings
    assert [nodes[n].devices for n in ("embed", "layer0", "send01", "layer1", "norm", "head")] == [
        (0,), (0,), (0, 4), (4,), (4,), (4,),
    ]  # fmt: skip
    assert nodes["send01"].transfer and nodes["send01"].bytes == 131072
    assert nodes["layer0"].product == Product(16, 4096, 4096)
    assert nodes["layer1"].product == Product(16, 4096, 1024)  # the weight as PyTorch keeps it
    assert [t.dims for t in nodes["norm"].outputs] == [(16, 1024)]
    assert not found.unread


def test_everything_that_goes_wrong_is_found():
    found = inspect_text(BROKEN)
    assert not found.sound and not found.acyclic
    assert set(found.cycle) == {"a", "b", "c"} and found.cycle[0] == found.cycle[-1] and len(found.cycle) == 4
    edges = {(edge.source, edge.target) for edge in found.dot.edges}
    assert all(pair in edges for pair in zip(found.cycle, found.cycle[1:], strict=False))
    assert set(codes(found)) == {
        ("CYCLE001", found.cycle[0]), ("SHAPE001", "a -> b"), ("SHAPE002", "b"), ("SHAPE003", "c"), ("SHAPE001", "c -> a"),
        ("DAG001", "alone"), ("DAG002", "outptu"), ("DAG003", "late"), ("DAG003", "later"), ("DAG004", "a"),
        ("DAG005", "late -> later"),
    }  # fmt: skip
    factor = next(f for f in found.findings if f.where == "a -> b")
    assert "2 times fewer elements" in factor.message and (factor.measured, factor.expected) == ("[4, 32]", "[4, 16]")
    unread = dict(found.unread)
    assert "the shape [B, S, E], whose sizes are not all numbers" in unread["alone"]
    assert unread["outptu"][0].startswith("all but its name")
    assert found.seconds == 0 and found.path == ()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("digraph { a -> b -> a }", "CYCLE001"),
        ("digraph { a -> a }", "CYCLE001"),
        ('digraph { a [label="Input: [2, 3] Output: [2, 3]"]; b [label="Input: [2, 4]"]; a -> b }', "SHAPE001"),
        ('digraph { a [label="Output: [2, 3]"]; b; a -> b [label="[2, 4]"] }', "SHAPE001"),
        ('digraph { a [label="FC\\nm=2, k=3, n=4\\nInput: [2, 5]"] }', "SHAPE001"),
        ('digraph { a [label="FC\\nm=2, k=3, n=4\\nOutput: [2, 5]"] }', "SHAPE003"),
        ('digraph { a [label="[2, 3] @ [4, 5]"] }', "SHAPE002"),
    ],
)
def test_a_circle_or_a_mismatch_makes_a_graph_unsound(text, expected):
    found = inspect_text(text)
    assert not found.sound and expected in {finding.code for finding in found.findings if finding.severity == "error"}


@pytest.mark.parametrize(
    "text",
    [
        "digraph { }",
        "digraph { a }",
        "digraph { a -> b; a -> c; b -> d; c -> d }",
        'digraph { a [label="Output: [2, 6]"]; b [label="Input: [2, 2, 3]"]; a -> b }',
        'digraph { a [label="SwiGLU\\nInput: [2, 6]\\nOutput: [2, 3]"] }',
        'digraph { a [label="Output: [2, 3], [2, 5]"]; b [label="Input: [2, 5]"]; a -> b }',
        "graph { a -- b }",
    ],
)
def test_sound_graphs(text):
    assert inspect_text(text).sound


def test_a_graph_without_direction_is_read_as_written_and_said_so():
    found = inspect_text("graph g { a -- b }")
    assert codes(found) == [("DAG006", "g")] and found.sound


def test_a_gpu_outside_the_cluster_has_no_price():
    found = inspect_text('digraph { a [label="FC m=2, k=3, n=4 GPU 99"] }')
    assert found.unread == (("a", ("its time needs a cluster with GPU 99",)),) and found.seconds == 0


def test_an_operator_on_several_gpus_counts_on_each_and_that_is_said():
    found = inspect_text('digraph { a [label="FC m=2, k=3, n=4", devices="0-3"] }')
    assert [(load.rank, load.flops) for load in found.loads] == [(rank, 48.0) for rank in range(4)]
    assert any("count for each of them (1 node)" in text for text in found.assumptions)


def test_a_mixed_cluster_takes_the_slowest_kind():
    text = 'digraph {{ a [label="FC m=4096, k=4096, n=4096", devices="{}"] }}'
    fast, slow, both, none = (inspect_text(text.format(d), "1x1-h100+1x1-a100-80gb") for d in ("0", "1", "0,1", ""))
    assert fast.seconds < slow.seconds == both.seconds and none.unknown == (0,)


def test_stated_seconds_hold_only_where_no_cluster_is_asked_for():
    text = 'digraph { a [op=matmul, devices="0", seconds="1.5", m=64, k=64, n=64, batch=1] }'
    assert inspect_text(text).seconds == 1.5
    assert inspect_text(text, "2x8-h100").seconds == pytest.approx(float(H100.get_time(64, 64, 64)))


def test_gpus_are_bounded(monkeypatch):
    monkeypatch.setattr(module, "MOST_PLACES", 10)
    with pytest.raises(InputError, match="at most 10 GPUs over all nodes"):
        inspect_text('digraph { a [label="GPU 0-7"]; b [label="GPU 0-7"] }')
    with pytest.raises(InputError, match="at most 10 together"):
        inspect_text('digraph { a [label="GPU 0-5"]; b [label="all GPUs"]; c [label="all GPUs"] }')


@pytest.mark.parametrize("text", [HELIX, PYTHON, RECORDS, BROKEN, "digraph { }", "digraph { a -> b -> a }"])
def test_reports_hold_what_was_found(text):
    found = inspect_text(text, source="f.dot")
    report = inspection_report(found)
    assert report.startswith("f.dot: ") and ("acyclic" in report) == found.acyclic
    for code, where in codes(found):
        assert code in report and where.split(" -> ")[0] in report
    data = json.loads(json.dumps(found.to_dict()))
    assert data["schema"] == "planner.inspection/1" and data["acyclic"] == found.acyclic
    assert len(data["operators"]) == data["nodes"] == len(found.operators)
    assert sum(step["seconds"] for step in data["longest_path"]["path"]) == pytest.approx(data["longest_path"]["seconds"] or 0)


def test_text_from_a_file_cannot_steer_a_terminal():
    found = inspect_text('digraph { "\x1b[31m" [label="FC \x1b]0;x\x07 m=1, k=2, n=3"]; a -> "\x1b[31m" -> a }', source="f.dot")
    assert "\x1b" not in inspection_report(found) and "\x07" not in inspection_report(found)


FILES = (HELIX, PYTHON, RECORDS, BROKEN)


@settings(max_examples=150)
@given(st.sampled_from(FILES), st.lists(st.tuples(st.integers(0, 3000), st.integers(0, 30), st.text(max_size=4)), max_size=4))
def test_a_damaged_file_is_inspected_or_refused(text, cuts):
    for at, length, put in cuts:
        text = text[: at % len(text)] + put + text[at % len(text) + length :] or "digraph {}"
    with contextlib.suppress(InputError):
        found = inspect_text(text)
        inspection_report(found), json.dumps(found.to_dict())


def test_large_graphs_take_linear_time():
    label = "FC {0}\\nInput: [1024, {0}]\\nm=1024, k={0}, n=512\\nGPU {1}"
    lines = (f'n{i} [label="{label.format(i, i % 16)}"]; n{i // 2} -> n{i};' for i in range(1, 5_000))
    begin = time.perf_counter()
    found = inspect_text(f"digraph {{ {''.join(lines)} }}")
    assert time.perf_counter() - begin < 30 and len(found.operators) == 5_000 and found.acyclic


LONG = ["1", "[", "(", "[1,2]", "gpu1", "gpu 1,", "1x", "in 1x", "m=1*", "[2,2] @ ", "[2,2] @ [2,2]^T ", "&amp;", "all gpus ",
        "1.1.", "_ ", "gpu 1 to gpu 1 ", "12.5 MB", "aB", "[x", "[x=", "<", "1 x ", "1 x 1 heads "]  # fmt: skip


@pytest.mark.parametrize("piece", LONG)
def test_long_labels_take_linear_time(piece):
    text = "digraph {" + "".join(f'n{i} [label="{(piece * 4000)[:3900]}{i}"];' for i in range(50)) + "}"
    begin = time.perf_counter()
    with contextlib.suppress(InputError):
        inspect_text(text)
    assert time.perf_counter() - begin < 10


def test_labels_are_bounded(monkeypatch):
    text = 'digraph { node [label="\\N says a lot"]; a; b; c }'
    assert inspect_text(text)
    monkeypatch.setattr(module, "MOST_TEXT", 30)
    with pytest.raises(InputError, match="30 characters in all labels"):
        inspect_text(text)
