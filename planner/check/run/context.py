"""Kernels of attention over context parts: ring steps in prefill, the merge of partial outputs in decode."""

from __future__ import annotations

import numpy as np

from planner.check.run.attention import Heads, attend, expanded, grid, per_head, queries_keys, seen
from planner.check.run.site import Fault, Floats, Kernel, Site, Value


def key_block(site: Site) -> Value:
    """What a ring step passes on: the block that came, or the GPU's own keys and values, with its context part."""
    step = next((name for name in site.delivered if name.startswith("kv") and name[2:].isdigit()), "")
    if step:
        return site.read(step)
    split = site.split
    if split.attention.kind == "mla":
        _, k, v = expanded(site, per_head(site.array("rotated"), len(split.rope)))
    else:
        k, v = queries_keys(site)[1], per_head(site.array("v"), len(split.v))
    block = np.concatenate([k.reshape(len(k), -1), v.reshape(len(v), -1)], axis=1)
    return Value(block, {"part": np.array([split.context])})


def ring_step(step: int) -> Kernel:
    """Attend the block that arrived, and merge with what the steps before found."""

    def run(site: Site) -> Value:
        split = site.split
        block, before = site.read(f"kv{step}"), site.read(f"a{step - 1}")
        queries, keys = split.at.attention(split.place), split.at.block(split.place, int(block.beside["part"][0]))
        latent = split.attention.kind == "mla"
        kv_of_head = np.arange(len(split.heads)) if latent else split.kv_of_head
        count = len(split.heads) if latent else len(split.kv_heads)
        qk, v = len(split.qk), len(split.v)
        k_part, v_part = block.array[:, : count * qk], block.array[:, count * qk :]
        q = expanded_queries(site) if latent else queries_keys_of(site)
        heads = Heads(
            grid(q, queries), grid(per_head(k_part, qk), keys), grid(per_head(v_part, v), keys), queries, keys, kv_of_head
        )
        found = attend(site, heads, seen(split, queries, keys), None)
        return merged([before, found], [before.beside["log_sum_exp"], found.beside["log_sum_exp"]])

    return run


def queries_keys_of(site: Site) -> Floats:
    """The queries alone, from whichever tensor has them."""
    split = site.split
    for name in ("rotated", "qk_normed", "q"):
        if site.has(name):
            return per_head(site.array(name), len(split.qk))[:, : len(split.heads)]
    raise Fault("nothing delivers its queries")


def expanded_queries(site: Site) -> Floats:
    """The queries of latent attention in full."""
    split, heads = site.split, len(site.split.heads)
    rotated = per_head(site.array("rotated"), len(split.rope))[:, :heads]
    return np.concatenate([per_head(site.array("q"), len(split.qk))[..., : len(split.nope)], rotated], axis=-1)


def merged(parts: list[Value], sums: list[Floats]) -> Value:
    """Partial attention outputs over disjoint keys, each weighted by its share of the softmax's denominator."""
    lse = np.logaddexp.reduce(np.stack(sums), axis=0)
    safe = np.where(np.isfinite(lse), lse, 0.0)
    out = np.zeros_like(parts[0].array)
    for part, own in zip(parts, sums, strict=True):
        share = np.exp(own - safe).reshape(len(out), own.shape[-1])
        dims = out.shape[1] // max(share.shape[1], 1)
        out += part.array * np.repeat(share, dims, axis=1)
    return Value(out, {"log_sum_exp": lse})


def merge(site: Site) -> Value:
    """The outputs of all context parts for the GPU's own heads, as one."""
    split, arrived = site.split, site.read("partials")
    tokens = split.at.attention(split.place).size
    parts = arrived.array.reshape(split.partition.context_parts, tokens, arrived.array.shape[-1])
    sums = arrived.beside["log_sum_exp"]
    return Value(merged([Value(part) for part in parts], list(sums)).array)


KERNELS: dict[tuple[str, str], Kernel] = {("attention", "merge"): merge}
"""Kernels by role and operator; those of ring steps are made by `ring_step`."""
