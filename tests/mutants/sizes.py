"""Weights, tensors, sizes and prices with one thing broken."""

from __future__ import annotations

from dataclasses import fields, replace

from planner.graph.nodes import Graph, Node
from planner.graph.ops import AttentionDims, Kind, Layout
from tests.mutants.edits import any_kind, one_changed, operators, pick, put, reshaped, resized

DTYPES = ("bf16", "fp32", "fp8")


def _weighted(graph: Graph) -> list[Node]:
    return [node for node in graph.nodes if node.weights]


def drop_weight(rng, graph):
    node = pick(rng, _weighted(graph))
    return (
        None if node is None else (node.id, put(graph, replace(node, weights=one_changed(rng, node.weights, lambda w: None))))
    )


def duplicate_weight(rng, graph):
    node = pick(rng, _weighted(graph))
    return None if node is None else (node.id, put(graph, replace(node, weights=(*node.weights, rng.choice(node.weights)))))


def reshape_weight(rng, graph):
    node = pick(rng, _weighted(graph))
    if node is None:
        return None
    return node.id, put(graph, replace(node, weights=one_changed(rng, node.weights, lambda w: reshaped(rng, w))))


def move_weight(rng, graph):
    """A shard goes to the same operator of another GPU, which then has it twice."""
    node = pick(rng, _weighted(graph))
    others = [n for n in graph.nodes if node and n.weights and n.name == node.name and n.devices != node.devices]
    other = pick(rng, others)
    if node is None or other is None:
        return None
    return f"{node.id} to {other.id}", put(
        graph, replace(node, weights=node.weights[1:]), replace(other, weights=(*other.weights, node.weights[0]))
    )


def rename_weight(rng, graph):
    node = pick(rng, _weighted(graph))
    name = rng.choice(["q", "k", "o", "up", "down", "expert_up", "attention_norm"])
    if node is None or any(w.name == name for w in node.weights):
        return None
    return f"{node.id} {name}", put(
        graph, replace(node, weights=one_changed(rng, node.weights, lambda w: replace(w, name=name)))
    )


def change_size(rng, graph):
    """One of m, k, n and batch of a product; its FLOPs stay, or follow."""
    node = pick(rng, [n for n in graph.nodes if n.kind in (Kind.MATMUL, Kind.GROUPED)])
    if node is None:
        return None
    field = rng.choice(["m", "k", "n", "batch"])
    new = replace(node, **{field: resized(rng, getattr(node, field))})
    if rng.random() < 0.5:
        new = replace(new, flops=2.0 * new.m * new.k * new.n * new.batch)
    return f"{field} of {node.id} is {getattr(new, field)}", put(graph, new)


def change_attention(rng, graph):
    """One of the sizes of a fused attention kernel; its FLOPs stay, or follow."""
    node = pick(rng, [n for n in graph.nodes if n.attention is not None])
    if node is None:
        return None
    field = rng.choice([f.name for f in fields(AttentionDims)])
    old = getattr(node.attention, field)
    dims = replace(node.attention, **{field: not old if isinstance(old, bool) else resized(rng, int(old))})
    new = replace(node, attention=dims)
    if rng.random() < 0.5:
        new = replace(new, flops=float(dims.flops))
    return f"{field} of {node.id} is {getattr(dims, field)}", put(graph, new)


def change_price(rng, graph):
    """FLOPs or bytes of an operator."""
    node = rng.choice([n for n in any_kind(rng, graph) if n.kind != Kind.BARRIER] or [rng.choice(operators(graph))])
    field = rng.choice(["flops", "bytes"])
    old = getattr(node, field)
    value = rng.choice([0.0, old * 2, old / 2, old + 4096.0]) if old else 4096.0
    return None if value == old else (f"{field} of {node.id} is {value}", put(graph, replace(node, **{field: value})))


def reshape_output(rng, graph):
    node = rng.choice([n for n in any_kind(rng, graph) if n.outputs] or [n for n in graph.nodes if n.outputs])
    outputs = one_changed(rng, node.outputs, lambda p: reshaped(rng, p))
    if rng.random() < 0.3:
        outputs = (reshaped(rng, node.outputs[0]),) * len(node.outputs)
    return None if outputs == node.outputs else (node.id, put(graph, replace(node, outputs=outputs)))


def reshape_input(rng, graph):
    node = rng.choice([n for n in any_kind(rng, graph) if n.inputs] or [n for n in graph.nodes if n.inputs])
    inputs = one_changed(rng, node.inputs, lambda p: reshaped(rng, p))
    return None if inputs == node.inputs else (node.id, put(graph, replace(node, inputs=inputs)))


def reshape_tensor(rng, graph):
    """A tensor changes its shape where it is written and wherever it is read."""
    node = rng.choice([n for n in any_kind(rng, graph) if n.outputs] or [n for n in graph.nodes if n.outputs])
    old, new = node.outputs[0], reshaped(rng, node.outputs[0])
    if new == old:
        return None
    readers = {e.dst for e in graph.edges if e.src == node.id and e.tensor == old.name}
    changed = [replace(n, inputs=tuple(new if p == old else p for p in n.inputs)) for n in graph.nodes if n.id in readers]
    outputs = tuple(new if p == old else p for p in node.outputs)
    return f"{old.text} of {node.id} is {new.text}", put(graph, replace(node, outputs=outputs), *changed)


def change_dtype(rng, graph):
    node = rng.choice(operators(graph))
    if rng.random() < 0.5 and node.outputs:
        new = replace(
            node,
            outputs=one_changed(rng, node.outputs, lambda p: replace(p, dtype=rng.choice([d for d in DTYPES if d != p.dtype]))),
        )
    elif node.weights and rng.random() < 0.5:
        new = replace(
            node,
            weights=one_changed(rng, node.weights, lambda p: replace(p, dtype=rng.choice([d for d in DTYPES if d != p.dtype]))),
        )
    else:
        new = replace(node, dtype=rng.choice([d for d in DTYPES if d != node.dtype]))
    return None if node.transfer is not None and new.dtype != node.dtype else (node.id, put(graph, new))


def change_layout(rng, graph):
    node = rng.choice([n for n in graph.nodes if n.outputs])
    layout = rng.choice([x for x in Layout if x != node.outputs[0].layout])
    return f"{node.id} {layout}", put(graph, replace(node, outputs=tuple(replace(p, layout=layout) for p in node.outputs)))


def swap_inputs(rng, graph):
    """Two inputs of an operator exchange names, or one is forgotten."""
    node = pick(rng, [n for n in graph.nodes if len(n.inputs) > 1 and n.formals])
    if node is None:
        return None
    i, j = rng.sample(range(len(node.inputs)), 2)
    if rng.random() < 0.3:
        keep = [k for k in range(len(node.inputs)) if k != i]
        new = replace(node, inputs=tuple(node.inputs[k] for k in keep), formals=tuple(node.formals[k] for k in keep))
        return f"{node.inputs[i].name} of {node.id}", put(graph, new)
    inputs = list(node.inputs)
    inputs[i], inputs[j] = inputs[j], inputs[i]
    return node.id, put(graph, replace(node, inputs=tuple(inputs)))
