"""The whole graph as DOT: no picture, but every node and edge with all that is known of it, so that it can be read back."""

from __future__ import annotations

from dataclasses import replace

from planner.export.attributes import to_attributes
from planner.export.dot import quoted
from planner.graph.nodes import Graph

GRAPH_SCHEMA = "planner.graph/1"
NODE_NAMES = {"kind": "op"}
"""Fields of a node that DOT knows under another name; `op` is what the drawings call it, too."""
HEAD = "node [shape=box];"


def full_dot(graph: Graph, seconds: dict[str, float], title: str) -> str:
    """A graph with the seconds of its nodes as DOT; `planner.inspect` reads the same graph from it."""
    lines = [f"digraph {quoted(title)} {{", f"  schema={quoted(GRAPH_SCHEMA)}; label={quoted(title)};", f"  {HEAD}"]
    for node in graph.nodes:
        attributes = to_attributes(replace(node, id=""), NODE_NAMES) | {"seconds": repr(float(seconds.get(node.id, 0.0)))}
        del attributes["id"]
        lines.append(f"  {quoted(node.id)} [{_written(attributes)}];")
    for edge in graph.edges:
        attributes = to_attributes(replace(edge, src="", dst=""))
        del attributes["src"], attributes["dst"]
        lines.append(f"  {quoted(edge.src)} -> {quoted(edge.dst)} [{_written(attributes)}];")
    return "\n".join([*lines, "}", ""])


def _written(attributes: dict[str, str]) -> str:
    return ", ".join(f"{name}={quoted(value)}" for name, value in attributes.items())
