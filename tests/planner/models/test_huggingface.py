"""Details of imported layers, the defaults of each family, and refusal by name of what is not understood."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from planner.errors import InputError
from planner.models import load_model
from planner.models.hf import FAMILIES, read_config
from planner.models.hf.keys import HAZARDS

HF = Path(__file__).parents[2] / "golden" / "hf"
CONFIGS = {path.stem: json.loads(path.read_text()) for path in sorted(HF.glob("*.json"))}
TINY = {"hidden_size": 64, "num_hidden_layers": 4, "num_attention_heads": 4, "intermediate_size": 96, "vocab_size": 50}


def tiny(model_type: str, **changes):
    return read_config({"model_type": model_type, **TINY, **changes}, "config.json")


def windows(model):
    return [layer.attention.window for layer in model.layers]


def test_missing_keys_take_the_default_of_the_family():
    kv_heads = {"llama": 4, "phi3": 4, "qwen3": 32, "mistral": 8, "gemma2": 4}
    for family, count in kv_heads.items():
        heads = max(4, count)
        assert tiny(family, num_attention_heads=heads, head_dim=16).layers[0].attention.kv_heads == count
    assert tiny("gemma2").tied_embeddings
    assert not tiny("llama").tied_embeddings
    assert tiny("opt", ffn_dim=96, intermediate_size=None).tied_embeddings
    assert tiny("qwen3", num_key_value_heads=2).layers[0].attention.head_dim == 128
    assert tiny("llama", num_key_value_heads=None, head_dim=None).layers[0].attention.head_dim == 16


def test_windows_of_each_layer():
    assert windows(tiny("gemma2", sliding_window=8)) == [8, None, 8, None]
    assert windows(tiny("gemma3_text", num_hidden_layers=7, sliding_window=8)) == [8, 8, 8, 8, 8, None, 8]
    assert windows(tiny("mistral", num_attention_heads=8)) == [4096] * 4
    assert windows(tiny("mistral", num_attention_heads=8, sliding_window=None)) == [None] * 4
    qwen = {"num_key_value_heads": 2, "sliding_window": 8, "max_window_layers": 3}
    assert windows(tiny("qwen2", **qwen)) == [None] * 4
    assert windows(tiny("qwen2", **qwen, use_sliding_window=True)) == [None, None, None, 8]
    written = ["full_attention", "sliding_attention", "full_attention", "full_attention"]
    assert windows(tiny("gemma2", sliding_window=8, layer_types=written)) == [None, 8, None, None]
    assert windows(load_model(CONFIGS["gpt-oss-20b"]))[:3] == [128, None, 128]


def test_llama4_rotates_in_chunks_and_not_at_all_every_fourth_layer():
    scout = load_model(CONFIGS["llama-4-scout"])
    assert [layer.attention.chunk for layer in scout.layers[:5]] == [8192, 8192, 8192, None, 8192]
    assert [layer.attention.rope for layer in scout.layers[2:4]] == ["interleaved", "none"]
    assert [layer.attention.qk_norm for layer in scout.layers[2:4]] == ["head", "none"]
    maverick = load_model(CONFIGS["llama-4-maverick-17b-128e-instruct"])
    assert [layer.ffn.kind for layer in maverick.layers[:3]] == ["dense", "moe", "dense"]


def test_rotated_part_of_a_head():
    assert load_model(CONFIGS["gpt-neox-20b"]).layers[0].attention.rotary_dim == 24
    assert load_model(CONFIGS["glm-4.5-air"]).layers[0].attention.rotary_dim == 64
    for where in ({"partial_rotary_factor": 0.75}, {"rope_parameters": {"partial_rotary_factor": 0.75}}):
        assert tiny("phi3", **where).layers[0].attention.rotary_dim == 12
    assert load_model(CONFIGS["deepseek-v3"]).layers[0].attention.rope == "interleaved"
    assert load_model(CONFIGS["gpt2"]).layers[0].attention.rope == "none"


def test_routing_of_deepseek():
    v3, v2 = load_model(CONFIGS["deepseek-v3"]), load_model(CONFIGS["deepseek-v2"])
    assert (v3.layers[3].ffn.expert_groups, v3.layers[3].ffn.top_k_groups) == (8, 4)
    assert v2.layers[1].ffn.shared_hidden == 2 * 1536
    greedy = load_model({**CONFIGS["deepseek-v2"], "topk_method": "greedy", "q_lora_rank": None})
    assert greedy.layers[1].ffn.expert_groups == 1
    assert greedy.layers[0].attention.q_lora_rank is None


def ffn_of(family, **changes):
    experts = {"num_experts": 16} if family in ("mixtral", "qwen3_moe", "gpt_oss", "llama4_text") else {"n_routed_experts": 16}
    own = {"num_key_value_heads": 2, "num_experts_per_tok": 2, **experts}
    if family not in ("mixtral", "gpt_oss", "llama4_text"):
        own["moe_intermediate_size"] = 8
    if family == "llama4_text":
        own["intermediate_size_mlp"] = 80
    if family == "kimi_k2":
        own["first_k_dense_replace"] = 1
    return tiny(family, **own, **changes).layers[-1].ffn


@pytest.mark.parametrize(
    ("family", "changes", "expected"),
    [  # scoring, divided by the sum, scale, correction bias, input scaled, score of a group, activation
        ("mixtral", {}, ("softmax", True, 1.0, False, False, "max", "silu")),
        ("qwen3_moe", {}, ("softmax", False, 1.0, False, False, "max", "silu")),
        ("qwen3_moe", {"norm_topk_prob": True}, ("softmax", True, 1.0, False, False, "max", "silu")),
        ("gpt_oss", {}, ("softmax_top_k", True, 1.0, False, False, "max", "swiglu_clamped")),
        ("llama4_text", {}, ("sigmoid", False, 1.0, False, True, "max", "silu")),
        ("glm4_moe", {}, ("sigmoid", True, 1.0, True, False, "max", "silu")),
        ("deepseek_v2", {"norm_topk_prob": True}, ("softmax", False, 1.0, False, False, "max", "silu")),
        ("deepseek_v2", {"routed_scaling_factor": 16.0}, ("softmax", False, 16.0, False, False, "max", "silu")),
        ("deepseek_v3", {}, ("sigmoid", True, 2.5, True, False, "top2", "silu")),
        ("deepseek_v3", {"n_group": 1, "topk_group": 1}, ("sigmoid", True, 2.5, True, False, "max", "silu")),
        ("deepseek_v32", {"norm_topk_prob": False}, ("sigmoid", False, 2.5, True, False, "top2", "silu")),
        ("glm_moe_dsa", {}, ("sigmoid", True, 2.5, True, False, "max", "silu")),
        ("kimi_k2", {"routed_scaling_factor": 2.827}, ("sigmoid", True, 2.827, True, False, "max", "silu")),
    ],
)
def test_routing_of_each_family(family, changes, expected):
    ffn = ffn_of(family, **changes)
    names = ("scoring", "renormalize", "routed_scale", "correction_bias", "scale_input", "group_score", "activation")
    assert tuple(getattr(ffn, name) for name in names) == expected


def test_deepseek_v2_knows_groups_only_by_its_method():
    groups = {"n_group": 4, "topk_group": 2}
    assert ffn_of("deepseek_v2", **groups).expert_groups == 1
    assert ffn_of("deepseek_v2", **groups, topk_method="group_limited_greedy").expert_groups == 4


def test_what_stands_outside_the_layers():
    gemma, opt = tiny("gemma2"), tiny("opt", ffn_dim=96, intermediate_size=None)
    assert (gemma.embedding_scale, tiny("llama").embedding_scale) == (8.0, 1.0)
    assert (opt.positions, opt.position_offset) == (2050, 2)
    assert load_model(CONFIGS["gpt2"]).position_offset == 0
    assert {tiny(family).architecture for family in ("llama", "gemma2", "gpt_neox")} == {"llama", "gemma2", "gpt_neox"}
    assert load_model(CONFIGS["gemma-3-27b"]).architecture == "gemma3_text"


def test_the_indexers_rotation():
    mixture = {"moe_intermediate_size": 8, "n_routed_experts": 16, "num_experts_per_tok": 2}
    rotations = [tiny(family, **mixture).layers[0].attention.indexer.rope for family in ("deepseek_v32", "glm_moe_dsa")]
    assert rotations == ["half", "interleaved"]


def test_glm_moe_dsa_has_an_indexer_in_every_layer():
    glm5 = {"hidden_size": 6144, "num_hidden_layers": 78, "num_attention_heads": 64, "vocab_size": 154880}
    glm5 |= {"model_type": "glm_moe_dsa", "intermediate_size": 12288, "moe_intermediate_size": 2048, "n_routed_experts": 256}
    glm5 |= {"head_dim": 64, "qk_head_dim": 256, "num_experts_per_tok": 8}
    model = load_model(glm5)
    assert all(layer.attention.indexer for layer in model.layers)
    assert 740e9 < model.parameters < 748e9  # 744B, its makers say
    with pytest.raises(InputError, match="index_topk_freq"):
        load_model({**glm5, "index_topk_freq": 4})


def test_storage():
    v3 = load_model(CONFIGS["deepseek-v3"])
    assert (v3.dtype, v3.dtype_of("experts"), v3.dtype_of("router")) == ("bf16", "fp8", "bf16")
    oss = load_model(CONFIGS["gpt-oss-20b"])
    assert (oss.dtype_of("experts"), oss.dtype_of("attention")) == ("mxfp4", "bf16")
    assert tiny("llama", torch_dtype="float16").dtype == "fp16"
    kept = {"quant_method": "fp8", "modules_to_not_convert": ["lm_head", "model.layers.0.mlp.gate"]}
    assert tiny("llama", dtype="bfloat16", quantization_config=kept).dtype_of("ffn") == "fp8"


def test_wrapped_language_model_inherits_from_its_wrapper():
    model = load_model({**CONFIGS["gemma-3-27b"], "tie_word_embeddings": False, "dtype": "float32"})
    assert (model.tied_embeddings, model.dtype) == (False, "fp32")
    kimi = {"model_type": "kimi_k25", "vision_config": {}, "text_config": {**CONFIGS["deepseek-v3"], "model_type": "kimi_k2"}}
    assert load_model(kimi).parameters == load_model("deepseek-v3").parameters


HYBRID = {
    "Kimi-K3": {
        "model_type": "kimi_k3",
        "text_config": {
            **{"model_type": "kimi_linear", "linear_attn_config": {"kda_layers": [1]}, "num_experts": 896},
            **TINY,
            "routed_expert_hidden_size": 32,
        },
    },
    "Qwen3.5": {
        "model_type": "qwen3_5_moe",
        "text_config": {**TINY, "model_type": "qwen3_5_moe_text", "full_attention_interval": 4, "attn_output_gate": True},
    },
    "gemma-4": {
        "model_type": "gemma4",
        "text_config": {**TINY, "model_type": "gemma4_text", "global_head_dim": 512, "enable_moe_block": True},
    },
    "Nemotron": {"model_type": "nemotron_h", **TINY, "hybrid_override_pattern": "M*M", "moe_latent_size": 8},
    "DeepSeek-V4": {"model_type": "deepseek_v4", **TINY, "compress_ratios": [4], "o_lora_rank": 8, "hc_mult": 4},
}


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("Kimi-K3", ["linear-attention layers", "linear_attn_config", "latent mixture of experts"]),
        ("Qwen3.5", ["full_attention_interval", "gated attention output"]),
        ("gemma-4", ["global_head_dim", "a dense network and a mixture of experts in one block"]),
        ("Nemotron", ["Mamba", "moe_latent_size"]),
        ("DeepSeek-V4", ["compress_ratios", "o_lora_rank", "hyper-connections"]),
    ],
)
def test_hybrids_are_refused_by_the_name_of_their_structure(name, words):
    with pytest.raises(InputError) as caught:
        load_model(HYBRID[name], "config.json")
    assert all(word in str(caught.value) for word in words)


@pytest.mark.parametrize("key", sorted(HAZARDS))
def test_known_hazards_are_refused_in_any_family_and_pass_when_inactive(key):
    with pytest.raises(InputError, match=key):
        tiny("llama", **{key: 3})
    assert tiny("llama", **{key: None})


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"model_type": "lama"}, "did you mean llama"),
        ({"model_type": None}, "model_type"),
        ({"model_type": "gemma3"}, "text_config"),
        ({"model_type": "qwen3_next"}, "model_type"),
        ({"layer_types": ["linear_attention"] * 4}, "layers of type linear_attention"),
        ({"layer_types": ["full_attention"] * 3}, "layer_types"),
        ({"layer_types": ["sliding_attention"] * 4}, "layer_types"),
        ({"mystery_projection": 3}, "mystery_projection"),
        ({"sliding_window": 8}, "sliding_window"),
        ({"add_cross_attention": True}, "add_cross_attention"),
        ({"pruned_heads": {"1": [2]}}, "pruned_heads"),
        ({"hidden_size": None}, "hidden_size is missing"),
        ({"hidden_size": 0}, "hidden_size"),
        ({"hidden_size": "64"}, "hidden_size"),
        ({"hidden_size": 64.0}, "without a point"),
        ({"hidden_size": 66}, "head_dim"),
        ({"hidden_size": 2**50}, "hidden_size"),
        ({"num_hidden_layers": 10**6}, "num_hidden_layers"),
        ({"num_key_value_heads": 3}, "kv_heads"),
        ({"vocab_size": -1}, "vocab_size"),
        ({"tie_word_embeddings": 1}, "tie_word_embeddings"),
        ({"hidden_act": "xielu"}, "hidden_act"),
        ({"torch_dtype": "int3"}, "torch_dtype"),
        ({"quantization_config": {"quant_method": "gptq"}}, "gptq"),
        ({"quantization_config": {"quant_method": "mxfp4"}}, "mxfp4"),
        ({"quantization_config": {"quant_method": "fp8", "ignored_layers": ["model.layers.3.mlp"]}}, "ignored_layers"),
        ({"rope_parameters": 3}, "rope_parameters"),
        ({"partial_rotary_factor": 2.0}, "partial_rotary_factor"),
    ],
)
def test_wrong_configs_are_refused_by_key(changes, words):
    with pytest.raises(InputError, match=words):
        read_config({"model_type": "llama", **TINY, **changes}, "config.json")


@pytest.mark.parametrize(
    ("family", "changes", "words"),
    [
        ("opt", {"ffn_dim": 8, "word_embed_proj_dim": 32}, "word_embed_proj_dim"),
        ("opt", {"ffn_dim": 8, "do_layer_norm_before": False}, "do_layer_norm_before"),
        ("mixtral", {"num_attention_heads": 8, "num_local_experts": 4, "num_experts": 8}, "num_experts"),
        ("mixtral", {"num_attention_heads": 8, "num_local_experts": 4, "num_experts_per_tok": 5}, "top_k"),
        ("qwen3_moe", {"moe_intermediate_size": 8, "shared_expert_intermediate_size": 8}, "shared_expert"),
        ("deepseek_v3", {"moe_intermediate_size": 8, "n_routed_experts": 16, "attention_bias": True}, "attention_bias"),
        ("deepseek_v3", {"moe_intermediate_size": 8, "n_routed_experts": 12}, "expert_groups"),
        ("kimi_k2", {"moe_intermediate_size": 8, "n_routed_experts": 16}, "first_k_dense_replace"),
    ],
)
def test_family_rules(family, changes, words):
    with pytest.raises(InputError, match=words):
        tiny(family, **changes)


@pytest.mark.parametrize("name", ["meta-llama-3.1-8b", "deepseek-v3", "gpt-oss-20b", "llama-4-scout", "gpt2"])
def test_a_key_that_nobody_knows_is_refused_in_every_family(name):
    config = json.loads(json.dumps(CONFIGS[name]))
    config.get("text_config", config)["novel_structure"] = {"a": 1}
    with pytest.raises(InputError, match="novel_structure"):
        load_model(config)


VALUES = st.one_of(
    st.none(), st.booleans(), st.integers(-3, 2**70), st.floats(), st.text(max_size=5), st.lists(st.integers(0, 3), max_size=3)
)
KEYS = sorted({key for config in CONFIGS.values() for key in (config.get("text_config") or config)} - {"model_type"})


@settings(max_examples=300)
@given(st.sampled_from(sorted(CONFIGS)), st.dictionaries(st.sampled_from(KEYS), VALUES, max_size=4))
def test_changed_configs_load_or_are_refused(name, changes):
    config = dict(CONFIGS[name])
    text = {**config.get("text_config", config), **changes}
    try:
        model = load_model({**config, "text_config": text} if "text_config" in config else text)
    except InputError:
        return
    assert 0 < model.active_parameters <= model.parameters


@given(st.sampled_from(sorted(FAMILIES)), st.dictionaries(st.text(max_size=8) | st.sampled_from(KEYS), VALUES, max_size=12))
def test_random_mappings_load_or_are_refused(family, mapping):
    with contextlib.suppress(InputError):
        load_model({**mapping, "model_type": family})
