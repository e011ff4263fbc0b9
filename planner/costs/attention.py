"""The price of a fused attention kernel: prefill bound by arithmetic, decode by reading the cache.

Built of sums, products and maxima of non-decreasing terms only, so that no price falls when a size grows.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from planner.costs.formulas import Array, Machine, blend

BACKWARD_RATE = 0.8
"""FLOP rate of the backward attention kernel over that of the forward one, by the kernel benchmarks of FlashAttention-2
(arXiv:2307.08691, A100) and FlashAttention-3 (arXiv:2407.08608, H100): 0.75 to 0.9 for long sequences."""
QUERY_ROWS = 128.0  # query rows that one thread block of a prefill kernel works on


@dataclass(frozen=True, slots=True)
class PrefillConstants:
    """`launch_s` a kernel with nothing to do; `compute` the share of peak; `depth` the keys' worth of time a block spends
    on start and end; `memory` the share of bandwidth at which Q, K, V and the output pass; `lone` the time of a block that
    is alone on its SM, relative to its share of a full GPU.
    """

    launch_s: float
    compute: float
    depth: float
    memory: float
    lone: float


@dataclass(frozen=True, slots=True)
class DecodeConstants:
    """`launch_s`; `memory` the share of bandwidth at which the cache is read; `compute` the share of peak; `block_s` of a
    KV head of one sequence on an SM, and `key_s` more for each of its keys where the kernel does not split a sequence;
    `row_s` of a query head.
    """

    launch_s: float
    memory: float
    compute: float
    block_s: float
    key_s: float
    row_s: float


@dataclass(frozen=True, slots=True)
class AttentionSizes:
    """Sizes of an attention call, float64 arrays that broadcast; `causal` whether a query sees only earlier keys;
    `shared_kv` whether K and V are one latent that is read once (absorbed MLA).
    """

    batch: Array
    heads: Array
    kv_heads: Array
    q_len: Array
    kv_len: Array
    qk_dim: Array
    v_dim: Array
    causal: bool
    shared_kv: bool

    @property
    def cache_elements(self) -> Array:
        """Elements of the KV cache that the kernel reads."""
        width = self.qk_dim if self.shared_kv else self.qk_dim + self.v_dim
        return np.asarray(self.batch * self.kv_heads * self.kv_len * width)

    @property
    def pair_flops(self) -> Array:
        """FLOPs of one query head and one key."""
        return np.asarray(2.0 * (self.qk_dim + self.v_dim))


def decode(c: DecodeConstants, gpu: Machine, s: AttentionSizes, act: float, cache: float) -> Array:
    """Seconds of a kernel with one query row for each sequence; `act`, `cache` are bytes of an element of Q and of K, V."""
    moved = s.cache_elements * cache + s.batch * s.heads * (s.qk_dim + s.v_dim) * act
    work = s.batch * s.heads * s.kv_len * s.pair_flops / (gpu.peak * c.compute)
    units = np.maximum(1.0, s.batch * s.kv_heads / gpu.sms)
    steps = units * (c.block_s + c.key_s * s.kv_len) + s.batch * s.heads * (c.row_s / gpu.sms)
    return np.asarray(c.launch_s + blend(moved / (gpu.bandwidth * c.memory), blend(work, steps)))


def prefill(c: PrefillConstants, gpu: Machine, s: AttentionSizes, act: float, cache: float) -> Array:
    """Seconds of a kernel with many query rows; a causal one does the work of the pairs that are seen."""
    rate = gpu.peak * c.compute
    seen = np.minimum(s.q_len, s.kv_len)
    pairs = seen * s.kv_len - 0.5 * seen * (seen - 1.0) + (s.q_len - seen) if s.causal else s.q_len * s.kv_len
    starts = np.ceil(s.q_len / QUERY_ROWS) * QUERY_ROWS * c.depth
    work = s.batch * s.heads * (pairs + starts) * s.pair_flops / rate
    block = QUERY_ROWS * (s.kv_len + c.depth) * s.pair_flops * (gpu.sms * c.lone / rate)
    rows = s.batch * s.q_len * s.heads * (s.qk_dim + s.v_dim) * act
    return np.asarray(
        c.launch_s + np.maximum(work, block) + (rows + s.cache_elements * (act + cache)) / (gpu.bandwidth * c.memory)
    )


def attention(p: PrefillConstants, d: DecodeConstants, gpu: Machine, s: AttentionSizes, act: float, cache: float) -> Array:
    """Seconds of one fused kernel: decode for one query row, prefill for more (never less than one row would take)."""
    one = decode(d, gpu, s, act, cache)
    total = np.where(s.q_len > 1, np.maximum(prefill(p, gpu, s, act, cache), one), one) if np.any(s.q_len > 1) else one
    return np.asarray(np.where((s.batch * s.heads * s.kv_heads * s.q_len * s.kv_len) > 0, total, 0.0))


def backward_attention(forward: Array, qk_dim: ArrayLike, v_dim: ArrayLike) -> Array:
    """Seconds of the backward kernel from those of the forward one: five products instead of two, at a lower rate."""
    qk, v = np.asarray(qk_dim, dtype=np.float64), np.asarray(v_dim, dtype=np.float64)
    return np.asarray(forward * (3.0 * qk + 2.0 * v) / (qk + v) / BACKWARD_RATE)
