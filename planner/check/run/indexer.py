"""Kernels of the sparse-attention indexer: index scores of all keys, and the best of them for every query."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from planner.check.run.attention import seen
from planner.check.run.kernels import norm, product
from planner.check.run.rotary import rotate
from planner.check.run.site import Fault, Floats, Kernel, Site, Value
from planner.model import Indexer

Ints = NDArray[np.int64]


def index_queries(site: Site) -> Value:
    """Index queries, from the latent query where the model has one."""
    return Value(product(site, site.array("qan", "xg"), "index_q"))


def _indexer(site: Site) -> Indexer:
    indexer = site.split.attention.indexer
    if indexer is None:
        raise Fault("its layer has no indexer")
    return indexer


def index_scores(site: Site) -> Value:
    """Scores of every key that the sequence has, [tokens, keys]: weighted sums over heads of positive products only."""
    indexer, split, spec = _indexer(site), site.split, site.split.attention
    queries = split.at.attention(split.place)
    keys, held = _keys(site, queries)
    positions, pairs = split.world.positions, np.arange(spec.rope_dim // 2)
    iq = site.array("iq").reshape(queries.size, indexer.heads, -1)
    iq = rotate(iq, positions[queries.reshape(-1)], pairs, spec.rope_dim, indexer.rope)
    ik = rotate(held[:, None], positions[keys.reshape(-1)], pairs, spec.rope_dim, indexer.rope)
    dots = np.einsum("sqhd,skd->sqhk", iq.reshape(*queries.shape, *iq.shape[1:]), ik.reshape(*keys.shape, -1))
    weights = site.array("iw").reshape(*queries.shape, -1) / math.sqrt(indexer.heads)
    scores = np.einsum("sqh,sqhk->sqk", weights, np.maximum(dots / math.sqrt(indexer.head_dim), 0.0))
    return Value(scores.reshape(queries.size, -1), {"keys": keys})


def _keys(site: Site, queries: Ints) -> tuple[Ints, Floats]:
    """Keys by number [sequences, keys] and their index keys [all of them, dims]: cached ones, and those of this step."""
    split, new = site.split, site.array("ikn")
    if not split.at.decode:
        return queries, new
    sequences = queries[:, 0] // split.world.length
    keys = sequences[:, None] * split.world.length + np.arange(split.world.length)[None, :]
    held = split.world.expected(site.layer_index, "attention.ikn")[keys.reshape(-1)].copy()
    place = {int(key): row for row, key in enumerate(keys.reshape(-1))}
    for token, row in zip(queries.reshape(-1), new, strict=True):
        held[place[int(token)]] = row
    return keys, held


def index_top_k(site: Site) -> Value:
    """The best keys of every query by number, -2 where it may see fewer."""
    split, scores = site.split, site.read("index_scores")
    queries, keys = split.at.attention(split.place), np.asarray(scores.beside["keys"], dtype=np.int64)
    allowed = seen(split, queries, keys).reshape(queries.size, -1)
    ranked = np.where(allowed, scores.array, -np.inf)
    best = np.argsort(-ranked, axis=1, kind="stable")[:, : _indexer(site).top_k]
    numbers = np.repeat(keys, queries.shape[1], axis=0)
    chosen = np.where(np.take_along_axis(allowed, best, axis=1), np.take_along_axis(numbers, best, axis=1), -2)
    return Value(np.take_along_axis(scores.array, best, axis=1), {"tokens": chosen})


KERNELS: dict[tuple[str, str], Kernel] = {
    ("attention", "index_q"): index_queries,
    ("attention", "index_k"): lambda site: Value(product(site, site.array("xg"), "index_k")),
    ("attention", "index_norm"): lambda site: Value(norm(site.array("ik"), site.weight("index_norm"))),
    ("attention", "index_w"): lambda site: Value(product(site, site.array("xg"), "index_w")),
    ("attention", "index_score"): index_scores,
    ("attention", "index_top_k"): index_top_k,
}
"""Kernels by role and operator."""
