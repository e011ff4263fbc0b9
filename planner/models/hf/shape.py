"""What the families of Hugging Face configs have in common: sizes and their aliases, layer types, rotation, activation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from planner.errors import InputError
from planner.fields import REQUIRED, Fields
from planner.model import Attention, Layer, ModelSpec
from planner.models.checks import MAX_LAYERS

_ACTIVATIONS = {
    "silu": "silu",
    "swish": "silu",
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "relu": "relu",
}
MAX_VOCAB = 2**32
MAX_EXPERTS = 2**20


@dataclass(frozen=True, slots=True)
class Shape:
    """The sizes that every attention model has."""

    hidden: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    vocab: int

    def attention(self, rotary_dim: int, **rest: object) -> Attention:
        """Grouped-query attention of these sizes; `rest` are fields of `Attention`."""
        known: dict[str, object] = {"rotary_dim": rotary_dim, **rest}
        return Attention("gqa", self.heads, self.kv_heads, self.head_dim, self.head_dim, **known)  # type: ignore[arg-type]

    def model(self, layers: Sequence[Layer], *, tied: bool, final_softcap: float | None = None) -> ModelSpec:
        """A model with RMS norms; its name, dtypes and source are filled in by the reader."""
        return ModelSpec("", self.hidden, self.vocab, tuple(layers), tied, final_softcap=final_softcap)


def read_shape(
    c: Fields,
    *,
    heads: int | None = None,
    kv_heads: int | None = None,
    head_dim: int | None = None,
    vocab: int | None = None,
) -> Shape:
    """Sizes of a config; the arguments are the class defaults of its family.

    Sizes in which all members of a family differ are required. KV heads without a class default are as many as heads; a
    null head_dim is hidden / heads.
    """
    hidden = c.integer("hidden_size", low=1)
    count = c.integer("num_attention_heads", low=1, default=REQUIRED if heads is None else heads)
    kv = c.maybe_integer("num_key_value_heads", low=1, default=kv_heads)
    return Shape(
        hidden,
        c.integer("num_hidden_layers", low=1, high=MAX_LAYERS),
        count,
        count if kv is None else kv,
        read_head_dim(c, hidden, count, head_dim),
        c.integer("vocab_size", low=1, high=MAX_VOCAB, default=REQUIRED if vocab is None else vocab),
    )


def read_head_dim(c: Fields, hidden: int, heads: int, default: int | None = None) -> int:
    """`head_dim`; missing it is the class default, and without one (or null) hidden / heads."""
    found = c.maybe_integer("head_dim", low=1, default=default)
    if found is not None:
        return found
    if hidden % heads:
        raise c.error("head_dim", f"an integer, since hidden_size {hidden} is not a multiple of {heads} heads")
    return hidden // heads


def read_alias(c: Fields, names: Sequence[str], *, default: int | None = None, low: int = 1, high: int = 2**40) -> int:
    """A size that configs spell in several ways; two spellings in one file must agree."""
    found = {name: c.integer(name, low=low, high=high) for name in names if c.has(name)}
    if not found:
        return c.integer(names[0], low=low, high=high, default=REQUIRED if default is None else default)
    first, value = next(iter(found.items()))
    for name, other in found.items():
        if other != value:
            raise c.error(name, f"{value}, as {first} says")
    return value


def read_activation(c: Fields, *names: str, default: str) -> str:
    """The activation under the first of `names` that is there; one that we have no word for is refused by name."""
    for name in names:
        if c.has(name):
            return _ACTIVATIONS[c.choice(name, _ACTIVATIONS)]
    return _ACTIVATIONS[default]


def read_rotary(c: Fields, head_dim: int, *, name: str = "partial_rotary_factor", default: float = 1.0) -> int:
    """Rotated dims of a head; newer files put the fraction inside the mapping of the rotation."""
    fraction = default
    for where in ("rope_scaling", "rope_parameters"):
        parameters = c.maybe_mapping(where)
        if parameters is not None and parameters.has("partial_rotary_factor"):
            fraction = parameters.number("partial_rotary_factor", high=1.0)
    if c.has(name):
        fraction = c.number(name, high=1.0)
    return int(head_dim * fraction)


LayerType = Literal["full_attention", "sliding_attention", "chunked_attention"]


def read_layer_types(c: Fields, default: Sequence[LayerType], allowed: Sequence[LayerType]) -> list[LayerType]:
    """The attention type of each layer: `layer_types` where it is written, else the family's own pattern."""
    if not c.has("layer_types"):
        return list(default)
    written = c.texts("layer_types")
    if len(written) != len(default):
        raise InputError(c.at("layer_types"), len(written), f"one type for each of the {len(default)} layers", c.source)
    types: list[LayerType] = []
    for index, word in enumerate(written):
        known = [kind for kind in allowed if kind == word]
        if not known:
            raise InputError(f"{c.at('layer_types')}[{index}]", word, "one of " + ", ".join(allowed), c.source)
        types.append(known[0])
    return types


def all_full(c: Fields, layers: int) -> None:
    """For families without windows: `layer_types` may only say so."""
    read_layer_types(c, ["full_attention"] * layers, ["full_attention"])
