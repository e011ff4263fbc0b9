"""Gradients as they pass between backward operators, and the kernels of products, norms, activations and sums."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from planner.check.reference import NORM_EPS
from planner.check.run.activations import slopes
from planner.check.run.kernels import ffn_input, residual_input, rows_of
from planner.check.run.moe import routed_tokens
from planner.check.run.site import Fault, Floats, Kernel, Site, Value

Ints = NDArray[np.int64]
Rows = NDArray[np.int64]
SAME = {
    "xn": ("xn", "xg"), "xg": ("xg", "xn"), "op": ("op", "o", "on"), "partial": ("partial", "f", "fn"),
    "moe_partial": ("moe_partial", "f", "fn"), "fs": ("fs", "f", "fn"), "routes": ("routes", "routes_all"),
    "ag": ("ag", "a"), "a": ("a", "ag"), "f": ("f", "fn"), "o": ("o", "on"), "embedded": ("embedded", "y"),
}  # fmt: skip
"""Names of a tensor whose gradient may come by another one: where a collective is absent, that of what it would have made."""


def is_gradient(formal: str) -> bool:
    """Whether a name is that of a gradient of activations."""
    return formal in ("dy", "x_slices") or ".grad" in formal or "_grad_" in formal


def gradient(site: Site, *names: str) -> Floats:
    """The gradient of a tensor: the sum of all that comes for it (see `incoming`)."""
    return incoming(site, *names).array


def incoming(site: Site, *names: str) -> Value:
    """The gradient of the first of some tensors. What comes without names (from another role, or gathered) is meant for it."""
    found = parts_for(site, names)
    if not found:
        raise Fault(f"nothing delivers the gradient of {' or '.join(names)}")
    shapes = {value.array.shape for value in found}
    if len(shapes) > 1:
        raise Fault(f"gradients of different shapes come for {names[0]}: {sorted(map(list, shapes))}")
    beside = next((value.beside for value in found if value.beside), {})
    return Value(np.asarray(np.sum([value.array for value in found], axis=0), dtype=np.float64), beside)


def parts_for(site: Site, names: tuple[str, ...], unnamed: bool = True) -> list[Value]:
    """All gradients that come for one of some tensors. That of the residual stream, from another role, has no name here."""
    wanted = tuple(dict.fromkeys(other for name in names for other in SAME.get(name, (name,))))
    found = []
    for formal, value in site.delivered.items():
        if not is_gradient(formal):
            continue
        stream = [value.parts["x"]] if "x" in value.parts else [] if value.parts else [value]
        own = [value.parts[name] for name in wanted if name in value.parts][:1]
        found += own or (stream if unnamed else [])
    return found


def with_earlier(site: Site, name: str, own: Floats, beside: Mapping[str, NDArray[np.int64]] | None = None) -> Value:
    """The gradient of tensor `name`: what an operator adds to what is known of it already."""
    for value in parts_for(site, (name,), unnamed=False):
        if value.array.shape != own.shape:
            raise Fault(f"it adds {list(own.shape)} to the gradient {list(value.array.shape)} of {name}")
        own = own + value.array
    return named({name: Value(own, beside or {})})


def named(parts: Mapping[str, Value]) -> Value:
    """Gradients of several tensors as one."""
    (first, *others) = parts.values()
    array = np.concatenate([p.array.ravel() for p in parts.values()]) if others else first.array
    return Value(array, first.beside, parts)


def weight_gradients(site: Site, found: Mapping[str, Floats]) -> Value:
    """Gradients of weights by name, added to those of the micro-batches before."""
    parts = dict(found)
    for formal, value in site.delivered.items():
        if formal.endswith(".weight_grad"):
            for name, before in value.parts.items():
                own = parts.get(name)
                if own is not None and own.shape != before.array.shape:
                    raise Fault(f"it adds {list(own.shape)} to the gradient {list(before.array.shape)} of {name}")
                parts[name] = before.array if own is None else own + before.array
    return named({name: Value(array) for name, array in parts.items()})


def left_operand(site: Site, op: str, source: str) -> tuple[Floats, Rows | None]:
    """What a forward product multiplied with its weight, and its tokens where rows may have to be picked."""
    at, place = site.split.at, site.split.place
    if op == "router":
        return routed_tokens(site)
    if source == "xg" and site.role in ("mlp", "moe"):
        return ffn_input(site), None
    return site.array(*SAME.get(source, (source,))), at.attention(place).reshape(-1) if site.role == "attention" else None


def wanted_rows(site: Site, op: str) -> Ints:
    """The tokens of what a product writes."""
    at, place, local = site.split.at, site.split.place, site.split.placement.form == "local"
    if site.role == "attention":
        return at.attention(place).reshape(-1)
    if site.role == "mlp":
        return at.network(place)
    if site.role == "moe":
        if op == "router" and local:
            return at.residual(place)
        return at.order if local else at.own(place)
    return at.vocab_tokens(place)


def taken(site: Site, x: Floats, op: str) -> Floats:
    """The rows of a gradient that a product needs: the residual stream's may be more than its own."""
    wanted, held = wanted_rows(site, op), site.split.at.residual(site.split.place)
    return x if len(x) == len(wanted) else rows_of(site, x, held, wanted)


