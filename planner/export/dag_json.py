"""The whole graph as JSON-ready data."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from planner.graph.nodes import Graph, Node


def dag_json(graph: Graph, seconds: dict[str, float], path: Sequence[str]) -> dict[str, Any]:
    """The graph with seconds: nodes with sizes and seconds, edges, and the longest path."""
    return {
        "schema": "planner.dag/1",
        "latency_s": sum(seconds.get(name, 0.0) for name in path),
        "critical_path": list(path),
        "nodes": [_node_json(node, seconds.get(node.id, 0.0)) for node in graph.nodes],
        "edges": [
            {"src": e.src, "dst": e.dst, "kind": e.kind, "tensor": e.tensor, "bytes": e.bytes, "collective": e.collective}
            for e in graph.edges
        ],
    }


def _node_json(node: Node, seconds: float) -> dict[str, Any]:
    found: dict[str, Any] = {
        "id": node.id, "name": node.name, "kind": node.kind.value, "role": node.role, "stage": node.stage, "layer": node.layer,
        "micro_batch": node.micro_batch, "devices": list(node.devices), "stream": node.stream, "seconds": seconds,
        "flops": node.flops, "bytes": node.bytes, "inputs": [piece.text for piece in node.inputs],
        "output": node.output.text if node.output else "", "weights": [piece.text for piece in node.weights],
        "dtype": node.dtype,
    }  # fmt: skip
    if node.m:
        found |= {"m": node.m, "k": node.k, "n": node.n, "batch": node.batch}
    if node.attention is not None:
        found["attention"] = node.sizes
    if node.family:
        found["family"] = [list(group) for group in node.family]
    return found
