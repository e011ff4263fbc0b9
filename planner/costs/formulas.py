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
    end; `memory` the share of the memory bandwidth; `rounding` how much of a partly filled last wave is paid for;
    `quantize` the bytes moved for each element of the first operand to bring it from bf16 to a narrower dtype;
    `skinny` what 16x128 tiles reach relative to full ones, 0 where kernels have none.
    """

    launch_s: float
    compute: float
    medium: float
    small: float
    depth: float
    memory: float
    rounding: float
    quantize: float = 0.0
    skinny: float = 0.0


TILES = ((128.0, 256.0), (128.0, 128.0), (64.0, 64.0), (16.0, 128.0))
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
    for (rows, columns), relative in zip(TILES, (1.0, c.medium, c.small, c.skinny), strict=True):
        if relative <= 0.0:
            continue
        tiles = np.ceil(m / rows) * np.ceil(n / columns) * batch
        for split in SPLITS:
            waves = tiles * (split / gpu.sms)
            waves = c.rounding * np.ceil(waves) + (1.0 - c.rounding) * np.maximum(waves, 1.0)
            seconds = waves * (k / split + c.depth) * (2.0 * rows * columns / (tile_flops * relative))
            compute = seconds if compute is None else np.minimum(compute, seconds)
    assert compute is not None
    moved = batch * (m * k * act + k * n * weight + m * n * 2.0)
    streaming = gpu.bandwidth * c.memory
    total = c.launch_s + blend(compute, moved / streaming) + batch * m * k * (c.quantize / streaming)
    return np.asarray(np.where((m > 0) & (k > 0) & (n > 0) & (batch > 0), total, 0.0))


@dataclass(frozen=True, slots=True)
class StreamConstants:
    """Kernels that only move bytes: `launch_s` and the share `memory` of the memory bandwidth."""

    launch_s: float
    memory: float


def stream(c: StreamConstants, bandwidth: float, moved: Array) -> Array:
    """Seconds of a kernel that reads and writes `moved` bytes in all."""
    return np.asarray(np.where(moved > 0, c.launch_s + moved / (bandwidth * c.memory), 0.0))
