"""Backward kernels of attention on the heads of one GPU: fused and ring attention, rotation, QK norm."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from planner.check.reference import NORM_EPS
from planner.check.run.attention import Heads, fused_heads, grid, per_head, queries_keys, seen
from planner.check.run.context import expanded_queries, queries_keys_of
from planner.check.run.gradients import gradient, named, parts_for
from planner.check.run.rotary import rotate
from planner.check.run.site import Fault, Floats, Kernel, Site, Value

Bools = NDArray[np.bool_]


def attend_back(site: Site, heads: Heads, allowed: Bools, sinks: Floats | None) -> tuple[Floats, Floats, Floats, Floats | None]:
    """Gradients of queries, keys, values [sequences, tokens, heads, dims] and sinks [heads], from the whole result and its
    log-sum-exp, also where `heads` has a part of the keys only.
    """
    spec, result = site.split.attention, site.read("a")
    queries = heads.queries
    do = grid(per_head(gradient(site, "a", "ag"), heads.v.shape[-1]), queries)
    out = grid(per_head(result.array, heads.v.shape[-1]), queries)
    lse = result.beside["log_sum_exp"].transpose(0, 2, 1)
    k, v = heads.k[:, :, heads.kv_of_head], heads.v[:, :, heads.kv_of_head]
    raw = np.einsum("sqhd,skhd->shqk", heads.q, k, optimize=True) / np.sqrt(spec.scale_dim or spec.head_dim)
    scores = raw if spec.softcap is None else spec.softcap * np.tanh(raw / spec.softcap)
    safe = np.where(np.isfinite(lse), lse, 0.0)
    there = allowed[:, None] & np.isfinite(lse)[..., None]
    shares = np.where(there, np.exp(np.where(there, scores - safe[..., None], 0.0)), 0.0)
    along = np.einsum("sqhd,sqhd->shq", do, out)
    dscores = shares * (np.einsum("sqhd,skhd->shqk", do, v, optimize=True) - along[..., None])
    if spec.softcap is not None:
        dscores = dscores * (1.0 - (scores / spec.softcap) ** 2)
    dscores = dscores / np.sqrt(spec.scale_dim or spec.head_dim)
    dq = np.einsum("shqk,skhd->sqhd", dscores, k, optimize=True)
    dk, dv = np.zeros_like(heads.k), np.zeros_like(heads.v)
    of_keys = np.einsum("shqk,sqhd->skhd", dscores, heads.q, optimize=True)
    of_values = np.einsum("shqk,sqhd->skhd", shares, do, optimize=True)
    for head, own in enumerate(heads.kv_of_head):
        dk[:, :, own] += of_keys[:, :, head]
        dv[:, :, own] += of_values[:, :, head]
    dsinks = None if sinks is None else -(np.exp(sinks[None, :, None] - safe) * along).sum(axis=(0, 2))
    return dq, dk, dv, dsinks


def _flat(x: Floats) -> Floats:
    return x.reshape(x.shape[0] * x.shape[1], -1)


def fused(site: Site) -> Value:
    """Gradients of a fused kernel's inputs, and of its sinks."""
    sinks = site.weight("sinks") if site.holds("sinks") else None
    dq, dk, dv, dsinks = attend_back(site, *fused_heads(site), sinks)
    parts = _inputs(site, dq, dk, dv)
    found = named(parts)
    return found if dsinks is None else Value(found.array, {}, {**parts, "sinks": Value(dsinks)})


def _inputs(site: Site, dq: Floats, dk: Floats | None, dv: Floats | None) -> dict[str, Value]:
    """Gradients of the tensors that hold queries, keys and values; without `dk` and `dv` of the queries alone."""
    split, rows = site.split, dq.shape[0] * dq.shape[1]
    if split.attention.kind == "mla":
        nope = len(split.nope)
        turned = _flat(dq[..., nope:]).reshape(rows, -1, len(split.rope))
        key = np.zeros((rows, 1, len(split.rope))) if dk is None else dk[..., nope:].sum(axis=2).reshape(rows, 1, -1)
        q = np.concatenate([dq[..., :nope], np.zeros_like(dq[..., nope:])], axis=-1)
        parts = {"rotated": Value(np.concatenate([turned, key], axis=1).reshape(rows, -1)), "q": Value(_flat(q))}
        if dk is not None and dv is not None:
            parts["kv"] = Value(_flat(np.concatenate([dk[..., :nope], dv], axis=-1)))
        return parts
    keys = np.zeros((rows, len(split.kv_heads) * len(split.qk))) if dk is None else _flat(dk)
    name = next((name for name in ("rotated", "qk_normed") if site.has(name)), "")
    parts = {name: Value(np.concatenate([_flat(dq), keys], axis=1))} if name else {"q": Value(_flat(dq)), "k": Value(keys)}
    if dv is not None:
        parts["v"] = Value(_flat(dv))
    return parts


