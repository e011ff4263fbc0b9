"""Operators that are missing, there twice, or in another place of the plan."""

from __future__ import annotations

from dataclasses import replace

from planner.graph.nodes import Graph
from tests.mutants.edits import any_kind, put, without


def drop_operator(rng, graph):
    node = rng.choice(any_kind(rng, graph))
    return node.id, without(graph, {node.id})


def drop_everywhere(rng, graph):
    """An operator is missing on all GPUs of a layer, with everything that only it reads."""
    node = rng.choice(any_kind(rng, graph))
    gone = {n.id for n in graph.nodes if (n.name, n.layer, n.stage) == (node.name, node.layer, node.stage)}
    return f"{node.name} of layer {node.layer}", without(graph, gone)


def bypass_operator(rng, graph):
    """Whoever read what an operator wrote reads one of its inputs instead, and waits for what it waited for."""
    node = rng.choice(any_kind(rng, graph))
    if not node.inputs:
        return None
    piece = rng.choice(node.inputs)
    sources = [e for e in graph.into[node.id] if e.kind == "data" and e.tensor == piece.name]
    waits = [e for e in graph.into[node.id] if not e.tensor]
    edges, readers = [e for e in graph.edges if node.id not in (e.src, e.dst)], set()
    for edge in (e for e in graph.edges if e.src == node.id):
        if edge.tensor:
            readers.add(edge.dst)
            edges += [replace(source, dst=edge.dst) for source in sources]
        edges += [replace(wait, dst=edge.dst) for wait in waits]
    written = {p.name for p in node.outputs}
    changed = [
        replace(n, inputs=tuple(piece if p.name in written else p for p in n.inputs)) for n in graph.nodes if n.id in readers
    ]
    rest = Graph(tuple(n for n in graph.nodes if n.id != node.id), tuple(dict.fromkeys(edges)))
    return node.id, put(rest, *changed)


def duplicate_operator(rng, graph):
    node = rng.choice(any_kind(rng, graph))
    copy = replace(node, id=f"{node.id}+")
    out = rng.random() < 0.5
    edges = [replace(e, dst=copy.id) for e in graph.edges if e.dst == node.id]
    edges += [replace(e, src=copy.id) for e in graph.edges if e.src == node.id and out]
    place = graph.nodes.index(node) + 1
    return node.id, Graph((*graph.nodes[:place], copy, *graph.nodes[place:]), (*graph.edges, *edges))


def same_id(rng, graph):
    first, second = rng.sample(list(graph.nodes), 2)
    return f"{second.id} as {first.id}", Graph(
        tuple(replace(n, id=first.id) if n is second else n for n in graph.nodes), graph.edges
    )


def change_layer(rng, graph):
    node = rng.choice(
        [n for n in any_kind(rng, graph) if n.layer is not None] or [n for n in graph.nodes if n.layer is not None]
    )
    layers = sorted({n.layer for n in graph.nodes if n.layer is not None} | {node.layer + 1} - {node.layer})
    layer = rng.choice([x for x in layers if x != node.layer])
    return f"{node.id} in layer {layer}", put(graph, replace(node, layer=layer))


def swap_layers(rng, graph):
    """Two layers change places."""
    layers = sorted({n.layer for n in graph.nodes if n.layer is not None})
    if len(layers) < 2:
        return None
    a, b = rng.sample(layers, 2)
    new = {a: b, b: a}
    return f"{a} and {b}", put(graph, *(replace(n, layer=new[n.layer]) for n in graph.nodes if n.layer in new))


def swap_stages(rng, graph):
    """Operators of a stage, or of two, are said to belong to another one."""
    stages = sorted({n.stage for n in graph.nodes})
    node = rng.choice(graph.nodes)
    if len(stages) < 2:
        return f"{node.id} in stage 1", put(graph, replace(node, stage=node.stage + 1))
    a, b = rng.sample(stages, 2)
    new = {a: b, b: a}
    return f"{a} and {b}", put(graph, *(replace(n, stage=new[n.stage]) for n in graph.nodes if n.stage in new))


def change_micro_batch(rng, graph):
    node = rng.choice(any_kind(rng, graph))
    found = sorted({n.micro_batch for n in graph.nodes} | {node.micro_batch + 1})
    other = rng.choice([m for m in found if m != node.micro_batch])
    return f"{node.id} of micro-batch {other}", put(graph, replace(node, micro_batch=other))


def drop_micro_batch(rng, graph):
    """A micro-batch is lost, in all stages or in one."""
    found = sorted({n.micro_batch for n in graph.nodes})
    if len(found) < 2:
        return None
    micro, stage = rng.choice(found), rng.choice([None, *sorted({n.stage for n in graph.nodes})])
    gone = {n.id for n in graph.nodes if n.micro_batch == micro and stage in (None, n.stage)}
    return f"micro-batch {micro} of stage {stage}", without(graph, gone)


def drop_layer(rng, graph):
    layer = rng.choice(sorted({n.layer for n in graph.nodes if n.layer is not None}))
    return f"layer {layer}", without(graph, {n.id for n in graph.nodes if n.layer == layer})


def change_stream(rng, graph):
    node = rng.choice(any_kind(rng, graph))
    stream = rng.choice([s for s in ("compute", "transfer", "send") if s != node.stream])
    return f"{node.id} on {stream}", put(graph, replace(node, stream=stream))
