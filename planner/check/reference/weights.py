"""Random weights under which a small model behaves like a trained one, as far as errors are concerned.

With the usual initialisation scores are so small that softmax is almost uniform, and a wrong scale or a missing reduction
hardly shows. Here scores have a standard deviation of about 1.5 to 2, the experts' scores differ clearly, each half of a
layer changes its input by about as much as there is, and no two weights are equal.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np

from planner.check.reference.inputs import Array
from planner.model import Attention, Indexer, Layer, ModelSpec, Weight

_SCORE = 1.9  # standard deviation of q . k before it is known how norms and biases change it
_BIAS = 0.2
_ROUTER = 1.5
_CORRECTION = 0.2


def random_weights(model: ModelSpec, rng: np.random.Generator) -> dict[tuple[int | None, str], Array]:
    """One tensor for each weight of the model's inventory, and a ``correction_bias`` where a router has one."""
    drawn: dict[tuple[int | None, str], Array] = {}
    for index, layer in enumerate(model.layers):
        for weight in layer.weights(model.hidden):
            drawn[index, weight.name] = _draw(weight, _deviation(layer, weight), rng)
        for name, gain in _gains(layer, rng):
            drawn[index, name] = drawn[index, name] * gain
        for name, value in _replaced(layer, rng):
            drawn[index, name] = value
    for weight in model.outer_weights():
        drawn[None, weight.name] = _draw(weight, _outer_deviation(model, weight), rng)
    return drawn


def _mirror(indexer: Indexer, rank: int, rng: np.random.Generator) -> Array:
    """Heads in pairs that look in opposite directions: relu never silences both, so that no two keys tie at zero."""
    heads = rng.standard_normal((indexer.heads, rank, indexer.head_dim)) / math.sqrt(rank)
    heads[1::2] = -1.5 * heads[: 2 * (indexer.heads // 2) : 2]
    return heads.transpose(1, 0, 2).reshape(rank, -1)


def _draw(weight: Weight, deviation: float, rng: np.random.Generator) -> Array:
    """Normal around 0; a norm's factors lie around 1."""
    if weight.module == "norm" and not weight.name.endswith("_bias"):
        return deviation * rng.uniform(0.7, 1.3, weight.shape)
    return deviation * rng.standard_normal(weight.shape)


def _deviation(layer: Layer, weight: Weight) -> float:
    """The standard deviation of a tensor's elements (for a norm the mean): it keeps outputs of rms about 1."""
    attention = layer.attention
    if weight.name in ("q_norm", "k_norm"):
        return _half_score(attention)
    if weight.module == "norm":
        return _BIAS if weight.name.endswith("_bias") else 1.0
    if weight.name == "sinks":
        return 1.0
    if weight.name.endswith("_bias"):
        return _BIAS
    spread = 1.0 / math.sqrt(weight.shape[-2])
    if weight.module == "router":
        return _ROUTER * spread
    if weight.name in ("q", "k", "q_b"):
        return spread * (1.0 if attention.qk_norm != "none" else _half_score(attention))
    return spread


def _half_score(attention: Attention) -> float:
    """Deviation of queries and of keys that gives their scaled product a deviation of `_SCORE`."""
    return math.sqrt(_SCORE * math.sqrt((attention.scale_dim or attention.head_dim) / attention.head_dim))


def _outer_deviation(model: ModelSpec, weight: Weight) -> float:
    if weight.name == "embedding":
        return 1.0 / model.embedding_scale
    if weight.name == "head":
        return 1.0 / math.sqrt(model.hidden)
    return {"positions": 0.5, "head_bias": _BIAS, "final_norm_bias": _BIAS}.get(weight.name, 1.0)


def _replaced(layer: Layer, rng: np.random.Generator) -> Iterator[tuple[str, Array]]:
    """Tensors that the inventory lacks, or that are drawn in a way of their own."""
    if layer.ffn.kind == "moe" and layer.ffn.correction_bias:
        yield "correction_bias", _CORRECTION * rng.standard_normal(layer.ffn.experts)
    indexer = layer.attention.indexer
    if indexer is not None:
        yield "index_q", _mirror(indexer, layer.attention.q_lora_rank or 0, rng)


def _gains(layer: Layer, rng: np.random.Generator) -> Iterator[tuple[str, Array]]:
    """Factors on tensors whose columns are not all of one kind."""
    attention = layer.attention
    half = _half_score(attention)
    if attention.kind == "mla":
        rope = np.where(np.arange(attention.kv_lora_rank + attention.rope_dim) < attention.kv_lora_rank, 1.0, half)
        yield "kv_a", rope
        own = np.where(np.arange(attention.nope_dim + attention.v_head_dim) < attention.nope_dim, half, 1.0)
        yield "kv_b", np.tile(own, attention.heads)
    elif attention.qk_norm != "none" and not attention.qk_norm_weights:
        # Normalised vectors of equal dims have products of deviation 1 whatever their weights; unequal dims raise it.
        gain = _paired(np.exp(0.8 * rng.standard_normal(attention.head_dim)), attention)
        yield "q", np.tile(gain, attention.heads)
        yield "k", np.tile(gain, attention.kv_heads)


def _paired(gain: Array, attention: Attention) -> Array:
    """The same gain for both dims that rotate together."""
    if attention.rope == "half":
        half = attention.rotary_dim // 2
        gain[half : 2 * half] = gain[:half]
    elif attention.rope == "interleaved":
        gain[1 : attention.rotary_dim : 2] = gain[0 : attention.rotary_dim : 2]
    return gain
