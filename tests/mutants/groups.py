"""Collectives, hand-overs and GPUs with one thing broken."""

from __future__ import annotations

import random
from dataclasses import replace

from planner.graph.nodes import Graph, Node, Piece
from planner.graph.ops import Kind
from tests.mutants.edits import operators, pick, put

COLLECTIVE_KINDS = (Kind.ALL_REDUCE, Kind.ALL_GATHER, Kind.REDUCE_SCATTER, Kind.ALL_TO_ALL)


def _grouped(rng: random.Random, graph: Graph) -> Node | None:
    return pick(rng, [n for n in graph.nodes if len(n.family) >= 1 and len(n.devices) > 1])


def _regrouped(rng: random.Random, node: Node, devices: tuple[int, ...], outputs: tuple[Piece, ...]) -> Node:
    """A collective over other GPUs; the list of its groups stays, or follows."""
    family = tuple(devices if group == node.devices else group for group in node.family)
    return replace(node, devices=devices, outputs=outputs, family=family if rng.random() < 0.6 else node.family)


def change_kind(rng, graph):
    """A collective becomes another one, or any operator becomes something else."""
    collectives = [n for n in graph.nodes if n.kind in COLLECTIVE_KINDS]
    if collectives and rng.random() < 0.8:
        node = rng.choice(collectives)
        kind = rng.choice([k for k in COLLECTIVE_KINDS if k != node.kind])
        edges = [
            replace(e, collective=kind.value) if e.collective == node.kind.value and node.id in (e.src, e.dst) else e
            for e in graph.edges
        ]
        return f"{node.id} {kind}", Graph(put(graph, replace(node, kind=kind)).nodes, tuple(edges))
    node = rng.choice(operators(graph))
    kind = rng.choice([k for k in Kind if k not in (node.kind, Kind.BARRIER)])
    return f"{node.id} {kind}", put(graph, replace(node, kind=kind))


def shrink_group(rng, graph):
    node = _grouped(rng, graph)
    if node is None:
        return None
    gone = rng.randrange(len(node.devices))
    kept = [i for i in range(len(node.devices)) if i != gone]
    return node.id, put(
        graph, _regrouped(rng, node, tuple(node.devices[i] for i in kept), tuple(node.outputs[i] for i in kept))
    )


def extend_group(rng, graph):
    node = _grouped(rng, graph)
    others = sorted({d for n in graph.nodes for d in n.devices} - set(node.devices if node else ()))
    if node is None or not others:
        return None
    return node.id, put(graph, _regrouped(rng, node, (*node.devices, rng.choice(others)), (*node.outputs, node.outputs[0])))


def permute_group(rng, graph):
    node = _grouped(rng, graph)
    if node is None:
        return None
    places = list(range(len(node.devices)))
    while places == sorted(places):
        rng.shuffle(places)
    outputs = tuple(node.outputs[i] for i in places) if rng.random() < 0.5 else node.outputs
    return node.id, put(graph, _regrouped(rng, node, tuple(node.devices[i] for i in places), outputs))


def swap_groups(rng, graph):
    """Two collectives of one family exchange their groups."""
    node = pick(rng, [n for n in graph.nodes if len(n.family) > 1])
    others = [
        n
        for n in graph.nodes
        if node and n.id != node.id and n.family == node.family and n.name == node.name and n.layer == node.layer
    ]
    other = pick(rng, [n for n in others if n.micro_batch == node.micro_batch])
    if node is None or other is None:
        return None
    return f"{node.id} and {other.id}", put(graph, replace(node, devices=other.devices), replace(other, devices=node.devices))


def change_transfer(rng, graph):
    """A hand-over sends other bytes, or leaves a GPU out."""
    node = pick(rng, [n for n in graph.nodes if n.transfer is not None])
    if node is None:
        return None
    t, field = node.transfer, rng.choice(["sent_bytes", "received_bytes", "source", "target", "reversed"])
    if field == "reversed":
        new = replace(t, source=t.target, target=t.source)
    elif field.endswith("bytes"):
        new = replace(t, **{field: getattr(t, field) * rng.choice([0.5, 2.0])})
    else:
        new = replace(t, **{field: getattr(t, field)[1:] or (99,)})
    return f"{field} of {node.id}", put(graph, replace(node, transfer=new))


def swap_devices(rng, graph):
    """Two GPUs change places everywhere, or in one layer."""
    every = sorted({d for n in graph.nodes for d in n.devices})
    if len(every) < 2:
        return None
    a, b = rng.sample(every, 2)
    layers = [None, *sorted({n.layer for n in graph.nodes if n.layer is not None})]
    only = rng.choice(layers)
    new = {a: b, b: a}

    def ranks(found):
        return tuple(new.get(d, d) for d in found)

    nodes = []
    for node in graph.nodes:
        if only is None or node.layer == only:
            moved = node.transfer and replace(
                node.transfer, source=ranks(node.transfer.source), target=ranks(node.transfer.target)
            )
            node = replace(node, devices=ranks(node.devices), family=tuple(map(ranks, node.family)), transfer=moved)
        nodes.append(node)
    return f"GPU {a} and {b} in layer {only}", Graph(tuple(nodes), graph.edges)


def move_operator(rng, graph):
    """An operator runs on another GPU; its id stays."""
    node = rng.choice([n for n in graph.nodes if len(n.devices) == 1])
    other = pick(rng, sorted({d for n in graph.nodes for d in n.devices} - set(node.devices)))
    return None if other is None else (f"{node.id} to GPU {other}", put(graph, replace(node, devices=(other,))))
