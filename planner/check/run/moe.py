"""Kernels of a mixture of experts: routing, sorting tokens by expert, grouped products, weighted sums."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from planner.check.run.activations import activate, sigmoid
from planner.check.run.kernels import rows_of
from planner.check.run.site import Fault, Floats, Kernel, Site, Value
from planner.check.run.split import Split
from planner.model import Ffn

Ints = NDArray[np.int64]


@dataclass(frozen=True)
class Routes:
    """Chosen experts and their weights, [tokens, top_k], of some tokens."""

    tokens: Ints
    experts: Ints
    weights: Floats

    @classmethod
    def of(cls, value: Value) -> Routes:
        """Routes as they travel: weights as the tensor, the rest beside it."""
        return cls(_ints(value, "tokens"), _ints(value, "experts"), value.array)

    def value(self) -> Value:
        """As a tensor."""
        return Value(self.weights, {"tokens": self.tokens, "experts": self.experts})


def _ints(value: Value, name: str) -> Ints:
    return np.asarray(value.beside[name], dtype=np.int64)


def router(site: Site) -> Value:
    """Router scores of the tokens that the GPU has."""
    x, tokens = routed_tokens(site)
    scores = x @ site.weight("router")
    if site.holds("router_bias"):
        scores = scores + site.weight("router_bias")
    return Value(scores, {"tokens": tokens})


def routed_tokens(site: Site) -> tuple[Floats, Ints]:
    """What the router scores, and which tokens these are."""
    at, place = site.split.at, site.split.place
    if site.has("arrived"):
        arrived = site.read("arrived")
        return arrived.array, _ints(arrived, "tokens")
    local = site.role == "moe" and site.split.placement.form == "local"
    x = site.array("xn")
    return x, at.residual(place) if local else at.own(place)


def top_k(site: Site) -> Value:
    """The choice of experts: by score, or as the run forces it."""
    scores = site.read("router_scores")
    tokens, ffn, world = _ints(scores, "tokens"), site.layer.ffn, site.split.world
    correction = world.weights.get((site.layer_index, "correction_bias"))
    forced = None if world.routes is None or site.layer_index is None else world.routes[site.layer_index][tokens]
    experts, weights = choose(ffn, scores.array, correction, forced)
    return Routes(tokens, experts, weights).value()


def choose(ffn: Ffn, logits: Floats, correction: Floats | None, forced: Ints | None) -> tuple[Ints, Floats]:
    """Experts [tokens, top_k] and their weights from router logits [tokens, experts]."""
    if ffn.scoring == "sigmoid":
        scores = sigmoid(logits)
    else:
        scores = np.exp(logits - logits.max(axis=1, keepdims=True))
        scores = scores / scores.sum(axis=1, keepdims=True)
    ranked = scores if correction is None else scores + correction
    experts = _best(ffn, ranked) if forced is None else forced
    weights = np.take_along_axis(scores, experts, axis=1)
    if ffn.renormalize or ffn.scoring == "softmax_top_k":  # a softmax over the chosen is the softmax over all, renormalised
        weights = weights / weights.sum(axis=1, keepdims=True)
    return experts, weights * ffn.routed_scale


def _best(ffn: Ffn, ranked: Floats) -> Ints:
    """The best experts of the best groups; ties go to the lowest number."""
    if ffn.top_k_groups < ffn.expert_groups:
        grouped = ranked.reshape(len(ranked), ffn.expert_groups, -1)
        strength = grouped.max(axis=2) if ffn.group_score == "max" else np.sort(grouped, axis=2)[:, :, -2:].sum(axis=2)
        kept = np.argsort(-strength, axis=1, kind="stable")[:, : ffn.top_k_groups]
        allowed = np.zeros(strength.shape, dtype=bool)
        np.put_along_axis(allowed, kept, True, axis=1)
        ranked = np.where(np.repeat(allowed, grouped.shape[2], axis=1), ranked, -np.inf)
    return np.argsort(-ranked, axis=1, kind="stable")[:, : ffn.top_k]


def serving(split: Split, experts: Ints, senders: Ints | None = None) -> Ints:
    """The group of GPUs that serves each token-expert pair, [tokens, top_k]: replicas take turns in token order, those near the
    sender alone where the plan says so and there are any.

    `experts` are those of all tokens of a micro-batch and `senders` [tokens] the places that they come from, so every GPU comes
    to the same answer.
    """
    groups, placed = split.expert_groups, split.placement
    within = placed.serve_within or len(split.at.stage.expert_devices)
    alike = np.zeros(len(experts), dtype=np.int64)
    blocks = alike if senders is None or not placed.serve_within else senders // within
    found = np.array([held[0] for held in groups], dtype=np.int64)[experts]
    for expert in (e for e, held in enumerate(groups) if len(held) > 1):
        held = np.array(groups[expert], dtype=np.int64)
        home = held * placed.tensor_ways // within
        far = ~np.isin(blocks, home)
        served = [(far, held), *((blocks == block, held[home == block]) for block in np.unique(home).tolist())]
        for tokens, some in served:
            pairs = (experts == expert) & tokens[:, None]
            found[pairs] = some[np.arange(pairs.sum()) % len(some)]
    return found


def permute(site: Site) -> Value:
    """The GPU's token-expert pairs, expert by expert."""
    split = site.split
    if site.has("routes_all", "routes"):
        routes = Routes.of(site.read("routes_all", "routes"))
        x, held = (
            (site.read("arrived"), None) if site.has("arrived") else (site.read("xg", "xn"), split.at.residual(split.place))
        )
        array = x.array
        if held is not None and len(array) != len(routes.tokens):
            array = rows_of(site, array, held, routes.tokens)
        groups = serving(split, routes.experts)
    else:
        x = site.read("arrived")
        if "experts" not in x.beside:
            raise Fault("its tokens came without their routes")
        routes = Routes(_ints(x, "tokens"), _ints(x, "experts"), np.asarray(x.beside["weights"], dtype=np.float64))
        array, groups = x.array, _ints(x, "groups")
    if len(array) != len(routes.tokens):
        raise Fault(f"{len(array)} tokens come with routes of {len(routes.tokens)}")
    row, column = np.nonzero(groups == split.expert_group)
    order = np.argsort(routes.experts[row, column], kind="stable")
    row, column = row[order], column[order]
    share, rows = routes.weights[row, column], array[row]
    weight = share
    if site.layer.ffn.scale_input:
        rows, weight = rows * weight[:, None], np.ones_like(weight)
    beside = {"row": row, "column": column, "expert": routes.experts[row, column], "weight": weight, "share": share,
              "tokens": routes.tokens}  # fmt: skip
    return Value(rows, beside)


