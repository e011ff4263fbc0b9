"""Backward kernels of a mixture of experts: weighted sums, sorting, grouped products, routing, and tokens on their way."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from planner.check.run.activations import sigmoid
from planner.check.run.gradients import gradient, incoming, named, parts_for, taken, weight_gradients, with_earlier
from planner.check.run.moe import choose
from planner.check.run.site import Fault, Floats, Kernel, Site, Value
from planner.model import Ffn

Ints = NDArray[np.int64]


def _ints(value: Value, name: str) -> Ints:
    return np.asarray(value.beside[name], dtype=np.int64)


def unpermute_gradient(site: Site) -> Value:
    """Gradients of what is summed up for a token: its experts' parts and their weights, the shared expert and its gate."""
    split, ffn = site.split, site.layer.ffn
    local = split.placement.form == "local"
    dy = taken(site, gradient(site, "moe_partial" if local else "fs"), "unpermute")
    parts: dict[str, Value] = {}
    if not local:
        parts["returned"] = Value(dy)
    elif len(split.experts):
        partial = site.read("expert_partial")
        weighed = pair_gradient(partial, dy)
        parts["expert_partial"] = weighed
        if not ffn.scale_input:
            parts["routes_all"] = Value(per_choice(weighed, len(dy), ffn.top_k))
    if ffn.shared_hidden:
        if site.has("shared_opening"):
            opening, shared = sigmoid(site.array("shared_opening")), site.array("shared_partial")
            parts["shared_opening"] = Value((dy * shared).sum(axis=1, keepdims=True) * opening * (1.0 - opening))
            parts["shared_partial"] = Value(dy * opening)
        else:
            parts["shared_partial"] = Value(dy)
    return named(parts) if parts else Value(np.zeros((0,)))


def pair_gradient(partial: Value, dy: Floats) -> Value:
    """Gradient of an expert's output for every pair; beside it that of the pair's weight."""
    rows, weight = dy[_ints(partial, "row")], np.asarray(partial.beside["weight"], dtype=np.float64)
    share = (rows * partial.array).sum(axis=1)
    return Value(rows * weight[:, None], {**partial.beside, "share_gradient": share})


def per_choice(pairs: Value, tokens: int, top_k: int) -> Floats:
    """Gradients of the weights of the tokens' experts, [tokens, top_k], from those of pairs."""
    out = np.zeros((tokens, top_k))
    np.add.at(out, (_ints(pairs, "row"), _ints(pairs, "column")), np.asarray(pairs.beside["share_gradient"], dtype=np.float64))
    return out


def permute_gradient(site: Site) -> Value:
    """Pairs back to the tokens that they are made of."""
    ffn, pairs = site.layer.ffn, incoming(site, "permuted")
    tokens, rows = _ints(pairs, "tokens"), pairs.array
    if ffn.scale_input:
        share = np.asarray(pairs.beside["share"], dtype=np.float64)
        chosen = (rows * site.array("permuted")).sum(axis=1) / share
        pairs = Value(rows, {**pairs.beside, "share_gradient": chosen})
        rows = rows * share[:, None]
    out = np.zeros((len(tokens), rows.shape[1]))
    np.add.at(out, _ints(pairs, "row"), rows)
    weights = Value(per_choice(pairs, len(tokens), ffn.top_k), {"tokens": tokens})
    if site.split.placement.form != "local":
        return named({"arrived": Value(out, {"tokens": tokens}), "routes": weights})
    own = with_earlier(site, "xg", out).parts["xg"]
    return named({"xg": own, "routes_all": weights} if ffn.scale_input else {"xg": own})


def grouped_input(weight: str, written: str, source: str) -> Kernel:
    """Every expert's rows times the transpose of its part of a weight."""

    def run(site: Site) -> Value:
        dy, matrix = incoming(site, written), site.weight(weight)
        chosen = _ints(dy, "expert")
        out = np.zeros((len(dy.array), matrix.shape[1]))
        for index, expert in enumerate(site.split.experts):
            rows = chosen == expert
            out[rows] = dy.array[rows] @ matrix[index].T
        return with_earlier(site, source, out, dy.beside)

    return run


def grouped_weight(weight: str, written: str, source: str) -> Kernel:
    """What went into every expert, times the gradient of what came out."""

    def run(site: Site) -> Value:
        dy, x = incoming(site, written), site.read(source)
        chosen, held = _ints(x, "expert"), site.split.experts
        found = np.zeros((len(held), x.array.shape[1], dy.array.shape[1]))
        bias = np.zeros((len(held), dy.array.shape[1]))
        for index, expert in enumerate(held):
            rows = chosen == expert
            found[index], bias[index] = x.array[rows].T @ dy.array[rows], dy.array[rows].sum(axis=0)
        return weight_gradients(site, {weight: found, f"{weight}_bias": bias} if site.layer.ffn.bias else {weight: found})

    return run


