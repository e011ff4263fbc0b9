"""Worlds: random weights, ragged sequences and, where there are experts, routes that reach all of them."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from planner.check.reference import Tokens, backward, forward, random_weights
from planner.check.run.twin import POSITION_OFFSETS, Twin
from planner.check.run.world import World

Ints = NDArray[np.int64]

SEED = 20_260_101
"""The same tensors for everyone: a run is repeatable to the last bit on one machine."""


def make_world(twin: Twin, routes: Mapping[int, Ints] | None = None) -> World:
    """Random weights and tokens for a twin, and what the unsplit model makes of them."""
    rng = np.random.default_rng(SEED)
    weights = random_weights(twin.model, rng)
    tokens = make_tokens(twin, rng)
    shape = (*tokens.ids.shape, -1)
    forced = None if routes is None else {layer: chosen.reshape(shape) for layer, chosen in routes.items()}
    trace = forward(twin.model, weights, tokens, forced)
    gradients = backward(twin.model, weights, tokens, trace) if twin.choice.training is not None else None
    return World(twin, weights, tokens, trace, routes, gradients)


def make_tokens(twin: Twin, rng: np.random.Generator) -> Tokens:
    """Sequences of different lengths, each from a position of its own."""
    count, length = twin.workload.batch, twin.workload.kv_length
    lengths = length - np.arange(count) % max(1, min(3, length // 4))
    index = np.arange(length)[None, :]
    offsets = rng.integers(0, POSITION_OFFSETS, size=(count, 1))
    ids = rng.integers(0, max(twin.model.vocab, 1), size=(count, length))
    embedded = None if twin.model.vocab else rng.standard_normal((count, length, twin.model.hidden))
    return Tokens(ids, offsets + index, index < lengths[:, None], embedded)


def forced_routes(twin: Twin, length: int) -> dict[int, Ints]:
    """Routes that give every expert tokens in turn, in a random order of the experts; in decode the new tokens count."""
    rng, decode = np.random.default_rng(SEED + 1), twin.workload.phase == "decode"
    tokens, found = twin.workload.batch * (1 if decode else length), {}
    for index, layer in enumerate(twin.model.layers):
        if layer.ffn.kind == "moe":
            turns = np.arange(tokens * layer.ffn.top_k) % layer.ffn.experts
            chosen = rng.permutation(layer.ffn.experts)[turns].reshape(tokens, layer.ffn.top_k)
            found[index] = np.repeat(chosen, length, axis=0) if decode else chosen
    return found
