"""The DOT language: every rule of its grammar, the same graphs as Graphviz, and an error with its line for all else."""

from __future__ import annotations

import contextlib
import re
import time

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from planner.errors import InputError
from planner.inspect import parse as module
from planner.inspect.dot import ROOT
from planner.inspect.parse import parse_dot, read_dot
from planner.inspect.tokens import Html

NAMES = ("a", "b", "c", '"d e"', "_f", "12", "-.5", "é漢", '"node"', '"a\\"b"', '"x" + "y"')


def edges(text: str) -> list[tuple[str, str]]:
    return [(edge.source, edge.target) for edge in parse_dot(text).edges]


def node(text: str, name: str = "a"):
    return parse_dot(text).by_id[name]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("digraph { a -> b }", [("a", "b")]),
        ("digraph g { a -> b -> c [w=1]; }", [("a", "b"), ("b", "c")]),
        ("graph { a -- b -- a }", [("a", "b"), ("b", "a")]),
        ("digraph { a -> {b; c} }", [("a", "b"), ("a", "c")]),
        ("digraph { {a b} -> subgraph s { c; {d} } -> e }",
         [("a", "c"), ("a", "d"), ("b", "c"), ("b", "d"), ("c", "e"), ("d", "e")]),
        ("digraph { a, b -> c, d }", [("a", "c"), ("a", "d"), ("b", "c"), ("b", "d")]),
        ("digraph { a:p -> b:q:ne -> c:s }", [("a", "b"), ("b", "c")]),
        ("digraph { a -> a; a -> b; a -> b }", [("a", "a"), ("a", "b"), ("a", "b")]),
        ("strict digraph { a -> b; a -> b; b -> a }", [("a", "b"), ("b", "a")]),
        ("strict graph { a -- b; b -- a }", [("a", "b")]),
        ("DiGraph { A->B; Subgraph {C} -> A }", [("A", "B"), ("C", "A")]),
        ("digraph { a->-1->.5 }", [("a", "-1"), ("-1", ".5")]),
        ("graph { a--1 }", [("a", "1")]),
        ("digraph { { a -> b } -> c }", [("a", "b"), ("a", "c"), ("b", "c")]),
        ("digraph { subgraph s { a } subgraph s { b } -> c }", [("a", "c"), ("b", "c")]),
        ("digraph { <<b>x</b>> -> b }", [("<b>x</b>", "b")]),
    ],
)  # fmt: skip
def test_edges(text, expected):
    assert edges(text) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('digraph { a [label="x"] }', {"label": "x"}),
        ("digraph { a [k=1, l=2; m=3 n=4][o=5] }", {"k": "1", "l": "2", "m": "3", "n": "4", "o": "5"}),
        ("digraph { node [k=1]; a [l=2]; }", {"k": "1", "l": "2"}),
        ("digraph { a [k=1]; node [k=2] }", {"k": "1"}),
        ("digraph { a; node [k=2]; b }", {}),
        ("digraph { node [k=1]; a; node [k=2]; a [l=3] }", {"k": "1", "l": "3"}),
        ("digraph { a [k=1]; a [k=2, l=3] }", {"k": "2", "l": "3"}),
        ("digraph { node [k=1]; subgraph s { node [k=2]; a } b }", {"k": "2"}),
        ("digraph { subgraph s { node [k=2] } a }", {}),
        ("digraph { node [k=1]; b -> a; }", {"k": "1"}),
        ('digraph { a [k="x" + "y" + "z"] }', {"k": "xyz"}),
        ('digraph { a [k="x\\"y"] }', {"k": 'x"y'}),
        ('digraph { a [k="x\\\ny"] }', {"k": "xy"}),
        ('digraph { a [k="x\\ny\\\\"] }', {"k": "x\\ny\\\\"}),
        ('digraph { a [k="x;]}#//"] }', {"k": "x;]}#//"}),
        ("digraph { a [k=<<b>x</b><br/>>] }", {"k": "<b>x</b><br/>"}),
        ("digraph { a [k=<<!-- > -->x>] }", {"k": "<!-- > -->x"}),
        ("digraph { a /* [k=1] */ // [k=2]\n# [k=3]\n [k=4] }", {"k": "4"}),
        ("digraph { a, b [k=1] }", {"k": "1"}),
    ],
)
def test_attributes_of_a_node(text, expected):
    assert dict(node(text).attributes) == expected


def test_markup_is_told_from_text():
    found = node('digraph { a [k=<b>, l="<b>"] }').attributes
    assert isinstance(found["k"], Html) and not isinstance(found["l"], Html)


