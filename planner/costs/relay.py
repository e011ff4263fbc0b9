"""Relay: a GetTime that asks another one; sources that answer, change or note some calls derive from it."""

from __future__ import annotations

from typing import NamedTuple

from numpy.typing import ArrayLike

from planner.costs.get_time import Array, GetTime
from planner.costs.kernels import AttentionClass

Sizes = tuple[ArrayLike, ArrayLike, ArrayLike, ArrayLike, ArrayLike, ArrayLike, ArrayLike]


class AttentionCall(NamedTuple):
    """One call of `GetTime.attention`; `sizes` are batch, heads, kv_heads, q_len, kv_len, qk_dim and v_dim."""

    sizes: Sizes
    causal: bool
    dtype: str
    kv_dtype: str | None
    shared_kv: bool

    def of(self, source: GetTime) -> Array:
        """The answer of a source."""
        return source.attention(*self.sizes, self.causal, self.dtype, self.kv_dtype, self.shared_kv)


class Relay:
    """Every call is answered by `fallback`; who derives from this overrides those that it answers itself."""

    def __init__(self, fallback: GetTime) -> None:
        self.fallback = fallback

    @property
    def source(self) -> str:
        """The tag of the source that answers."""
        return self.fallback.source

    def source_of(
        self, family: str, dtype: str = "bf16", sizes: tuple[ArrayLike, ...] = (), kernel: AttentionClass | None = None
    ) -> str:
        """The tag of one call."""
        return self.fallback.source_of(family, dtype, sizes, kernel)

    def get_time(self, m: ArrayLike, k: ArrayLike, n: ArrayLike, batch: ArrayLike = 1, dtype: str = "bf16") -> Array:
        """Seconds of `batch` products (m x k)@(k x n)."""
        return self.fallback.get_time(m, k, n, batch, dtype)

    def grouped(self, m: ArrayLike, k: ArrayLike, n: ArrayLike, groups: ArrayLike, dtype: str = "bf16") -> Array:
        """Seconds of `groups` products with their own weights in one launch."""
        return self.fallback.grouped(m, k, n, groups, dtype)

    def elementwise(self, moved_bytes: ArrayLike) -> Array:
        """Seconds of a kernel that only moves bytes."""
        return self.fallback.elementwise(moved_bytes)

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
        """Seconds of one fused attention kernel."""
        sizes = (batch, heads, kv_heads, q_len, kv_len, qk_dim, v_dim)
        return self._attention(AttentionCall(sizes, causal, dtype, kv_dtype, shared_kv))

    def _attention(self, call: AttentionCall) -> Array:
        """The answer to a call of `attention`: override this instead."""
        return call.of(self.fallback)
