"""Rotary position embedding of some pairs of a head's dims."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from planner.check.reference import ROPE_BASE

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


def rotate(x: Floats, positions: Ints, pairs: Ints, rotary_dim: int, style: str) -> Floats:
    """Rotary embedding of the leading dims of x [tokens, heads, dims]: the GPU's `pairs` of `rotary_dim` / 2.

    Su et al., RoFormer (arXiv:2104.09864): pair i turns by position x base^(-2 i / rotary_dim).
    """
    angle = positions[:, None, None] * ROPE_BASE ** (-2.0 * pairs / rotary_dim)
    cos, sin, n = np.cos(angle), np.sin(angle), len(pairs)
    out = x.copy()
    if style == "half":
        a, b = x[..., :n], x[..., n : 2 * n]
        out[..., :n], out[..., n : 2 * n] = a * cos - b * sin, b * cos + a * sin
    else:
        a, b = x[..., 0 : 2 * n : 2], x[..., 1 : 2 * n : 2]
        out[..., 0 : 2 * n : 2], out[..., 1 : 2 * n : 2] = a * cos - b * sin, b * cos + a * sin
    return out
