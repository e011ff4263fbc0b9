"""Shapes: what a producer wrote against what its reader computes with, for every operator of a graph."""

from __future__ import annotations

from collections.abc import Iterator

from planner.check.findings import Finding
from planner.graph.nodes import Graph, Node
from planner.graph.ops import Kind, Layout

PER_HEAD = ("q_absorb",)  # products head by head with a slice of a weight
SUMMED = ("index_score",)  # products whose heads are added up at once


def check_shapes(graph: Graph) -> tuple[Finding, ...]:
    """Every disagreement of shapes. Reading the first rows of a larger tensor is no disagreement: a GPU may take its part."""
    found: list[Finding] = []
    for node in graph.operators():
        if node.kind in (Kind.MATMUL, Kind.GROUPED):
            found += _product(node)
        elif node.kind == Kind.ATTENTION:
            found += _attention(node)
        elif node.kind == Kind.ELEMENTWISE:
            found += _elementwise(node)
        elif node.family:
            found += _collective(graph, node)
    return tuple(found)


def _finding(code: str, node: Node, message: str, measured: str, expected: str) -> Finding:
    return Finding(code, "error", node.id, message, measured, expected, "make producer and reader agree on the split")


def _product(node: Node) -> Iterator[Finding]:
    """(m x k) @ (k x n), `batch` times: operand, weight and product."""
    if node.inputs and not _operand_fits(node):
        expected = f"{node.batch} x ({node.m}, {node.k})"
        yield _finding("SHAPE001", node, f"reads {node.inputs[0].text} as another matrix", node.inputs[0].text, expected)
    weight = next((w for w in node.weights if len(w.shape) > 1), None)
    if weight is not None and node.batch == 1 and node.name not in PER_HEAD and weight.shape[-2:] != (node.k, node.n):
        yield _finding("SHAPE002", node, f"weight {weight.name} does not fit", weight.text, f"({node.k}, {node.n})")
    if node.output is None:
        return
    written, computed = node.output.elements, node.m * node.n * node.batch
    if node.kind == Kind.MATMUL and (written != computed if node.name not in SUMMED else computed % written):
        yield _finding("SHAPE003", node, "writes another shape than m x n", node.output.text, f"{computed} elements")
    if node.kind == Kind.GROUPED and (node.output.shape[-1] != node.n or written > computed):
        yield _finding("SHAPE003", node, "writes more rows than its experts compute", node.output.text, f"{computed} elements")


def _operand_fits(node: Node) -> bool:
    """Whether the left operand is there. A matrix may be longer (its first rows are read); scores read queries from one
    tensor or two, and keys beside them.
    """
    piece = node.inputs[0]
    if node.batch == 1 and node.weights and node.name not in PER_HEAD:
        return piece.shape[-1] == node.k and piece.elements >= node.m * node.k
    if node.kind == Kind.GROUPED:
        return piece.shape[-1] == node.k and piece.elements <= node.m * node.batch * node.k
    return sum(other.elements for other in node.inputs) >= node.m * node.k * node.batch


def _attention(node: Node) -> Iterator[Finding]:
    a = node.attention
    if a is None or node.output is None:
        return
    written = int(a.batch) * int(a.heads) * int(a.q_len) * int(a.v_dim)
    if node.output.elements > written or (node.output.elements < written and not _chunked(node, written)):
        yield _finding("SHAPE003", node, "writes another shape than its heads give", node.output.text, f"{written} elements")
    width = int(a.heads) * int(a.qk_dim)
    held = sum(piece.shape[-1] for piece in node.inputs)  # queries and rotated parts come as one tensor or as two
    if node.inputs and not a.shared_kv and held < width:
        yield _finding("SHAPE001", node, "its inputs are narrower than its queries", f"{held} columns", f"{width} columns")


def _chunked(node: Node, written: int) -> bool:
    """Whether the excess is the padding of a last chunk."""
    a = node.attention
    return a is not None and node.output is not None and written - node.output.elements < written / max(int(a.batch), 1) * 2


def _elementwise(node: Node) -> Iterator[Finding]:
    """Norms keep the width; residual sums keep the shape."""
    if node.output is None or not node.inputs:
        return
    if node.name.endswith("_residual"):
        for piece in node.inputs:
            if (piece.shape, piece.dtype) != (node.output.shape, node.output.dtype) or node.output.layout != Layout.REPLICATED:
                yield _finding("SHAPE004", node, f"adds {piece.text} to {node.output.text}", piece.text, node.output.text)
    elif node.name.endswith("_norm") and node.name not in ("qk_norm", "kv_a_norm"):
        piece = node.inputs[0]
        if piece.shape[-1] != node.output.shape[-1] or piece.shape[0] < node.output.shape[0]:
            yield _finding("SHAPE001", node, f"norms {piece.text} into {node.output.text}", piece.text, node.output.text)


def _collective(graph: Graph, node: Node) -> Iterator[Finding]:
    """An all-gather yields what its members hold together; a sum what each holds. Parts that divide unevenly may differ
    by a row for each member.
    """
    edges = [edge for edge in graph.into[node.id] if edge.kind == "data"]
    if node.output is None or not edges or node.kind not in (Kind.ALL_GATHER, Kind.ALL_REDUCE):
        return
    held = sum(edge.bytes for edge in edges)
    rows = node.output.shape[0] or 1
    slack = len(node.devices) * node.output.bytes / rows * 1.001
    if node.kind == Kind.ALL_GATHER and node.name != "gather_heads" and held + slack < node.output.bytes:
        message = f"{len(node.devices)} members hold {held:.0f} bytes in all"
        yield _finding("SHAPE005", node, message, f"{held:.0f} bytes", f"{node.output.bytes:.0f} bytes")
    if node.kind == Kind.ALL_REDUCE and held / len(node.devices) + slack < node.output.bytes:
        message = f"a member holds {held / len(node.devices):.0f} bytes to sum into {node.output.text}"
        yield _finding("SHAPE005", node, message, f"{held / len(node.devices):.0f} bytes", node.output.text)
