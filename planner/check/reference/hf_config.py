"""A Hugging Face config for a `ModelSpec`, checked by reading it back with our own importer."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import fields, replace
from typing import Any

from planner.check.reference.constants import NORM_EPS, ROPE_BASE
from planner.errors import InputError
from planner.model import Attention, Ffn, ModelSpec
from planner.models.hf import FAMILIES, read_config

Config = dict[str, Any]

_ACTIVATIONS = {"gelu_tanh": "gelu_pytorch_tanh", "swiglu_clamped": "silu"}
_LONG = 4096  # positions that a config of a model without a position table allows
# Families whose class computes head_dim from hidden and heads, and would not obey a config that says otherwise.
_PLAIN_HEADS = ("gpt2", "opt", "gpt_neox", "deepseek_v2", "deepseek_v3", "deepseek_v32", "glm_moe_dsa", "kimi_k2")


def config_of(model: ModelSpec) -> Config:
    """The config, `model_type` included, whose class computes what `model` does.

    `InputError` says what the class of the model's architecture cannot do. Masks are not looked at beyond windows and
    chunks: whether attention is causal is decided by the mask that the class is given.
    """
    if model.architecture not in FAMILIES:
        raise InputError("architecture", model.architecture, "one of " + ", ".join(FAMILIES))
    config: Config = {
        "model_type": model.architecture,
        "vocab_size": max(model.vocab, 1),
        "tie_word_embeddings": model.tied_embeddings,
        **_BUILDERS[model.architecture](model),
    }
    _compare(_plain(model), _plain(read_config(config, "the config")), model.architecture)
    return config


def _plain(model: ModelSpec) -> ModelSpec:
    """`model` without what no class cares about: names, storage, masks, and a head that is not there."""
    layers = tuple(replace(layer, attention=replace(layer.attention, causal=True)) for layer in model.layers)
    return replace(
        model,
        name="",
        source="",
        dtype="bf16",
        module_dtypes={},
        kv_dtype=None,
        vocab=max(model.vocab, 1),
        final_norm=True,
        layers=layers,
    )


def _compare(wanted: ModelSpec, got: ModelSpec, architecture: str) -> None:
    """`InputError` about the first field in which the class of a family differs from the model."""
    pairs: list[tuple[str, Any, Any]] = []
    for index, (ours, theirs) in enumerate(zip(wanted.layers, got.layers, strict=False)):
        at = f"layer {index} "
        pairs += [
            (f"{at}attention.", ours.attention, theirs.attention),
            (f"{at}ffn.", ours.ffn, theirs.ffn),
            (at, ours, theirs),
        ]
    for where, ours, theirs in [*pairs, ("", wanted, got)]:
        for field in fields(ours):
            mine, its = getattr(ours, field.name), getattr(theirs, field.name)
            if mine != its:
                raise InputError(f"{where}{field.name}", mine, f"{its}, which is what {architecture} makes of this model")


def _first(model: ModelSpec) -> Attention:
    return model.layers[0].attention


def _mixture(model: ModelSpec) -> Ffn:
    """The model's mixture of experts, or any where it has none."""
    return next(
        (layer.ffn for layer in model.layers if layer.ffn.kind == "moe"), Ffn("moe", 8, experts=4, top_k=1, shared_hidden=8)
    )


def _dense(model: ModelSpec) -> Ffn:
    return next((layer.ffn for layer in model.layers if layer.ffn.kind == "dense"), Ffn("dense", 8))


def _activation(ffn: Ffn) -> str:
    return _ACTIVATIONS.get(ffn.activation, ffn.activation)


def _window(model: ModelSpec) -> int | None:
    return next((layer.attention.window for layer in model.layers if layer.attention.window is not None), None)


def _window_types(model: ModelSpec) -> list[str]:
    return ["full_attention" if layer.attention.window is None else "sliding_attention" for layer in model.layers]


def _leading_dense(model: ModelSpec) -> int:
    """How many layers come before the first mixture."""
    kinds = [layer.ffn.kind for layer in model.layers]
    return kinds.index("moe") if "moe" in kinds else len(kinds)


def _rope(attention: Attention) -> Config:
    """The rotation; its fraction is rounded up a little, since the class rounds dims down."""
    whole = attention.rotary_dim in (0, attention.head_dim)
    fraction = 1.0 if whole else (attention.rotary_dim + 0.25) / attention.head_dim
    return {"rope_type": "default", "rope_theta": ROPE_BASE, "partial_rotary_factor": fraction}


