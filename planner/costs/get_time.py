"""Get_Time: seconds of every operator on one GPU kind, vectorized over NumPy arrays.

A price is a constant of the operator's sizes; it never falls when a size grows.
"""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
from numpy.typing import ArrayLike, NDArray

from planner.cluster import GpuKind
from planner.costs import attention as fused
from planner.costs import formulas
from planner.costs.calibration import Constants
from planner.costs.kernels import AttentionClass
from planner.errors import unknown_name
from planner.units import DTYPE_BITS, dtype_bytes

Array = NDArray[np.float64]
CHUNK = 16_384  # elements priced at once, so that temporaries stay in the processor's cache


class GetTime(Protocol):
    """Prices of the operators of one GPU kind, in seconds; arguments are numbers or arrays that broadcast."""

    @property
    def source(self) -> str:
        """Where the numbers come from: `fitted`, `roofline` (constants borrowed from another kind), `measured`."""
        ...

    def source_of(
        self, family: str, dtype: str = "bf16", sizes: tuple[ArrayLike, ...] = (), kernel: AttentionClass | None = None
    ) -> str:
        """The tag of one call: besides those of `source`, `extrapolated` for sizes beyond the measured ones.

        Families: gemm, grouped, prefill, decode, mla_decode, stream.
        """
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


def known_dtype(dtype: str) -> str:
    """The dtype, refused when no unit table knows it."""
    if dtype not in DTYPE_BITS:
        raise unknown_name("dtype", dtype, DTYPE_BITS)
    return dtype


class Roofline:
    """The fitted roofline of one GPU kind (`formulas.py`, `attention.py`; constants in `calibration.yaml`).

    A dtype that the GPU's tensor cores lack is a storage format: it is read narrow and multiplied in bf16. Attention that does
    not say how its cache is stored reads one of dtype `cache` (None: that of the activations).
    """

    def __init__(self, kind: GpuKind, data: dict[str, Any] | None = None, cache: str | None = None) -> None:
        self.kind, self._cache = kind, cache
        self._constants = Constants(kind, data)

    @property
    def source(self) -> str:
        """`fitted` where matrix products were measured on this kind, else `roofline`."""
        return self.source_of("gemm")

    def source_of(
        self, family: str, dtype: str = "bf16", sizes: tuple[ArrayLike, ...] = (), kernel: AttentionClass | None = None
    ) -> str:
        """`fitted` where this kind was measured in this dtype (decode: of the cache), whatever the sizes; else `roofline`."""
        return "fitted" if self._constants.row(family, dtype)[1] else "roofline"

    def get_time(self, m: ArrayLike, k: ArrayLike, n: ArrayLike, batch: ArrayLike = 1, dtype: str = "bf16") -> Array:
        """Seconds of `batch` products (m x k)@(k x n) in one launch; below bf16 the first operand is quantized first."""
        return self._products("gemm", m, k, n, batch, dtype)

    def grouped(self, m: ArrayLike, k: ArrayLike, n: ArrayLike, groups: ArrayLike, dtype: str = "bf16") -> Array:
        """Seconds of `groups` products with their own weights in one launch."""
        return self._products("grouped", m, k, n, groups, dtype)

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
        machine, _, act = self._machine(dtype)
        cache = known_dtype(kv_dtype or self._cache or dtype)
        expanded = not shared_kv and bool(np.all(np.asarray(qk_dim) > np.asarray(v_dim)))  # MLA before absorption
        many = fused.PrefillConstants(**self._constants.prefill(dtype, cache, expanded))
        one = fused.DecodeConstants(**self._constants.row("mla_decode" if shared_kv else "decode", cache)[0])
        b, h, kv, q, length, qk, v = floats(batch, heads, kv_heads, q_len, kv_len, qk_dim, v_dim)
        sizes = fused.AttentionSizes(b, h, kv, q, length, qk, v, causal, shared_kv)
        return fused.attention(many, one, machine, sizes, act, dtype_bytes(cache))

    def elementwise(self, moved_bytes: ArrayLike) -> Array:
        """Seconds of a kernel that moves `moved_bytes` bytes in all."""
        constant = formulas.StreamConstants(**self._constants.row("stream", "bf16")[0])
        return formulas.stream(constant, self.kind.memory_bandwidth, np.asarray(moved_bytes, dtype=np.float64))

    def _products(self, family: str, m: ArrayLike, k: ArrayLike, n: ArrayLike, batch: ArrayLike, dtype: str) -> Array:
        machine, weight, act = self._machine(dtype)
        constant = formulas.GemmConstants(**self._constants.row(family, dtype if self._measured(family, dtype) else "bf16")[0])
        sizes = np.broadcast_arrays(*floats(m, k, n, batch))
        if sizes[0].size <= CHUNK:
            return formulas.gemm(constant, machine, sizes[0], sizes[1], sizes[2], sizes[3], weight, act)
        flat = [np.ravel(size) for size in sizes]
        out = np.empty(flat[0].size)
        for at in range(0, out.size, CHUNK):
            a, b, c, d = (size[at : at + CHUNK] for size in flat)
            out[at : at + CHUNK] = formulas.gemm(constant, machine, a, b, c, d, weight, act)
        return out.reshape(sizes[0].shape)

    def _measured(self, family: str, dtype: str) -> bool:
        """Whether a dtype has constants of its own: the tensor cores know it, or kernels that only store it were measured."""
        return self._native(dtype) or self._constants.has(family, dtype)

    def _native(self, dtype: str) -> bool:
        return dtype in self.kind.peak_flops

    def _machine(self, dtype: str) -> tuple[formulas.Machine, float, float]:
        """The GPU as the formulas see it, bytes of a weight and of an activation."""
        native = self._native(known_dtype(dtype))
        machine = formulas.Machine(
            self.kind.peak_flops[dtype if native else "bf16"], self.kind.memory_bandwidth, self.kind.sm_count
        )
        weight = dtype_bytes(dtype)
        return machine, weight, weight if native else 2.0
