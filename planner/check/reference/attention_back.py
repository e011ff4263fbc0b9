"""The reverse pass of attention of one layer, unsplit: from the gradient of its output to those of its input and weights."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np

from planner.check.reference.derivatives import normalise_back, softcap_back, softmax_back
from planner.check.reference.inputs import Array, Tokens
from planner.check.reference.numerics import rotate
from planner.model import Attention

Values = dict[str, Array]
Grads = dict[str, Array]


def attend_back(
    spec: Attention, weights: Mapping[str, Array], values: Mapping[str, Array], xn: Array, tokens: Tokens, do: Array
) -> tuple[Array, Grads]:
    """Gradients of `xn` [S, L, hidden] and of every weight; `values` are the intermediates of the forward pass."""
    grads: Grads = {"o": _outer(values["a"].reshape(*do.shape[:2], -1), do)}
    if spec.o_bias:
        grads["o_bias"] = do.sum(axis=(0, 1))
    da = (do @ weights["o"].T).reshape(values["a"].shape)
    if spec.kind == "mla":
        return _latent_back(spec, weights, values, xn, tokens, da, grads)
    q, k, v = values["q_rotated"], values["k_rotated"], values["v"]
    dq, dk, dv = _mix_back(spec, weights, values, (q, k, v), da, grads)
    back = {"q": dq, "k": dk, "v": dv}
    for name in ("q", "k"):
        turned = rotate(back[name], -tokens.positions, spec.rotary_dim, spec.rope)
        if spec.qk_norm != "none":
            factor = weights[f"{name}_norm"] if spec.qk_norm_weights else None
            turned, dfactor, _ = normalise_back(values[name], factor, "rms", turned)
            if factor is not None:
                grads[f"{name}_norm"] = dfactor
        back[name] = turned
    dxn = np.zeros_like(xn)
    for name, biased in (("q", spec.q_bias), ("k", spec.kv_bias), ("v", spec.kv_bias)):
        flat = back[name].reshape(*xn.shape[:2], -1)
        grads[name] = _outer(xn, flat)
        if biased:
            grads[f"{name}_bias"] = flat.sum(axis=(0, 1))
        dxn += flat @ weights[name].T
    return dxn, grads


def _mix_back(
    spec: Attention, weights: Mapping[str, Array], values: Mapping[str, Array], qkv: tuple[Array, Array, Array], da: Array,
    grads: Grads,
) -> tuple[Array, Array, Array]:  # fmt: skip
    """Gradients of queries, keys and values of every head; those of a KV head are summed over its query heads."""
    q, k, v = qkv
    group = spec.heads // k.shape[2]
    probabilities = values["probabilities"]
    dprobabilities = np.einsum("sqhd,skhd->shqk", da, np.repeat(v, group, axis=2))
    dscores = softmax_back(probabilities, dprobabilities)
    if spec.sinks:
        missing = 1.0 - probabilities.sum(axis=-1)
        grads["sinks"] = -(missing * (probabilities * dprobabilities).sum(axis=-1)).sum(axis=(0, 2))
    dscores = softcap_back(values["scores"], spec.softcap, dscores) / math.sqrt(spec.scale_dim or spec.head_dim)
    dq = np.einsum("shqk,skhd->sqhd", dscores, np.repeat(k, group, axis=2))
    dk = np.einsum("shqk,sqhd->skhd", dscores, q)
    dv = np.einsum("shqk,sqhd->skhd", probabilities, da)
    return dq, _grouped(dk, group), _grouped(dv, group)


def _grouped(x: Array, group: int) -> Array:
    return np.asarray(x.reshape(*x.shape[:2], -1, group, x.shape[-1]).sum(axis=3))


def _latent_back(
    spec: Attention, weights: Mapping[str, Array], values: Mapping[str, Array], xn: Array, tokens: Tokens, da: Array,
    grads: Grads,
) -> tuple[Array, Grads]:  # fmt: skip
    nope, rank = spec.nope_dim, spec.kv_lora_rank
    shared = np.broadcast_to(values["k_rope"][:, :, None], values["q_rope"].shape)
    q = np.concatenate([values["q"][..., :nope], values["q_rope"]], axis=-1)
    k = np.concatenate([values["kv"][..., :nope], shared], axis=-1)
    dq, dk, dv = _mix_back(spec, weights, values, (q, k, values["kv"][..., nope:]), da, grads)
    dkv = np.concatenate([dk[..., :nope], dv], axis=-1).reshape(*xn.shape[:2], -1)
    back = rotate(dq[..., nope:], -tokens.positions, spec.rope_dim, spec.rope)
    dq = np.concatenate([dq[..., :nope], back], axis=-1).reshape(*xn.shape[:2], -1)
    key = rotate(dk[..., nope:].sum(axis=2, keepdims=True), -tokens.positions, spec.rope_dim, spec.rope)[:, :, 0]
    grads["kv_b"] = _outer(values["kvan"], dkv)
    dlatent, grads["kv_a_norm"], _ = normalise_back(
        values["kva"][..., :rank], weights["kv_a_norm"], "rms", dkv @ weights["kv_b"].T
    )
    dkva = np.concatenate([dlatent, key], axis=-1)
    grads["kv_a"] = _outer(xn, dkva)
    dxn = dkva @ weights["kv_a"].T
    if spec.q_lora_rank is None:
        grads["q"] = _outer(xn, dq)
        return dxn + dq @ weights["q"].T, grads
    grads["q_b"] = _outer(values["qan"], dq)
    dqa, grads["q_a_norm"], _ = normalise_back(values["qa"], weights["q_a_norm"], "rms", dq @ weights["q_b"].T)
    grads["q_a"] = _outer(xn, dqa)
    return dxn + dqa @ weights["q_a"].T, grads


def _outer(x: Array, dy: Array) -> Array:
    """Gradient of the weight in x @ weight."""
    return np.asarray(np.einsum("slk,sln->kn", x, dy))
