"""Edits: what the mutation operators of graphs share."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace

from planner.graph.nodes import Edge, Graph, Node, Piece


def pick(rng: random.Random, items: list) -> object | None:
    return rng.choice(items) if items else None


def put(graph: Graph, *nodes: Node) -> Graph:
    """The graph with some nodes replaced by those of the same id."""
    new = {node.id: node for node in nodes}
    return Graph(tuple(new.get(node.id, node) for node in graph.nodes), graph.edges)


def without(graph: Graph, gone: set[str]) -> Graph:
    edges = tuple(e for e in graph.edges if e.src not in gone and e.dst not in gone)
    return Graph(tuple(n for n in graph.nodes if n.id not in gone), edges)


def exchange(graph: Graph, old: Edge, *new: Edge) -> Graph:
    place = next(i for i, edge in enumerate(graph.edges) if edge is old)
    return Graph(graph.nodes, (*graph.edges[:place], *new, *graph.edges[place + 1 :]))


def operators(graph: Graph) -> list[Node]:
    return list(graph.operators())


def any_kind(rng: random.Random, graph: Graph) -> list[Node]:
    """Nodes of a random name, so that barriers, hand-overs and collectives come up as often as products."""
    name = rng.choice(sorted({node.name for node in graph.nodes}))
    return [node for node in graph.nodes if node.name == name]


def reshaped(rng: random.Random, piece: Piece) -> Piece:
    """Another shape: one axis longer, shorter, half or double, or two axes exchanged."""
    axis = rng.randrange(len(piece.shape))
    shape = list(piece.shape)
    if len(shape) > 1 and rng.random() < 0.2 and len(set(shape)) > 1:
        rng.shuffle(shape)
    else:
        shape[axis] = rng.choice([shape[axis] + 1, max(0, shape[axis] - 1), shape[axis] * 2, shape[axis] // 2])
    return replace(piece, shape=tuple(shape))


def one_changed(rng: random.Random, pieces: tuple[Piece, ...], change: Callable[[Piece], Piece | None]) -> tuple[Piece, ...]:
    index = rng.randrange(len(pieces))
    new = change(pieces[index])
    return tuple(p for i, p in enumerate((*pieces[:index], new, *pieces[index + 1 :])) if p is not None)


def resized(rng: random.Random, value: int) -> int:
    return rng.choice([x for x in (value + 1, value - 1, value * 2, value // 2, value + 16) if x != value and x >= 0])