def grouped(name: str, source: str, add_bias: bool = True) -> Kernel:
    """Products of every expert's rows with its own part of a weight."""

    def run(site: Site) -> Value:
        x, weight, held = site.read(source), site.weight(name), site.split.experts
        bias = site.weight(f"{name}_bias") if site.holds(f"{name}_bias") else None
        chosen = _ints(x, "expert")
        out = np.zeros((len(x.array), weight.shape[-1]))
        for index, expert in enumerate(held):
            rows = chosen == expert
            out[rows] = x.array[rows] @ weight[index]
            if bias is not None and (add_bias or site.split.expert_column == 0):
                out[rows] += bias[index]
        if not np.isin(chosen, held).all():
            raise Fault("tokens reach a GPU that does not hold their expert")
        return Value(out, x.beside)

    return run


def expert_activation(site: Site) -> Value:
    """The activation of routed experts."""
    up = site.read("expert_up")
    gate = site.array("expert_gate") if site.layer.ffn.gated else None
    return Value(activate(site.layer.ffn.activation, gate, up.array), up.beside)


def per_token(partial: Value, count: int) -> Floats:
    """Weighted sums of pairs, one row for each of the `count` tokens they come from."""
    out = np.zeros((count, partial.array.shape[1]))
    np.add.at(out, _ints(partial, "row"), partial.array * np.asarray(partial.beside["weight"], dtype=np.float64)[:, None])
    return out


def unpermute(site: Site) -> Value:
    """What the FFN adds to the GPU's tokens: its experts' or the returned parts, and the shared expert."""
    at, place = site.split.at, site.split.place
    if site.has("returned"):
        tokens, returned = at.own(place), site.read("returned")
        place_of = {int(token): row for row, token in enumerate(tokens)}
        out = np.zeros((len(tokens), returned.array.shape[1]))
        rows = [place_of[int(token)] for token in _ints(returned, "tokens")]
        np.add.at(out, np.asarray(rows, dtype=np.int64), returned.array)
    elif len(site.split.experts):
        partial = site.read("expert_partial")
        out = per_token(partial, len(_ints(partial, "tokens")))
    else:
        out = np.zeros((len(at.order), site.split.world.twin.model.hidden))
    if site.has("shared_partial"):
        shared = site.array("shared_partial")
        if site.has("shared_opening"):
            shared = shared * sigmoid(site.array("shared_opening"))
        if shared.shape != out.shape:
            raise Fault(f"the shared expert gives {list(shared.shape)} to {list(out.shape)}")
        out = out + shared
    elif site.layer.ffn.shared_hidden:
        raise Fault("nothing delivers shared_partial")
    return Value(out)


def shared_router(site: Site) -> Value:
    """Logit of how much of the shared expert each token takes."""
    at, place, x = site.split.at, site.split.place, site.array("xg", "xn")
    wanted = at.order if site.split.placement.form == "local" else at.own(place)
    x = x if len(x) == len(wanted) else rows_of(site, x, at.residual(place), wanted)
    return Value(x @ site.weight("shared_router"))


KERNELS: dict[tuple[str, str], Kernel] = {
    ("", "router"): router,
    ("", "top_k"): top_k,
    ("", "permute"): permute,
    ("", "expert_gate_proj"): grouped("expert_gate", "permuted"),
    ("", "expert_up_proj"): grouped("expert_up", "permuted"),
    ("", "expert_activation"): expert_activation,
    ("", "expert_down_proj"): grouped("expert_down", "expert_active", add_bias=False),
    ("", "unpermute"): unpermute,
    ("", "shared_router"): shared_router,
}
"""Kernels by role ("" for any) and operator."""
