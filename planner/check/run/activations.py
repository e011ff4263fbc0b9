"""Activations of feed-forward networks."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from planner.check.run.site import Fault

Floats = NDArray[np.float64]

CLAMP, SLOPE = 7.0, 1.702
"""Limit and slope of the clamped SwiGLU of gpt-oss (OpenAI, gpt-oss model card)."""


def sigmoid(x: Floats) -> Floats:
    """1 / (1 + exp(-x)), without overflow."""
    return np.asarray(0.5 * (1.0 + np.tanh(0.5 * x)), dtype=np.float64)


def _gelu(x: Floats) -> Floats:
    return np.asarray(0.5 * x * (1.0 + np.vectorize(math.erf, otypes=[np.float64])(x / math.sqrt(2.0))), dtype=np.float64)


def _gelu_tanh(x: Floats) -> Floats:
    return np.asarray(0.5 * x * (1.0 + np.tanh(math.sqrt(2.0 / math.pi) * (x + 0.044715 * x**3))), dtype=np.float64)


FUNCTIONS: dict[str, Callable[[Floats], Floats]] = {
    "silu": lambda x: x * sigmoid(x),
    "gelu": _gelu,
    "gelu_tanh": _gelu_tanh,
    "relu": lambda x: np.maximum(x, 0.0),
}


def activate(name: str, gate: Floats | None, up: Floats) -> Floats:
    """The activation of a gated (gate given) or plain network."""
    if name == "swiglu_clamped" and gate is not None:
        gate, up = np.minimum(gate, CLAMP), np.clip(up, -CLAMP, CLAMP)
        return np.asarray((up + 1.0) * gate * sigmoid(SLOPE * gate), dtype=np.float64)
    if name not in FUNCTIONS:
        raise Fault(f"the activation {name} has no numbers here")
    function = FUNCTIONS[name]
    return function(up) if gate is None else function(gate) * up


def _silu_slope(x: Floats) -> Floats:
    s = sigmoid(x)
    return np.asarray(s * (1.0 + x * (1.0 - s)), dtype=np.float64)


def _gelu_slope(x: Floats) -> Floats:
    bell = np.exp(-0.5 * x**2) / math.sqrt(2.0 * math.pi)
    return np.asarray(0.5 + 0.5 * np.vectorize(math.erf, otypes=[np.float64])(x / math.sqrt(2.0)) + x * bell, dtype=np.float64)


def _gelu_tanh_slope(x: Floats) -> Floats:
    root = math.sqrt(2.0 / math.pi)
    t = np.tanh(root * (x + 0.044715 * x**3))
    return np.asarray(0.5 + 0.5 * t + 0.5 * x * (1.0 - t**2) * root * (1.0 + 0.134145 * x**2), dtype=np.float64)


SLOPES: dict[str, Callable[[Floats], Floats]] = {
    "silu": _silu_slope,
    "gelu": _gelu_slope,
    "gelu_tanh": _gelu_tanh_slope,
    "relu": lambda x: np.where(x > 0.0, 1.0, 0.0),
}


def slopes(name: str, gate: Floats | None, up: Floats, dy: Floats) -> tuple[Floats, Floats | None]:
    """Gradients of up and of gate (None without one) from that of the activation."""
    if up.shape != dy.shape:
        raise Fault(f"it has the gradient of {list(dy.shape)} for {list(up.shape)}")
    if name == "swiglu_clamped" and gate is not None:
        low, near = np.minimum(gate, CLAMP), np.clip(up, -CLAMP, CLAMP)
        s = sigmoid(SLOPE * low)
        rise = s * (1.0 + SLOPE * low * (1.0 - s))
        return np.where(np.abs(up) <= CLAMP, dy * low * s, 0.0), np.where(gate <= CLAMP, dy * (near + 1.0) * rise, 0.0)
    if name not in SLOPES:
        raise Fault(f"the activation {name} has no numbers here")
    if gate is None:
        return dy * SLOPES[name](up), None
    return dy * FUNCTIONS[name](gate), dy * up * SLOPES[name](gate)
