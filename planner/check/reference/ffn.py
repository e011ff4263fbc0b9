"""The feed-forward half of one layer, unsplit: a dense network, or a router with its routed and shared experts.

Shapes: S sequences of L tokens, E experts of which each token visits k.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from planner.check.reference.inputs import Array
from planner.check.reference.numerics import activate, sigmoid, softmax
from planner.model import Ffn

Routes = NDArray[np.int64]


def feed(ffn: Ffn, weights: Mapping[str, Array], xn: Array, forced: Routes | None = None) -> dict[str, NDArray[Any]]:
    """Every intermediate from the normalised input `xn` [S, L, hidden] to the output ``f`` [S, L, hidden].

    `forced` [S, L, k] takes the place of the router's choice; the weights of the chosen still come from its scores.
    """
    if ffn.kind == "dense":
        return dict(_network(ffn, weights, xn, "", ffn.bias))
    return _mixture(ffn, weights, xn, forced)


def _network(ffn: Ffn, weights: Mapping[str, Array], x: Array, prefix: str, bias: bool) -> dict[str, Array]:
    """One dense network: gate, up, what the activation makes of them, and the output f."""

    def project(name: str, of: Array) -> Array:
        y = of @ weights[f"{prefix}{name}"]
        return y + weights[f"{prefix}{name}_bias"] if bias else y

    values = {"gate": project("gate", x)} if ffn.gated else {}
    values["up"] = project("up", x)
    values["active"] = activate(ffn.activation, values["up"], values.get("gate"))
    values["f"] = project("down", values["active"])
    return values


def _mixture(ffn: Ffn, weights: Mapping[str, Array], xn: Array, forced: Routes | None) -> dict[str, NDArray[Any]]:
    logits = xn @ weights["router"]
    if ffn.router_bias:
        logits = logits + weights["router_bias"]
    correction = weights["correction_bias"] if ffn.correction_bias else None
    routes = choose(ffn, logits, correction) if forced is None else forced
    shares = weigh(ffn, logits, routes)
    outputs = _experts(ffn, weights, xn, routes, shares)
    mixed = outputs if ffn.scale_input else outputs * shares[..., None]
    values: dict[str, NDArray[Any]] = {"router_scores": logits, "routes": routes, "route_weights": shares}
    values["expert_output"] = outputs
    f = mixed.sum(axis=2)
    if ffn.shared_hidden:
        shared = _network(ffn, weights, xn, "shared_", False)
        names = {"gate": "shared_gate_proj", "up": "shared_up", "active": "shared_active", "f": "shared"}
        values |= {names[name]: value for name, value in shared.items()}
        visited = shared["f"]
        if ffn.shared_gate:
            values["shared_gate"] = opening = sigmoid(xn @ weights["shared_router"])
            visited = values["shared"] = visited * opening
        f = f + visited
    values["f"] = f
    return values


def scores(ffn: Ffn, logits: Array) -> Array:
    """What the choice goes by, [S, L, E]; for softmax_top_k the logits themselves."""
    if ffn.scoring == "sigmoid":
        return sigmoid(logits)
    return softmax(logits) if ffn.scoring == "softmax" else logits


def choose(ffn: Ffn, logits: Array, correction: Array | None = None) -> Routes:
    """The experts of each token, best first, [S, L, k]; of equals the one with the lower index.

    `correction` [E] is added to the scores before groups and experts are picked.
    """
    ranked = scores(ffn, logits)
    if correction is not None:
        ranked = ranked + correction
    if ffn.top_k_groups < ffn.expert_groups:
        grouped = ranked.reshape(*ranked.shape[:-1], ffn.expert_groups, -1)
        counted = 1 if ffn.group_score == "max" else 2
        group_scores = np.sort(grouped, axis=-1)[..., -counted:].sum(axis=-1)
        closed = np.ones(group_scores.shape, dtype=np.bool_)
        np.put_along_axis(closed, _best(group_scores, ffn.top_k_groups), False, axis=-1)
        ranked = np.where(closed[..., None], -np.inf, grouped).reshape(ranked.shape)
    return _best(ranked, ffn.top_k)


def weigh(ffn: Ffn, logits: Array, routes: Routes) -> Array:
    """The factor of each chosen expert, [S, L, k]; the bias that corrects the choice has no part in it."""
    chosen = np.take_along_axis(scores(ffn, logits), routes, axis=-1)
    if ffn.scoring == "softmax_top_k":
        chosen = softmax(chosen)
    if ffn.renormalize:
        chosen = chosen / chosen.sum(axis=-1, keepdims=True)
    return chosen * ffn.routed_scale


def _best(ranked: Array, count: int) -> Routes:
    return np.argsort(-ranked, axis=-1, kind="stable")[..., :count].astype(np.int64)


def _experts(ffn: Ffn, weights: Mapping[str, Array], xn: Array, routes: Routes, shares: Array) -> Array:
    """The output of every visited expert, [S, L, k, hidden], before it is weighed (after, where its input was)."""
    inputs = np.repeat(xn[:, :, None], routes.shape[-1], axis=2)
    if ffn.scale_input:
        inputs = inputs * shares[..., None]
    outputs = np.zeros_like(inputs)
    names = [name for name in weights if name.startswith("expert_")]
    for expert in range(ffn.experts):
        there = routes == expert
        if there.any():
            own = {name: weights[name][expert] for name in names}
            outputs[there] = _network(ffn, own, inputs[there], "expert_", ffn.bias)["f"]
    return outputs
