"""Kernels of attention on the heads of one GPU: projections, norm and rotation, fused attention, output projection."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from planner.check.reference import NORM_EPS
from planner.check.run.kernels import norm, product
from planner.check.run.rotary import rotate
from planner.check.run.site import Fault, Floats, Kernel, Site, Value
from planner.check.run.split import Split
from planner.model import Attention

Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]


@dataclass(frozen=True)
class Heads:
    """Queries, keys and values of a GPU: [sequences, tokens, heads, dims]; tokens by number, [sequences, tokens].

    `kv_of_head` is the place of each query head's KV head.
    """

    q: Floats
    k: Floats
    v: Floats
    queries: Ints
    keys: Ints
    kv_of_head: Ints


def projection(name: str) -> Kernel:
    """Q, K or V projection of the GPU's heads."""
    return lambda site: Value(product(site, site.array("xg"), name))


def queries_keys(site: Site) -> tuple[Floats, Floats]:
    """Queries and keys as far as they are finished: [tokens, heads, dims] and [tokens, KV heads, dims]."""
    split = site.split
    heads, width = len(split.heads), len(split.qk)
    for name in ("rotated", "qk_normed"):
        if site.has(name):
            both = per_head(site.array(name), width)
            return both[:, :heads], both[:, heads:]
    return per_head(site.array("q"), width), per_head(site.array("k"), width)


def per_head(x: Floats, width: int) -> Floats:
    """Columns as heads of `width` dims."""
    if x.shape[1] % width:
        raise Fault(f"{x.shape[1]} columns are no whole number of heads of {width} dims")
    return x.reshape(len(x), -1, width)


def square_sums(site: Site) -> Value:
    """Sums of squares of a GPU's dims of every query and key head, what QK norm adds up over segments."""
    q, k = queries_keys(site)
    return Value((np.concatenate([q, k], axis=1) ** 2).sum(axis=-1))


def qk_norm(site: Site) -> Value:
    """RMS norm of every query and key head over all its dims."""
    spec = site.split.attention
    both = np.concatenate(queries_keys(site), axis=1)
    squares = site.array("squares") if site.has("squares") else (both**2).sum(axis=-1)
    both = both / np.sqrt(squares[..., None] / spec.head_dim + NORM_EPS)
    if site.holds("q_norm"):
        heads = len(site.split.heads)
        both[:, :heads] *= site.weight("q_norm")
        both[:, heads:] *= site.weight("k_norm")
    return Value(both.reshape(len(both), -1))


def rope(site: Site) -> Value:
    """Rotation of queries and keys by the positions of their tokens."""
    split, spec = site.split, site.split.attention
    positions = split.world.positions[split.at.attention(split.place).reshape(-1)]
    if spec.kind == "mla":
        q = per_head(site.array("q"), len(split.qk))[..., len(split.nope) :]
        k = site.array("kva")[:, None, spec.kv_lora_rank + split.rope]
        parts = [rotate(x, positions, split.pairs, spec.rope_dim, spec.rope) for x in (q, k)]
    else:
        parts = [rotate(x, positions, split.pairs, spec.rotary_dim, spec.rope) for x in queries_keys(site)]
    both = np.concatenate(parts, axis=1)
    return Value(both.reshape(len(both), -1))


def write_cache(site: Site) -> Value:
    """The new entries of the KV cache; in decode the context parts of a GPU group share the tokens."""
    split = site.split
    if split.attention.kind == "mla":
        rotated = site.array("rotated")
        entries = np.concatenate([site.array("kvan"), rotated[:, -len(split.rope) :]], axis=1)
    else:
        k = queries_keys(site)[1]
        entries = np.concatenate([k.reshape(len(k), -1), site.array("v")], axis=1)
    return Value(entries[written_rows(split, len(entries))])