def input_gradient(op: str, weight: str, written: str, source: str) -> Kernel:
    """Gradient of what a product multiplied: times the weight's transpose."""

    def run(site: Site) -> Value:
        dy = taken(site, gradient(site, written), op)
        matrix = site.weight(weight) if site.holds(weight) else site.resident(weight)
        if dy.shape[-1] != matrix.shape[1]:
            raise Fault(f"{dy.shape[-1]} columns of a gradient meet the {matrix.shape[1]} of {weight}")
        return with_earlier(site, source, dy @ matrix.T)

    return run


def weight_gradient(op: str, weight: str, written: str, source: str) -> Kernel:
    """Gradient of a product's weight, and of its bias: what went in, times the gradient of what came out."""

    def run(site: Site) -> Value:
        dy = taken(site, gradient(site, written), op)
        x, _ = left_operand(site, op, source)
        if len(x) != len(dy):
            raise Fault(f"{len(x)} rows meet the gradient of {len(dy)}")
        found = {weight: x.T @ dy}
        if has_bias(site, f"{weight}_bias"):
            found[f"{weight}_bias"] = dy.sum(axis=0)
        return weight_gradients(site, found)

    return run


def has_bias(site: Site, bias: str) -> bool:
    """Whether the model has a bias."""
    return (site.layer_index, bias) in site.split.world.weights


def norm_back(x: Floats, weight: Floats, dy: Floats) -> tuple[Floats, Floats]:
    """Gradients of what goes into a norm, and of its vectors [vectors, width] (two of a LayerNorm)."""
    layer = len(weight) == 2
    centred = x - x.mean(axis=-1, keepdims=True) if layer else x
    root = np.sqrt((centred**2).mean(axis=-1, keepdims=True) + NORM_EPS)
    unit, along = centred / root, dy * weight[0]
    dx = (along - unit * (unit * along).mean(axis=-1, keepdims=True)) / root
    if layer:
        dx = dx - dx.mean(axis=-1, keepdims=True)
    factor = (dy * unit).sum(axis=0)
    return dx, np.stack([factor, dy.sum(axis=0)]) if layer else factor[None]


def norm_gradient(name: str, source: str, written: str) -> Kernel:
    """Gradients of a norm's input and of its vectors."""

    def run(site: Site) -> Value:
        x = residual_input(site) if source == "x" else site.array(source)
        dy = gradient(site, written)
        if source == "kva":
            x = x[:, : site.split.attention.kv_lora_rank]
        elif len(x) != len(dy):
            at, place = site.split.at, site.split.place
            x = rows_of(site, x, at.residual(place), at.own(place))
        dx, dweight = norm_back(x, site.weight(name), dy)
        if source == "kva":
            dx = np.concatenate([dx, np.zeros((len(dx), site.array(source).shape[1] - dx.shape[1]))], axis=1)
        found = with_earlier(site, source, dx).parts if source != "x" else {"x": Value(dx)}
        return Value(next(iter(found.values())).array, {}, {**found, name: Value(dweight)})

    return run


def post_norm_gradient(name: str, source: str, written: str) -> Kernel:
    """The same of a norm of what a half of the layer adds: of the GPU's tokens of the residual stream."""

    def run(site: Site) -> Value:
        at, place = site.split.at, site.split.place
        x, dy = site.array(source), gradient(site, written)
        if len(x) != len(dy):
            held = at.attention(place).reshape(-1) if source == "o" else at.network(place)
            x = rows_of(site, x, at.order if len(x) == len(at.order) else held, at.residual(place))
        dx, dweight = norm_back(x, site.weight(name), dy)
        return Value(dx, {}, {source: Value(dx), name: Value(dweight)})

    return run


