"""A model as a mapping of our own format, so that single fields can be changed and a problem file needs no other file."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

from planner.errors import InputError
from planner.model import Attention, Ffn, Layer, ModelSpec
from planner.models import load_model

_GQA = (
    "kind", "heads", "kv_heads", "head_dim", "v_head_dim", "causal", "window", "chunk", "q_bias", "kv_bias", "o_bias",
    "qk_norm", "qk_norm_weights", "sinks", "softcap", "rope", "rotary_dim", "scale_dim",
)  # fmt: skip
_MLA = (
    "kind", "heads", "nope_dim", "rope_dim", "v_head_dim", "causal", "rope", "q_lora_rank", "kv_lora_rank", "indexer",
)  # fmt: skip
_DENSE = ("kind", "hidden", "gated", "activation", "bias")
_MIXTURE = (
    *_DENSE, "experts", "top_k", "shared_hidden", "shared_gate", "router_bias", "expert_groups", "top_k_groups",
)  # fmt: skip
# What a mixture computes, written only where it is not the default.
_ROUTING = ("scoring", "renormalize", "routed_scale", "correction_bias", "scale_input", "group_score")
_OUTER = (
    "name", "hidden", "vocab", "tied_embeddings", "positions", "norm_kind", "final_norm", "head_bias", "dtype",
    "kv_dtype", "final_softcap",
)  # fmt: skip


def model_mapping(model: ModelSpec) -> dict[str, object] | None:
    """The mapping that reads back into an equal model; None where the format cannot say all of it."""
    kinds = sorted(model.layer_kinds, key=lambda kind: -model.layers.count(kind))
    first = kinds[0]
    mapping: dict[str, object] = {name: value for name in _OUTER if (value := getattr(model, name)) is not None}
    mapping |= {"layers": len(model.layers), "norms": first.norms, "parallel_residual": first.parallel_residual}
    mapping |= _parts(first)
    if model.module_dtypes:
        mapping["module_dtypes"] = dict(model.module_dtypes)
    defaults = {"position_offset": 0, "embedding_scale": 1.0, "architecture": ""}
    mapping |= {name: value for name, default in defaults.items() if (value := getattr(model, name)) != default}
    if len(kinds) > 1:
        mapping["layer_overrides"] = [
            {"layers": [i for i, layer in enumerate(model.layers) if layer == kind], **_parts(kind)} for kind in kinds[1:]
        ]
    if model.source:
        mapping["source"] = model.source
    try:
        return mapping if load_model(mapping, model.source) == model else None
    except InputError:
        return None


def changeable(ref: object, source: str) -> dict[str, object]:
    """The mapping behind a reference to a model, for `--set model.*`; `InputError` where it cannot be written as one."""
    if isinstance(ref, Mapping) and "attention" in ref:
        return dict(ref)
    if not isinstance(ref, str | Path | Mapping):
        raise InputError("model", ref, "a catalog name, a path, or a mapping", source)
    mapping = model_mapping(load_model(ref, source))
    if mapping is None:
        raise InputError("--set model", ref, "a model that our own format can say; write it as a mapping to change it")
    return mapping


def shorten(mapping: dict[str, object], before: dict[str, object]) -> None:
    """After a change of `layers`: overridden layers that are gone are dropped, new ones beside overrides are refused."""
    count, old, overrides = mapping.get("layers"), before.get("layers"), mapping.get("layer_overrides")
    if not isinstance(count, int) or not isinstance(old, int) or not isinstance(overrides, list) or count == old:
        return
    if count > old:
        raise InputError("--set model.layers", count, f"at most {old}: the layers differ, so the kind of new ones is unknown")
    kept = []
    for override in overrides:
        layers = override.get("layers") if isinstance(override, Mapping) else None
        if not isinstance(layers, list):
            kept.append(override)
        elif left := [i for i in layers if isinstance(i, int) and i < count]:
            kept.append({**override, "layers": left})
    mapping["layer_overrides"] = kept


def _parts(layer: Layer) -> dict[str, object]:
    return {"attention": _attention(layer.attention), "ffn": _ffn(layer.ffn)}


def _attention(attention: Attention) -> dict[str, object]:
    values = asdict(attention)
    return {name: values[name] for name in (_MLA if attention.kind == "mla" else _GQA) if values[name] is not None}


def _ffn(ffn: Ffn) -> dict[str, object]:
    values = asdict(ffn)
    written = {name: values[name] for name in (_MIXTURE if ffn.kind == "moe" else _DENSE)}
    plain = asdict(Ffn("moe", 1))
    return written | {name: values[name] for name in _ROUTING if values[name] != plain[name]}
