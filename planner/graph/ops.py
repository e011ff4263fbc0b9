"""Operators and tensors of the one graph; every size is an integer or an array of integers over options (rows)."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

import numpy as np
from numpy.typing import NDArray

from planner.graph.flows import Flows
from planner.units import dtype_bytes

Size = int | NDArray[Any]
"""One size, or one per row: a row is an option being priced, or one GPU of an expanded graph."""


class Kind(StrEnum):
    """What an operator does."""

    MATMUL = "matmul"
    GROUPED = "grouped_matmul"
    ATTENTION = "attention"
    ATTENTION_BACKWARD = "attention_backward"
    ELEMENTWISE = "elementwise"
    LOOKUP = "lookup"
    ALL_REDUCE = "all_reduce"
    ALL_GATHER = "all_gather"
    REDUCE_SCATTER = "reduce_scatter"
    ALL_TO_ALL = "all_to_all"
    SEND = "send_recv"
    BARRIER = "barrier"


COLLECTIVES = frozenset({Kind.ALL_REDUCE, Kind.ALL_GATHER, Kind.REDUCE_SCATTER, Kind.ALL_TO_ALL, Kind.SEND})


class Layout(StrEnum):
    """How the GPUs of a group hold a tensor."""

    REPLICATED = "replicated"
    TOKENS = "token-sharded"
    HIDDEN = "hidden-sharded"
    HEADS = "head-sharded"
    PARTIAL = "partial sum"


class Store(StrEnum):
    """Which item of the memory bill a tensor belongs to."""

    ACTIVATION = "activation"
    SCORES = "scores"
    LOGITS = "logits"
    COMMUNICATION = "communication"
    GRADIENT = "gradient"


@dataclass(frozen=True, slots=True)
class Tensor:
    """A tensor on one GPU: shape (sizes over rows), dtype and layout."""

    name: str
    shape: tuple[Size, ...]
    dtype: str
    layout: Layout = Layout.REPLICATED
    store: Store = Store.ACTIVATION

    @property
    def bytes(self) -> NDArray[np.float64]:
        """Bytes per row."""
        total: NDArray[np.float64] = np.asarray(dtype_bytes(self.dtype), dtype=np.float64)
        for size in self.shape:
            total = total * np.asarray(size, dtype=np.float64)
        return total


@dataclass(frozen=True, slots=True)
class Shard:
    """The part of a weight tensor that an operator reads: its name in the model's inventory, shape and dtype."""

    name: str
    shape: tuple[Size, ...]
    dtype: str

    @property
    def elements(self) -> NDArray[np.float64]:
        """Elements per row."""
        total = np.asarray(1.0)
        for size in self.shape:
            total = total * np.asarray(size, dtype=np.float64)
        return total

    @property
    def bytes(self) -> NDArray[np.float64]:
        """Bytes per row."""
        return self.elements * dtype_bytes(self.dtype)


@dataclass(frozen=True, slots=True)
class Group:
    """A family of device groups inside a stage: `size` GPUs, `stride` places apart, in blocks of size x stride.

    Groups of one family run at once and partition the GPUs of the stage.
    """

    name: str
    stride: Size
    size: Size


@dataclass(frozen=True, slots=True)
class Op:
    """One operator on one GPU per row, or one collective over the `group` that the row's GPU belongs to.

    matmul and grouped_matmul: `batch` products (m x k) @ (k x n); attention: see `AttentionDims`; everything else:
    `bytes` moved through memory, or the collective's full buffer (all-gather: gathered; all-to-all: held per rank).
    `exists` is 0 on rows where the operator is absent (as is a collective over one GPU). Operators run in list order
    on a GPU's compute stream, those with `stream` "transfer" on its transfer stream. `rows` are the tokens of a grouped
    product where its output does not say them; `grad_of` names the forward operator that a backward one belongs to. `flows`
    say where the bytes of an all-to-all go (None: as many to every GPU).
    """

    name: str
    kind: Kind
    inputs: tuple[str, ...]
    output: Tensor
    dtype: str = "bf16"
    m: Size = 0
    k: Size = 0
    n: Size = 0
    batch: Size = 1
    attention: AttentionDims | None = None
    bytes: Size | NDArray[np.float64] = 0
    group: Group | None = None
    weights: tuple[Shard, ...] = ()
    stream: str = "compute"
    exists: Size | NDArray[np.bool_] = 1
    rows: Size | None = None
    grad_of: str = ""
    flows: Flows | None = None

    @property
    def flops(self) -> NDArray[np.float64]:
        """Floating-point operations per row: two per multiply-add."""
        if self.kind == Kind.GROUPED:  # its rows are the tokens; what the groups are padded with is no work of the model
            if self.rows is not None:
                return 2.0 * _product(self.rows, self.m, self.n) * self.exists
            return 2.0 * _product(self.output.shape[0], self.k, self.n) * self.exists
        if self.kind == Kind.MATMUL:
            return 2.0 * _product(self.batch, self.m, self.k, self.n) * self.exists
        if self.attention is not None:
            dims = self.attention
            return (dims.backward_flops if self.kind == Kind.ATTENTION_BACKWARD else dims.flops) * self.exists
        return np.zeros(())


@dataclass(frozen=True, slots=True)
class AttentionDims:
    """A fused attention kernel: `batch` sequences x `heads` query heads, q_len x kv_len, dims per head; the cache that decode
    reads is stored as `kv_dtype` (None: as the queries).
    """

    batch: Size
    heads: Size
    kv_heads: Size
    q_len: Size
    kv_len: Size
    qk_dim: Size
    v_dim: Size
    causal: bool = False
    shared_kv: bool = False
    kv_dtype: str | None = None

    @property
    def flops(self) -> NDArray[np.float64]:
        """FLOPs of both products; a causal square counts the pairs that are kept, q (q + 1) / 2."""
        return self._pair_flops * (np.asarray(self.qk_dim, dtype=np.float64) + self.v_dim)

    @property
    def backward_flops(self) -> NDArray[np.float64]:
        """FLOPs of the five products of the backward kernel (Dao, FlashAttention-2, arXiv:2307.08691): scores again and the
        gradients of Q and K along the query dims, those of the probabilities and of V along the value dims.
        """
        return self._pair_flops * (3.0 * np.asarray(self.qk_dim, dtype=np.float64) + 2.0 * np.asarray(self.v_dim))

    @property
    def _pair_flops(self) -> NDArray[np.float64]:
        """Two for each pair of a query and a key that is seen, over batch and heads."""
        pairs = _product(self.q_len, self.kv_len)
        if self.causal:
            pairs = (pairs + np.asarray(self.q_len, dtype=np.float64)) / 2.0
        return 2.0 * _product(self.batch, self.heads) * pairs


@dataclass(frozen=True, slots=True)
class Role:
    """A template: the operators of one part of a layer on the GPUs of a stage, in stream order.

    It reads the residual stream `x` (None where it starts from token ids) and writes `y`. `kv_bytes` is what one
    sequence keeps in the KV cache.
    """

    name: str
    x: Tensor | None
    ops: tuple[Op, ...]
    kv_bytes: NDArray[np.float64] = field(default_factory=lambda: np.zeros(()))


def _product(*sizes: Size) -> NDArray[np.float64]:
    total = np.asarray(1.0)
    for size in sizes:
        total = total * np.asarray(size, dtype=np.float64)
    return total
