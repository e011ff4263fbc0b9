"""The loss and its gradient, and the backward kernels of embedding and head."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from planner.check.run.gradients import gradient, named, weight_gradient, weight_gradients
from planner.check.run.kernels import rows_of
from planner.check.run.site import Fault, Kernel, Site, Value


def _own_targets(site: Site) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """The column of each token's target among the GPU's own, and whether it has one there."""
    split = site.split
    tokens, own = split.at.vocab_tokens(split.place), split.index("vocab")
    targets = split.world.targets[tokens]
    first = int(own[0]) if len(own) else 0
    here = np.isin(targets, own)
    return np.where(here, targets - first, 0).astype(np.int64), here


def own_maximum(site: Site) -> Value:
    """The largest logit of every token among the GPU's columns."""
    return Value(site.array("logits").max(axis=1, initial=-np.inf, keepdims=True))


def own_sums(site: Site) -> Value:
    """The sum of exponentials over the GPU's columns, and the logit of the target where it is one of them."""
    logits, top = site.array("logits"), site.array("loss_maximum", "own_maximum")
    columns, here = _own_targets(site)
    target = np.where(here, np.take_along_axis(logits, columns[:, None], axis=1)[:, 0], 0.0)
    return Value(np.stack([np.exp(logits - top).sum(axis=1), target], axis=1))


def loss(site: Site) -> Value:
    """Cross entropy of every token."""
    sums, top = site.array("loss_sums", "own_sums"), site.array("loss_maximum", "own_maximum")
    return Value(np.log(sums[:, :1]) + top - sums[:, 1:])


def loss_gradient(site: Site) -> Value:
    """Gradient of the product that the logits come from: probabilities less one at the target, of tokens that are there."""
    world, split, logits = site.split.world, site.split, site.array("logits")
    sums, top = site.array("loss_sums", "own_sums"), site.array("loss_maximum", "own_maximum")
    found = np.exp(logits - top) / sums[:, :1]
    columns, here = _own_targets(site)
    found[np.arange(len(found))[here], columns[here]] -= 1.0
    valid = world.valid[split.at.vocab_tokens(split.place)]
    found = found * valid[:, None] / world.valid.sum()
    cap = world.twin.model.final_softcap
    return named({"logits": Value(found if not cap else found * (1.0 - (logits / cap) ** 2))})


def head_weights(site: Site) -> Value:
    """Gradient of the head; where it is one weight with the embedding on this GPU, of that."""
    tied = site.node.outputs[0].name.startswith("embedding")
    found = weight_gradient("lm_head", "head", "logits", "xg")(_without_gradients(site) if tied else site)
    parts = {name: value.array for name, value in found.parts.items()}
    if tied:
        parts["embedding"] = parts.pop("head").T
    return weight_gradients(site, parts) if tied else found


def _without_gradients(site: Site) -> Site:
    kept = {name: value for name, value in site.delivered.items() if not name.endswith(".weight_grad")}
    return Site(site.node, site.split, site.layer_index, kept)


def embedding_weights(site: Site) -> Value:
    """Gradients of the rows of the GPU's part of the vocabulary, and of positions."""
    world, at, model = site.split.world, site.split.at, site.split.world.twin.model
    tokens, own = at.vocab_tokens(site.split.place), site.split.index("vocab")
    dy = gradient(site, "embedded")
    if len(dy) != len(tokens):
        dy = rows_of(site, dy, at.residual(site.split.place), tokens)
    ids = world.tokens.ids.reshape(-1)[tokens]
    found = np.zeros((len(own), model.hidden))
    mine = np.isin(ids, own)
    np.add.at(found, ids[mine] - (own[0] if len(own) else 0), dy[mine] * model.embedding_scale)
    if not model.positions:
        return weight_gradients(site, {"embedding": found})
    positions = np.zeros((model.positions, model.hidden))
    valid = world.valid[tokens]
    if np.abs(dy[~valid]).max(initial=0.0) > 0:
        raise Fault("padding has a gradient")
    np.add.at(positions, world.positions[tokens][valid] + model.position_offset, dy[valid])
    return weight_gradients(site, {"embedding": found, "positions": positions})


FORWARD: dict[tuple[str, str], Kernel] = {
    ("head", "loss_max"): own_maximum,
    ("head", "loss_sum"): own_sums,
    ("head", "loss"): loss,
}
"""Kernels of the forward pass by role and operator."""
KERNELS: dict[str, Kernel] = {
    "loss_backward": loss_gradient,
    "lm_head_wgrad": head_weights,
    "embedding_wgrad": embedding_weights,
}
"""Backward kernels by operator."""
