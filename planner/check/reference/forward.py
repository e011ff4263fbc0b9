"""The forward pass of a whole model on one device that never runs out: embedding, layers, final norm and head."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from planner.check.reference.attention import attend
from planner.check.reference.ffn import feed
from planner.check.reference.inputs import Array, Tokens, Trace, Weights
from planner.check.reference.numerics import normalise, softcap
from planner.errors import InputError
from planner.model import Layer, ModelSpec, NormKind

__all__ = ["Tokens", "Trace", "Weights", "forward"]

Values = dict[str, NDArray[Any]]


def forward(model: ModelSpec, weights: Weights, tokens: Tokens, routes: Mapping[int, NDArray[np.int64]] | None = None) -> Trace:
    """Run `model` and keep every intermediate under its name (see the package).

    `routes[layer]` [sequences, length, top_k] forces the experts that the tokens visit in that layer.
    """
    outer = {name: value for (layer, name), value in weights.items() if layer is None}
    inner: list[dict[str, Array]] = [{} for _ in model.layers]
    for (index, name), value in weights.items():
        if index is not None:
            inner[index][name] = value
    trace: dict[tuple[int | None, str], NDArray[Any]] = {}
    x = trace[None, "embedding.y"] = _embed(model, outer, tokens)
    for index, layer in enumerate(model.layers):
        values = _layer(layer, inner[index], x, tokens, (routes or {}).get(index))
        trace |= {(index, name): value for name, value in values.items()}
        x = values["ffn.y"]
    trace |= {(None, name): value for name, value in _head(model, outer, x).items()}
    return Trace(trace)


def _embed(model: ModelSpec, outer: Mapping[str, Array], tokens: Tokens) -> Array:
    if model.vocab:
        x = outer["embedding"][tokens.ids] * model.embedding_scale
    elif tokens.embedded is None:
        raise InputError("tokens.embedded", None, "the input of the first layer, since the model has no embedding")
    else:
        x = tokens.embedded
    if model.positions:
        rows = np.where(tokens.valid, tokens.positions + model.position_offset, 0)
        x = x + outer["positions"][rows]
    return x


def _layer(layer: Layer, weights: Mapping[str, Array], x: Array, tokens: Tokens, routes: NDArray[np.int64] | None) -> Values:
    """Both halves of a block. Side by side (parallel residual) they read the same input, and both outputs are added to it."""
    before = {1: ("input_norm", "input_norm"), 2: ("attention_norm", "ffn_norm"), 4: ("attention_norm", "ffn_norm")}
    first, second = before.get(layer.norms, ("", ""))
    if layer.norms == 1 and not layer.parallel_residual:
        raise InputError("norms", 1, "2 or 4 norms, or one before attention and network side by side")
    xn = _normed(weights, first, x, layer.norm_kind)
    attention = attend(layer.attention, weights, xn, tokens)
    added = attention["o"]
    if layer.norms == 4:
        added = attention["on"] = _normed(weights, "attention_post_norm", attention["o"], layer.norm_kind)
    middle = x + added
    attention |= {"x": x, "xn": xn, "y": middle}

    into = x if layer.parallel_residual else middle
    xn = _normed(weights, second, into, layer.norm_kind)
    network = feed(layer.ffn, weights, xn, routes)
    added = network["f"]
    if layer.norms == 4:
        added = network["fn"] = _normed(weights, "ffn_post_norm", network["f"], layer.norm_kind)
    network |= {"x": into, "xn": xn, "y": middle + added}
    return {
        f"{half}.{name}": value
        for half, values in (("attention", attention), ("ffn", network))
        for name, value in values.items()
    }


def _head(model: ModelSpec, outer: Mapping[str, Array], x: Array) -> Values:
    """Final norm and logits, each only where the model has it."""
    values: Values = {}
    if model.final_norm:
        x = values["head.xn"] = _normed(outer, "final_norm", x, model.norm_kind)
    if model.vocab:
        logits = x @ (outer["embedding"].T if model.tied_embeddings else outer["head"])
        if model.head_bias:
            logits = logits + outer["head_bias"]
        values["head.logits"] = softcap(logits, model.final_softcap)
    return values


def _normed(weights: Mapping[str, Array], name: str, x: Array, kind: NormKind) -> Array:
    return normalise(x, weights[name], weights.get(f"{name}_bias"), kind) if name else x
