"""Readers of the families with LayerNorm and biases: gpt2, gpt_neox, opt."""

from __future__ import annotations

from dataclasses import replace

from planner.fields import REQUIRED, Fields
from planner.model import Attention, Ffn, Layer, ModelSpec
from planner.models.checks import MAX_LAYERS
from planner.models.hf.shape import (
    MAX_VOCAB,
    all_full,
    read_activation,
    read_alias,
    read_head_dim,
    read_rotary,
)

_MAX_POSITIONS = 2**32


def read_gpt2(c: Fields) -> ModelSpec:
    """GPT-2: learned positions, tied head; a null `n_inner` is four times the hidden size."""
    hidden = read_alias(c, ("n_embd", "hidden_size"), default=768)
    heads = read_alias(c, ("n_head", "num_attention_heads"), default=12)
    count = read_alias(c, ("n_layer", "num_hidden_layers"), default=12, high=MAX_LAYERS)
    positions = c.integer("n_positions", low=1, high=_MAX_POSITIONS, default=1024)
    ffn = Ffn(
        "dense",
        c.integer("n_inner", low=1, default=4 * hidden),
        False,
        read_activation(c, "activation_function", default="gelu_new"),
        bias=True,
    )
    attention = _biased(heads, read_head_dim(c, hidden, heads), True)
    vocab = c.integer("vocab_size", low=1, high=MAX_VOCAB, default=50257)
    return _model(hidden, vocab, [Layer(attention, ffn, norm_kind="layer")] * count, _tied(c, True), positions)


def read_opt(c: Fields) -> ModelSpec:
    """OPT: its table of learned positions has two rows more than positions, and position 0 is the third row."""
    hidden = c.integer("hidden_size", low=1)
    if c.has("word_embed_proj_dim") and c.integer("word_embed_proj_dim", low=1) != hidden:
        raise c.error("word_embed_proj_dim", f"{hidden}: projections around the embedding are not understood")
    _must_be(c, "do_layer_norm_before", True, "layers with the norm behind")
    _must_be(c, "layer_norm_elementwise_affine", True, "norms without weights")
    _must_be(c, "_remove_final_layer_norm", False, "a model without its final norm")
    bias = c.boolean("enable_bias", default=True)
    heads = c.integer("num_attention_heads", low=1)
    width = c.integer("ffn_dim", low=1)
    ffn = Ffn("dense", width, False, read_activation(c, "activation_function", default="relu"), bias)
    layer = Layer(_biased(heads, read_head_dim(c, hidden, heads), bias), ffn, norm_kind="layer")
    count = c.integer("num_hidden_layers", low=1, high=MAX_LAYERS)
    positions = c.integer("max_position_embeddings", low=1, high=_MAX_POSITIONS, default=2048) + 2
    return replace(_model(hidden, _vocab(c), [layer] * count, _tied(c, True), positions), position_offset=2)


def read_gpt_neox(c: Fields) -> ModelSpec:
    """GPT-NeoX and Pythia: a quarter of each head rotated, attention and network side by side."""
    hidden = c.integer("hidden_size", low=1)
    heads = c.integer("num_attention_heads", low=1)
    count = c.integer("num_hidden_layers", low=1, high=MAX_LAYERS)
    all_full(c, count)
    head_dim = read_head_dim(c, hidden, heads)
    rotary = read_rotary(c, head_dim, name="rotary_pct", default=0.25)
    attention = _biased(heads, head_dim, c.boolean("attention_bias", default=True), rotary)
    act = read_activation(c, "hidden_act", default="gelu")
    ffn = Ffn("dense", c.integer("intermediate_size", low=1), False, act, bias=True)
    parallel = c.boolean("use_parallel_residual", default=True)
    layer = Layer(attention, ffn, norm_kind="layer", parallel_residual=parallel)
    return _model(hidden, _vocab(c), [layer] * count, _tied(c, False), 0)


def _biased(heads: int, head_dim: int, bias: bool, rotary_dim: int = 0) -> Attention:
    """Multi-head attention, rotated only where `rotary_dim` is given."""
    return Attention(
        "gqa",
        heads,
        heads,
        head_dim,
        head_dim,
        q_bias=bias,
        kv_bias=bias,
        o_bias=bias,
        rope="half" if rotary_dim else "none",
        rotary_dim=rotary_dim,
    )


def _model(hidden: int, vocab: int, layers: list[Layer], tied: bool, positions: int) -> ModelSpec:
    return ModelSpec("", hidden, vocab, tuple(layers), tied, positions, norm_kind="layer")


def _must_be(c: Fields, name: str, wanted: bool, otherwise: str) -> None:
    if c.boolean(name, default=wanted) != wanted:
        raise c.error(name, f"{str(wanted).lower()}: {otherwise} is not understood")


def _vocab(c: Fields) -> int:
    return c.integer("vocab_size", low=1, high=MAX_VOCAB, default=REQUIRED)


def _tied(c: Fields, default: bool) -> bool:
    return c.boolean("tie_word_embeddings", default=default)
