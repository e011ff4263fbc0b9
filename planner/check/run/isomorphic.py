"""Isomorphic: whether the twin's graph is the plan's own graph with other sizes."""

from __future__ import annotations

from planner.check.run.twin import Twin
from planner.graph.nodes import Graph


def difference(full: Graph, small: Graph, twin: Twin) -> str:
    """The first node or edge by which the twin's graph is not the plan's own; empty where they are isomorphic."""
    layer_of = {original: index for index, original in enumerate(twin.layers)}

    def renamed(text: str, layer: int | None) -> str:
        return text if layer is None else text.replace(f".l{layer}.", f".l{layer_of[layer]}.", 1)

    names = {node.id: renamed(node.id, node.layer) for node in full.nodes}
    nodes = {names[node.id]: (node.kind, node.role, node.devices, node.formals) for node in full.nodes}
    others = {node.id: (node.kind, node.role, node.devices, node.formals) for node in small.nodes}
    for name in (*nodes, *others):
        if nodes.get(name) != others.get(name):
            return name
    edges = {(names[e.src], names[e.dst], e.kind, e.tensor) for e in full.edges}
    left = edges ^ {(e.src, e.dst, e.kind, e.tensor) for e in small.edges}
    return "{} -> {} ({} {})".format(*min(left)) if left else ""
