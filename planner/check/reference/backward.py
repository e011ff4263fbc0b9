"""backward: gradients of the loss of the unsplit model, of every weight and of the residual stream.

A reverse pass written out by hand, from the model's spec and the intermediates of its forward pass alone. The loss is the
mean cross entropy of the next tokens over all tokens that are there.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from planner.check.reference.attention_back import attend_back
from planner.check.reference.derivatives import normalise_back, softcap_back
from planner.check.reference.ffn_back import feed_back
from planner.check.reference.inputs import Array, Tokens, Trace, Weights
from planner.check.reference.numerics import softmax
from planner.errors import InputError
from planner.model import Layer, ModelSpec

Key = tuple[int | None, str]


@dataclass(frozen=True, slots=True)
class Gradients:
    """The loss, its gradient by every weight, and by the residual stream where it enters attention (``attention.x``), the
    feed-forward half (``ffn.x``) and the head (``head.x``), by (layer, name).
    """

    loss: float
    weights: dict[Key, Array]
    stream: dict[Key, Array]


def targets_of(tokens: Tokens) -> NDArray[np.int64]:
    """The token after each token, [sequences, length]; after the last comes the first."""
    return np.roll(tokens.ids, -1, axis=1)


def backward(model: ModelSpec, weights: Weights, tokens: Tokens, trace: Trace) -> Gradients:
    """Reverse the forward pass that left `trace`; InputError for a model without a head."""
    if not model.vocab:
        raise InputError("model.vocab", 0, "a vocabulary: without logits there is no loss")
    outer = {name: value for (layer, name), value in weights.items() if layer is None}
    loss, dx, found = _head_back(model, outer, tokens, trace)
    grads: dict[Key, Array] = {(None, name): value for name, value in found.items()}
    stream: dict[Key, Array] = {(None, "head.x"): dx}
    for index in reversed(range(len(model.layers))):
        own = {name: value for (layer, name), value in weights.items() if layer == index}
        values = {name: value for (layer, name), value in trace.values.items() if layer == index}
        middle, dx, found = _layer_back(model.layers[index], own, values, tokens, dx)
        stream[index, "ffn.x"], stream[index, "attention.x"] = middle, dx
        grads |= {(index, name): value for name, value in found.items()}
    for name, value in _embed_back(model, outer, tokens, dx).items():
        grads[None, name] = grads[None, name] + value if (None, name) in grads else value
    return Gradients(loss, grads, stream)


def _head_back(
    model: ModelSpec, outer: Mapping[str, Array], tokens: Tokens, trace: Trace
) -> tuple[float, Array, dict[str, Array]]:
    """Loss, gradient of the residual stream, and those of head and final norm."""
    logits, valid, targets = trace.values[None, "head.logits"], tokens.valid, targets_of(tokens)
    probabilities = softmax(logits)
    chosen = np.take_along_axis(probabilities, targets[..., None], axis=-1)[..., 0]
    loss = float(-np.log(chosen[valid]).mean())
    dlogits = probabilities.copy()
    np.put_along_axis(dlogits, targets[..., None], chosen[..., None] - 1.0, axis=-1)
    dlogits = softcap_back(logits, model.final_softcap, dlogits * valid[..., None] / valid.sum())
    last = trace.values[len(model.layers) - 1, "ffn.y"]
    xn = trace.values[None, "head.xn"] if model.final_norm else last
    grads = {"head": np.einsum("slk,sln->kn", xn, dlogits)}
    matrix = outer["embedding"].T if model.tied_embeddings else outer["head"]
    if model.head_bias:
        grads["head_bias"] = dlogits.sum(axis=(0, 1))
    if model.tied_embeddings:
        grads["embedding"] = grads.pop("head").T
    dx = dlogits @ matrix.T
    if model.final_norm:
        dx = _norm_back(outer, "final_norm", last, model.norm_kind, dx, grads)
    return loss, dx, grads


def _layer_back(
    layer: Layer, weights: Mapping[str, Array], values: Mapping[str, NDArray[Any]], tokens: Tokens, dy: Array
) -> tuple[Array, Array, dict[str, Array]]:
    """Gradients of the stream in the middle of a layer and at its entry, and of its weights."""
    if layer.parallel_residual or layer.norms not in (2, 4):
        raise InputError("norms", layer.norms, "2 or 4 norms around halves that follow each other")
    halves = {
        name: {k.removeprefix(f"{name}."): v for k, v in values.items() if k.startswith(f"{name}.")}
        for name in ("attention", "ffn")
    }
    grads: dict[str, Array] = {}
    ffn, attention = halves["ffn"], halves["attention"]
    df = _norm_back(weights, "ffn_post_norm", ffn["f"], layer.norm_kind, dy, grads) if layer.norms == 4 else dy
    dxn, found = feed_back(layer.ffn, weights, ffn, ffn["xn"], df)
    grads |= found
    middle = dy + _norm_back(weights, "ffn_norm", ffn["x"], layer.norm_kind, dxn, grads)
    do = (
        _norm_back(weights, "attention_post_norm", attention["o"], layer.norm_kind, middle, grads)
        if layer.norms == 4
        else middle
    )
    dxn, found = attend_back(layer.attention, weights, attention, attention["xn"], tokens, do)
    grads |= found
    return middle, middle + _norm_back(weights, "attention_norm", attention["x"], layer.norm_kind, dxn, grads), grads


def _norm_back(weights: Mapping[str, Array], name: str, x: Array, kind: Any, dy: Array, grads: dict[str, Array]) -> Array:
    dx, grads[name], dbias = normalise_back(x, weights[name], kind, dy)
    if f"{name}_bias" in weights:
        grads[f"{name}_bias"] = dbias
    return dx


def _embed_back(model: ModelSpec, outer: Mapping[str, Array], tokens: Tokens, dx: Array) -> dict[str, Array]:
    grads = {"embedding": np.zeros_like(outer["embedding"])}
    np.add.at(grads["embedding"], tokens.ids, dx * model.embedding_scale)
    if model.positions:
        rows = np.where(tokens.valid, tokens.positions + model.position_offset, 0)
        grads["positions"] = np.zeros_like(outer["positions"])
        np.add.at(grads["positions"], rows, dx)
    return grads