def ring_step(step: int) -> Kernel:
    """Gradients of one step of ring attention: of the queries, and of the block of keys and values that is there."""

    def run(site: Site) -> Value:
        split = site.split
        block = site.read(f"kv{step}")
        queries, keys = split.at.attention(split.place), split.at.block(split.place, int(block.beside["part"][0]))
        latent = split.attention.kind == "mla"
        count = len(split.heads) if latent else len(split.kv_heads)
        kv_of_head = np.arange(len(split.heads)) if latent else split.kv_of_head
        k = per_head(block.array[:, : count * len(split.qk)], len(split.qk))
        v = per_head(block.array[:, count * len(split.qk) :], len(split.v))
        q = expanded_queries(site) if latent else queries_keys_of(site)
        heads = Heads(grid(q, queries), grid(k, keys), grid(v, keys), queries, keys, kv_of_head)
        dq, dk, dv, _ = attend_back(site, heads, seen(split, queries, keys), None)
        travels = Value(np.concatenate([_flat(dk), _flat(dv)], axis=1), block.beside)
        return named({**_inputs(site, dq, None, None), "block": travels})

    return run


def block_gradient(site: Site) -> Value:
    """What a GPU passes on of a block's gradient: its own part and what came with the block."""
    found = parts_for(site, ("block",), unnamed=False)
    if not found:
        raise Fault("nothing delivers the gradient of its keys and values")
    parts = {int(value.beside["part"][0]) for value in found}
    if len(parts) > 1:
        raise Fault(f"it adds gradients of different blocks: {sorted(parts)}")
    return Value(np.asarray(np.sum([value.array for value in found], axis=0)), found[0].beside)


def home(site: Site, block: Value) -> Value:
    """A block's gradient that came home, as those of the tensors that keys and values were made of; on its way elsewhere."""
    split = site.split
    if int(block.beside["part"][0]) != split.context:
        return named({"block": block})
    latent = split.attention.kind == "mla"
    count, rows = len(split.heads) if latent else len(split.kv_heads), len(block.array)
    dk = per_head(block.array[:, : count * len(split.qk)], len(split.qk))
    dv = per_head(block.array[:, count * len(split.qk) :], len(split.v))
    width = len(split.heads) * len(split.qk)
    if latent:
        nope = len(split.nope)
        turned = np.zeros((rows, len(split.heads), len(split.rope)))
        both = np.concatenate([turned, dk[..., nope:].sum(axis=1, keepdims=True)], axis=1)
        kv = np.concatenate([dk[..., :nope], dv], axis=-1)
        return named({"rotated": Value(both.reshape(rows, -1)), "kv": Value(kv.reshape(rows, -1))})
    flat = dk.reshape(rows, -1)
    both = np.concatenate([np.zeros((rows, width)), flat], axis=1)
    return named({"rotated": Value(both), "qk_normed": Value(both), "k": Value(flat), "v": Value(dv.reshape(rows, -1))})


def rope_gradient(site: Site) -> Value:
    """Rotation back, from the gradient of the rotated queries and keys to those before."""
    split, spec = site.split, site.split.attention
    positions = split.world.positions[split.at.attention(split.place).reshape(-1)]
    both = gradient(site, "rotated")
    heads = len(split.heads)
    if spec.kind == "mla":
        turned = rotate(per_head(both, len(split.rope)), -positions, split.pairs, spec.rope_dim, spec.rope)
        q = np.concatenate([np.zeros((len(both), heads, len(split.nope))), turned[:, :heads]], axis=-1)
        key = np.concatenate([np.zeros((len(both), spec.kv_lora_rank)), turned[:, heads]], axis=1)
        return named({"q": Value(q.reshape(len(q), -1)), "kva": Value(key)})
    turned = rotate(per_head(both, len(split.qk)), -positions, split.pairs, spec.rotary_dim, spec.rope)
    if spec.qk_norm != "none":
        return named({"qk_normed": Value(turned.reshape(len(both), -1))})
    parts = {"q": turned[:, :heads], "k": turned[:, heads:]}
    return named({name: Value(x.reshape(len(both), -1)) for name, x in parts.items()})


def qk_norm_gradient(site: Site) -> Value:
    """Gradients of queries and keys before their norm, and of its factors: of the GPU's own heads."""
    split = site.split
    heads, width = len(split.heads), len(split.qk)
    both = np.concatenate(queries_keys(site), axis=1)
    dy = per_head(gradient(site, "qk_normed"), width)
    root = np.sqrt((both**2).mean(axis=-1, keepdims=True) + NORM_EPS)
    unit = both / root
    factors = np.ones_like(both)
    if site.holds("q_norm"):
        factors[:, :heads], factors[:, heads:] = site.weight("q_norm"), site.weight("k_norm")
    along = dy * factors
    dx = (along - unit * (unit * along).mean(axis=-1, keepdims=True)) / root
    parts = {"q": Value(dx[:, :heads].reshape(len(dx), -1)), "k": Value(dx[:, heads:].reshape(len(dx), -1))}
    found = named(parts)
    if not site.holds("q_norm"):
        return found
    own = (dy * unit)[:, :heads].sum(axis=(0, 1)), (dy * unit)[:, heads:].sum(axis=(0, 1))
    weights = {name: Value(value) for name, value in zip(("q_norm", "k_norm"), own, strict=True)}
    return Value(found.array, {}, {**parts, **weights})


KERNELS: dict[str, Kernel] = {
    "attention_backward": fused,
    "attention_0_backward": fused,
    "rope_backward": rope_gradient,
    "qk_norm_backward": qk_norm_gradient,
}
"""Kernels by operator; those of the later steps of a ring are made by `ring_step`."""