def test_defaults_of_edges_end_with_their_scope():
    found = parse_dot("digraph { edge [k=1]; a -> b; { edge [k=2, l=3]; c -> d [l=4]; } e -> f }").edges
    assert [dict(edge.attributes) for edge in found] == [{"k": "1"}, {"k": "2", "l": "4"}, {"k": "1"}]


def test_a_strict_edge_keeps_what_is_said_last():
    assert dict(parse_dot("strict digraph { a -> b [k=1, l=1]; a -> b [k=2] }").edges[0].attributes) == {"k": "2", "l": "1"}


def test_names_of_edges_alone_are_not_declared():
    found = parse_dot("digraph { a; a -> b; c [k=1]; c -> d }")
    assert {n.id: n.declared for n in found.nodes} == {"a": True, "b": False, "c": True, "d": False}


def test_a_node_lives_where_it_is_declared():
    found = parse_dot(
        'digraph G { label="all"; subgraph cluster_0 { label="GPU 0"; rank=same; a; subgraph cluster_in { b; a -> c } } '
        "subgraph cluster_1 { graph [label=two]; c; } d }"
    )
    frames = {n.id: [frame.name for frame in found.frames(n)] for n in found.nodes}
    assert frames == {"a": ["cluster_0"], "b": ["cluster_in", "cluster_0"], "c": ["cluster_1"], "d": []}
    assert [dict(s.attributes) for s in found.subgraphs] == [{"label": "GPU 0", "rank": "same"}, {}, {"label": "two"}]
    assert [s.cluster for s in found.subgraphs] == [True, True, True]
    assert found.by_id["d"].home == ROOT
    assert (found.name, dict(found.attributes)) == ("G", {"label": "all"})


def test_lines_are_those_of_the_file():
    found = parse_dot('digraph {\n\n  a [label="x\ny"]\n  a ->\n  b\n}')
    assert [(n.id, n.line) for n in found.nodes] == [("a", 3), ("b", 6)]
    assert found.edges[0].line == 5


def test_what_graphviz_warns_about_is_noted():
    assert parse_dot("digraph { 12ab }").notes == ("line 1: 12 runs into what follows; it is read as a word of its own",)
    assert parse_dot("digraph { a }\ndigraph { b }").notes == ("line 2: another graph begins here; only the first is read",)


@pytest.mark.parametrize(
    ("text", "line", "allowed"),
    [
        ("", 1, "`digraph` or `graph`"),
        ("\n\nhello", 3, "`digraph` or `graph`"),
        ('{"a": 1}', 1, "`digraph` or `graph`"),
        ("digraph", 1, "{, which begins the graph"),
        ("digraph {\n a ->", 2, "a node or a subgraph behind the arrow"),
        ("digraph {\n a", 2, "}, which ends what begins in line 1"),
        ("digraph {\n a [\n", 3, "the name of an attribute"),
        ("digraph { a [b] }", 1, "= and a value behind b"),
        ("digraph { a [b=] }", 1, "a value behind the ="),
        ("digraph { a -- b }", 1, "->, as this is a digraph"),
        ("graph { a -> b }", 1, "--, as this graph has no direction"),
        ('digraph {\n a [k="x ] }', 2, 'a " is missing'),
        ("digraph {\n a [k=<x<y>] }", 2, "a > is missing"),
        ("digraph { /* a }", 1, "*/ is missing"),
        ("digraph { a } }", 1, "nothing more behind"),
        ("digraph { a \x00 }", 1, "DOT: names"),
        ("digraph { node }", 1, "[ behind `node`"),
        ("digraph { a, b = c }", 1, "a node, an edge"),
        ("digraph { subgraph s }", 1, "{, which begins a subgraph"),
        ('digraph { "a" + b }', 1, "a string behind the +"),
        ("digraph {" + "{" * 10_000 + "}" * 10_000 + "}", 1, "at most 64 levels"),
        ("digraph { a [label=" + "<" * 100_000, 1, "a > is missing"),
        ("digraph { node [k=node] }", 1, "a value behind the ="),
    ],
)  # fmt: skip
def test_what_is_not_dot_is_told_with_its_line(text, line, allowed):
    with pytest.raises(InputError, match=re.escape(allowed)) as error:
        parse_dot(text, "f.dot")
    assert str(error.value).startswith(f"f.dot: line {line} is ")


@pytest.mark.parametrize(
    ("limit", "most", "text", "allowed"),
    [
        ("MOST_NODES", 3, "digraph { a b c d }", "3 nodes"),
        ("MOST_EDGES", 10, "digraph { {a b c d} -> {e f g h} }", "10 edges"),
        ("MOST_ATTRIBUTES", 10, "digraph { node [a=1 b=1 c=1]; d [e=1]; f [g=1]; h [i=1] }", "10 attributes"),
    ],
)
def test_what_grows_is_bounded(monkeypatch, limit, most, text, allowed):
    assert parse_dot(text)
    monkeypatch.setattr(module, limit, most)
    with pytest.raises(InputError, match=allowed):
        parse_dot(text)


