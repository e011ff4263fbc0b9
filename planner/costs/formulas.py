"""The price formulas, each a function of sizes and of a few constants: no GPU is named here.

Every function is non-decreasing in every size, which the proof of optimality rests on: sums, products, maxima and
minima of non-decreasing terms only. Sizes are float64 arrays that broadcast; times are seconds.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Machine:
    """What a formula knows of a GPU for one dtype: FLOP/s at the data-sheet peak, bytes/s, number of SMs."""

    peak: float
    bandwidth: float
    sms: int


@dataclass(frozen=True, slots=True)
class GemmConstants:
    """Matrix multiply. `launch_s` a kernel with nothing to do; `compute` the share of peak that full 128x256 tiles reach,
    `medium` and `small` that of 128x128 and 64x64 tiles relative to it; `depth` the k-steps a tile spends on start and
    end; `memory` the share of the memory bandwidth; `rounding` how much of a partly filled last wave is paid for.
    """

    launch_s: float
    compute: float
    medium: float
    small: float
    depth: float
    memory: float
    rounding: float


TILES = ((128.0, 256.0), (128.0, 128.0), (64.0, 64.0))
SPLITS = (1.0, 4.0)
BLEND = 4  # exponent that joins compute and memory time: they overlap, but not perfectly


def blend(a: Array, b: Array) -> Array:
    """(a^4 + b^4)^(1/4): the larger of two overlapping times, a little more where they are close."""
    a2, b2 = a * a, b * b
    return np.asarray(np.sqrt(np.sqrt(a2 * a2 + b2 * b2)))


def gemm(c: GemmConstants, gpu: Machine, m: Array, k: Array, n: Array, batch: Array, weight: float, act: float) -> Array:
    """Seconds of `batch` products (m x k)@(k x n) in one launch; `weight`, `act` are bytes of an element.

    Compute is the best over tile shapes and k-splits of waves x time of a tile; memory reads both operands and writes
    the product once.
    """
    tile_flops = gpu.peak * c.compute / gpu.sms
    compute: Array | None = None
    for (rows, columns), relative in zip(TILES, (1.0, c.medium, c.small), strict=True):
        tiles = np.ceil(m / rows) * np.ceil(n / columns) * batch
        for split in SPLITS:
            waves = tiles * (split / gpu.sms)
            waves = c.rounding * np.ceil(waves) + (1.0 - c.rounding) * np.maximum(waves, 1.0)
            seconds = waves * (k / split + c.depth) * (2.0 * rows * columns / (tile_flops * relative))
            compute = seconds if compute is None else np.minimum(compute, seconds)
    assert compute is not None
    moved = batch * (m * k * act + k * n * weight + m * n * 2.0)
    total = c.launch_s + blend(compute, moved / (gpu.bandwidth * c.memory))
    return np.asarray(np.where((m > 0) & (k > 0) & (n > 0) & (batch > 0), total, 0.0))


@dataclass(frozen=True, slots=True)
class AttentionConstants:
    """Fused attention. Prefill: `launch_s`, share of peak `compute`, `tile` query rows of a block, `depth` keys a block
    spends on start and end. Decode: `decode_launch_s`, share of bandwidth `memory`, share of peak `decode_compute`.
    """

    launch_s: float
    compute: float
    depth: float
    memory: float
    decode_launch_s: float
    decode_compute: float
    tile: float = 128.0


@dataclass(frozen=True, slots=True)
class AttentionSizes:
    """Sizes of an attention call, float64 arrays that broadcast; `causal` whether a query sees only earlier keys."""

    batch: Array
    heads: Array
    kv_heads: Array
    q_len: Array
    kv_len: Array
    qk_dim: Array
    v_dim: Array
    causal: bool
    shared_kv: bool


def attention(c: AttentionConstants, gpu: Machine, s: AttentionSizes, act: float, cache: float) -> Array:
    """Seconds of one fused attention kernel; `act` and `cache` are bytes of an element of Q and of the KV cache.

    One query row: decode, bound by reading the cache. More: never less than decode over the same cache.
    """
    pair_flops = 2.0 * (s.qk_dim + s.v_dim)
    kv_width = s.qk_dim if s.shared_kv else s.qk_dim + s.v_dim
    cache_bytes = s.batch * s.kv_heads * s.kv_len * kv_width * cache
    row_bytes = s.batch * s.heads * (s.qk_dim + s.v_dim) * act
    decode_work = s.batch * s.heads * s.kv_len * pair_flops / (gpu.peak * c.decode_compute)
    decode = c.decode_launch_s + blend((cache_bytes + row_bytes) / (gpu.bandwidth * c.memory), decode_work)
    seen = np.minimum(s.q_len, s.kv_len)
    pairs = seen * s.kv_len - 0.5 * seen * (seen - 1.0) + (s.q_len - seen) if s.causal else s.q_len * s.kv_len
    blocks = s.batch * s.heads * np.ceil(s.q_len / c.tile)
    work = s.batch * s.heads * pairs * pair_flops / (gpu.peak * c.compute)
    block = c.tile * (s.kv_len + c.depth) * pair_flops / (gpu.peak * c.compute / gpu.sms)
    overhead = blocks * c.tile * c.depth * pair_flops / (gpu.peak * c.compute)
    io = (cache_bytes + s.q_len * row_bytes) / (gpu.bandwidth * c.memory)
    prefill = c.launch_s + blend(np.maximum(work + overhead, block * (0.5 if s.causal else 1.0)), io)
    total = np.where(s.q_len > 1, np.maximum(prefill, decode), decode)
    return np.asarray(np.where((s.batch * s.heads * s.q_len * s.kv_len) > 0, total, 0.0))


@dataclass(frozen=True, slots=True)
class StreamConstants:
    """Kernels that only move bytes: `launch_s` and the share `memory` of the memory bandwidth."""

    launch_s: float
    memory: float


def stream(c: StreamConstants, bandwidth: float, moved: Array) -> Array:
    """Seconds of a kernel that reads and writes `moved` bytes in all."""
    return np.asarray(np.where(moved > 0, c.launch_s + moved / (bandwidth * c.memory), 0.0))
