"""Readers of the mixture-of-experts families with grouped-query attention: mixtral, qwen3_moe, gpt_oss, glm4_moe, llama4."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal, get_args

from planner.fields import Fields
from planner.model import Ffn, Layer, ModelSpec
from planner.models.hf.shape import (
    MAX_EXPERTS,
    LayerType,
    Shape,
    all_full,
    read_activation,
    read_alias,
    read_layer_types,
    read_rotary,
    read_shape,
)

_TOP_K = ("num_experts_per_tok", "experts_per_token", "num_experts_per_token")
TopKMethod = Literal["greedy", "group_limited_greedy", "noaux_tc"]
_METHODS: tuple[TopKMethod, ...] = get_args(TopKMethod)
_EXPERTS = ("num_local_experts", "num_experts", "n_routed_experts")


def read_experts(c: Fields, default: int | None = None) -> int:
    """The number of routed experts of a layer, in any of its spellings."""
    return read_alias(c, _EXPERTS, default=default, high=MAX_EXPERTS)


def read_top_k(c: Fields, default: int | None = None) -> int:
    """The number of experts a token visits, in any of its spellings."""
    return read_alias(c, _TOP_K, default=default, high=MAX_EXPERTS)


def read_dense_ffn(c: Fields, name: str = "intermediate_size") -> Ffn:
    """The gated dense network of `name` width."""
    return Ffn("dense", c.integer(name, low=1), True, read_activation(c, "hidden_act", default="silu"))


def read_mixtral(c: Fields) -> ModelSpec:
    """Mixtral: every layer a mixture without shared experts; `intermediate_size` is one expert's width."""
    shape = read_shape(c, kv_heads=8)
    all_full(c, shape.layers)
    attention = shape.attention(read_rotary(c, shape.head_dim), window=c.maybe_integer("sliding_window", low=1))
    act = read_activation(c, "hidden_act", default="silu")
    width = c.integer("intermediate_size", low=1)
    ffn = Ffn("moe", width, True, act, experts=read_experts(c, 8), top_k=read_top_k(c, 2))
    return shape.model([Layer(attention, ffn)] * shape.layers, tied=c.boolean("tie_word_embeddings", default=False))


def read_qwen3_moe(c: Fields) -> ModelSpec:
    """Qwen3 MoE: a mixture in every `decoder_sparse_step`-th layer that is not in `mlp_only_layers`."""
    shape = read_shape(c, kv_heads=4)
    bias = c.boolean("attention_bias", default=False)
    rotary = read_rotary(c, shape.head_dim)
    step = c.integer("decoder_sparse_step", low=1, default=1)
    dense_layers = set(c.integers("mlp_only_layers", default=()))
    act = read_activation(c, "hidden_act", default="silu")
    width = c.integer("moe_intermediate_size", low=1)
    divided = c.boolean("norm_topk_prob", default=False)
    moe = Ffn("moe", width, True, act, experts=read_experts(c, 128), top_k=read_top_k(c, 8), renormalize=divided)
    if not c.boolean("use_qk_norm", default=True):
        raise c.error("use_qk_norm", "true: the class always normalises q and k")
    sparse = [(i + 1) % step == 0 and i not in dense_layers for i in range(shape.layers)]
    c.ignore(["intermediate_size"])  # often written, and of no effect where every layer is a mixture
    dense = moe if all(sparse) else read_dense_ffn(c)
    window = _qwen3_moe_window(c, shape.layers)
    attention = shape.attention(rotary, q_bias=bias, kv_bias=bias, o_bias=bias, qk_norm="head", window=window)
    layers = [Layer(attention, moe if (i + 1) % step == 0 and i not in dense_layers else dense) for i in range(shape.layers)]
    return shape.model(layers, tied=c.boolean("tie_word_embeddings", default=False))


def _qwen3_moe_window(c: Fields, layers: int) -> int | None:
    """The class slides in all layers or in none; `max_window_layers` in its files is left over from the dense family."""
    c.ignore(["max_window_layers"])
    window = c.maybe_integer("sliding_window", low=1, default=4096)
    if c.boolean("use_sliding_window", default=False):
        return window
    all_full(c, layers)
    return None


def read_gpt_oss(c: Fields) -> ModelSpec:
    """gpt-oss: sliding and full layers in turn, attention sinks, biases everywhere, a clamped SwiGLU."""
    shape = read_shape(c, kv_heads=8, head_dim=64)
    window = c.maybe_integer("sliding_window", low=1, default=128)
    default: list[LayerType] = ["full_attention" if i % 2 else "sliding_attention" for i in range(shape.layers)]
    types = read_layer_types(c, default, ("full_attention", "sliding_attention"))
    bias = c.boolean("attention_bias", default=True)
    read_activation(c, "hidden_act", default="silu")  # the class clamps its own, whatever the file says
    ffn = Ffn(
        "moe",
        c.integer("intermediate_size", low=1),
        True,
        "swiglu_clamped",
        bias=True,
        experts=read_experts(c, 128),
        top_k=read_top_k(c, 4),
        router_bias=True,
        scoring="softmax_top_k",
    )
    rotary = read_rotary(c, shape.head_dim)
    layers = []
    for kind in types:
        own = window if kind == "sliding_attention" else None
        attention = shape.attention(rotary, q_bias=bias, kv_bias=bias, o_bias=bias, sinks=True, window=own)
        layers.append(Layer(attention, ffn))
    return shape.model(layers, tied=c.boolean("tie_word_embeddings", default=False))


