"""Prices: what an operator is priced by against what it reads and writes: FLOPs, bytes, dtypes, weights, rows and columns."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from math import ceil, isclose

from planner.check.findings import Finding
from planner.check.index import Index, Part, part_of, readers, written
from planner.graph.expand import TOKEN_ID_BYTES
from planner.graph.nodes import Node, Piece
from planner.graph.ops import Kind, Layout
from planner.model import ModelSpec, Module
from planner.units import dtype_bytes

Turn = tuple[int, int, int, int | None]
PRODUCTS = (Kind.MATMUL, Kind.GROUPED)
SUM_BYTES = 4.0
"""Of a log-sum-exp."""
EXCHANGES = ("o_all_to_all", "merge_all_to_all", "dispatch", "combine")


@dataclass(frozen=True)
class Context:
    """What prices depend on besides the graph: the model, and the tokens and sequences of a micro-batch."""

    model: ModelSpec
    tokens: int
    sequences: int
    index: Index

    @cached_property
    def returned(self) -> dict[Turn, float]:
        """Bytes that come back from experts on other GPUs to the GPU that gets most, by step, stage, micro-batch and layer."""
        home = (node for node in self.index.graph.nodes if node.name == "combine" and node.transfer is not None)
        return {part_of(node)[:4]: max((p.bytes for p in node.outputs), default=0.0) for node in home}

    def members(self, node: Node) -> list[Piece]:
        """What every GPU of a collective brings: of each its first input."""
        name = node.inputs[0].name if node.inputs else ""
        found = []
        for device in readers(node):
            sources = [s for edge, s in self.index.deliveries.get((node.id, device), ()) if edge.tensor == name]
            piece = written(sources[0], device) if sources else None
            found += [piece] if piece is not None else []
        return found

    def outputs(self, part: Part, name: str) -> list[Piece]:
        """What all operators of one name in a role write."""
        return [piece for node in self.index.parts.get(part, ()) if node.name == name for piece in node.outputs]


def check_prices(ctx: Context) -> Iterator[Finding]:
    """Every disagreement between an operator's price and its tensors."""
    for node in ctx.index.graph.operators():
        if node.transfer is not None:
            yield from _hand_over(ctx, node)
            continue
        if node.output is None:
            yield _error("SHAPE003", node, "it writes nothing", "", "a tensor")
            continue
        yield from _weights(ctx.model, node)
        yield from _dtype(ctx.model, node, node.output)
        if node.communicates:
            yield from _moved(ctx, node, node.output)
            yield from _rows_and_columns(ctx, node, node.output)
        else:
            yield from _work(node, node.output)
    for nodes in ctx.index.parts.values():
        yield from _grouped(nodes)


def _work(node: Node, output: Piece) -> Iterator[Finding]:
    """FLOPs of products, bytes of everything else."""
    flops = 0.0
    if node.kind in PRODUCTS:
        rows = output.shape[0] if node.kind == Kind.GROUPED else node.m * node.batch
        flops = 2.0 * rows * node.k * node.n
    elif node.attention is not None:
        flops = float(node.attention.flops)
    if not isclose(node.flops, flops, rel_tol=1e-9):
        yield _error("SHAPE010", node, "its FLOPs are not those of its sizes", node.flops, flops)
    bytes_ = 0.0 if node.kind in PRODUCTS or node.kind == Kind.ATTENTION else _traffic(node, output)
    if not isclose(node.bytes, bytes_, rel_tol=1e-9):
        yield _error("SHAPE010", node, "its bytes are not those that it reads and writes", node.bytes, bytes_)
    if node.kind == Kind.LOOKUP and node.inputs:
        yield _error("SHAPE010", node, "a lookup reads tensors", len(node.inputs), 0)
    if (node.attention is None) != (node.kind != Kind.ATTENTION) or (node.kind not in PRODUCTS and node.m * node.k * node.n):
        yield _error("SHAPE010", node, f"its sizes are not those of a {node.kind}", node.sizes, node.kind)
    if node.kind == Kind.MATMUL and node.weights and node.batch == 1 and output.shape != (node.m, node.n):
        yield _error("SHAPE003", node, "it does not write m x n", output.text, f"({node.m}, {node.n})")
    if node.name == "scores" and output.shape != (node.batch, node.m, node.n):
        yield _error("SHAPE003", node, "it does not write m x n", output.text, f"({node.batch}, {node.m}, {node.n})")


