"""Our own model format: one mapping for all layers, with overrides for those that differ.

The fields are those of `ModelSpec`, with `attention` and `ffn` as mappings and `layers` as a count. Some defaults:
`kv_heads` = heads, `head_dim` = hidden / heads, `rope: half` over the whole head, `gated` as the activation's name
says (silu, swiglu, geglu: yes; gelu, relu: no), two RMS norms a layer, no embedding and no head for `vocab: 0`.
`embedding_scale` is a number or the word sqrt_hidden.

`layer_overrides` is a list of mappings with `layers` (such as ``"0-2"``, ``"1-47/2"`` for every second one, or
``"0,5,7-9"``; both ends count) and `attention`, `ffn`, or both. A part that names its `kind` stands on its own; otherwise
its fields replace those of the model's part. Where two overrides speak of one part of one layer, the later one holds.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Literal, get_args

from planner.errors import InputError
from planner.fields import Fields
from planner.model import Layer, ModelSpec, Module, NormKind
from planner.models.checks import MAX_LAYERS, checked
from planner.models.hf import FAMILIES
from planner.models.parts import read_attention, read_ffn
from planner.units import DTYPE_BITS

_NORM_KINDS: tuple[NormKind, ...] = get_args(NormKind)
_RANGE = re.compile(r"(\d{1,6})(?:-(\d{1,6})(?:/(\d{1,6}))?)?", re.ASCII)


def read_spec(mapping: Mapping[str, object], source: str = "") -> ModelSpec:
    """The model in a mapping of our own format; `InputError` names the field that is wrong."""
    fields = Fields(mapping, source, "model")
    hidden = fields.integer("hidden", low=1)
    vocab = fields.integer("vocab", high=2**32)
    norm_kind = fields.choice("norm_kind", _NORM_KINDS, default="rms")
    layers = _read_layers(fields, hidden, norm_kind)
    model = ModelSpec(
        name=fields.text("name", default="inline"),
        hidden=hidden,
        vocab=vocab,
        layers=layers,
        tied_embeddings=fields.boolean("tied_embeddings", default=False),
        positions=fields.integer("positions", high=2**32, default=0),
        norm_kind=norm_kind,
        final_norm=fields.boolean("final_norm", default=vocab > 0),
        head_bias=fields.boolean("head_bias", default=False),
        dtype=fields.choice("dtype", DTYPE_BITS, default="bf16"),
        module_dtypes=_read_module_dtypes(fields),
        kv_dtype=fields.choice("kv_dtype", DTYPE_BITS) if fields.has("kv_dtype") else None,
        final_softcap=fields.maybe_number("final_softcap", low=1e-6),
        source=fields.text("source", default=source),
        position_offset=fields.integer("position_offset", high=2**32, default=0),
        embedding_scale=_read_embedding_scale(fields, hidden),
        architecture=fields.choice("architecture", FAMILIES) if fields.has("architecture") else "",
    )
    fields.done()
    try:
        return checked(model)
    except InputError as error:
        raise InputError(error.field, error.value, error.allowed, source) from None


def _read_layers(fields: Fields, hidden: int, norm_kind: NormKind) -> tuple[Layer, ...]:
    count = fields.integer("layers", low=1, high=MAX_LAYERS)
    norms = fields.integer("norms", default=2)
    if norms not in (2, 4):
        raise fields.error("norms", "2 norms a layer (before attention and FFN) or 4 (after them, too)")
    parallel = fields.boolean("parallel_residual", default=False)

    attentions = [read_attention(fields.mapping("attention"), hidden)] * count
    ffns = [read_ffn(fields.mapping("ffn"))] * count
    for override in fields.mappings("layer_overrides"):
        attention, ffn = _merged(fields, override, "attention"), _merged(fields, override, "ffn")
        indices = _read_indices(override, count)
        override.done()
        changed_attention = read_attention(attention, hidden) if attention else None
        changed_ffn = read_ffn(ffn) if ffn else None
        for index in indices:
            attentions[index] = changed_attention or attentions[index]
            ffns[index] = changed_ffn or ffns[index]
    pairs = zip(attentions, ffns, strict=True)
    return tuple(Layer(attention, ffn, norms, norm_kind, parallel) for attention, ffn in pairs)


def _merged(model: Fields, override: Fields, part: Literal["attention", "ffn"]) -> Fields | None:
    """The fields of `part` for the overridden layers; None where the override does not speak of it."""
    base, own = model.mapping(part), override.maybe_mapping(part)
    if own is None:
        return None
    values = own.values if "kind" in own.values else {**base.values, **own.values}
    return Fields(values, own.source, own.path)


def _read_indices(override: Fields, count: int) -> list[int]:
    """The layer indices that an override names, each below `count`."""
    value = override.raw("layers")
    if isinstance(value, list):
        return override.integers("layers", high=count - 1)
    text = str(value) if isinstance(value, int) and not isinstance(value, bool) else value
    allowed = f'layers 0 to {count - 1}, written like "0-2", "1-{count - 1}/2" or "0,4,7-9"'
    if not isinstance(text, str) or len(text) > 10_000:
        raise override.error("layers", allowed)
    indices: list[int] = []
    for item in text.split(","):
        match = _RANGE.fullmatch(item.strip())
        if match is None:
            raise override.error("layers", allowed)
        first, last, step = int(match[1]), int(match[2] or match[1]), int(match[3] or 1)
        if not first <= last < count or step < 1:
            raise override.error("layers", allowed)
        indices.extend(range(first, last + 1, step))
    return indices


def _read_embedding_scale(fields: Fields, hidden: int) -> float:
    if fields.raw("embedding_scale") == "sqrt_hidden":
        return math.sqrt(hidden)
    return fields.number("embedding_scale", low=1e-6, high=1e6, default=1.0)


def _read_module_dtypes(fields: Fields) -> dict[Module, str]:
    own = fields.maybe_mapping("module_dtypes")
    if own is None:
        return {}
    modules: tuple[Module, ...] = get_args(Module)
    dtypes = {module: own.choice(module, DTYPE_BITS) for module in modules if own.has(module)}
    own.done()
    return dtypes