def _common(model: ModelSpec, ffn: Ffn) -> Config:
    attention = _first(model)
    sizes: Config = {
        "hidden_size": model.hidden,
        "num_hidden_layers": len(model.layers),
        "num_attention_heads": attention.heads,
        "intermediate_size": ffn.hidden,
        "hidden_act": _activation(ffn),
        "rms_norm_eps": NORM_EPS,
        "max_position_embeddings": _LONG,
        "rope_parameters": _rope(attention),
    }
    if model.architecture not in _PLAIN_HEADS:
        sizes |= {"num_key_value_heads": attention.kv_heads, "head_dim": attention.head_dim}
    return sizes


def _llama(model: ModelSpec) -> Config:
    return _common(model, _dense(model)) | {"attention_bias": _first(model).q_bias, "mlp_bias": _dense(model).bias}


def _mistral(model: ModelSpec) -> Config:
    return _common(model, _dense(model)) | {"sliding_window": _window(model)}


def _qwen_windows(model: ModelSpec) -> Config:
    if _window(model) is None:
        return {"use_sliding_window": False}
    return {"use_sliding_window": True, "sliding_window": _window(model), "layer_types": _window_types(model)}


def _qwen2(model: ModelSpec) -> Config:
    return _common(model, _dense(model)) | _qwen_windows(model)


def _qwen3(model: ModelSpec) -> Config:
    return _qwen2(model) | {"attention_bias": _first(model).q_bias}


def _gemma(model: ModelSpec) -> Config:
    attention = _first(model)
    scale = attention.scale_dim or attention.head_dim
    return _common(model, _dense(model)) | {
        "hidden_activation": _activation(_dense(model)),
        "attention_bias": attention.q_bias,
        "query_pre_attn_scalar": int(scale) if scale == int(scale) else scale,  # the class takes whole numbers only
        "attn_logit_softcapping": attention.softcap,
        "final_logit_softcapping": model.final_softcap,
        "sliding_window": _window(model) or _LONG,
        "layer_types": _window_types(model),
    }


def _gemma3(model: ModelSpec) -> Config:
    kinds = ("full_attention", "sliding_attention")
    return _gemma(model) | {"rope_parameters": {kind: _rope(_first(model)) for kind in kinds}}


def _gpt2(model: ModelSpec) -> Config:
    return {
        "n_embd": model.hidden,
        "n_head": _first(model).heads,
        "n_layer": len(model.layers),
        "n_positions": model.positions,
        "n_inner": _dense(model).hidden,
        "activation_function": _activation(_dense(model)),
        "layer_norm_epsilon": NORM_EPS,
    }


def _gpt_neox(model: ModelSpec) -> Config:
    return _common(model, _dense(model)) | {
        "attention_bias": _first(model).q_bias,
        "use_parallel_residual": model.layers[0].parallel_residual,
        "layer_norm_eps": NORM_EPS,
        "rotary_pct": _rope(_first(model))["partial_rotary_factor"],
    }


def _opt(model: ModelSpec) -> Config:
    return {
        "hidden_size": model.hidden,
        "word_embed_proj_dim": model.hidden,
        "num_hidden_layers": len(model.layers),
        "num_attention_heads": _first(model).heads,
        "ffn_dim": _dense(model).hidden,
        "enable_bias": _dense(model).bias,
        "activation_function": _activation(_dense(model)),
        "max_position_embeddings": model.positions - model.position_offset,
    }


def _mixtral(model: ModelSpec) -> Config:
    ffn = _mixture(model)
    experts = {"num_local_experts": ffn.experts, "num_experts_per_tok": ffn.top_k}
    return _common(model, ffn) | experts | {"sliding_window": _window(model)}


def _qwen3_moe(model: ModelSpec) -> Config:
    ffn = _mixture(model)
    window = _window(model)
    return _common(model, _dense(model)) | {
        "hidden_act": _activation(ffn),
        "attention_bias": _first(model).q_bias,
        "moe_intermediate_size": ffn.hidden,
        "num_experts": ffn.experts,
        "num_experts_per_tok": ffn.top_k,
        "norm_topk_prob": ffn.renormalize,
        "decoder_sparse_step": 1,
        "mlp_only_layers": [i for i, layer in enumerate(model.layers) if layer.ffn.kind == "dense"],
        "use_sliding_window": window is not None,
        "sliding_window": window,
    }


def _gpt_oss(model: ModelSpec) -> Config:
    ffn = _mixture(model)
    return _common(model, ffn) | {
        "attention_bias": _first(model).q_bias,
        "num_local_experts": ffn.experts,
        "num_experts_per_tok": ffn.top_k,
        "sliding_window": _window(model) or _LONG,
        "layer_types": _window_types(model),
    }


