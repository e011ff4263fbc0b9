"""Kernels: what the operators outside attention and mixtures compute, each on the arrays of one GPU."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from planner.check.reference import NORM_EPS
from planner.check.run.activations import activate
from planner.check.run.site import Fault, Floats, Kernel, Site, Value

Ints = NDArray[np.int64]


def product(site: Site, x: Floats, name: str, add_bias: bool = True) -> Floats:
    """X @ weight, with the bias of that weight where the operator has one."""
    weight = site.weight(name)
    if x.shape[-1] != weight.shape[0]:
        raise Fault(f"{x.shape[-1]} columns meet the {weight.shape[0]} rows of {name}")
    bias = f"{name}_bias"
    return x @ weight + site.weight(bias) if add_bias and site.holds(bias) else x @ weight


def norm(x: Floats, weight: Floats) -> Floats:
    """RMS norm for one vector, LayerNorm for two; `weight` has the shape [vectors, width]."""
    if len(weight) == 2:
        centred = x - x.mean(axis=-1, keepdims=True)
        scaled = centred / np.sqrt((centred**2).mean(axis=-1, keepdims=True) + NORM_EPS)
        return np.asarray(scaled * weight[0] + weight[1], dtype=np.float64)
    return np.asarray(x / np.sqrt((x**2).mean(axis=-1, keepdims=True) + NORM_EPS) * weight[0], dtype=np.float64)


def rows_of(site: Site, x: Floats, held: Ints, wanted: Ints) -> Floats:
    """The rows of `wanted` tokens of a tensor that has those of `held`: a GPU may take a part of what it holds."""
    if len(x) != len(held):
        raise Fault(f"it reads {len(x)} tokens where the GPU's part is {len(held)}")
    if len(held) == len(wanted) and np.array_equal(held, wanted):
        return x
    place = {int(token): row for row, token in enumerate(held)}
    missing = [token for token in wanted if int(token) not in place]
    if missing:
        raise Fault(f"{len(missing)} of its {len(wanted)} tokens are on another GPU")
    return x[[place[int(token)] for token in wanted]]


def linear(name: str, *sources: str) -> Kernel:
    """A product of one input with a weight of this name."""
    return lambda site: Value(product(site, site.array(*sources), name))


def residual_input(site: Site, name: str = "x") -> Floats:
    """The residual stream; the first operators of a model without embedding find the model's input on their GPU."""
    if site.has(name):
        return site.array(name)
    world = site.split.world
    if site.node.stage == 0 and site.layer_index == 0 and not world.twin.model.vocab and "x" not in site.node.formals:
        return world.expected(None, "embedding.y")[site.split.at.residual(site.split.place)]
    raise Fault(f"nothing delivers {name}")


def attention_norm(site: Site) -> Value:
    """Norm of the residual stream before attention."""
    return Value(norm(residual_input(site), site.weight("attention_norm")))


def ffn_norm(site: Site) -> Value:
    """Norm before the FFN, of the tokens that the GPU goes on with."""
    at, place = site.split.at, site.split.place
    source = "x_in" if site.layer.parallel_residual else "x"
    wanted = at.own(place) if site.role == "route" or _dispatches(site) else at.residual(place)
    x = residual_input(site, source)
    return Value(norm(rows_of(site, x, at.residual(place), wanted), site.weight("ffn_norm")))


def _dispatches(site: Site) -> bool:
    return site.role == "moe" and site.split.placement.form == "dispatch"


def post_norm(weight: str, *sources: str) -> Kernel:
    """A norm of what a half of the layer adds to the residual stream."""
    return lambda site: Value(norm(_own_rows(site, *sources), site.weight(weight)))


def _own_rows(site: Site, *sources: str) -> Floats:
    """What is added to the residual stream, for the GPU's tokens of it: a sum over all of them may be cut."""
    at, place, x = site.split.at, site.split.place, site.array(*sources)
    wanted = at.residual(place)
    if len(x) == len(wanted):
        return x
    held = {"o": at.attention(place).reshape(-1), "f": at.network(place)}[sources[0]]
    if len(x) == len(at.order):
        held = at.order
    return rows_of(site, x, held, wanted)


