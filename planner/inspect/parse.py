"""From DOT text to a DotGraph: the grammar of the DOT language as graphviz.org publishes it, by recursive descent.

Why a parser of our own: Graphviz's C parser (behind pygraphviz) would run inside our process on files from anywhere, tells
its errors to standard error instead of the caller, and comes with the drawing, which is why only the drawing room may load
it; the parsers in Python bring a parser library, one more dependency for a grammar of nine rules. This one reads each token
once, holds its limits before it spends memory, names the line of every error, and is compared with Graphviz on random
graphs by a test.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

from planner.errors import InputError
from planner.files import read_text
from planner.inspect.dot import ROOT, DotEdge, DotGraph, DotNode, DotSubgraph
from planner.inspect.tokens import VALUES, Places, Token, tokens

MOST_BYTES = 64_000_000
MOST_NODES = 250_000
MOST_EDGES = 1_000_000
MOST_ATTRIBUTES = 10_000_000
"""Attributes over all nodes and edges: a default counts again for each one that adds attributes of its own to it."""
MOST_LEVELS = 64

A_GRAPH = "`digraph` or `graph`, as every DOT file begins"
A_STATEMENT = "a node, an edge, an attribute, a subgraph, or }"

Attributes = Mapping[str, str]


def read_dot(path: Path) -> DotGraph:
    """The graph in a DOT file of at most 64 MB. Raises `InputError` with the line for whatever is not DOT."""
    return parse_dot(read_text(path, MOST_BYTES), str(path))


def parse_dot(text: str, source: str = "") -> DotGraph:
    """The graph in a DOT text; `source` names it in errors. Linear in the text, apart from the edges between subgraphs."""
    return _Parser(text, source).graph()


@dataclass(slots=True)
class _Node:
    """A node in the making."""

    attributes: Attributes
    line: int
    declared: bool
    home: int


@dataclass(slots=True)
class _Scope:
    """A subgraph, or the whole graph, while its statements are read; defaults are replaced, never changed in place.

    `node` and `edge` are the defaults that apply, `node_set` and `edge_set` those of them that the scope sets itself.
    """

    index: int
    level: int
    node: Attributes
    edge: Attributes
    own: dict[str, str]
    node_set: Attributes = field(default_factory=dict)
    edge_set: Attributes = field(default_factory=dict)
    members: dict[str, None] = field(default_factory=dict)
    inner: list[_Scope] = field(default_factory=list)


class _Parser:
    def __init__(self, text: str, source: str) -> None:
        self.places, self.notes = Places(text, source), list[str]()
        self._tokens = tokens(text, self.places, self.notes)
        self.now = next(self._tokens)
        self.nodes: dict[str, _Node] = {}
        self.edges: list[DotEdge] = []
        self.pairs: dict[tuple[str, str], int] = {}
        self.subgraphs: list[DotSubgraph] = []
        self.named: dict[tuple[int, str], _Scope] = {}
        self.kept = self.crossed = 0
        self.directed = self.strict = False

    def graph(self) -> DotGraph:
        """The first graph of the text."""
        self.strict = self._is("strict") and bool(self._take())
        if not (self._is("digraph") or self._is("graph")):
            raise self._wrong(A_GRAPH)
        self.directed = self._take().sort == "digraph"
        name = self._joined("a name") if self._is_value() else ""
        scope = _Scope(ROOT, 0, {}, {}, {})
        self._statements(scope, "{, which begins the graph")
        self._end()
        nodes = tuple(DotNode(key, n.attributes, n.line, n.declared, n.home) for key, n in self.nodes.items())
        edges, subgraphs, notes = tuple(self.edges), tuple(self.subgraphs), tuple(self.notes)
        return DotGraph(name, self.directed, self.strict, scope.own, nodes, edges, subgraphs, notes)

    def _end(self) -> None:
        """Behind the graph nothing may follow but other graphs, and those are not read."""
        if self.now.sort in ("strict", "digraph", "graph"):
            self.notes.append(f"line {self.places.line(self.now.place)}: another graph begins here; only the first is read")
        elif self.now.sort != "end":
            raise self._wrong("nothing more behind the } that ends the graph")

    def _statements(self, scope: _Scope, begin: str) -> None:
        """Everything between { and }."""
        opened = self.now.place
        self._sign("{", begin)
        while not self._is("}"):
            if self.now.sort == "end":
                raise self._wrong(f"}}, which ends what begins in line {self.places.line(opened)}")
            self._statement(scope)
            while self._is(";"):
                self._take()
        self._take()

    def _statement(self, scope: _Scope) -> None:
        if self.now.sort in ("node", "edge", "graph"):
            return self._defaults(scope)
        line = self.places.line(self.now.place)
        ends: _Scope | list[str]
        if self._begins_subgraph():
            ends = self._subgraph(scope)
        elif self._is_value():
            at = self.now.place
            name = self._joined("a name")
            if self._is("="):
                self._take()
                scope.own[sys.intern(str(name))] = self._joined("a value behind the =")
                return None
            ends = self._names(scope, name, at)
        else:
            raise self._wrong(A_STATEMENT)
        if self.now.sort == "arrow":
            self._chain(scope, ends, line)
        elif isinstance(ends, list):
            self._declare(scope, ends)
        return None

    def _defaults(self, scope: _Scope) -> None:
        """`node`, `edge` or `graph` with attributes: they hold for what follows in the scope."""
        word = self._take().sort
        if not self._is("["):
            raise self._wrong(f"[ behind `{word}`, for its default attributes")
        given = self._attributes()
        if word == "graph":
            scope.own.update(given)
        elif word == "node":
            scope.node, scope.node_set = self._over(scope.node, given), self._over(scope.node_set, given)
        else:
            scope.edge, scope.edge_set = self._over(scope.edge, given), self._over(scope.edge_set, given)

    def _declare(self, scope: _Scope, names: list[str]) -> None:
        given = self._attributes()
        for name in names:
            node = self.nodes[name]
            if not node.declared:
                node.declared, node.home = True, scope.index
            node.attributes = self._over(node.attributes, given)

    def _chain(self, scope: _Scope, first: _Scope | list[str], line: int) -> None:
        """Names and subgraphs joined by arrows: an edge from every node of one to every node of the next."""
        chain = [self._members(first)]
        while self.now.sort == "arrow":
            if self.now.value != ("->" if self.directed else "--"):
                raise self._wrong("->, as this is a digraph" if self.directed else "--, as this graph has no direction")
            self._take()
            if self._begins_subgraph():
                chain.append(self._members(self._subgraph(scope)))
            else:
                at = self.now.place
                chain.append(self._names(scope, self._joined("a node or a subgraph behind the arrow"), at))
        attributes = self._over(scope.edge, self._attributes())
        for sources, targets in pairwise(chain):
            self._spend(len(sources) * len(targets))
            for source in sources:
                for target in targets:
                    self._edge(source, target, attributes, line)

    def _edge(self, source: str, target: str, attributes: Attributes, line: int) -> None:
        """One edge; a strict graph keeps a single one between two nodes."""
        if self.strict:
            pair = (source, target) if self.directed or source <= target else (target, source)
            known = self.pairs.setdefault(pair, len(self.edges))
            if known < len(self.edges):
                old = self.edges[known]
                self.edges[known] = DotEdge(old.source, old.target, self._over(old.attributes, attributes), old.line)
                return
        self.edges.append(DotEdge(source, target, attributes, line))

    def _names(self, scope: _Scope, name: str, at: int) -> list[str]:
        """Names of nodes, joined by commas, the first of them read; the nodes exist from here on. Ports are left out."""
        found = [self._node(scope, name, at)]
        while self._is(","):
            self._take()
            at = self.now.place
            found.append(self._node(scope, self._joined("the name of a node"), at))
        return found

    def _node(self, scope: _Scope, name: str, at: int) -> str:
        for _ in range(2):
            if self._is(":"):
                self._take()
                self._joined("a port behind the :")
        if name not in self.nodes:
            if len(self.nodes) >= MOST_NODES:
                raise self._wrong(f"at most {MOST_NODES:,} nodes")
            self.nodes[name] = _Node(scope.node, self.places.line(at), False, scope.index)
        scope.members[name] = None
        return name

    def _begins_subgraph(self) -> bool:
        return self._is("{") or self._is("subgraph")

    def _subgraph(self, around: _Scope) -> _Scope:
        """A subgraph; one whose name was read before in the same place is continued."""
        line, name = self.places.line(self.now.place), ""
        if self._is("subgraph"):
            self._take()
            name = self._joined("a name") if self._is_value() else ""
        if around.level >= MOST_LEVELS:
            raise self._wrong(f"at most {MOST_LEVELS} levels of subgraphs")
        scope = self.named.get((around.index, name)) if name else None
        if scope is None:
            scope = _Scope(len(self.subgraphs), around.level + 1, around.node, around.edge, {})
            self.subgraphs.append(DotSubgraph(name, scope.own, around.index, line))
            around.inner.append(scope)
            if name:
                self.named[around.index, name] = scope
        else:
            scope.node, scope.edge = self._over(around.node, scope.node_set), self._over(around.edge, scope.edge_set)
        self._statements(scope, "{, which begins a subgraph")
        return scope

    def _members(self, ends: _Scope | list[str]) -> list[str]:
        """The nodes at one end of an edge: those listed, or all in a subgraph and in what lies inside it."""
        if isinstance(ends, list):
            return ends
        found: dict[str, None] = {}
        rest = [ends]
        while rest:
            here = rest.pop()
            self._spend(1 + len(here.members))
            found.update(here.members)
            rest += reversed(here.inner)
        return list(found)

    def _spend(self, count: int) -> None:
        self.crossed += count
        if self.crossed > MOST_EDGES:
            raise self._wrong(f"at most {MOST_EDGES:,} edges")

    def _over(self, old: Attributes, new: Attributes) -> Attributes:
        """Attributes with others laid over them."""
        if not (old and new):
            return new or old
        self.kept += len(old) + len(new)
        if self.kept > MOST_ATTRIBUTES:
            raise self._wrong(f"at most {MOST_ATTRIBUTES:,} attributes, counted for every node that has them")
        return {**old, **new}

    def _attributes(self) -> Attributes:
        """Any number of `[name=value, ...]`."""
        found: dict[str, str] = {}
        while self._is("["):
            self._take()
            while not self._is("]"):
                name = sys.intern(str(self._joined("the name of an attribute, or ]")))
                self._sign("=", f"= and a value behind {name}")
                found[name] = self._joined("a value behind the =")
                if self._is(",") or self._is(";"):
                    self._take()
            self._take()
        return found

    def _joined(self, allowed: str) -> str:
        """One value; strings joined by + are one."""
        if not self._is_value():
            raise self._wrong(allowed)
        first = self._take()
        if not self._is("+") or first.sort != "string":
            return first.value
        parts = [first.value]
        while self._is("+"):
            self._take()
            if self.now.sort != "string":
                raise self._wrong("a string behind the +")
            parts.append(self._take().value)
        return "".join(parts)

    def _is(self, sort: str) -> bool:
        return self.now.sort == sort

    def _is_value(self) -> bool:
        return self.now.sort in VALUES

    def _sign(self, sign: str, allowed: str) -> None:
        if not self._is(sign):
            raise self._wrong(allowed)
        self._take()

    def _take(self) -> Token:
        """The token that is read now; the next one takes its place. (Nothing takes the end of the file.)"""
        taken = self.now
        self.now = next(self._tokens)
        return taken

    def _wrong(self, allowed: str) -> InputError:
        return self.places.error(self.now.place, self.now.shown, allowed)