def _traffic(node: Node, output: Piece) -> float:
    """Bytes through memory: what is read once (of a larger tensor the part that is used), and what is written once."""
    inputs = dict(zip(node.formals, (piece.bytes for piece in node.inputs), strict=False))
    first, wrote = next(iter(inputs.values()), 0.0), output.bytes
    if node.name.endswith("_residual"):
        return 3.0 * wrote
    if node.name.endswith("activation"):
        return (len(inputs) + 1.0) * wrote
    if node.name == "top_k":
        return 2.0 * first
    if node.name in ("softmax", "merge"):
        return first + wrote
    if node.name == "unpermute":
        served = sum(piece.bytes for piece in node.inputs if piece.name == "expert_partial")
        return inputs["returned"] + wrote if "returned" in inputs else 2.0 * wrote + served
    return 2.0 * wrote


def _moved(ctx: Context, node: Node, output: Piece) -> Iterator[Finding]:
    """A collective moves what a member brings (sums, exchanges) or ends up with (gathers, rings)."""
    brought = max((piece.bytes for piece in ctx.members(node)), default=0.0)
    held = max(piece.bytes for piece in node.outputs)
    bytes_ = held if node.kind in (Kind.ALL_GATHER, Kind.SEND) or node.name == "qk_norm_reduce" else brought
    part = part_of(node)
    if node.name == "merge_all_to_all":
        own = [other for other in ctx.index.parts[part] if other.name == "attention" and other.devices[0] in node.devices]
        heads = max((int(other.attention.heads) for other in own if other.attention is not None), default=0)
        bytes_ = held + SUM_BYTES * output.shape[0] * heads
    elif node.name in ("dispatch", "combine"):
        bytes_ = _there_and_back(ctx, part, node)
    if not isclose(node.bytes, bytes_, rel_tol=1e-9) or node.flops:
        yield _error("SHAPE010", node, "its bytes are not those that it moves", node.bytes, bytes_)
    if (node.kind == Kind.ALL_TO_ALL) != (node.name in EXCHANGES):
        yield _error("SHAPE011", node, f"{node.name} as {node.kind} has no meaning", node.name, node.kind)
    unfinished = output.layout != Layout.REPLICATED and node.name != "qk_norm_reduce"
    if node.kind in (Kind.ALL_REDUCE, Kind.ALL_GATHER, Kind.REDUCE_SCATTER) and unfinished:
        yield _error("SHAPE011", node, "what it leaves is finished", output.layout, Layout.REPLICATED)


def _there_and_back(ctx: Context, part: Part, node: Node) -> float:
    """Bytes of the busiest GPU of an exchange with the experts: the same in both directions, no fewer than come back to a
    GPU, no more than come back or arrive.
    """
    others = [other.bytes for other in ctx.index.parts[part] if other.name in ("dispatch", "combine") and other is not node]
    back, there = (max((p.bytes for p in ctx.outputs(part, name)), default=0.0) for name in ("combine", "dispatch"))
    return min(max(others[0] if others else back, back), max(back, there))


