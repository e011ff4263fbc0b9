"""Reading a Hugging Face config: find the language model in it, refuse what is not understood, ask its family."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

from planner.errors import InputError, unknown_name
from planner.fields import Fields
from planner.model import ModelSpec
from planner.models.checks import checked
from planner.models.hf.classic import read_gpt2, read_gpt_neox, read_opt
from planner.models.hf.dense import (
    read_gemma2,
    read_gemma3,
    read_llama,
    read_mistral,
    read_phi3,
    read_qwen2,
    read_qwen3,
)
from planner.models.hf.dtypes import read_dtype, read_module_dtypes
from planner.models.hf.keys import FIXED, HARMLESS, INHERITED, TEXT_KEYS, WRAPPER_HARMLESS, WRAPPERS, hazards_in
from planner.models.hf.mla import (
    read_deepseek_v2,
    read_deepseek_v3,
    read_deepseek_v32,
    read_glm_moe_dsa,
    read_kimi_k2,
)
from planner.models.hf.moe import read_glm4_moe, read_gpt_oss, read_llama4, read_mixtral, read_qwen3_moe

FAMILIES: dict[str, Callable[[Fields], ModelSpec]] = {
    "deepseek_v2": read_deepseek_v2,
    "deepseek_v3": read_deepseek_v3,
    "deepseek_v32": read_deepseek_v32,
    "gemma2": read_gemma2,
    "gemma3_text": read_gemma3,
    "glm4_moe": read_glm4_moe,
    "glm_moe_dsa": read_glm_moe_dsa,
    "gpt2": read_gpt2,
    "gpt_neox": read_gpt_neox,
    "gpt_oss": read_gpt_oss,
    "kimi_k2": read_kimi_k2,
    "llama": read_llama,
    "llama4_text": read_llama4,
    "mistral": read_mistral,
    "mixtral": read_mixtral,
    "opt": read_opt,
    "phi3": read_phi3,
    "qwen2": read_qwen2,
    "qwen3": read_qwen3,
    "qwen3_moe": read_qwen3_moe,
}


def read_config(mapping: Mapping[str, object], source: str = "", name: str = "model") -> ModelSpec:
    """The language model that a Hugging Face config describes.

    `mapping` is the parsed ``config.json``; a multimodal one holds the language model under ``text_config``. `source` is
    the file, for messages and for the spec; `name` is the spec's unless the file holds one.

    `InputError` names the key that is wrong or not understood; nothing is counted by guess.
    """
    c, model_type = _language_model(Fields(mapping, source))
    model = FAMILIES[model_type](c)
    model = replace(
        model,
        name=_name(mapping, name),
        dtype=read_dtype(c),
        module_dtypes=read_module_dtypes(c, model_type),
        source=source,
        architecture=model_type,
    )
    _refuse_rest(c, model_type)
    return checked(model)


def _language_model(outer: Fields) -> tuple[Fields, str]:
    """The fields of the language model, and its family."""
    key = next((key for key in TEXT_KEYS if outer.has(key)), None)
    if key is None:
        _refuse_hazards(outer)
        model_type = outer.text("model_type")
        if model_type in WRAPPERS:
            raise outer.error("text_config", f"the mapping that holds the language model of a {model_type}")
        return outer, _family(outer, model_type)
    inner = outer.mapping(key)
    _refuse_hazards(inner)
    _refuse_hazards(outer)
    wrapper = outer.text("model_type")
    if wrapper not in WRAPPERS:
        raise unknown_name("model_type", wrapper, [*FAMILIES, *WRAPPERS], outer.source)
    inherited = {name: outer.raw(name) for name in INHERITED if inner.values.get(name) is None and outer.has(name)}
    text = Fields({**inner.values, **inherited}, inner.source, inner.path)
    outer.ignore(WRAPPER_HARMLESS)
    _refuse_rest(outer, wrapper)
    return text, _family(text, text.text("model_type", default=WRAPPERS[wrapper]))


def _family(c: Fields, model_type: str) -> str:
    if model_type not in FAMILIES:
        raise unknown_name(c.at("model_type"), model_type, FAMILIES, c.source)
    return model_type


def _refuse_hazards(c: Fields) -> None:
    found = hazards_in(c.values)
    if found:
        structures = "; ".join(f"{structure} ({key})" for key, structure in found)
        raise c.error(found[0][0], f"a decoder of ordinary layers; not understood, so not counted: {structures}")


def _refuse_rest(c: Fields, model_type: str) -> None:
    """Refuse by name every key that nobody read and that is not known to be harmless."""
    c.ignore(HARMLESS)
    for key in c.unread():
        value = c.values[key]
        if key in FIXED:
            if not any(value is fixed or value == fixed for fixed in FIXED[key]):
                raise c.error(key, f"{FIXED[key][0]!r}; anything else is a structure that is not understood")
        elif value is not None:
            allowed = f"no such key: what it does to a {model_type} model is not understood, so nothing is counted"
            raise InputError(c.at(key[:100]), value, allowed, c.source)


def _name(mapping: Mapping[str, object], default: str) -> str:
    written = mapping.get("_name_or_path")
    return written if isinstance(written, str) and 0 < len(written) < 200 else default