def written_rows(split: Split, tokens: int) -> Ints:
    """The tokens whose new cache entries a GPU keeps."""
    if not split.at.decode:
        return np.arange(tokens)
    parts, context = split.partition.context_parts, split.context
    sizes = [(tokens + parts - 1 - c) // parts for c in range(parts)]
    return np.arange(sum(sizes[:context]), sum(sizes[: context + 1]))


def seen(split: Split, queries: Ints, keys: Ints) -> Bools:
    """Which keys each query may see, [sequences, queries, keys]: of tokens that are there, in reach of its position."""
    world, spec = split.world, split.attention
    q, k = world.positions[queries][:, :, None], world.positions[keys][:, None, :]
    there = world.valid[keys] & (keys >= 0)
    found: Bools = np.broadcast_to(there[:, None, :], (*queries.shape, keys.shape[1])).copy()
    if spec.causal:
        found &= k <= q
    if spec.window is not None:
        found &= q - k < spec.window
    if spec.chunk is not None:
        found &= q // spec.chunk == k // spec.chunk
    return found


def scaled(spec: Attention, scores: Floats) -> Floats:
    """Scores of whole heads: divided by the root of the head's dims, capped where the model caps them."""
    scores = scores / np.sqrt(spec.scale_dim or spec.head_dim)
    return scores if spec.softcap is None else spec.softcap * np.tanh(scores / spec.softcap)


def attend(site: Site, heads: Heads, allowed: Bools, sinks: Floats | None) -> Value:
    """Softmax-weighted values with their log-sum-exp [sequences, queries, heads], of which zero keys leave -inf."""
    k, v = heads.k[:, :, heads.kv_of_head], heads.v[:, :, heads.kv_of_head]
    scores = scaled(site.split.attention, np.einsum("sqhd,skhd->shqk", heads.q, k, optimize=True))
    scores = np.where(allowed[:, None], scores, -np.inf)
    if sinks is not None:
        extra = np.broadcast_to(sinks[None, :, None, None], (*scores.shape[:3], 1))
        top = np.maximum(scores.max(axis=-1, initial=-np.inf), extra[..., 0])
    else:
        top = scores.max(axis=-1, initial=-np.inf)
    safe = np.where(np.isfinite(top), top, 0.0)
    weights = np.exp(scores - safe[..., None])
    total = weights.sum(axis=-1)
    if sinks is not None:
        total = total + np.exp(sinks[None, :, None] - safe)
    with np.errstate(divide="ignore"):
        lse = np.where(total > 0, safe + np.log(total), -np.inf)
    out = np.einsum("shqk,skhd->sqhd", weights / np.where(total > 0, total, 1.0)[..., None], v, optimize=True)
    return Value(out.reshape(out.shape[0] * out.shape[1], -1), {"log_sum_exp": lse.transpose(0, 2, 1)})


def grid(x: Floats, tokens: Ints) -> Floats:
    """[tokens, heads, dims] as [sequences, tokens, heads, dims]."""
    if len(x) != tokens.size:
        raise Fault(f"{len(x)} tokens where the GPU's part is {tokens.size}")
    return x.reshape(*tokens.shape, *x.shape[1:])


def _sinks(site: Site) -> Floats | None:
    """The heads' extra logits, counted by one context part only."""
    if not site.holds("sinks"):
        return None
    sinks = site.weight("sinks")
    return sinks if not site.split.at.decode or site.split.context == 0 else None


def fused(site: Site) -> Value:
    """A fused kernel: all keys that the GPU has for its queries."""
    return attend(site, *fused_heads(site), _sinks(site))


def fused_heads(site: Site) -> tuple[Heads, Bools]:
    """What a fused kernel reads, and which keys its queries see."""
    split = site.split
    heads = latent_heads(site) if split.attention.kind == "mla" else grouped_heads(site)
    allowed = seen(split, heads.queries, heads.keys)
    if site.has("picked"):
        allowed &= picked(site, heads.keys)
    return heads, allowed


def grouped_heads(site: Site) -> Heads:
    """Queries, keys and values of grouped-query attention."""
    split = site.split
    queries = split.at.attention(split.place)
    q, k = queries_keys(site)
    width = len(split.v)
    if not split.at.decode:
        v = per_head(site.array("v"), width)
        return Heads(grid(q, queries), grid(k, queries), grid(v, queries), queries, queries, split.kv_of_head)
    k, v, keys = cached_heads(site)
    return Heads(grid(q, queries), k, v, queries, keys, split.kv_of_head)


def cached_heads(site: Site) -> tuple[Floats, Floats, Ints]:
    """Keys and values of a decode step, [sequences, keys, KV heads, dims], and the keys by number: cache and new entries."""
    split, entries = site.split, cache_entries(site)
    count, width = len(split.kv_heads), len(split.qk)
    new_k = entries[:, : count * width].reshape(len(entries), count, width)
    new_v = entries[:, count * width :].reshape(len(entries), count, len(split.v))
    keys, old = _cached(site, ("attention.k_rotated", "k"), ("attention.v", "v"))
    return _with_new(split, [x.reshape(*keys.shape, count, -1) for x in old], [new_k, new_v])


def cache_entries(site: Site) -> Floats:
    """The new cache entries that the GPU keeps: none where the other context parts keep them all."""
    if len(written_rows(site.split, site.split.at.attention(site.split.place).size)):
        return site.array("cache")
    return np.zeros((0, len(site.split.kv_heads) * (len(site.split.qk) + len(site.split.v))))


def key_tokens(split: Split) -> Ints:
    """The keys that a GPU has, by number [sequences, keys]; -1 where there is none."""
    tokens = split.at.attention(split.place)
    if not split.at.decode:
        return tokens
    new = tokens.reshape(-1)
    elsewhere = np.full((len(new), 1), -1)
    rows = written_rows(split, len(new))
    elsewhere[rows, 0] = new[rows]
    return np.concatenate([split.at.cached(split.place, split.context), elsewhere], axis=1)


def _cached(site: Site, *tensors: tuple[str, str]) -> tuple[Ints, list[Floats]]:
    """Keys in the GPU's cache before this step, and cached tensors [tokens, columns] of its part of an axis."""
    split = site.split
    keys = split.at.cached(split.place, split.context)
    found = []
    for name, axis in tensors:
        whole = split.world.expected(site.layer_index, name)[keys.reshape(-1)]
        found.append(whole[:, split.index(axis)] if axis else whole)
    return keys, found


def _with_new(split: Split, old: list[Floats], new: list[Floats]) -> tuple[Floats, Floats, Ints]:
    """Cached and new entries of keys and values together; a sequence whose new entry is elsewhere gets an unseen one."""
    tokens = split.at.attention(split.place).reshape(-1)
    rows = written_rows(split, len(tokens))
    parts = []
    for before, entry in zip(old, new, strict=True):
        added = np.zeros((len(tokens), 1, *before.shape[2:]))
        if len(rows):
            added[rows, 0] = entry
        parts.append(np.concatenate([before, added], axis=1))
    return parts[0], parts[1], key_tokens(split)


def latent_heads(site: Site) -> Heads:
    """Expanded keys and values in prefill; in decode the latent cache serves as both, for absorbed queries."""
    split, spec = site.split, site.split.attention
    queries = split.at.attention(split.place)
    rotated = per_head(site.array("rotated"), len(split.rope))
    heads = len(split.heads)
    if split.at.decode:
        absorbed = per_head(site.array("ql"), spec.kv_lora_rank)
        q = np.concatenate([absorbed, rotated[:, :heads]], axis=-1)
        entries = cache_entries(site)
        keys, (latent, turned) = _cached(site, ("attention.kvan", ""), ("attention.k_rope", ""))
        old = np.concatenate([latent, turned], axis=1).reshape(*keys.shape, 1, -1)
        k, _, keys = _with_new(split, [old, old], [entries[:, None], entries[:, None]])
        return Heads(grid(q, queries), k, k[..., : spec.kv_lora_rank], queries, keys, np.zeros(heads, dtype=np.int64))
    q, k, v = expanded(site, rotated)
    return Heads(grid(q, queries), grid(k, queries), grid(v, queries), queries, queries, np.arange(heads))


def expanded(site: Site, rotated: Floats) -> tuple[Floats, Floats, Floats]:
    """Queries, keys and values of latent attention in full: [tokens, heads, the GPU's dims]."""
    split, nope, heads = site.split, len(site.split.nope), len(site.split.heads)
    q = np.concatenate([per_head(site.array("q"), len(split.qk))[..., :nope], rotated[:, :heads]], axis=-1)
    kv = per_head(site.array("kv"), nope + len(split.v))
    shared = np.broadcast_to(rotated[:, heads:], (len(kv), heads, rotated.shape[-1]))
    return q, np.concatenate([kv[..., :nope], shared], axis=-1), kv[..., nope:]


def absorb_query(site: Site) -> Value:
    """Queries times the key half of the up-projection: they meet the latent cache directly."""
    split, spec = site.split, site.split.attention
    q = per_head(site.array("q"), len(split.qk))[..., : spec.nope_dim]
    up = site.weight("kv_b").reshape(spec.kv_lora_rank, len(split.heads), -1)[..., : spec.nope_dim]
    return Value(np.einsum("thd,rhd->thr", q, up).reshape(len(q), -1))


def absorb_value(site: Site) -> Value:
    """Latent outputs times the value half of the up-projection, for the heads that the GPU finishes."""
    split, spec = site.split, site.split.attention
    latent = per_head(site.array("a"), spec.kv_lora_rank)
    mine = np.isin(split.heads, split.own_heads)
    up = site.resident("kv_b").reshape(spec.kv_lora_rank, len(split.heads), -1)[:, mine, spec.nope_dim :]
    if latent.shape[1] != up.shape[1]:
        raise Fault(f"{latent.shape[1]} heads meet the up-projection of {up.shape[1]}")
    return Value(np.einsum("thr,rhd->thd", latent, up).reshape(len(latent), -1))


def output_projection(site: Site) -> Value:
    """Output projection of the GPU's rows or columns; of the GPUs whose parts are summed, the first adds the bias."""
    split = site.split
    columns_split = split.partition.output_projection == "gather" and split.holders > 1
    return Value(product(site, site.array("ag", "av", "a"), "o", add_bias=columns_split or split.place % split.holders == 0))


def picked(site: Site, keys: Ints) -> Bools:
    """Of some keys those that the indexer picked, [sequences, queries, keys]."""
    chosen = site.read("picked").beside["tokens"]
    queries = site.split.at.attention(site.split.place)
    wanted = chosen.reshape(*queries.shape, -1)
    return np.array([[np.isin(keys[s], wanted[s, q]) for q in range(queries.shape[1])] for s in range(len(queries))])


KERNELS: dict[tuple[str, str], Kernel] = {
    ("attention", "q_proj"): projection("q"),
    ("attention", "k_proj"): projection("k"),
    ("attention", "v_proj"): projection("v"),
    ("attention", "qk_norm"): qk_norm,
    ("attention", "rope"): rope,
    ("attention", "kv_write"): write_cache,
    ("attention", "q_a_proj"): projection("q_a"),
    ("attention", "q_a_norm"): lambda site: Value(norm(site.array("qa"), site.weight("q_a_norm"))),
    ("attention", "q_b_proj"): lambda site: Value(product(site, site.array("qan"), "q_b")),
    ("attention", "kv_a_proj"): projection("kv_a"),
    ("attention", "kv_a_norm"): lambda site: Value(
        norm(site.array("kva")[:, : site.split.attention.kv_lora_rank], site.weight("kv_a_norm"))
    ),
    ("attention", "kv_b_proj"): lambda site: Value(product(site, site.array("kvan"), "kv_b")),
    ("attention", "q_absorb"): absorb_query,
    ("attention", "v_absorb"): absorb_value,
    ("attention", "attention"): fused,
    ("attention", "attention_0"): fused,
    ("attention", "o_proj"): output_projection,
}
"""Kernels by role and operator."""
