"""Tags: where the time of one operator of a plan comes from."""

from __future__ import annotations

import numpy as np

from planner.costs.groups import GroupShape
from planner.costs.kernels import AttentionClass
from planner.costs.pricer import Pricer
from planner.costs.table import EXTRAPOLATED, MEASURED
from planner.graph.ops import Kind, Op


def source_of(pricer: Pricer, op: Op, row: int, kind: str, shape: GroupShape | None) -> str:
    """The tag of an operator at one row on a GPU kind: `roofline`, `fitted`, `measured` or `extrapolated`."""
    if shape is not None:
        return pricer.collectives.source_of(op.kind.value, _at(op.bytes, row), shape, kind)
    source = pricer.sources[kind]
    if op.kind in (Kind.MATMUL, Kind.GROUPED):
        sizes = tuple(_at(size, row) for size in (op.m, op.k, op.n, op.batch))
        return source.source_of("gemm" if op.kind == Kind.MATMUL else "grouped", op.dtype, sizes)
    if op.attention is None:
        return source.source_of("stream")
    a = op.attention
    sizes = tuple(_at(size, row) for size in (a.batch, a.heads, a.kv_heads, a.q_len, a.kv_len, a.qk_dim, a.v_dim))
    kernel = AttentionClass.of(sizes[3], a.causal, a.shared_kv, op.dtype, a.kv_dtype)
    found = source.source_of(kernel.family, op.dtype, sizes, kernel)
    return EXTRAPOLATED if found == MEASURED and op.kind != Kind.ATTENTION else found


def _at(size: object, row: int) -> float:
    array = np.asarray(size)
    return float(array if array.ndim == 0 else array[row])
