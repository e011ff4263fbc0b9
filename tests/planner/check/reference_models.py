"""Tiny models of every architecture that the importer reads, with inputs of ragged lengths."""

from __future__ import annotations

import numpy as np

from planner.check.reference import Tokens
from planner.model import ModelSpec
from planner.models.hf import read_config

VOCAB = 41
_SIZES = {
    **{"hidden_size": 48, "num_hidden_layers": 3, "num_attention_heads": 6, "num_key_value_heads": 2, "head_dim": 8},
    **{"intermediate_size": 52, "vocab_size": VOCAB},
}
_GROUPED = {
    **{"moe_intermediate_size": 20, "n_routed_experts": 12, "num_experts_per_tok": 3, "first_k_dense_replace": 1},
    **{"n_group": 4, "topk_group": 2, "n_shared_experts": 2, "routed_scaling_factor": 1.7},
}
_LATENT = {
    **_GROUPED,
    **{"q_lora_rank": 22, "kv_lora_rank": 18, "qk_nope_head_dim": 10, "qk_rope_head_dim": 6, "v_head_dim": 7},
    **{"head_dim": None, "num_key_value_heads": None},
}
_INDEXED = {**_LATENT, "index_n_heads": 4, "index_head_dim": 12, "index_topk": 5}
_PLAIN = {"head_dim": None, "num_key_value_heads": None}
_GPT2 = {"n_embd": 48, "n_head": 6, "n_layer": 3, "n_positions": 64, "vocab_size": VOCAB}

CASES: dict[str, list[dict[str, object]]] = {
    "llama": [{}, {"attention_bias": True, "mlp_bias": True, "tie_word_embeddings": True}, {"num_key_value_heads": 1}],
    "llama4_text": [
        {"num_local_experts": 5, "intermediate_size_mlp": 44, "attention_chunk_size": 5, "num_hidden_layers": 4},
        {
            **{"num_local_experts": 6, "num_experts_per_tok": 2, "intermediate_size_mlp": 44, "attention_chunk_size": 4},
            **{"num_hidden_layers": 4, "interleave_moe_layer_step": 2, "use_qk_norm": False, "attention_bias": True},
        },
    ],
    "mistral": [{"sliding_window": 5}, {"sliding_window": None}],
    "mixtral": [
        {"num_local_experts": 6, "num_experts_per_tok": 2},
        {"num_local_experts": 5, "num_experts_per_tok": 3, "sliding_window": 4},
    ],
    "qwen2": [{}, {"use_sliding_window": True, "sliding_window": 4, "max_window_layers": 1}],
    "qwen3": [{"attention_bias": True}, {"use_sliding_window": True, "sliding_window": 6, "max_window_layers": 2}],
    "qwen3_moe": [
        {
            "num_experts": 7,
            "num_experts_per_tok": 3,
            "moe_intermediate_size": 20,
            "norm_topk_prob": True,
            "mlp_only_layers": [0],
        },
        {
            "num_experts": 6,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 18,
            "sliding_window": 5,
            "use_sliding_window": True,
        },
    ],
    "gemma2": [
        {"sliding_window": 4, "query_pre_attn_scalar": 13, "attn_logit_softcapping": 3.0, "final_logit_softcapping": 2.0},
        {"sliding_window": 6, "num_key_value_heads": 6, "query_pre_attn_scalar": 8},
    ],
    "gemma3_text": [
        {"sliding_window": 4, "query_pre_attn_scalar": 11, "sliding_window_pattern": 3},
        {"sliding_window": 5, "tie_word_embeddings": False, "num_key_value_heads": 3},
    ],
    "gpt2": [_GPT2, {**_GPT2, "n_inner": 50, "activation_function": "relu"}],
    "gpt_neox": [
        {**_PLAIN, "hidden_act": "gelu", "rotary_pct": 0.5},
        {**_PLAIN, "num_attention_heads": 4, "use_parallel_residual": False, "hidden_act": "gelu_fast", "rotary_pct": 1.0},
    ],
    "gpt_oss": [
        {"num_local_experts": 6, "num_experts_per_tok": 2, "sliding_window": 4},
        {"num_local_experts": 5, "num_experts_per_tok": 4, "sliding_window": 7, "num_hidden_layers": 2},
    ],
    "opt": [{**_PLAIN, "ffn_dim": 50}, {**_PLAIN, "ffn_dim": 44, "enable_bias": False, "activation_function": "gelu"}],
    "phi3": [{"sliding_window": 5, "partial_rotary_factor": 0.75}, {"num_key_value_heads": 6}],
    "glm4_moe": [
        {**_GROUPED, "use_qk_norm": True, "attention_bias": True},
        {**_GROUPED, "n_group": 1, "topk_group": 1, "norm_topk_prob": False, "partial_rotary_factor": 0.25},
    ],
    "glm_moe_dsa": [_INDEXED, {**_INDEXED, "n_group": 1, "topk_group": 1, "index_topk": 3, "first_k_dense_replace": 2}],
    "deepseek_v2": [
        {**_LATENT, "topk_method": "group_limited_greedy"},
        {**_LATENT, "topk_method": "greedy", "q_lora_rank": None, "num_attention_heads": 4},
    ],
    "deepseek_v3": [
        _LATENT,
        {**_LATENT, "rope_interleave": False, "q_lora_rank": None, "norm_topk_prob": False, "n_group": 6, "topk_group": 3},
    ],
    "deepseek_v32": [_INDEXED, {**_INDEXED, "index_topk": 40, "index_n_heads": 3, "num_attention_heads": 5}],
    "kimi_k2": [
        {**_LATENT, "n_group": 1, "topk_group": 1, "routed_scaling_factor": 2.827},
        {**_LATENT, "n_group": 3, "topk_group": 2, "num_attention_heads": 4, "n_shared_experts": 1, "first_k_dense_replace": 2},
    ],
}


def tiny(architecture: str, changes: dict[str, object]) -> ModelSpec:
    config = {"model_type": architecture, **({} if architecture == "gpt2" else _SIZES), **changes}
    if architecture == "opt":
        del config["intermediate_size"]
    return read_config(config, "config.json")


def ragged(rng: np.random.Generator, *, offsets=(7, 0, 12), lengths=(13, 9, 4), padding="right") -> Tokens:
    """Three sequences of different lengths, at different positions, padded on one side."""
    length = max(lengths)
    places, valid = [], []
    for offset, own in zip(offsets, lengths, strict=True):
        start = 0 if padding == "right" else length - own
        index = np.arange(length)
        valid.append((index >= start) & (index < start + own))
        places.append(np.maximum(index - start + offset, 0))
    return Tokens(rng.integers(0, VOCAB, (len(lengths), length)), np.array(places), np.array(valid))
