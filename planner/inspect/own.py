"""Our own graphs, read back: the DOT of `planner dag --view full` holds everything that the graph held."""

from __future__ import annotations

from planner.errors import InputError
from planner.export.attributes import from_attributes
from planner.export.full import GRAPH_SCHEMA, NODE_NAMES
from planner.graph.nodes import Edge, Graph, Node
from planner.inspect.dot import DotGraph
from planner.inspect.labels import unescaped


def is_own(dot: DotGraph) -> bool:
    """Whether a graph was written by `planner dag --view full`. Raises `InputError` for a version that is not ours."""
    schema = dot.attributes.get("schema", "")
    if schema.startswith("planner.") and schema != GRAPH_SCHEMA:
        raise InputError("schema", schema, f"{GRAPH_SCHEMA}; a newer planner may have written the file")
    return schema == GRAPH_SCHEMA


def graph_of(dot: DotGraph, source: str = "") -> Graph:
    """The graph that `full_dot` wrote. Raises `InputError` with the node or edge whose attributes are not ours."""
    nodes, edges = [], []
    for found in dot.nodes:
        name = unescaped(found.id)
        given = {key: unescaped(value) for key, value in found.attributes.items()}
        try:
            nodes.append(from_attributes(Node, given | {"id": name}, NODE_NAMES))
        except InputError as error:
            raise error.within(source, f"line {found.line}, node {name}") from None
    for arrow in dot.edges:
        ends = {"src": unescaped(arrow.source), "dst": unescaped(arrow.target)}
        given = {key: unescaped(value) for key, value in arrow.attributes.items()}
        try:
            edges.append(from_attributes(Edge, given | ends))
        except InputError as error:
            raise error.within(source, f"line {arrow.line}, edge {ends['src']} -> {ends['dst']}") from None
    return Graph(tuple(nodes), tuple(edges))


def seconds_of(dot: DotGraph) -> dict[str, float]:
    """The seconds of every node that states them, by id."""
    found: dict[str, float] = {}
    for node in dot.nodes:
        try:
            found[unescaped(node.id)] = float(node.attributes["seconds"])
        except (KeyError, ValueError):
            continue
    return found