def _rows_and_columns(ctx: Context, node: Node, output: Piece) -> Iterator[Finding]:
    """Sums keep the shape or scatter it, gathers grow along one axis by what every member has."""
    brought = ctx.members(node)
    if not brought or node.name in ("qk_norm_reduce", "dispatch", "combine") or node.kind == Kind.SEND:
        return
    first = max(brought, key=lambda piece: piece.elements)
    if len(first.shape) != len(output.shape):
        yield _error("SHAPE011", node, "it changes the number of axes", first.text, output.text)
        return
    sums = node.kind in (Kind.ALL_REDUCE, Kind.REDUCE_SCATTER)
    if sums and first.layout != Layout.PARTIAL:
        yield _error("SHAPE011", node, f"it adds up {first.text}, which is no partial sum", first.layout, Layout.PARTIAL)
    if node.kind == Kind.ALL_REDUCE:
        if len(node.outputs) > 1 and sum(piece.elements for piece in node.outputs) == first.elements > 0:
            yield _error(
                "SHAPE011", node, "its members keep a part each: that is a reduce-scatter", node.kind, Kind.REDUCE_SCATTER
            )
        good = all(p.shape[1:] == first.shape[1:] and p.shape[0] <= first.shape[0] for p in node.outputs)
    elif node.kind == Kind.REDUCE_SCATTER:
        good = _shared_out(first, list(node.outputs))
    elif node.kind == Kind.ALL_GATHER:
        good = all(_shared_out(whole, brought, node.name == "head_gather") for whole in node.outputs)
    elif node.name == "o_all_to_all":
        rows, columns = sum(p.shape[0] for p in node.outputs), sum(p.shape[1] for p in brought)
        good = rows == first.shape[0] and all(p.shape[1] == columns for p in node.outputs)
    else:
        good = first.shape == output.shape
    if not good:
        yield _error("SHAPE011", node, f"as {node.kind} it does not make {output.text} of what comes", first.text, output.text)


def _shared_out(whole: Piece, parts: list[Piece], more: bool = False) -> bool:
    """Whether parts together are the whole along one axis; shards of a sum may be rounded up, `more`: parts may overlap."""
    room = 1 if not any(piece.name.endswith("_shard") for piece in parts) else len(parts)
    for axis, size in enumerate(whole.shape):
        rest = {piece.shape[:axis] + piece.shape[axis + 1 :] for piece in parts if piece.elements}
        over = sum(piece.shape[axis] for piece in parts) - size
        if rest == {whole.shape[:axis] + whole.shape[axis + 1 :]} and (0 <= over < room or (more and over > 0)):
            return True
    return not whole.elements


def _hand_over(ctx: Context, node: Node) -> Iterator[Finding]:
    """A hand-over sends equal slices of all tokens, or each token to the GPUs of its experts and back."""
    transfer, row = node.transfer, float(ctx.model.hidden * dtype_bytes(ctx.model.dtype))
    if transfer is None:
        return
    held = max((piece.bytes for piece in node.outputs), default=0.0)
    at = (node.step, node.stage, node.micro_batch, node.layer)
    sorted_rows = [min(piece.shape[0], ctx.tokens) for piece in ctx.outputs((*at, "experts"), "permute")]
    senders, receivers = len(transfer.source), len(transfer.target)
    if node.name == "feedback":
        sent = received = float(ctx.sequences * TOKEN_ID_BYTES)
    elif node.name == "send":
        slices = min(senders, receivers)
        each = ceil(ctx.tokens / slices) * row * slices
        sent, received = each / senders, each / receivers
    elif node.name == "combine":
        sent, received = max(sorted_rows, default=0) * row, held
    else:
        routed = any(piece.name == "routes" for piece in node.inputs)
        back = ctx.returned.get(at, 0.0)
        sent, received = back if routed else ceil(ctx.tokens / senders) * receivers * row, held
    priced = (transfer.sent_bytes, transfer.received_bytes, node.bytes, node.flops)
    wanted = (sent, received, max(sent, received), 0.0)
    if not all(isclose(a, b, rel_tol=1e-9) for a, b in zip(priced, wanted, strict=True)):
        found = f"{transfer.sent_bytes:.0f} / {transfer.received_bytes:.0f}"
        yield _error("SHAPE010", node, "its bytes are not those that it hands over", found, f"{sent:.0f} / {received:.0f}")
    if node.name == "send" and sum(piece.shape[0] for piece in node.outputs) != ctx.tokens:
        yield _error("SHAPE011", node, "its slices are not all tokens", sum(p.shape[0] for p in node.outputs), ctx.tokens)


