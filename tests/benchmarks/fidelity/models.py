"""The model of a truth row: by name from the catalog or `models.yaml`, or from the dimensions that the row states."""

from __future__ import annotations

import re
from dataclasses import replace
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

from planner.errors import PlannerError
from planner.files import read_yaml
from planner.model import ModelSpec, Module
from planner.models import load_model
from planner.models.catalog import find_name
from planner.models.spec import read_spec
from tests.benchmarks.fidelity.rows import Row, Unusable, positive, text, whole

FILE = Path(__file__).parent / "models.yaml"
VARIANT = re.compile(r"-(?:hf|instruct|base|chat|fp8|fp4|nvfp4|mxfp4|bf16|fp16|int8|it|v0\.[0-9]|[0-9]{4})$")
PLAIN = ("", "bf16", "bfloat16", "fp16", "float16", "half", "amp_bf16", "amp_fp16", "mixed", "bf16-mixed")
# What a narrow precision is written with, and the storage of weights that it means; the first that is found counts.
NARROW = (("mxfp4", "mxfp4"), ("fp4", "nvfp4"), ("fp8", "fp8"), ("float8", "fp8"), ("int8", "int8"), ("int4", "int4"))
STATED_PARAMETERS = 0.2  # how far the parameters that a row states may be from those of the dimensions it gives


@cache
def _data() -> dict[str, Any]:
    return dict(read_yaml(FILE))


def model_of(name: str, precision: str = "", row: Row | None = None) -> ModelSpec | Unusable:
    """The model that a source calls `name`, its weights stored in `precision`; from the dimensions of `row` where unnamed."""
    stored = stored_as(precision)
    if stored is None:
        return Unusable(f"precision {precision}")
    found: ModelSpec | Unusable | None = _named(name)
    if found is None and row is not None:
        found = from_dimensions(row)
    if found is None:
        return Unusable(f"model {name or 'not stated'}: neither in the catalog nor with dimensions")
    return found if isinstance(found, Unusable) else _stored(found, stored)


def stored_as(precision: str) -> str | None:
    """How weights are stored under a precision as sources write it; None for a word that we do not know."""
    written = precision.strip().lower()
    return "bf16" if written in PLAIN else next((dtype for word, dtype in NARROW if word in written), None)


def plain_name(name: str) -> str:
    """A name without organisation, letter case and endings of variants."""
    short = name.strip().lower().rsplit("/", 1)[-1] if "/r1" not in name.lower() else name.strip().lower()
    short = short.replace("_", "-").removeprefix("meta-")
    while VARIANT.search(short):
        short = VARIANT.sub("", short)
    return short


@lru_cache(maxsize=512)
def _named(name: str) -> ModelSpec | None:
    short = plain_name(name)
    short = _data()["aliases"].get(short, short)
    if short in _data()["models"]:
        return read_spec(_mapping(short, _data()["models"][short]), FILE.name)
    known = find_name(short) or find_name(name)
    return load_model(known) if known else None


def _mapping(name: str, d: dict[str, Any]) -> dict[str, object]:
    """Our own model format from the counts of an architecture."""
    gpt = d.get("style") == "gpt"
    attention: dict[str, object] = {"heads": d["heads"], "kv_heads": d.get("kv_heads", d["heads"])}
    if "head_dim" in d:
        attention["head_dim"] = d["head_dim"]
    if gpt:
        attention |= {"rope": "none", "q_bias": True, "kv_bias": True, "o_bias": True}
    if d.get("qkv_bias"):
        attention |= {"q_bias": True, "kv_bias": True}
    if d.get("qk_norm"):
        attention["qk_norm"] = "head"
    ffn: dict[str, object] = {"activation": "gelu" if gpt else "silu", "hidden": d.get("expert_ffn") or d["ffn"], "bias": gpt}
    if d.get("experts"):
        ffn |= {"kind": "moe", "experts": d["experts"], "top_k": d["top_k"], "shared_hidden": d.get("shared_ffn", 0)}
    spec: dict[str, object] = {"name": name, "layers": d["layers"], "hidden": d["hidden"], "vocab": d.get("vocab", 0)}
    spec |= {"dtype": "bf16", "attention": attention, "ffn": ffn, "norm_kind": "layer" if gpt else "rms"}
    if gpt:
        spec["positions"] = 2048
    if d.get("tied", gpt):
        spec["tied_embeddings"] = True
    return spec


def from_dimensions(row: Row) -> ModelSpec | Unusable | None:
    """A model from the columns that state its dimensions; None where layers, hidden or heads are missing."""
    counts = {name: whole(row, name) for name in ("layers", "hidden", "heads", "kv_heads", "ffn_hidden", "vocab", "n_experts",
                                                  "topk", "moe_ffn")}  # fmt: skip
    if not (counts["layers"] and counts["hidden"] and counts["heads"]):
        return None
    d: dict[str, Any] = {name: counts[name] for name in ("layers", "hidden", "heads", "vocab")}
    d |= {"kv_heads": counts["kv_heads"] or counts["heads"], "ffn": counts["ffn_hidden"] or 4 * counts["hidden"]}
    if d["hidden"] % d["heads"] or d["heads"] % d["kv_heads"]:
        d["head_dim"] = max(1, d["hidden"] // d["heads"])
    if counts["n_experts"] and counts["topk"] and counts["moe_ffn"]:
        d |= {"experts": counts["n_experts"], "top_k": counts["topk"], "expert_ffn": counts["moe_ffn"]}
    if d["ffn"] == 4 * d["hidden"] or text(row, "arch").lower().startswith("gpt"):
        d["style"] = "gpt"
    try:
        model = read_spec(_mapping(text(row, "model") or "unnamed", d), "truth row")
    except PlannerError as error:
        return Unusable(f"dimensions of {text(row, 'model')}: {error}"[:100])
    stated = positive(row, "params_b")
    if stated and abs(model.parameters / 1e9 / stated - 1.0) > STATED_PARAMETERS:
        return Unusable(f"dimensions of {text(row, 'model')} do not give its parameters")
    return model


def _stored(model: ModelSpec, stored: str) -> ModelSpec:
    """The model with its projections stored in `stored`; what its published form stores narrower stays."""
    if stored == "bf16":
        return replace(model, dtype="bf16", module_dtypes={} if model.dtype == "bf16" else model.module_dtypes)
    modules: tuple[Module, ...] = ("attention", "ffn", "experts")
    for prefix, narrow in _data()["narrow"].items():
        if model.name.startswith(prefix):
            dtype = next((d for d in narrow if d == stored or {d, stored} == {"mxfp4", "nvfp4"}), None)
            if dtype is not None:
                return replace(model, module_dtypes=dict.fromkeys(narrow[dtype], dtype))
            if stored == "fp8" and "mxfp4" in narrow:
                return model  # published in mxfp4 only
    return replace(model, module_dtypes=dict.fromkeys(modules, stored))
