"""Expected values: which part of which intermediate of the unsplit model a GPU should hold after an operator."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from planner.check.run.attention import key_tokens
from planner.check.run.moe import Routes
from planner.check.run.segments import softmax_rows
from planner.check.run.site import Floats, Value, base_role
from planner.check.run.split import Split
from planner.graph.nodes import Node
from planner.graph.ops import Layout

Ints = NDArray[np.int64]
Tokens = Callable[[Split], Ints]


@dataclass(frozen=True)
class Expected:
    """What a value should be, what it is, and the magnitude that its error is measured against; rows of padding left out."""

    wanted: Floats
    found: Floats
    scale: float

    @property
    def error(self) -> float:
        """Largest absolute error; infinite where shapes differ."""
        if self.wanted.shape != self.found.shape:
            return float("inf")
        return float(np.max(np.abs(self.wanted - self.found), initial=0.0))


def _attention(split: Split) -> Ints:
    return split.at.attention(split.place).reshape(-1)


def _residual(split: Split) -> Ints:
    return split.at.residual(split.place)


def _network(split: Split) -> Ints:
    return split.at.network(split.place)


def _own(split: Split) -> Ints:
    return split.at.own(split.place)


def _everything(split: Split) -> Ints:
    return split.at.order


def _head(split: Split) -> Ints:
    return split.at.head(split.at.residual(split.place))


def _gathered_head(split: Split) -> Ints:
    return split.at.gathered_head(split.place)


def _ffn_norm_tokens(split: Split) -> Ints:
    return (
        _own(split)
        if split.placement.form != "local" and split.layer is not None and split.layer.ffn.kind == "moe"
        else _residual(split)
    )


ALL = ""
Entry = tuple[str, Tokens, str]
_ATTENTION: dict[str, Entry] = {
    "xn": ("attention.xn", _residual, ALL), "xg": ("attention.xn", _attention, ALL),
    "q": ("attention.q", _attention, "q"), "k": ("attention.k", _attention, "k"), "v": ("attention.v", _attention, "v"),
    "qa": ("attention.qa", _attention, ALL), "qan": ("attention.qan", _attention, ALL),
    "kva": ("attention.kva", _attention, ALL), "kvan": ("attention.kvan", _attention, ALL),
    "kv": ("attention.kv", _attention, "latent"),
    "ik": ("attention.ik", _attention, ALL), "ikn": ("attention.ikn", _attention, ALL), "iw": ("attention.iw", _attention, ALL),
    "iq": ("attention.iq", _attention, ALL),
    "av": ("attention.a", _attention, "finished"), "ag": ("attention.a", _attention, "output_rows"),
    "o": ("attention.o", _residual, ALL), "on": ("attention.on", _residual, ALL), "y": ("attention.y", _residual, ALL),
}  # fmt: skip
_FFN: dict[str, Entry] = {
    "xn": ("ffn.xn", _ffn_norm_tokens, ALL), "fn": ("ffn.fn", _residual, ALL), "y": ("ffn.y", _residual, ALL),
    "f": ("ffn.f", _residual, ALL), "fs": ("ffn.f", _own, ALL),
}  # fmt: skip
_DENSE: dict[str, Entry] = {
    "xg": ("ffn.xn", _network, ALL), "gate": ("ffn.gate", _network, "ffn"), "up": ("ffn.up", _network, "ffn"),
    "active": ("ffn.active", _network, "ffn"), "ffn_shard": ("ffn.f", _own, ALL),
}  # fmt: skip
_MIXTURE: dict[str, Entry] = {"xg": ("ffn.xn", _everything, ALL), "moe_shard": ("ffn.f", _own, ALL)}
_HEAD: dict[str, Entry] = {
    "xn": ("head.xn", _head, ALL), "xg": ("head.xn", _gathered_head, ALL), "logits": ("head.logits", _gathered_head, "vocab"),
    "y": ("head.logits", _gathered_head, ALL),
}  # fmt: skip
_EMBEDDING: dict[str, Entry] = {"y": ("embedding.y", _residual, ALL), "embedding_shard": ("embedding.y", _own, ALL)}
TABLE: dict[str, dict[str, Entry]] = {
    "attention": _ATTENTION, "mlp": _FFN | _DENSE, "moe": _FFN | _MIXTURE, "route": _FFN, "return": _FFN, "experts": {},
    "head": _HEAD, "embedding": _EMBEDDING,
}  # fmt: skip
CHANGES = {"attention.y": "attention.o", "ffn.y": "ffn.f"}
"""Residual sums are measured against what the half of the layer adds: the stream itself dwarfs it."""


def expected(node: Node, name: str, layer: int | None, split: Split, value: Value) -> Expected | None:
    """What a value should be; None for partial sums and for what only moves (transfers, sorted tokens)."""
    if node.outputs and node.outputs[0].layout == Layout.PARTIAL and name not in ("router_scores", "routes"):
        return None
    if node.name == "loss":
        return _measured(*_loss(split, value))
    if name in SPECIAL:
        found = SPECIAL[name](layer, split, value)
        return None if found is None else _measured(*found)
    entry = TABLE.get(base_role(node.role), {}).get(name)
    if entry is None:
        return None
    key, tokens_of, axis = entry
    tokens = tokens_of(split)
    wanted = split.world.expected(layer, key)[tokens]
    wanted = wanted[:, split.index(axis)] if axis else wanted
    change = split.world.expected(layer, CHANGES[key])[tokens] if key in CHANGES else wanted
    if len(value.array) != len(wanted):
        return Expected(wanted, value.array, 1.0)
    rows = split.world.valid[tokens]
    return _measured(wanted[rows], value.array[rows], change[rows])


def _measured(wanted: Floats, found: Floats, change: Floats | None = None) -> Expected:
    magnitude = wanted if change is None else change
    return Expected(wanted, found, float(np.max(np.abs(magnitude), initial=0.0)) or 1.0)


Special = Callable[[int | None, Split, Value], tuple[Floats, Floats] | None]


def _valid_rows(split: Split, tokens: Ints, wanted: Floats, found: Floats) -> tuple[Floats, Floats]:
    if len(found) != len(wanted):
        return wanted, found
    rows = split.world.valid[tokens]
    return wanted[rows], found[rows]


def _rotated(layer: int | None, split: Split, value: Value) -> tuple[Floats, Floats]:
    world, tokens = split.world, _attention(split)
    if split.attention.kind == "mla":
        rope = split.attention.rope_dim
        q = world.expected(layer, "attention.q_rope")[tokens].reshape(len(tokens), -1, rope)[:, split.heads][:, :, split.rope]
        k = world.expected(layer, "attention.k_rope")[tokens][:, split.rope]
        wanted = np.concatenate([q.reshape(len(tokens), -1), k], axis=1)
    else:
        names = (("attention.q_rotated", "q"), ("attention.k_rotated", "k"))
        wanted = np.concatenate([world.expected(layer, name)[tokens][:, split.index(axis)] for name, axis in names], axis=1)
    return _valid_rows(split, tokens, wanted, value.array)


def _qk_normed(layer: int | None, split: Split, value: Value) -> tuple[Floats, Floats]:
    world, tokens = split.world, _attention(split)
    names = (("attention.q_normed", "q"), ("attention.k_normed", "k"))
    wanted = np.concatenate([world.expected(layer, name)[tokens][:, split.index(axis)] for name, axis in names], axis=1)
    return _valid_rows(split, tokens, wanted, value.array)


def _loss(split: Split, value: Value) -> tuple[Floats, Floats]:
    """Cross entropy of the GPU's tokens, from the unsplit model's logits."""
    world, tokens = split.world, _gathered_head(split)
    logits = world.expected(None, "head.logits")[tokens]
    top = logits.max(axis=1, keepdims=True)
    own = np.take_along_axis(logits, world.targets[tokens][:, None], axis=1)
    wanted = np.log(np.exp(logits - top).sum(axis=1, keepdims=True)) + top - own
    return _valid_rows(split, tokens, wanted, value.array)


def _attended(layer: int | None, split: Split, value: Value) -> tuple[Floats, Floats] | None:
    """Attention output; not while it covers a part of the keys only, nor in the latent space."""
    tokens, parts = _attention(split), split.partition.context_parts
    merged = value.array.shape[1] == len(split.own_heads) * len(split.v)
    latent = split.attention.kind == "mla" and split.at.decode
    if latent or (parts > 1 and split.at.decode and not (merged and "log_sum_exp" not in value.beside)):
        return None
    wanted = split.world.expected(layer, "attention.a")[tokens][:, split.index("finished")]
    return _valid_rows(split, tokens, wanted, value.array)


def _pairs_of(layer: int | None, split: Split, name: str, rows: Ints) -> Floats:
    """Probabilities of the GPU's sequences, heads, some query rows and its keys: [sequences x heads, rows, keys]."""
    tokens, keys, length = split.at.attention(split.place), key_tokens(split), split.world.length
    place = (tokens[:, 0] // length)[:, None, None, None], split.heads[None, :, None, None]
    whole = split.world.trace.values[layer, name][
        (*place, (tokens % length)[:, None, rows, None], (keys % length)[:, None, None])
    ]
    whole = np.where(keys[:, None, None] < 0, 0.0, whole)  # keys that are not there yet
    return np.asarray(whole.reshape(-1, *whole.shape[2:]), dtype=np.float64)


def _probabilities(layer: int | None, split: Split, value: Value) -> tuple[Floats, Floats]:
    tokens = split.at.attention(split.place)
    count = tokens.shape[1]
    rows = np.arange(count) if value.array.shape[1] == count else softmax_rows(split)
    wanted = _pairs_of(layer, split, "attention.probabilities", rows)
    if wanted.shape != value.array.shape:
        return wanted, value.array
    kept = np.repeat(split.world.valid[tokens][:, rows], len(split.heads), axis=0)
    return wanted[kept], value.array[kept]


def _router_scores(layer: int | None, split: Split, value: Value) -> tuple[Floats, Floats]:
    tokens = np.asarray(value.beside["tokens"], dtype=np.int64)
    return _valid_rows(split, tokens, split.world.expected(layer, "ffn.router_scores")[tokens], value.array)


def _routes(layer: int | None, split: Split, value: Value) -> tuple[Floats, Floats]:
    """Experts and weights together: a matrix of tokens and experts, zero where a token does not go."""
    routes, experts = Routes.of(value), split.layer.ffn.experts if split.layer else 0
    wanted = _dense_routes(split.world.expected(layer, "ffn.routes")[routes.tokens].astype(np.int64),
                           split.world.expected(layer, "ffn.route_weights")[routes.tokens], experts)  # fmt: skip
    return _valid_rows(split, routes.tokens, wanted, _dense_routes(routes.experts, routes.weights, experts))


def _dense_routes(chosen: Ints, weights: Floats, experts: int) -> Floats:
    out = np.zeros((len(chosen), experts))
    np.put_along_axis(out, chosen, weights, axis=1)
    return out


def _expert_output(layer: int | None, split: Split, value: Value) -> tuple[Floats, Floats] | None:
    """Outputs of whole experts for their tokens; parts of an expert's columns are partial sums."""
    if split.placement.tensor_ways > 1:
        return None
    row, expert = (np.asarray(value.beside[name], dtype=np.int64) for name in ("row", "expert"))
    tokens = np.asarray(value.beside["tokens"], dtype=np.int64)[row]
    whole, chosen = split.world.trace.values[layer, "ffn.expert_output"], split.world.expected(layer, "ffn.routes")
    flat = whole.reshape(-1, *whole.shape[2:])
    column = np.argmax(chosen[tokens].astype(np.int64) == expert[:, None], axis=1)
    return _valid_rows(split, tokens, np.asarray(flat[tokens, column], dtype=np.float64), value.array)


SPECIAL: dict[str, Special] = {
    "rotated": _rotated,
    "qk_normed": _qk_normed,
    "a": _attended,
    "own_probabilities": _probabilities,
    "probabilities": _probabilities,
    "router_scores": _router_scores,
    "routes": _routes,
    "routes_all": _routes,
    "expert_partial": _expert_output,
}