def _grouped(nodes: list[Node]) -> Iterator[Finding]:
    """Grouped products of one GPU have the same experts and rows: rows per expert, rounded up, of experts in use."""
    for device in {node.devices[0] for node in nodes if node.kind == Kind.GROUPED}:
        own = [node for node in nodes if node.kind == Kind.GROUPED and node.devices[0] == device]
        for node in own:
            rows = node.output.shape[0] if node.output is not None else 0
            experts = {weight.shape[0] for weight in node.weights}
            if (node.m, node.batch) != (own[0].m, own[0].batch) or node.m != ceil(rows / max(node.batch, 1)):
                yield _error("SHAPE010", node, "its groups are not those of its rows", node.sizes, own[0].sizes)
            if len(experts) != 1 or node.batch > min(experts):
                yield _error("SHAPE002", node, "it computes experts whose weights it lacks", node.batch, str(sorted(experts)))


def _dtype(model: ModelSpec, node: Node, output: Piece) -> Iterator[Finding]:
    """A product of stored weights runs in their dtype, softmax in that of its scores, everything else as it writes."""
    dtype = output.dtype
    if node.name == "index_score":
        dtype = "fp8"
    elif node.name == "lm_head":
        dtype = model.dtype_of("head")
    elif node.kind in PRODUCTS and node.weights and node.name != "q_absorb":
        dtype = node.weights[0].dtype
    elif node.name in ("softmax", "scores") and node.inputs:
        dtype = node.inputs[0].dtype
    if node.dtype != dtype:
        yield _error("SHAPE010", node, "it computes in another dtype than its tensors have", node.dtype, dtype)


def _weights(model: ModelSpec, node: Node) -> Iterator[Finding]:
    """The weights of an operator: each once, in the dtype they are stored in, as wide as what it computes."""
    if not node.weights or node.output is None:
        return
    names = [weight.name for weight in node.weights]
    if len(set(names)) < len(names):
        yield _error("SHAPE002", node, "it brings a weight twice", str(names), "")
    modules = _modules(model, node.layer)
    for weight in node.weights:
        module = modules.get(weight.name)
        if module is None or weight.dtype != model.dtype_of(module):
            yield _error("SHAPE002", node, f"{weight.text} is not stored like this", weight.dtype, module or "no such weight")
    width = node.n if node.kind in PRODUCTS else node.output.shape[-1]
    for weight in node.weights:
        if node.kind == Kind.GROUPED:
            good = weight.shape[1:] in ((node.k, node.n), (node.n,))
        elif node.name == "q_absorb":
            good = weight.shape[0] == node.n and weight.shape[1] % node.batch == 0
        elif node.kind == Kind.MATMUL:
            good = weight.shape in ((node.k, node.n), (node.n,))
        elif node.kind == Kind.LOOKUP:
            good = weight.shape[-1] == width
        elif weight.name.endswith("_norm") and len(weight.shape) == 2:
            vectors = 2 if model.norm_kind == "layer" or weight.name == "index_norm" else 1
            good = weight.shape == (vectors, width)
        else:
            good = len(weight.shape) == 1 and width % weight.shape[0] == 0 if node.name == "qk_norm" else len(weight.shape) == 1
        if not good:
            yield _error(
                "SHAPE002", node, f"weight {weight.text} does not fit", weight.text, f"{node.sizes} of {width} columns"
            )


def _modules(model: ModelSpec, layer: int | None) -> dict[str, Module]:
    """The module of every weight of a layer, or of those outside the layers (a tied head among them)."""
    if layer is None or not 0 <= layer < len(model.layers):
        return {weight.name: weight.module for weight in model.outer_weights()} | {"head": "head"}
    return {weight.name: weight.module for weight in model.layers[layer].weights(model.hidden)}


def _error(code: str, node: Node, message: str, measured: str | float, expected: str | float) -> Finding:
    return Finding(code, "error", node.id, message, measured, expected, "price it by what it reads and writes")