def top_k_gradient(site: Site) -> Value:
    """From the weights of the chosen experts back to the router's scores."""
    scores, ffn, world = site.read("router_scores"), site.layer.ffn, site.split.world
    tokens = _ints(scores, "tokens")
    correction = world.weights.get((site.layer_index, "correction_bias"))
    forced = None if world.routes is None or site.layer_index is None else world.routes[site.layer_index][tokens]
    experts, weights = choose(ffn, scores.array, correction, forced)
    dy = gradient(site, "routes")
    if dy.shape != weights.shape:
        raise Fault(f"it has the gradient of {list(dy.shape)} for weights of {list(weights.shape)}")
    return named({"router_scores": Value(_scores_gradient(ffn, scores.array, experts, weights, dy), scores.beside)})


def _scores_gradient(ffn: Ffn, logits: Floats, experts: Ints, weights: Floats, dy: Floats) -> Floats:
    """Gradient of logits [tokens, experts], by the quotient rule of w_i = s_i / sum(s) where weights are renormalised."""
    out = np.zeros_like(logits)
    if ffn.scoring == "sigmoid":
        every = sigmoid(logits)
    else:
        every = np.exp(logits - logits.max(axis=1, keepdims=True))
        every = every / every.sum(axis=1, keepdims=True)
    if ffn.renormalize or ffn.scoring == "softmax_top_k":
        total = np.take_along_axis(every, experts, axis=1).sum(axis=1, keepdims=True)
        inner = ffn.routed_scale * (dy - (dy * weights / ffn.routed_scale).sum(axis=1, keepdims=True)) / total
    else:
        inner = ffn.routed_scale * dy
    np.put_along_axis(out, experts, inner, axis=1)
    if ffn.scoring == "sigmoid":
        return np.asarray(out * every * (1.0 - every))
    return np.asarray(every * (out - (out * every).sum(axis=1, keepdims=True)))


def send_gradients(members: Sequence[Site]) -> list[Value]:
    """The gradient of every token goes to the GPUs that computed one of its experts (the way of `combine`, backwards)."""
    rows: dict[int, Floats] = {}
    for site in members:
        at, place = site.split.at, site.split.place
        found = parts_for(site, ("returned",), unnamed=False)
        if len(found) != 1 or len(found[0].array) != len(at.own(place)):
            raise Fault("a sender has not the gradients of its tokens")
        rows |= {int(token): row for token, row in zip(at.own(place), found[0].array, strict=True)}
    values = []
    for site in members:
        if not len(site.split.experts):
            values.append(Value(np.zeros((0, site.split.world.twin.model.hidden))))
            continue
        partial = site.read("expert_partial")
        dy = np.array([rows[int(token)] for token in _ints(partial, "tokens")]).reshape(-1, partial.array.shape[1])
        values.append(named({"expert_partial": pair_gradient(partial, dy)}))
    return values


def return_gradients(members: Sequence[Site]) -> list[Value]:
    """What the experts' GPUs found for a token, and for the weights of its experts, goes home (the way of `dispatch`)."""
    world = members[0].split.world
    hidden, top_k = world.twin.model.hidden, members[0].layer.ffn.top_k
    x, routes = np.zeros((len(world.positions), hidden)), np.zeros((len(world.positions), top_k))
    for site in members:
        for value in parts_for(site, ("arrived",), unnamed=False):
            np.add.at(x, _ints(value, "tokens"), value.array)
        for value in (v.parts["routes"] for v in site.delivered.values() if "routes" in v.parts):
            np.add.at(routes, _ints(value, "tokens"), value.array)
    own = [site.split.at.own(site.split.place) for site in members]
    return [named({"xn": Value(x[tokens]), "routes": Value(routes[tokens])}) for tokens in own]


EXPERTS = (("expert_gate", "expert_gate", "permuted"), ("expert_up", "expert_up", "permuted"),
           ("expert_down", "expert_partial", "expert_active"))  # fmt: skip
KERNELS: dict[str, Kernel] = {
    **{f"{weight}_proj_dgrad": grouped_input(weight, written, source) for weight, written, source in EXPERTS},
    **{f"{weight}_proj_wgrad": grouped_weight(weight, written, source) for weight, written, source in EXPERTS},
    "unpermute_backward": unpermute_gradient,
    "permute_backward": permute_gradient,
    "top_k_backward": top_k_gradient,
}
"""Kernels by operator."""