def test_files_are_bounded_and_must_be_text(tmp_path, monkeypatch):
    path = tmp_path / "a.dot"
    path.write_bytes(b"\xef\xbb\xbfdigraph { a }")
    assert [n.id for n in read_dot(path).nodes] == ["a"]
    path.write_bytes(b"\x89PNG\r\n\x1a\n\x00\x00")
    with pytest.raises(InputError, match="UTF-8"):
        read_dot(path)
    monkeypatch.setattr(module, "MOST_BYTES", 5)
    with pytest.raises(InputError, match="at most 5 bytes"):
        read_dot(path)
    with pytest.raises(InputError, match="a file that exists"):
        read_dot(tmp_path)


@st.composite
def statements(draw, depth: int = 0) -> str:
    """One statement of a digraph."""
    name = st.sampled_from(NAMES)
    attributes = st.lists(st.tuples(st.sampled_from(("k", "l", "label")), name), max_size=2)
    listed = "".join(f" [{', '.join(f'{a}={b}' for a, b in found)}]" for found in draw(st.lists(attributes, max_size=1)))
    kind = draw(st.sampled_from(("node", "edge", "edge", "default", "group", "set")))
    if kind == "node":
        return draw(name) + listed
    if kind == "default":
        return f"{draw(st.sampled_from(('node', 'edge')))} [k={draw(name)}]"
    if kind == "set":
        return f"k={draw(name)}"
    body = "{ " + "; ".join(draw(st.lists(statements(depth + 1), max_size=3 if depth < 2 else 0))) + " }"
    if kind == "group":
        return draw(st.sampled_from(("", "subgraph ", "subgraph s ", "subgraph cluster_1 "))) + body
    ends = draw(st.lists(st.one_of(name, name.map(lambda n: f"{n}:p:e"), st.just(body)), min_size=2, max_size=3))
    return " -> ".join(ends) + listed


@settings(max_examples=300)
@given(st.lists(statements(), max_size=6), st.sampled_from(("digraph", "strict digraph")))
@example(["a -> {b; a}"], "strict digraph")
def test_graphviz_reads_the_same_graph(found, kind):
    pygraphviz = pytest.importorskip("pygraphviz")
    text = f"{kind} g {{ {'; '.join(found)} }}"
    theirs, ours = pygraphviz.AGraph(string=text), parse_dot(text)
    ids = {name.replace("\\\\", "\\") for name in theirs.nodes()}
    assert {n.id for n in ours.nodes} == ids
    assert sorted((e.source, e.target) for e in ours.edges) == sorted((str(a), str(b)) for a, b in theirs.edges())
    for n in ours.nodes:
        known = {key: theirs.get_node(n.id).attr[key] or "" for key in ("k", "l", "label")}
        known = {key: "" if text == "\\N" else text for key, text in known.items()}  # the default, once a drawing has set it
        assert {key: n.attributes.get(key, "") for key in known} == known


@settings(max_examples=300)
@given(st.one_of(st.text(max_size=200), st.binary(max_size=200).map(lambda data: data.decode("latin-1"))))
def test_any_text_is_a_graph_or_an_input_error(text):
    for whole in (text, f"digraph {{ {text} }}", f"digraph {{ a [label={text}] }}"):
        try:
            parse_dot(whole)
        except InputError:
            continue


PIECES = [
    "digraph",
    "graph",
    "subgraph",
    "node",
    "strict",
    "a",
    "b",
    "1",
    " ",
    "\n",
    "->",
    "--",
    "/*",
    "*/",
    *'{}[]=;,"<>:+\\#-',
]


@settings(max_examples=300)
@given(st.lists(st.sampled_from(PIECES), max_size=60).map("".join))
def test_any_mixture_of_words_is_a_graph_or_an_input_error(text):
    for whole in (text, f"digraph {{ {text} }}"):
        try:
            parse_dot(whole)
        except InputError:
            continue


@pytest.mark.parametrize("bad", ['"', "<", "/*", "{", "[", "a->", "a=", '"\\', "#", ";", "<!--", "-", "a:"])
def test_long_repetitions_take_linear_time(bad):
    begin = time.perf_counter()
    with contextlib.suppress(InputError):
        parse_dot("digraph {" + bad * 200_000)
    assert time.perf_counter() - begin < 10