def beside_input(*names: str) -> Kernel:
    """Gradients of weights that a backward kernel made beside those of its inputs, added to the gradient buffer."""

    def run(site: Site) -> Value:
        found: dict[str, Floats] = {}
        for formal, value in site.delivered.items():
            if is_gradient(formal):
                found |= {name: value.parts[name].array for name in names if name in value.parts}
        if not found:
            raise Fault(f"nothing delivers the gradient of {' or '.join(names)}")
        return weight_gradients(site, found)

    return run


def activation_gradient(gate: str, up: str, active: str) -> Kernel:
    """Gradients of gate and up from that of the activation."""

    def run(site: Site) -> Value:
        dy = incoming(site, active)
        dup, dgate = slopes(
            site.layer.ffn.activation, site.array(gate) if site.layer.ffn.gated else None, site.array(up), dy.array
        )
        parts = {up: Value(dup, dy.beside)}
        return named(parts if dgate is None else {gate: Value(dgate, dy.beside), **parts})

    return run


def accumulate(site: Site) -> Value:
    """The gradient of a role's input: of the residual stream that passes it by, and of what it read."""
    at, place = site.split.at, site.split.place
    total = gradient(site, "x")
    if len(total) != len(at.residual(place)):
        raise Fault(f"it has the gradient of {len(total)} tokens, and its part is {len(at.residual(place))}")
    return Value(total)


PRODUCTS: tuple[tuple[str, str, str, str], ...] = (
    ("q_proj", "q", "q", "xg"), ("k_proj", "k", "k", "xg"), ("v_proj", "v", "v", "xg"), ("o_proj", "o", "op", "ag"),
    ("q_a_proj", "q_a", "qa", "xg"), ("q_b_proj", "q_b", "q", "qan"), ("kv_a_proj", "kv_a", "kva", "xg"),
    ("kv_b_proj", "kv_b", "kv", "kvan"),
    ("gate_proj", "gate", "gate", "xg"), ("up_proj", "up", "up", "xg"), ("down_proj", "down", "partial", "active"),
    ("shared_gate_proj", "shared_gate", "shared_gate", "xg"), ("shared_up_proj", "shared_up", "shared_up", "xg"),
    ("shared_down_proj", "shared_down", "shared_partial", "shared_active"),
    ("shared_router", "shared_router", "shared_opening", "xg"), ("router", "router", "router_scores", "xn"),
    ("lm_head", "head", "logits", "xg"),
)  # fmt: skip
"""Products of tokens: operator, weight, what it writes, what it reads."""

KERNELS: dict[str, Kernel] = {
    **{f"{op}_dgrad": input_gradient(op, weight, written, source) for op, weight, written, source in PRODUCTS},
    **{f"{op}_wgrad": weight_gradient(op, weight, written, source) for op, weight, written, source in PRODUCTS},
    "attention_norm_backward": norm_gradient("attention_norm", "x", "xn"),
    "ffn_norm_backward": norm_gradient("ffn_norm", "x", "xn"),
    "final_norm_backward": norm_gradient("final_norm", "x", "xn"),
    "q_a_norm_backward": norm_gradient("q_a_norm", "qa", "qan"),
    "kv_a_norm_backward": norm_gradient("kv_a_norm", "kva", "kvan"),
    "attention_post_norm_backward": post_norm_gradient("attention_post_norm", "o", "on"),
    "ffn_post_norm_backward": post_norm_gradient("ffn_post_norm", "f", "fn"),
    **{f"{name}_wgrad": beside_input(name) for name in ("attention_norm", "ffn_norm", "final_norm", "q_a_norm", "kv_a_norm",
                                                        "attention_post_norm", "ffn_post_norm")},
    "qk_norm_wgrad": beside_input("q_norm", "k_norm"),
    "attention_wgrad": beside_input("sinks"),
    "attention_0_wgrad": beside_input("sinks"),
    "activation_backward": activation_gradient("gate", "up", "active"),
    "shared_activation_backward": activation_gradient("shared_gate", "shared_up", "shared_active"),
    "expert_activation_backward": activation_gradient("expert_gate", "expert_up", "expert_active"),
    "accumulate": accumulate,
}  # fmt: skip
"""Kernels by operator."""
