"""The elementwise functions of a transformer, in float64 and as their papers write them."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from planner.check.reference.constants import NORM_EPS, ROPE_BASE
from planner.check.reference.inputs import Array
from planner.model import NormKind

_CLAMP, _SLOPE = 7.0, 1.702  # gpt-oss: limit of gate and up, and the slope of its sigmoid
_erf = np.vectorize(math.erf, otypes=[np.float64])


def normalise(x: Array, weight: Array | None, bias: Array | None, kind: NormKind) -> Array:
    """RMSNorm or LayerNorm over the last axis; `weight` None multiplies by one."""
    centred = x - x.mean(axis=-1, keepdims=True) if kind == "layer" else x
    scaled = centred / np.sqrt(np.mean(centred**2, axis=-1, keepdims=True) + NORM_EPS)
    if weight is not None:
        scaled = scaled * weight
    result: Array = scaled if bias is None else scaled + bias
    return result


def rotate(x: Array, positions: NDArray[np.int64], dims: int, pairs: Literal["none", "half", "interleaved"]) -> Array:
    """Rotary embedding of the first `dims` of each head; the rest passes unchanged.

    `x` is [sequences, length, heads, head_dim], `positions` [sequences, length]. Pair i turns by position x base^(-2i/dims);
    it is (i, i + dims/2) for `half` and (2i, 2i + 1) for `interleaved`.
    """
    if pairs == "none" or not dims:
        return x
    half = dims // 2
    angles = positions[:, :, None, None] * ROPE_BASE ** (-np.arange(half) / half)
    cos, sin = np.cos(angles), np.sin(angles)
    first = np.arange(half) if pairs == "half" else 2 * np.arange(half)
    second = first + (half if pairs == "half" else 1)
    a, b = x[..., first], x[..., second]
    turned = x.copy()
    turned[..., first] = a * cos - b * sin
    turned[..., second] = b * cos + a * sin
    return turned


def softmax(logits: Array, allowed: NDArray[np.bool_] | None = None, extra: Array | None = None) -> Array:
    """Softmax over the last axis; what is not `allowed` gets 0, as does a row without anything allowed.

    `extra`, [..., 1], is one more logit in the denominator (an attention sink); its own share is left out.
    """
    masked = logits if allowed is None else np.where(allowed, logits, -np.inf)
    top = masked.max(axis=-1, keepdims=True)
    if extra is not None:
        top = np.maximum(top, extra)
    top = np.where(np.isfinite(top), top, 0.0)
    powers = np.exp(masked - top)
    total = powers.sum(axis=-1, keepdims=True)
    if extra is not None:
        total = total + np.exp(extra - top)
    return powers / np.where(total > 0, total, 1.0)


def softcap(x: Array, cap: float | None) -> Array:
    """`cap` times tanh(x / cap), or `x` itself where there is no cap."""
    return x if cap is None else cap * np.tanh(x / cap)


def sigmoid(x: Array) -> Array:
    """1 / (1 + e^-x), without overflow."""
    return 0.5 * (1.0 + np.tanh(0.5 * x))


def _gelu_tanh(x: Array) -> Array:
    return 0.5 * x * (1.0 + np.tanh(math.sqrt(2.0 / math.pi) * (x + 0.044715 * x**3)))


_FUNCTIONS: dict[str, Callable[[Array], Array]] = {
    "silu": lambda x: x * sigmoid(x),
    "gelu": lambda x: 0.5 * x * (1.0 + _erf(x / math.sqrt(2.0))),
    "gelu_tanh": _gelu_tanh,
    "relu": lambda x: np.maximum(x, 0.0),
}


def activate(name: str, up: Array, gate: Array | None) -> Array:
    """What goes into the down projection: f(gate) x up, or f(up) of a network without a gate."""
    if name == "swiglu_clamped":
        if gate is None:
            raise ValueError("swiglu_clamped is a gated activation")
        gate, up = np.minimum(gate, _CLAMP), np.clip(up, -_CLAMP, _CLAMP)
        return (up + 1.0) * gate * sigmoid(_SLOPE * gate)
    function = _FUNCTIONS[name]
    return function(up) if gate is None else function(gate) * up
