"""Get_Time: seconds of every operator on one GPU kind, vectorized over NumPy arrays.

A price is a constant of the operator's sizes; it never falls when a size grows.
"""

from __future__ import annotations

from typing import Protocol

import numpy as np
from numpy.typing import ArrayLike, NDArray

from planner.cluster import GpuKind
from planner.costs import formulas
from planner.costs.calibration import constants
from planner.errors import unknown_name
from planner.units import DTYPE_BITS, dtype_bytes

Array = NDArray[np.float64]
CHUNK = 16_384  # elements priced at once, so that temporaries stay in the processor's cache


class GetTime(Protocol):
    """Prices of the operators of one GPU kind, in seconds; arguments are numbers or arrays that broadcast."""

    @property
    def source(self) -> str:
        """Where the numbers come from: `fitted`, `roofline` (constants borrowed from another kind), `table`."""
        ...

    def get_time(self, m: ArrayLike, k: ArrayLike, n: ArrayLike, batch: ArrayLike = 1, dtype: str = "bf16") -> Array:
        """`batch` independent products (m x k)@(k x n) in one launch."""
        ...

    def attention(
        self,
        batch: ArrayLike,
        heads: ArrayLike,
        kv_heads: ArrayLike,
        q_len: ArrayLike,
        kv_len: ArrayLike,
        qk_dim: ArrayLike,
        v_dim: ArrayLike,
        causal: bool = True,
        dtype: str = "bf16",
        kv_dtype: str | None = None,
        shared_kv: bool = False,
    ) -> Array:
        """One fused attention kernel; `shared_kv`: K and V are one latent, read once (absorbed MLA)."""
        ...

    def elementwise(self, moved_bytes: ArrayLike) -> Array:
        """One kernel that reads and writes `moved_bytes` bytes in all: norms, activations, residual adds."""
        ...

    def grouped(self, m: ArrayLike, k: ArrayLike, n: ArrayLike, groups: ArrayLike, dtype: str = "bf16") -> Array:
        """`groups` products (m x k)@(k x n), each with its own weights, in one launch: the experts of an MoE layer."""
        ...


def floats(*values: ArrayLike) -> tuple[Array, ...]:
    """The values as float64 arrays."""
    return tuple(np.asarray(value, dtype=np.float64) for value in values)


class Roofline:
    """The fitted roofline of one GPU kind (`planner/costs/formulas.py`, constants in `calibration.yaml`)."""

    def __init__(self, kind: GpuKind) -> None:
        self.kind = kind
        self._gemm, own = constants(kind, "gemm")
        self._attention, _ = constants(kind, "attention")
        self._stream = formulas.StreamConstants(**constants(kind, "stream")[0])
        self.source = "fitted" if own else "roofline"

    def source_of(self, operator: str, dtype: str = "bf16") -> str:
        """`fitted` where this kind was measured in this dtype, else `roofline`; operator is gemm or attention."""
        table = self._attention if operator == "attention" else self._gemm
        return self.source if dtype in table or dtype == "fp16" else "roofline"

    def get_time(self, m: ArrayLike, k: ArrayLike, n: ArrayLike, batch: ArrayLike = 1, dtype: str = "bf16") -> Array:
        """Seconds of `batch` products (m x k)@(k x n) in one launch."""
        machine, constant, weight, act = self._matmul(dtype)
        sizes = np.broadcast_arrays(*floats(m, k, n, batch))
        if sizes[0].size <= CHUNK:
            return formulas.gemm(constant, machine, sizes[0], sizes[1], sizes[2], sizes[3], weight, act)
        flat = [np.ravel(size) for size in sizes]
        out = np.empty(flat[0].size)
        for at in range(0, out.size, CHUNK):
            a, b, c, d = (size[at : at + CHUNK] for size in flat)
            out[at : at + CHUNK] = formulas.gemm(constant, machine, a, b, c, d, weight, act)
        return out.reshape(sizes[0].shape)

    def grouped(self, m: ArrayLike, k: ArrayLike, n: ArrayLike, groups: ArrayLike, dtype: str = "bf16") -> Array:
        """Seconds of `groups` products with their own weights in one launch."""
        return self.get_time(m, k, n, groups, dtype)

    def attention(
        self,
        batch: ArrayLike,
        heads: ArrayLike,
        kv_heads: ArrayLike,
        q_len: ArrayLike,
        kv_len: ArrayLike,
        qk_dim: ArrayLike,
        v_dim: ArrayLike,
        causal: bool = True,
        dtype: str = "bf16",
        kv_dtype: str | None = None,
        shared_kv: bool = False,
    ) -> Array:
        """Seconds of one fused attention kernel: prefill when q_len > 1, decode when q_len is 1."""
        machine, _, _, act = self._matmul(dtype)
        constant = formulas.AttentionConstants(**(self._attention.get(dtype) or self._attention["bf16"]))
        b, h, kv, q, length, qk, v = floats(batch, heads, kv_heads, q_len, kv_len, qk_dim, v_dim)
        sizes = formulas.AttentionSizes(b, h, kv, q, length, qk, v, causal, shared_kv)
        cache = dtype_bytes(known_dtype(kv_dtype or dtype))
        return formulas.attention(constant, machine, sizes, act, cache)

    def elementwise(self, moved_bytes: ArrayLike) -> Array:
        """Seconds of a kernel that moves `moved_bytes` bytes in all."""
        return formulas.stream(self._stream, self.kind.memory_bandwidth, np.asarray(moved_bytes, dtype=np.float64))

    def _matmul(self, dtype: str) -> tuple[formulas.Machine, formulas.GemmConstants, float, float]:
        """Machine, constants, bytes of a weight and of an activation; a dtype without its own peak computes in bf16."""
        known_dtype(dtype)
        native = dtype in self.kind.peak_flops
        peak = self.kind.peak_flops[dtype if native else "bf16"]
        row = self._gemm.get(dtype) if native else None
        machine = formulas.Machine(peak, self.kind.memory_bandwidth, self.kind.sm_count)
        weight = dtype_bytes(dtype)
        return machine, formulas.GemmConstants(**(row or self._gemm["bf16"])), weight, weight if native else 2.0


def known_dtype(dtype: str) -> str:
    """The dtype, refused when no unit table knows it."""
    if dtype not in DTYPE_BITS:
        raise unknown_name("dtype", dtype, DTYPE_BITS)
    return dtype