def read_glm4_moe(c: Fields) -> ModelSpec:
    """GLM-4.5 to 4.7: dense layers first, biases on q, k, v, half of each head rotated."""
    shape = read_shape(c, kv_heads=8)
    all_full(c, shape.layers)
    bias = c.boolean("attention_bias", default=False)
    attention = shape.attention(
        read_rotary(c, shape.head_dim, default=0.5),
        q_bias=bias,
        kv_bias=bias,
        qk_norm="head" if c.boolean("use_qk_norm", default=False) else "none",
    )
    moe, dense = corrected(read_grouped_moe(c, top_k=8, shared=1, groups=(1, 1)), c, scale=1.0), read_dense_ffn(c)
    first = c.integer("first_k_dense_replace", default=1)
    layers = [Layer(attention, dense if i < first else moe) for i in range(shape.layers)]
    return shape.model(layers, tied=c.boolean("tie_word_embeddings", default=False))


def corrected(ffn: Ffn, c: Fields, *, scale: float) -> Ffn:
    """Routing of DeepSeek-V3 and what follows it: sigmoid scores, a bias for the choice alone, groups by their two best."""
    return replace(
        ffn,
        scoring="sigmoid",
        renormalize=c.boolean("norm_topk_prob", default=True),
        routed_scale=c.number("routed_scaling_factor", low=1e-6, default=scale),
        correction_bias=True,
        group_score="top2" if ffn.expert_groups > 1 else "max",
    )


def read_grouped_moe(
    c: Fields, *, top_k: int | None, shared: int, groups: tuple[int, int], method: TopKMethod = "noaux_tc"
) -> Ffn:
    """A mixture in DeepSeek's spelling: group-limited routing, and shared experts counted in widths of a routed one.

    `method` is the family's way of choosing where the file says nothing; only greedy knows no groups.
    """
    width = c.integer("moe_intermediate_size", low=1)
    count = c.integer("n_shared_experts", high=MAX_EXPERTS, default=0) if "n_shared_experts" in c.values else shared
    method = c.choice("topk_method", _METHODS, default=method)
    group_count = c.integer("n_group", low=1, default=groups[0])
    chosen = c.integer("topk_group", low=1, default=groups[1])
    limited = method != "greedy"
    return Ffn(
        "moe",
        width,
        True,
        read_activation(c, "hidden_act", default="silu"),
        experts=read_experts(c),
        top_k=read_top_k(c, top_k),
        shared_hidden=count * width,
        expert_groups=group_count if limited else 1,
        top_k_groups=chosen if limited else 1,
    )


def read_llama4(c: Fields) -> ModelSpec:
    """Llama 4 (text): chunked attention with rotation, every fourth layer full without it; mixtures every few layers.

    The norms of q and k have no weights and stand only in layers that rotate.
    """
    shape = read_shape(c, kv_heads=8, head_dim=128)
    bias = c.boolean("attention_bias", default=False)
    rotated = _rotated_layers(c, shape)
    default: list[LayerType] = ["chunked_attention" if turn else "full_attention" for turn in rotated]
    types = read_layer_types(c, default, ("full_attention", "chunked_attention"))
    chunk = c.maybe_integer("attention_chunk_size", low=1, default=8192)
    qk_norm = c.boolean("use_qk_norm", default=True)
    rotary = read_rotary(c, shape.head_dim)
    moe, sparse = _llama4_mixture(c), _llama4_moe_layers(c, shape.layers)
    dense = read_dense_ffn(c, "intermediate_size_mlp") if len(sparse) < shape.layers else moe
    c.ignore(["intermediate_size_mlp"])
    layers = []
    for i, (turn, kind) in enumerate(zip(rotated, types, strict=True)):
        attention = shape.attention(
            rotary if turn else 0,
            rope="interleaved" if turn else "none",
            qk_norm="head" if qk_norm and turn else "none",
            qk_norm_weights=not (qk_norm and turn),
            q_bias=bias,
            kv_bias=bias,
            o_bias=bias,
            chunk=chunk if kind == "chunked_attention" else None,
        )
        layers.append(Layer(attention, moe if i in sparse else dense))
    return shape.model(layers, tied=c.boolean("tie_word_embeddings", default=False))


def _rotated_layers(c: Fields, shape: Shape) -> list[bool]:
    interval = c.integer("no_rope_layer_interval", low=1, default=4)
    written = c.integers("no_rope_layers", high=1, default=())
    if not written:
        return [(i + 1) % interval != 0 for i in range(shape.layers)]
    if len(written) < shape.layers:
        raise c.error("no_rope_layers", f"a 0 or 1 for each of the {shape.layers} layers")
    return [bool(flag) for flag in written[: shape.layers]]


def _llama4_mixture(c: Fields) -> Ffn:
    """One shared expert as wide as a routed one; the sigmoid of a token's logit weighs what goes into its expert."""
    width = c.integer("intermediate_size", low=1)
    act = read_activation(c, "hidden_act", default="silu")
    return Ffn(
        "moe",
        width,
        True,
        act,
        experts=read_experts(c, 16),
        top_k=read_top_k(c, 1),
        shared_hidden=width,
        scoring="sigmoid",
        renormalize=False,
        scale_input=True,
    )


def _llama4_moe_layers(c: Fields, layers: int) -> set[int]:
    step = c.integer("interleave_moe_layer_step", low=1, default=1)
    if c.has("moe_layers"):
        return set(c.integers("moe_layers", high=layers - 1))
    return set(range(step - 1, layers, step))
