"""Attention of one layer, unsplit: grouped-query and latent (MLA), with masks, sinks and the indexer of sparse attention.

Shapes: S sequences of L tokens, H query heads, K key/value heads.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from planner.check.reference.inputs import Array, Tokens
from planner.check.reference.numerics import normalise, rotate, softcap, softmax
from planner.model import Attention, Indexer

Values = dict[str, Array]
Mask = NDArray[np.bool_]


def visible(attention: Attention, tokens: Tokens) -> Mask:
    """[S, L, L]: whether a query (axis 1) may see a key (axis 2): valid, not later, inside its window and chunk."""
    query, key = tokens.positions[:, :, None], tokens.positions[:, None, :]
    allowed = np.broadcast_to(tokens.valid[:, None, :], np.broadcast_shapes(query.shape, key.shape))
    if attention.causal:
        allowed = allowed & (key <= query)
    if attention.window is not None:
        allowed = allowed & (query - key < attention.window)
    if attention.chunk is not None:
        allowed = allowed & (query // attention.chunk == key // attention.chunk)
    return allowed


def attend(attention: Attention, weights: Mapping[str, Array], xn: Array, tokens: Tokens) -> dict[str, NDArray[Any]]:
    """Every intermediate from the normalised input `xn` [S, L, hidden] to the projected output ``o`` [S, L, hidden]."""
    values: dict[str, NDArray[Any]] = {}
    allowed = visible(attention, tokens)
    if attention.kind == "mla":
        latent = _latent(attention, weights, xn, tokens)
        queries, keys, value = _expanded(attention, latent)
        values |= latent
        if attention.indexer is not None:
            picks = _index(attention, attention.indexer, weights, xn, latent["qan"], tokens, allowed)
            values |= picks
            allowed = picks["picked"].astype(np.bool_)
    else:
        grouped = _grouped(attention, weights, xn, tokens)
        queries, keys, value = grouped["q_rotated"], grouped["k_rotated"], grouped["v"]
        values |= grouped
    return values | _mix(attention, weights, queries, keys, value, allowed)


def _mix(attention: Attention, weights: Mapping[str, Array], q: Array, k: Array, v: Array, allowed: Mask) -> Values:
    """Scores, probabilities, mixed values and the output projection; each KV head serves its group of query heads."""
    group = attention.heads // k.shape[2]
    k, v = np.repeat(k, group, axis=2), np.repeat(v, group, axis=2)
    scale = 1.0 / math.sqrt(attention.scale_dim or attention.head_dim)
    scores = softcap(np.einsum("sqhd,skhd->shqk", q, k) * scale, attention.softcap)
    sinks = weights["sinks"][None, :, None, None] if attention.sinks else None
    probabilities = softmax(scores, allowed[:, None], sinks)
    a = np.einsum("shqk,skhd->sqhd", probabilities, v)
    o = a.reshape(*a.shape[:2], -1) @ weights["o"]
    if attention.o_bias:
        o = o + weights["o_bias"]
    return {"scores": scores, "probabilities": probabilities, "a": a, "o": o}


def _grouped(attention: Attention, weights: Mapping[str, Array], xn: Array, tokens: Tokens) -> Values:
    """Projected q [S, L, H, qk], k [S, L, K, qk] and v [S, L, K, v]; then normed, then rotated."""
    widths = {"q": attention.head_dim, "k": attention.head_dim, "v": attention.v_head_dim}
    biased = {"q": attention.q_bias, "k": attention.kv_bias, "v": attention.kv_bias}
    values: Values = {}
    for name, width in widths.items():
        flat = xn @ weights[name]
        if biased[name]:
            flat = flat + weights[f"{name}_bias"]
        values[name] = flat.reshape(*flat.shape[:2], -1, width)
    for name in ("q", "k"):
        x = values[name]
        if attention.qk_norm != "none":
            factor = weights[f"{name}_norm"] if attention.qk_norm_weights else None
            x = values[f"{name}_normed"] = normalise(x, factor, None, "rms")
        values[f"{name}_rotated"] = rotate(x, tokens.positions, attention.rotary_dim, attention.rope)
    return values


def _latent(attention: Attention, weights: Mapping[str, Array], xn: Array, tokens: Tokens) -> Values:
    """MLA's projections: latent query, latent key/value with its one rotary key, and what both expand to."""
    sequences, length, _ = xn.shape
    values: Values = {}
    if attention.q_lora_rank is None:
        flat = xn @ weights["q"]
    else:
        values["qa"] = xn @ weights["q_a"]
        values["qan"] = normalise(values["qa"], weights["q_a_norm"], None, "rms")
        flat = values["qan"] @ weights["q_b"]
    values["q"] = flat.reshape(sequences, length, attention.heads, attention.nope_dim + attention.rope_dim)
    values["kva"] = xn @ weights["kv_a"]
    values["kvan"] = normalise(values["kva"][..., : attention.kv_lora_rank], weights["kv_a_norm"], None, "rms")
    expanded = values["kvan"] @ weights["kv_b"]
    values["kv"] = expanded.reshape(sequences, length, attention.heads, attention.nope_dim + attention.v_head_dim)
    q_rope, k_rope = values["q"][..., attention.nope_dim :], values["kva"][..., None, attention.kv_lora_rank :]
    values["q_rope"] = rotate(q_rope, tokens.positions, attention.rope_dim, attention.rope)
    values["k_rope"] = rotate(k_rope, tokens.positions, attention.rope_dim, attention.rope)[:, :, 0]
    return values


def _expanded(attention: Attention, latent: Values) -> tuple[Array, Array, Array]:
    """Whole queries, keys and values of every head; the rotary key is the same in all of them."""
    nope = attention.nope_dim
    queries = np.concatenate([latent["q"][..., :nope], latent["q_rope"]], axis=-1)
    shared = np.broadcast_to(latent["k_rope"][:, :, None], latent["q_rope"].shape)
    keys = np.concatenate([latent["kv"][..., :nope], shared], axis=-1)
    return queries, keys, latent["kv"][..., nope:]


def _index(
    attention: Attention,
    indexer: Indexer,
    weights: Mapping[str, Array],
    xn: Array,
    qan: Array,
    tokens: Tokens,
    allowed: Mask,
) -> dict[str, NDArray[Any]]:
    """Which keys each query keeps: the `top_k` best of those it may see, by DeepSeek-V3.2's index score.

    Score of query s for key t: sum over heads of w[s, h] / sqrt(heads) x relu(q[s, h] . k[t] / sqrt(head_dim)).
    """
    iq = (qan @ weights["index_q"]).reshape(*xn.shape[:2], indexer.heads, indexer.head_dim)
    ik = xn @ weights["index_k"]
    ikn = normalise(ik, weights["index_norm"], weights["index_norm_bias"], "layer")
    iw = xn @ weights["index_w"]
    query = rotate(iq, tokens.positions, attention.rope_dim, indexer.rope)
    key = rotate(ikn[:, :, None], tokens.positions, attention.rope_dim, indexer.rope)[:, :, 0]
    dots = np.einsum("sqhd,skd->sqhk", query, key) / math.sqrt(indexer.head_dim)
    scores = np.einsum("sqh,sqhk->sqk", iw / math.sqrt(indexer.heads), np.maximum(dots, 0.0))
    best = np.argsort(np.where(allowed, -scores, np.inf), axis=-1, kind="stable")[..., : indexer.top_k]
    picked = np.zeros(scores.shape, dtype=np.bool_)
    np.put_along_axis(picked, best, True, axis=-1)
    return {"iq": iq, "ik": ik, "ikn": ikn, "iw": iw, "index_scores": scores, "picked": picked & allowed}
