"""Readers of the dense families: llama, mistral, qwen2, qwen3, phi3, gemma2, gemma3."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

from planner.fields import Fields
from planner.model import Ffn, Layer, ModelSpec
from planner.models.hf.shape import (
    LayerType,
    Shape,
    all_full,
    read_activation,
    read_layer_types,
    read_rotary,
    read_shape,
)


def read_llama(c: Fields) -> ModelSpec:
    """Llama 1 to 3 and what follows its layout."""
    shape = read_shape(c)
    all_full(c, shape.layers)
    bias = c.boolean("attention_bias", default=False)
    attention = shape.attention(read_rotary(c, shape.head_dim), q_bias=bias, kv_bias=bias, o_bias=bias)
    layer = Layer(attention, _gated(c, bias=c.boolean("mlp_bias", default=False)))
    return shape.model([layer] * shape.layers, tied=_tied(c, False))


def read_mistral(c: Fields) -> ModelSpec:
    """Mistral: a sliding window in every layer, 4096 unless the file says null or another."""
    shape = read_shape(c, kv_heads=8)
    window = c.maybe_integer("sliding_window", low=1, default=4096)
    return _windowed(c, shape, window, default="sliding_attention")


def read_phi3(c: Fields) -> ModelSpec:
    """Phi-3 and Phi-4-mini; it stores q, k, v in one matrix and gate, up in another, which changes no count."""
    shape = read_shape(c)
    c.boolean("attention_bias", default=False)  # the class has no biases, whatever the file says
    c.boolean("mlp_bias", default=False)
    return _windowed(c, shape, c.maybe_integer("sliding_window", low=1), default="sliding_attention")


def read_qwen2(c: Fields) -> ModelSpec:
    """Qwen2 and Qwen2.5: biases on q, k, v."""
    shape = read_shape(c, kv_heads=32)
    windows = read_qwen_windows(c, shape.layers)
    layers = [
        Layer(shape.attention(read_rotary(c, shape.head_dim), q_bias=True, kv_bias=True, window=window), _gated(c))
        for window in windows
    ]
    return shape.model(layers, tied=_tied(c, False))


def read_qwen3(c: Fields) -> ModelSpec:
    """Qwen3: norms of q and k over each head, no bias unless the file says so."""
    shape = read_shape(c, kv_heads=32, head_dim=128)
    bias = c.boolean("attention_bias", default=False)
    rotary = read_rotary(c, shape.head_dim)
    layers = [
        Layer(shape.attention(rotary, q_bias=bias, kv_bias=bias, o_bias=bias, qk_norm="head", window=window), _gated(c))
        for window in read_qwen_windows(c, shape.layers)
    ]
    return shape.model(layers, tied=_tied(c, False))


def read_qwen_windows(c: Fields, layers: int) -> list[int | None]:
    """The window of each layer: off unless `use_sliding_window`, and then from layer `max_window_layers` on."""
    used = c.boolean("use_sliding_window", default=False)
    size = c.maybe_integer("sliding_window", low=1, default=4096)
    first = c.integer("max_window_layers", default=28)
    default: list[LayerType] = ["sliding_attention" if used and i >= first else "full_attention" for i in range(layers)]
    types = read_layer_types(c, default, ("full_attention", "sliding_attention"))
    return [size if used and kind == "sliding_attention" else None for kind in types]


def read_gemma2(c: Fields) -> ModelSpec:
    """Gemma 2: even layers slide, scores and logits are soft-capped, four norms a layer."""
    shape = read_shape(c, heads=8, kv_heads=4, head_dim=256, vocab=256_000)
    softcap = _maybe_cap(c, "attn_logit_softcapping", 50.0)
    return _gemma(c, shape, period=2, softcap=softcap, final_softcap=_maybe_cap(c, "final_logit_softcapping", 30.0))


def read_gemma3(c: Fields) -> ModelSpec:
    """Gemma 3 (text): five sliding layers to one full, norms of q and k."""
    shape = read_shape(c, heads=8, kv_heads=4, head_dim=256, vocab=262_208)
    c.ignore(["_sliding_window_pattern"])
    period = c.integer("sliding_window_pattern", low=1, default=6)
    softcap = _maybe_cap(c, "attn_logit_softcapping", None)
    final = _maybe_cap(c, "final_logit_softcapping", None)
    return _gemma(c, shape, period=period, softcap=softcap, final_softcap=final, qk_norm="head")


def _gemma(
    c: Fields, shape: Shape, *, period: int, softcap: float | None, final_softcap: float | None, qk_norm: str = "none"
) -> ModelSpec:
    """Every `period`-th layer is full, the others slide; the network is GeGLU; embeddings grow by the root of hidden."""
    window = c.maybe_integer("sliding_window", low=1, default=4096)
    default: list[LayerType] = ["full_attention" if (i + 1) % period == 0 else "sliding_attention" for i in range(shape.layers)]
    types = read_layer_types(c, default, ("full_attention", "sliding_attention"))
    bias = c.boolean("attention_bias", default=False)
    scale_dim = c.number("query_pre_attn_scalar", low=1e-6, default=256.0)
    ffn = _gated(c, activation="gelu_pytorch_tanh")
    layers = []
    for kind in types:
        attention = shape.attention(
            read_rotary(c, shape.head_dim),
            q_bias=bias,
            kv_bias=bias,
            o_bias=bias,
            qk_norm=qk_norm,
            softcap=softcap,
            window=window if kind == "sliding_attention" else None,
            scale_dim=None if scale_dim == shape.head_dim else scale_dim,
        )
        layers.append(Layer(attention, ffn, norms=4))
    model = shape.model(layers, tied=_tied(c, True), final_softcap=final_softcap)
    return replace(model, embedding_scale=math.sqrt(shape.hidden))


def _windowed(c: Fields, shape: Shape, window: int | None, default: LayerType) -> ModelSpec:
    """Bias-free layers with one window for all that slide."""
    types: Sequence[LayerType] = [default] * shape.layers
    types = read_layer_types(c, types, ("full_attention", "sliding_attention"))
    rotary = read_rotary(c, shape.head_dim)
    sliding, full = shape.attention(rotary, window=window), shape.attention(rotary)
    ffn = _gated(c)
    layers = [Layer(sliding if kind == "sliding_attention" else full, ffn) for kind in types]
    return shape.model(layers, tied=_tied(c, False))


def _gated(c: Fields, *, bias: bool = False, activation: str = "silu") -> Ffn:
    # Gemma's files may carry both spellings; `hidden_activation` is the one its class obeys.
    act = read_activation(c, "hidden_activation", "hidden_act", default=activation)
    return Ffn("dense", c.integer("intermediate_size", low=1), True, act, bias)


def _tied(c: Fields, default: bool) -> bool:
    return c.boolean("tie_word_embeddings", default=default)


def _maybe_cap(c: Fields, name: str, default: float | None) -> float | None:
    return c.maybe_number(name, low=1e-6) if name in c.values else default
