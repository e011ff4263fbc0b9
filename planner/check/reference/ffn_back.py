"""The reverse pass of the feed-forward half of one layer, unsplit."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from planner.check.reference.derivatives import activate_back, softmax_back
from planner.check.reference.ffn import Routes, scores
from planner.check.reference.inputs import Array
from planner.check.reference.numerics import activate, sigmoid, softmax
from planner.model import Ffn

Grads = dict[str, Array]


def feed_back(ffn: Ffn, weights: Mapping[str, Array], values: Mapping[str, Array], xn: Array, df: Array) -> tuple[Array, Grads]:
    """Gradients of `xn` [S, L, hidden] and of every weight; `values` are the intermediates of the forward pass."""
    if ffn.kind == "dense":
        return _network_back(ffn, weights, xn, "", ffn.bias, df)
    return _mixture_back(ffn, weights, values, xn, df)


def _network_back(ffn: Ffn, weights: Mapping[str, Array], x: Array, prefix: str, bias: bool, df: Array) -> tuple[Array, Grads]:
    """One dense network on x [..., hidden]."""

    def project(name: str) -> Array:
        y: Array = x @ weights[f"{prefix}{name}"]
        return y + weights[f"{prefix}{name}_bias"] if bias else y

    up, gate = project("up"), project("gate") if ffn.gated else None
    active = activate(ffn.activation, up, gate)
    dactive = df @ weights[f"{prefix}down"].T
    dup, dgate = activate_back(ffn.activation, up, gate, dactive)
    grads: Grads = {}
    dx = np.zeros_like(x)
    for name, source, gradient in (("down", active, df), ("up", x, dup), ("gate", x, dgate)):
        if gradient is None:
            continue
        flat = gradient.reshape(-1, gradient.shape[-1])
        grads[f"{prefix}{name}"] = source.reshape(-1, source.shape[-1]).T @ flat
        if bias:
            grads[f"{prefix}{name}_bias"] = flat.sum(axis=0)
        if name != "down":
            dx = dx + gradient @ weights[f"{prefix}{name}"].T
    return dx, grads


def _mixture_back(
    ffn: Ffn, weights: Mapping[str, Array], values: Mapping[str, Array], xn: Array, df: Array
) -> tuple[Array, Grads]:
    routes, shares = values["routes"].astype(np.int64), values["route_weights"]
    spread = np.broadcast_to(df[:, :, None], values["expert_output"].shape)
    doutputs = spread if ffn.scale_input else spread * shares[..., None]
    dshares = np.zeros_like(shares) if ffn.scale_input else (spread * values["expert_output"]).sum(axis=-1)
    inputs = np.repeat(xn[:, :, None], routes.shape[-1], axis=2)
    if ffn.scale_input:
        inputs = inputs * shares[..., None]
    names = [name for name in weights if name.startswith("expert_")]
    grads: Grads = {name: np.zeros_like(weights[name]) for name in names}
    dinputs = np.zeros_like(inputs)
    for expert in range(ffn.experts):
        there = routes == expert
        if there.any():
            own = {name: weights[name][expert] for name in names}
            dinputs[there], found = _network_back(ffn, own, inputs[there], "expert_", ffn.bias, doutputs[there])
            for name, gradient in found.items():
                grads[name][expert] = gradient
    if ffn.scale_input:
        dshares = (dinputs * xn[:, :, None]).sum(axis=-1)
        dinputs = dinputs * shares[..., None]
    dxn = dinputs.sum(axis=2)
    dlogits = weigh_back(ffn, values["router_scores"], routes, dshares)
    grads["router"] = np.einsum("slk,sln->kn", xn, dlogits)
    if ffn.router_bias:
        grads["router_bias"] = dlogits.sum(axis=(0, 1))
    dxn = dxn + dlogits @ weights["router"].T
    if ffn.shared_hidden:
        dx, found = _shared_back(ffn, weights, xn, df)
        dxn, grads = dxn + dx, grads | found
    return dxn, grads


def _shared_back(ffn: Ffn, weights: Mapping[str, Array], xn: Array, df: Array) -> tuple[Array, Grads]:
    """The shared experts behind their gate, where they have one."""
    if not ffn.shared_gate:
        return _network_back(ffn, weights, xn, "shared_", False, df)
    opening = sigmoid(xn @ weights["shared_router"])
    gate = xn @ weights["shared_gate"] if ffn.gated else None
    shared = activate(ffn.activation, xn @ weights["shared_up"], gate) @ weights["shared_down"]
    dx, grads = _network_back(ffn, weights, xn, "shared_", False, df * opening)
    dlogit = (df * shared).sum(axis=-1, keepdims=True) * opening * (1.0 - opening)
    grads["shared_router"] = np.einsum("slk,sln->kn", xn, dlogit)
    return dx + dlogit @ weights["shared_router"].T, grads


def weigh_back(ffn: Ffn, logits: Array, routes: Routes, dshares: Array) -> Array:
    """Gradient of the router's logits [S, L, E] from that of the factors of the chosen experts [S, L, k]."""
    every = scores(ffn, logits)
    chosen = np.take_along_axis(every, routes, axis=-1)
    picked = softmax(chosen) if ffn.scoring == "softmax_top_k" else chosen
    dpicked = dshares * ffn.routed_scale
    if ffn.renormalize:
        total = picked.sum(axis=-1, keepdims=True)
        dpicked = (dpicked - (dpicked * picked).sum(axis=-1, keepdims=True) / total) / total
    dchosen = softmax_back(picked, dpicked) if ffn.scoring == "softmax_top_k" else dpicked
    devery = np.zeros_like(logits)
    np.put_along_axis(devery, routes, dchosen, axis=-1)
    if ffn.scoring == "sigmoid":
        return devery * every * (1.0 - every)
    return softmax_back(every, devery) if ffn.scoring == "softmax" else devery
