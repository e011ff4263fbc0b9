"""Derivatives of the elementwise functions of a transformer: gradients of inputs from gradients of outputs."""

from __future__ import annotations

import math

import numpy as np

from planner.check.reference.constants import NORM_EPS
from planner.check.reference.inputs import Array
from planner.check.reference.numerics import sigmoid
from planner.model import NormKind

_CLAMP, _SLOPE = 7.0, 1.702
_erf = np.vectorize(math.erf, otypes=[np.float64])


def normalise_back(x: Array, weight: Array | None, kind: NormKind, dy: Array) -> tuple[Array, Array, Array]:
    """Gradients of x, of the factor and of the bias of a norm over the last axis."""
    centred = x - x.mean(axis=-1, keepdims=True) if kind == "layer" else x
    root = np.sqrt(np.mean(centred**2, axis=-1, keepdims=True) + NORM_EPS)
    unit = centred / root
    along = dy if weight is None else dy * weight
    dx = (along - unit * np.mean(unit * along, axis=-1, keepdims=True)) / root
    if kind == "layer":
        dx = dx - dx.mean(axis=-1, keepdims=True)
    axes = tuple(range(x.ndim - 1))
    return dx, (dy * unit).sum(axis=axes), dy.sum(axis=axes)


def softmax_back(probabilities: Array, dy: Array) -> Array:
    """Gradient of the logits of a softmax over the last axis, also of one whose row sums to less than 1 (a sink)."""
    return np.asarray(probabilities * (dy - (probabilities * dy).sum(axis=-1, keepdims=True)))


def softcap_back(y: Array, cap: float | None, dy: Array) -> Array:
    """Gradient of what a soft cap made `y` of."""
    return dy if cap is None else dy * (1.0 - (y / cap) ** 2)


def activate_back(name: str, up: Array, gate: Array | None, dy: Array) -> tuple[Array, Array | None]:
    """Gradients of up and of gate (None without one)."""
    if name == "swiglu_clamped" and gate is not None:
        low, clipped = np.minimum(gate, _CLAMP), np.clip(up, -_CLAMP, _CLAMP)
        bell = sigmoid(_SLOPE * low)
        dgate = dy * (clipped + 1.0) * (bell + low * _SLOPE * bell * (1.0 - bell)) * (gate <= _CLAMP)
        return dy * low * bell * (np.abs(up) <= _CLAMP), dgate
    if gate is None:
        return dy * slope(name, up), None
    value, rise = _value(name, gate), slope(name, gate)
    return dy * value, dy * up * rise


def _value(name: str, x: Array) -> Array:
    if name == "silu":
        return x * sigmoid(x)
    if name == "relu":
        return np.maximum(x, 0.0)
    if name == "gelu":
        return np.asarray(0.5 * x * (1.0 + _erf(x / math.sqrt(2.0))))
    return 0.5 * x * (1.0 + np.tanh(math.sqrt(2.0 / math.pi) * (x + 0.044715 * x**3)))


def slope(name: str, x: Array) -> Array:
    """Derivative of an activation."""
    if name == "silu":
        s = sigmoid(x)
        return s + x * s * (1.0 - s)
    if name == "relu":
        return (x > 0).astype(np.float64)
    if name == "gelu":
        return np.asarray(0.5 * (1.0 + _erf(x / math.sqrt(2.0))) + x * np.exp(-0.5 * x**2) / math.sqrt(2.0 * math.pi))
    inner = math.sqrt(2.0 / math.pi)
    t = np.tanh(inner * (x + 0.044715 * x**3))
    return 0.5 * (1.0 + t) + 0.5 * x * (1.0 - t**2) * inner * (1.0 + 3.0 * 0.044715 * x**2)
