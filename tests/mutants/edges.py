"""Edges and waits with one thing broken."""

from __future__ import annotations

import random
from dataclasses import replace

from planner.graph.nodes import Edge, Graph
from planner.graph.ops import Kind
from tests.mutants.edits import exchange, pick


def _edge(rng: random.Random, graph: Graph) -> Edge:
    """An edge of a random kind, so that the few back-pressure edges come up as often as the many others."""
    kinds = sorted({(e.kind, bool(e.tensor)) for e in graph.edges})
    kind = rng.choice(kinds)
    return rng.choice([e for e in graph.edges if (e.kind, bool(e.tensor)) == kind])


def drop_edge(rng, graph):
    edge = _edge(rng, graph)
    return f"{edge}", exchange(graph, edge)


def duplicate_edge(rng, graph):
    edge = _edge(rng, graph)
    return f"{edge}", exchange(graph, edge, edge, edge)


def reverse_edge(rng, graph):
    edge = _edge(rng, graph)
    return f"{edge}", exchange(graph, edge, replace(edge, src=edge.dst, dst=edge.src))


def reroute_source(rng, graph):
    edge = _edge(rng, graph)
    other = rng.choice(_like(rng, graph, edge.src))
    return f"{edge} from {other}", exchange(graph, edge, replace(edge, src=other))


def reroute_target(rng, graph):
    edge = _edge(rng, graph)
    other = rng.choice(_like(rng, graph, edge.dst))
    return f"{edge} to {other}", exchange(graph, edge, replace(edge, dst=other))


def _like(rng: random.Random, graph: Graph, name: str) -> list[str]:
    """Other nodes: any, or those of the same name (on other GPUs, of other layers and micro-batches)."""
    node = graph.by_id[name]
    same = [n.id for n in graph.nodes if n.name == node.name and n.id != name]
    return same if same and rng.random() < 0.7 else [n.id for n in graph.nodes if n.id != name]


def reroute_data(rng, graph):
    """A tensor comes from another operator that writes one of the same name; its reader reads that piece."""
    edge = rng.choice([e for e in graph.edges if e.kind == "data" and e.tensor])
    others = [n.id for n in graph.nodes if n.id != edge.src and n.output is not None and n.output.name == edge.tensor]
    other = pick(rng, others)
    return None if other is None else (f"{edge} from {other}", exchange(graph, edge, replace(edge, src=other)))


def change_edge(rng, graph):
    edge = _edge(rng, graph)
    field = rng.choice(["kind", "bytes", "tensor", "collective"])
    new = {
        "kind": {"kind": rng.choice([k for k in ("data", "stream", "buffer") if k != edge.kind])},
        "bytes": {"bytes": edge.bytes * 2 + rng.choice([1.0, 4096.0])},
        "tensor": {"tensor": rng.choice(["x", "y", "q", "routes", "op"]) + ("" if not edge.tensor else "0")},
        "collective": {"collective": rng.choice([c for c in ("", "all_reduce", "all_gather") if c != edge.collective])},
    }[field]
    return f"{field} of {edge}", exchange(graph, edge, replace(edge, **new))


def add_wait(rng, graph):
    """A wait that nothing asks for, forward in the order of the nodes."""
    first, second = sorted(rng.sample(range(len(graph.nodes)), 2))
    edge = Edge(graph.nodes[first].id, graph.nodes[second].id, "stream")
    known = {(e.src, e.dst, e.kind) for e in graph.edges}
    return None if (edge.src, edge.dst, edge.kind) in known else (f"{edge}", Graph(graph.nodes, (*graph.edges, edge)))


def swap_order(rng, graph):
    """Two operators that follow each other on a stream exchange their places in it; what they read stays."""
    edges = [
        e for e in graph.edges if e.kind == "stream" and Kind.BARRIER not in (graph.by_id[e.src].kind, graph.by_id[e.dst].kind)
    ]
    edge = pick(rng, edges)
    if edge is None:
        return None
    new = {edge.src: edge.dst, edge.dst: edge.src}
    swapped = [replace(e, src=new.get(e.src, e.src), dst=new.get(e.dst, e.dst)) if not e.tensor else e for e in graph.edges]
    return f"{edge}", Graph(graph.nodes, tuple(swapped))