def add_residual(*sources: str) -> Kernel:
    """The residual stream plus what a half of the layer adds."""
    return lambda site: Value(_sum(site, residual_input(site), _own_rows(site, *sources)))


def _sum(site: Site, x: Floats, change: Floats) -> Floats:
    if x.shape != change.shape:
        raise Fault(f"it adds {list(change.shape)} to {list(x.shape)}")
    return x + change


def ffn_input(site: Site) -> Floats:
    """The normed tokens that a dense network works on: gathered, or a part of the GPU's own."""
    at, place = site.split.at, site.split.place
    x = site.array("xg", "xn")
    wanted = at.network(place) if site.role == "mlp" else at.order if site.split.placement.form == "local" else at.own(place)
    if len(x) == len(wanted):
        return x
    return rows_of(site, x, at.residual(place), wanted)


def widening(name: str) -> Kernel:
    """Gate or up projection of a dense network."""
    return lambda site: Value(product(site, ffn_input(site), name))


def activation(prefix: str) -> Kernel:
    """The activation of a dense network."""
    gate, up = f"{prefix}gate", f"{prefix}up"
    return lambda site: Value(
        activate(site.layer.ffn.activation, site.array(gate) if site.layer.ffn.gated else None, site.array(up))
    )


def narrowing(name: str, source: str) -> Kernel:
    """Down projection of a dense network; of the GPUs whose parts are summed, the first adds the bias."""
    return lambda site: Value(
        product(site, site.array(source), name, add_bias=site.split.place % site.split.at.stage.mlp_ways == 0)
    )


def embed(site: Site) -> Value:
    """Rows of the GPU's part of the vocabulary, zeros elsewhere; the first GPU adds positions."""
    world, at, model = site.split.world, site.split.at, site.split.world.twin.model
    tokens, own = at.vocab_tokens(site.split.place), site.split.index("vocab")
    ids = world.tokens.ids.reshape(-1)[tokens]
    found = np.zeros((len(tokens), model.hidden))
    mine = np.isin(ids, own)
    found[mine] = site.weight("embedding")[ids[mine] - (own[0] if len(own) else 0)] * model.embedding_scale
    if model.positions:
        table = site.weight("positions")
        if site.split.place % at.vocab_ways == 0:
            found += table[world.positions[tokens] + model.position_offset]
    return Value(found)


def final_norm(site: Site) -> Value:
    """Norm of the tokens that need logits."""
    at, place = site.split.at, site.split.place
    held = at.residual(place)
    return Value(norm(rows_of(site, residual_input(site), held, at.head(held)), site.weight("final_norm")))


def logits(site: Site) -> Value:
    """Logits of the GPU's part of the vocabulary."""
    model, x = site.split.world.twin.model, site.array("xg", "xn")
    tied = not site.holds("head") and model.tied_embeddings
    found = x @ site.resident("head") if tied else product(site, x, "head")
    if tied and site.holds("head_bias"):
        found = found + site.weight("head_bias")
    if model.final_softcap:
        found = model.final_softcap * np.tanh(found / model.final_softcap)
    return Value(found)


KERNELS: dict[tuple[str, str], Kernel] = {
    ("attention", "attention_norm"): attention_norm,
    ("attention", "attention_post_norm"): post_norm("attention_post_norm", "o"),
    ("attention", "attention_residual"): add_residual("on", "o"),
    ("", "ffn_norm"): ffn_norm,
    ("", "ffn_post_norm"): post_norm("ffn_post_norm", "f"),
    ("", "ffn_residual"): add_residual("fn", "f"),
    ("mlp", "gate_proj"): widening("gate"),
    ("mlp", "up_proj"): widening("up"),
    ("mlp", "activation"): activation(""),
    ("mlp", "down_proj"): narrowing("down", "active"),
    ("", "shared_gate_proj"): widening("shared_gate"),
    ("", "shared_up_proj"): widening("shared_up"),
    ("", "shared_activation"): activation("shared_"),
    ("", "shared_down_proj"): lambda site: Value(product(site, site.array("shared_active"), "shared_down")),
    ("embedding", "embedding"): embed,
    ("head", "final_norm"): final_norm,
    ("head", "lm_head"): logits,
}
"""Kernels by role ("" for any) and operator."""
