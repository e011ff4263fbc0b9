"""What every GPU multiplies in a layer, over the whole batch: read from the one graph, never from a formula of its own."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np

from planner.graph.nodes import Graph, Node
from planner.graph.ops import Kind

ENDS = -1
"""Stands for the layer of embedding and head, which belong to none."""
LOOKUPS = frozenset({Kind.LOOKUP})


@dataclass(frozen=True, slots=True)
class Products:
    """`count` products (rows x k) @ (k x n). Heads and experts are counted; sequences and micro-batches are rows."""

    rows: float
    k: float
    n: float
    count: float = 1.0

    @property
    def flops(self) -> float:
        """Two for each multiply-add."""
        return 2.0 * self.rows * self.k * self.n * self.count

    def __str__(self) -> str:
        times = "" if self.count == 1 else f"{number(self.count)} x "
        return f"{times}({number(self.rows)} x {number(self.k)}) @ ({number(self.k)} x {number(self.n)})"


@dataclass(frozen=True, slots=True)
class Work:
    """The products of one operator on one GPU in one layer; of several operators taken together, the first's and all FLOPs."""

    operator: str
    gpu: int
    product: Products
    flops: float


Book = dict[int, dict[int, dict[str, Work]]]
"""Work by layer (`ENDS` outside of them), GPU and operator."""


def number(value: float) -> str:
    """A number as a person writes it: whole ones in full, others to four digits."""
    return f"{value:,.0f}" if abs(value) < 1e13 and abs(value - round(value)) < 1e-6 else f"{value:.4g}"


def book_of(graph: Graph, micro_batches: int) -> Book:
    """The work of every GPU in a graph of one micro-batch, for `micro_batches` of them."""
    book: Book = defaultdict(lambda: defaultdict(dict))
    for node in graph.operators():
        if node.micro_batch or node.step:
            continue
        for work in _works(node, micro_batches):
            here = book[ENDS if node.layer is None else node.layer][work.gpu]
            here[work.operator] = _added(here.get(work.operator), work)
    return {layer: dict(gpus) for layer, gpus in book.items()}


def _works(node: Node, times: int) -> Iterator[Work]:
    """The products of a node; a fused attention kernel has two, a table look-up none at all."""
    gpu, a = node.devices[0], node.attention
    if a is not None:
        batch, heads, q, qk, v = (float(np.asarray(size)) for size in (a.batch, a.heads, a.q_len, a.qk_dim, a.v_dim))
        rows = batch * q * times
        keys = node.flops * times / (2.0 * rows * heads * (qk + v))  # those that a causal mask keeps, on average
        scores, value = Products(rows, qk, keys, heads), Products(rows, keys, v, heads)
        yield Work("scores", gpu, scores, scores.flops)
        yield Work("attention_value", gpu, value, value.flops)
    elif node.kind == Kind.GROUPED and node.output is not None:
        rows = node.output.shape[0] / max(node.batch, 1) * times
        yield Work(node.name, gpu, Products(rows, node.k, node.n, node.batch), node.flops * times)
    elif node.kind == Kind.MATMUL:
        tokens = _tokens(node)
        yield Work(node.name, gpu, Products(tokens * times, node.k, node.n, node.m * node.batch / tokens), node.flops * times)
    elif node.kind in LOOKUPS and node.output is not None:
        yield Work(node.name, gpu, Products(node.output.shape[0] * times, 0, node.output.shape[-1]), 0.0)


def _tokens(node: Node) -> float:
    """The tokens that a product is over. Its batch is heads, or sequences times heads: then an operand shows the tokens."""
    if node.batch == 1:
        return float(node.m)
    pieces = [p for p in (*node.inputs[:1], node.output) if p is not None and len(p.shape) == 2]
    return float(pieces[0].shape[0]) if pieces and node.m * node.batch % pieces[0].shape[0] == 0 else float(node.m)


def _added(before: Work | None, work: Work) -> Work:
    """Blocks of one operator as one: equal ones are counted, blocks of keys (context parts) are put side by side."""
    if before is None:
        return work
    a, b = before.product, work.product
    if (a.rows, a.k, a.n) == (b.rows, b.k, b.n):
        return replace(before, product=replace(a, count=a.count + b.count), flops=before.flops + work.flops)
    keys = replace(a, n=a.n + b.n) if work.operator == "scores" else replace(a, k=a.k + b.k)
    return replace(before, product=keys, flops=before.flops + work.flops)