def _llama4(model: ModelSpec) -> Config:
    ffn = _mixture(model)
    turning = next((layer.attention for layer in model.layers if layer.attention.rope != "none"), _first(model))
    chunk = next((layer.attention.chunk for layer in model.layers if layer.attention.chunk is not None), _LONG)
    types = ["full_attention" if layer.attention.chunk is None else "chunked_attention" for layer in model.layers]
    return _common(model, ffn) | {
        "rope_parameters": _rope(turning),
        "intermediate_size_mlp": _dense(model).hidden,
        "num_local_experts": ffn.experts,
        "num_experts_per_tok": ffn.top_k,
        "moe_layers": [i for i, layer in enumerate(model.layers) if layer.ffn.kind == "moe"],
        "no_rope_layers": [int(layer.attention.rope != "none") for layer in model.layers],
        "layer_types": types,
        "attention_chunk_size": chunk,
        "use_qk_norm": turning.qk_norm == "head",
        "attention_bias": turning.q_bias,
        "attn_temperature_tuning": False,
    }


def _grouped(model: ModelSpec) -> Config:
    """A mixture in DeepSeek's spelling, behind leading dense layers."""
    ffn = _mixture(model)
    if not ffn.shared_hidden:
        raise InputError("shared_hidden", 0, f"shared experts: the class of {model.architecture} always has some")
    return {
        "moe_intermediate_size": ffn.hidden,
        "n_routed_experts": ffn.experts,
        "n_shared_experts": ffn.shared_hidden // ffn.hidden,
        "num_experts_per_tok": ffn.top_k,
        "first_k_dense_replace": _leading_dense(model),
        "n_group": ffn.expert_groups,
        "topk_group": ffn.top_k_groups,
        "norm_topk_prob": ffn.renormalize,
        "routed_scaling_factor": ffn.routed_scale,
    }


def _glm4_moe(model: ModelSpec) -> Config:
    attention = _first(model)
    own = {"attention_bias": attention.q_bias, "use_qk_norm": attention.qk_norm == "head"}
    return _common(model, _dense(model)) | {"hidden_act": _activation(_mixture(model))} | _grouped(model) | own


def _latent(model: ModelSpec) -> Config:
    attention = _first(model)
    return (
        _common(model, _dense(model))
        | _grouped(model)
        | {
            "hidden_act": _activation(_mixture(model)),
            "num_key_value_heads": attention.heads,
            "q_lora_rank": attention.q_lora_rank,
            "kv_lora_rank": attention.kv_lora_rank,
            "qk_nope_head_dim": attention.nope_dim,
            "qk_rope_head_dim": attention.rope_dim,
            "v_head_dim": attention.v_head_dim,
            "rope_parameters": {"rope_type": "default", "rope_theta": ROPE_BASE},
        }
    )


def _deepseek_v2(model: ModelSpec) -> Config:
    greedy = _mixture(model).expert_groups == 1
    return _latent(model) | {"topk_method": "greedy" if greedy else "group_limited_greedy"}


def _deepseek_v3(model: ModelSpec) -> Config:
    return _latent(model) | {"rope_interleave": _first(model).rope == "interleaved"}


def _indexed(model: ModelSpec) -> Config:
    indexer = _first(model).indexer
    if indexer is None:
        raise InputError("attention.indexer", None, f"an indexer: every layer of {model.architecture} has one")
    sizes = {"index_n_heads": indexer.heads, "index_head_dim": indexer.head_dim, "index_topk": indexer.top_k}
    return _latent(model) | sizes


_BUILDERS: Mapping[str, Callable[[ModelSpec], Config]] = {
    "deepseek_v2": _deepseek_v2,
    "deepseek_v3": _deepseek_v3,
    "deepseek_v32": _indexed,
    "gemma2": _gemma,
    "gemma3_text": _gemma3,
    "glm4_moe": _glm4_moe,
    "glm_moe_dsa": _indexed,
    "gpt2": _gpt2,
    "gpt_neox": _gpt_neox,
    "gpt_oss": _gpt_oss,
    "kimi_k2": _deepseek_v3,
    "llama": _llama,
    "llama4_text": _llama4,
    "mistral": _mistral,
    "mixtral": _mixtral,
    "opt": _opt,
    "phi3": _mistral,
    "qwen2": _qwen2,
    "qwen3": _qwen3,
    "qwen3_moe": _qwen3_moe,
}
