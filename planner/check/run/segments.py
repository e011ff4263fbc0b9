"""Kernels of attention over dimension segments: partial scores, softmax of their sums, values."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from planner.check.run.attention import cached_heads, expanded, grid, key_tokens, per_head, picked, queries_keys, scaled, seen
from planner.check.run.site import Fault, Kernel, Site, Value
from planner.check.run.split import Split

Ints = NDArray[np.int64]


def partial_scores(site: Site) -> Value:
    """Products of the GPU's dims of queries and keys: [sequences x heads, queries, keys]."""
    split = site.split
    tokens = split.at.attention(split.place)
    if split.attention.kind == "mla":
        q, k, _ = expanded(site, per_head(site.array("rotated"), len(split.rope)))
        keys = grid(k, tokens)
    elif split.at.decode:
        q, keys = queries_keys(site)[0], cached_heads(site)[0][:, :, split.kv_of_head]
    else:
        q, k = queries_keys(site)
        keys = grid(k[:, split.kv_of_head], tokens)
    scores = np.einsum("sqhd,skhd->shqk", grid(q, tokens), keys, optimize=True)
    return Value(scores.reshape(-1, *scores.shape[2:]))


def softmax_rows(split: Split) -> Ints:
    """The query rows whose softmax a GPU computes: all, or its share where the segments share them."""
    count = split.at.attention(split.place).shape[1]
    if split.partition.softmax != "scattered" or split.partition.dimension_segments == 1:
        return np.arange(count)
    parts, index = split.partition.dimension_segments, split.segment
    sizes = [(count + parts - 1 - j) // parts for j in range(parts)]
    return np.arange(sum(sizes[:index]), sum(sizes[: index + 1]))


def softmax(site: Site) -> Value:
    """Probabilities from summed scores."""
    split = site.split
    tokens, rows = split.at.attention(split.place), softmax_rows(split)
    scores = site.array("summed", "scores")
    scores = scores.reshape(len(tokens), len(split.heads), *scores.shape[1:])
    if scores.shape[2] != len(rows):
        raise Fault(f"it has {scores.shape[2]} rows of scores, and its share is {len(rows)}")
    keys = key_tokens(split)
    allowed = seen(split, tokens[:, rows], keys)
    if site.has("picked"):
        allowed &= picked(site, keys)[:, rows]
    scores = np.where(allowed[:, None], scaled(split.attention, scores), -np.inf)
    top = scores.max(axis=-1, keepdims=True)
    sinks = site.weight("sinks")[None, :, None, None] if site.holds("sinks") else None
    if sinks is not None:
        top = np.maximum(top, sinks)
    top = np.where(np.isfinite(top), top, 0.0)
    weights = np.exp(scores - top)
    total = weights.sum(axis=-1, keepdims=True) + (0.0 if sinks is None else np.exp(sinks - top))
    found = weights / np.where(total > 0, total, 1.0)
    return Value(found.reshape(len(tokens) * len(split.heads), *found.shape[2:]))


def attended_values(site: Site) -> Value:
    """Probabilities times the GPU's dims of the values."""
    split = site.split
    tokens, heads = split.at.attention(split.place), len(split.heads)
    if split.attention.kind == "mla":
        v = grid(per_head(site.array("kv"), len(split.nope) + len(split.v))[..., len(split.nope) :], tokens)
    elif split.at.decode:
        v = cached_heads(site)[1][:, :, split.kv_of_head]
    else:
        v = grid(per_head(site.array("v"), len(split.v))[:, split.kv_of_head], tokens)
    probabilities = site.array("probabilities", "own_probabilities")
    probabilities = probabilities.reshape(len(tokens), heads, *probabilities.shape[1:])
    out = np.einsum("shqk,skhd->sqhd", probabilities, v, optimize=True)
    return Value(out.reshape(tokens.size, -1))


KERNELS: dict[tuple[str, str], Kernel] = {
    ("attention", "scores"): partial_scores,
    ("attention", "softmax"): softmax,
    ("attention", "attention_value"): attended_values,
}
"""Kernels by role and operator."""
