"""Shapes: what is measured, from a grid, from a file, or from the operators of a problem."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import TypeVar

from planner.costs.kernels import AttentionClass
from planner.costs.rows import ATTENTION, PRODUCT, read_shapes
from planner.files import expanded, read_text
from planner.units import dtype_bytes

TOKENS = (1, 8, 32, 128, 512, 2048, 8192)
WIDTHS = (1024, 4096, 8192, 28672)
PROMPTS, CONTEXTS, BATCHES = (256, 1024, 4096, 16384), (1024, 4096, 16384), (1, 8, 64)
HEADS = ((8, 1), (32, 8))
HEAD_DIM = 128
MESSAGES = tuple(4**power for power in range(5, 16))
OPERATIONS = ("all_reduce", "all_gather", "reduce_scatter", "all_to_all", "broadcast", "send_recv")


@dataclass(frozen=True, slots=True, order=True)
class Product:
    """`batch` products (m x k)@(k x n) in one launch."""

    m: int
    k: int
    n: int
    batch: int
    dtype: str

    @property
    def flops(self) -> float:
        """Two for each multiply-add."""
        return 2.0 * self.batch * self.m * self.k * self.n

    @property
    def bytes(self) -> float:
        """Of both operands and the result."""
        return self.batch * (self.m * self.k + self.k * self.n + self.m * self.n) * max(dtype_bytes(self.dtype), 1.0)

    def row(self) -> dict[str, object]:
        """The cells of a table."""
        return {"op": PRODUCT, "m": self.m, "k": self.k, "n": self.n, "batch": self.batch, "dtype": self.dtype}


@dataclass(frozen=True, slots=True, order=True)
class Attention:
    """One fused attention kernel: causal prefill of equally many queries and keys, or one query on a cache."""

    batch: int
    heads: int
    kv_heads: int
    q_len: int
    kv_len: int
    qk_dim: int
    v_dim: int
    causal: bool
    dtype: str

    @property
    def flops(self) -> float:
        """Of both products; a causal square counts half."""
        pairs = self.q_len * self.kv_len * (0.5 if self.causal and self.q_len > 1 else 1.0)
        return 2.0 * self.batch * self.heads * pairs * (self.qk_dim + self.v_dim)

    @property
    def bytes(self) -> float:
        """Of queries, cache and result."""
        per_token = self.heads * self.q_len + self.kv_heads * self.kv_len
        return self.batch * per_token * (self.qk_dim + self.v_dim) * dtype_bytes(self.dtype)

    def row(self) -> dict[str, object]:
        """The cells of a table."""
        names = ("batch", "heads", "kv_heads", "q_len", "kv_len", "qk_dim", "v_dim", "dtype")
        return {"op": ATTENTION, "causal": int(self.causal), **{name: getattr(self, name) for name in names}}


@dataclass(frozen=True, slots=True, order=True)
class Message:
    """One collective over `ranks` GPUs of this machine; `bytes` is the full buffer (see `Collectives.time`)."""

    operation: str
    ranks: int
    bytes: int

    def row(self) -> dict[str, object]:
        """The cells of a table."""
        return {"op": self.operation, "ranks": self.ranks, "nodes": 1, "bytes": self.bytes}


@dataclass(frozen=True, slots=True)
class Shapes:
    """What is to be measured."""

    products: tuple[Product, ...] = ()
    attention: tuple[Attention, ...] = ()
    messages: tuple[Message, ...] = ()

    @property
    def count(self) -> int:
        """How many in all."""
        return len(self.products) + len(self.attention) + len(self.messages)


Shape = TypeVar("Shape", Product, Attention, Message)


def grid(dtypes: Sequence[str], gpus: int) -> Shapes:
    """Products and attention as dense layers have them, and collectives over 2, 4, ... of `gpus` GPUs."""
    products = tuple(Product(m, k, n, 1, dtype) for dtype in dtypes for m, k, n in product(TOKENS, WIDTHS, WIDTHS))
    own = next((dtype for dtype in dtypes if dtype_bytes(dtype) >= 2.0), "bf16")
    dims = (HEAD_DIM, HEAD_DIM, True, own)
    prefill = (Attention(b, h, kv, s, s, *dims) for b in BATCHES[:2] for h, kv in HEADS for s in PROMPTS)
    decode = (Attention(b, h, kv, 1, s, *dims) for b in BATCHES for h, kv in HEADS for s in CONTEXTS)
    return Shapes(products, (*prefill, *decode), messages(gpus))


def messages(gpus: int) -> tuple[Message, ...]:
    """Collectives of every kind over powers of two of this machine's GPUs, by message size."""
    many = [2**power for power in range(1, 10) if 2**power <= gpus]
    found = (Message(op, ranks, size) for op, ranks, size in product(OPERATIONS, many, MESSAGES))
    return tuple(one for one in found if one.operation != "send_recv" or one.ranks == 2)


def shapes_in(path: Path) -> Shapes:
    """The shapes of a CSV: the columns of a table without its times; `InputError` names the line that is wrong."""
    products: list[Product] = []
    attention: list[Attention] = []
    found: list[Message] = []
    for operator, key, sizes in read_shapes(read_text(expanded(path)), str(path)):
        if isinstance(key, AttentionClass):
            batch, heads, kv_heads, q_len, kv_len, qk, v = sizes
            attention.append(Attention(batch, heads, kv_heads, q_len, kv_len, qk, v, key.causal, key.dtype))
        elif operator == PRODUCT:
            m, k, n, batch = sizes
            products.append(Product(m, k, n, batch, str(key)))
        else:
            ranks, _, moved = sizes
            found.append(Message(operator, ranks, moved))
    return Shapes(tuple(dict.fromkeys(products)), tuple(dict.fromkeys(attention)), tuple(dict.fromkeys(found)))


def at_most(shapes: Shapes, most: int) -> Shapes:
    """No more than `most` products and attention kernels, spread evenly from the smallest to the largest."""
    return Shapes(_spread(shapes.products, most), _spread(shapes.attention, most), shapes.messages)


def _spread(shapes: Iterable[Shape], most: int) -> tuple[Shape, ...]:
    ordered = sorted(shapes, key=lambda shape: (getattr(shape, "flops", 0.0), repr(shape)))
    if len(ordered) <= most:
        return tuple(ordered)
    steps = max(most - 1, 1)
    return tuple(ordered[at * (len(ordered) - 1) // steps] for at in range(most))
