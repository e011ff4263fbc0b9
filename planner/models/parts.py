"""Attention and FFN of our own spec format: mappings to dataclasses."""

from __future__ import annotations

from typing import Literal, get_args

from planner.fields import HUGE, Fields
from planner.model import Attention, Ffn, GroupScore, Indexer, Scoring

# What an activation's name says: the function, and whether the network has a gate unless `gated` is written.
ACTIVATIONS: dict[str, tuple[str, bool]] = {
    "silu": ("silu", True),
    "swiglu": ("silu", True),
    "geglu": ("gelu", True),
    "geglu_tanh": ("gelu_tanh", True),
    "gelu": ("gelu", False),
    "gelu_tanh": ("gelu_tanh", False),
    "relu": ("relu", False),
    "swiglu_clamped": ("swiglu_clamped", True),
}
_ALWAYS_GATED = ("swiglu", "geglu", "geglu_tanh", "swiglu_clamped")
_SCORINGS: tuple[Scoring, ...] = get_args(Scoring)
_GROUP_SCORES: tuple[GroupScore, ...] = get_args(GroupScore)
_ROPES: tuple[Literal["none", "half", "interleaved"], ...] = ("none", "half", "interleaved")
_INDEX_ROPES: tuple[Literal["half", "interleaved"], ...] = ("half", "interleaved")
_QK_NORMS: tuple[Literal["none", "head"], ...] = ("none", "head")


def read_attention(fields: Fields, hidden: int) -> Attention:
    """An attention block; `kind` is gqa (also multi-head and multi-query) unless it says mla."""
    kind = fields.choice("kind", ("gqa", "mla"), default="gqa")
    attention = _read_mla(fields) if kind == "mla" else _read_gqa(fields, hidden)
    fields.done()
    return attention


def read_ffn(fields: Fields) -> Ffn:
    """A feed-forward block, dense or a mixture of experts; gated for silu, swiglu and geglu unless `gated` is written."""
    kind = fields.choice("kind", ("dense", "moe"), default="dense")
    named = fields.choice("activation", ACTIVATIONS, default="silu")
    activation, gated_by_name = ACTIVATIONS[named]
    gated = fields.boolean("gated", default=gated_by_name)
    if named in _ALWAYS_GATED and not gated:
        raise fields.error("gated", f"true, since {named} is a gated network")
    hidden = fields.integer("hidden", low=1)
    bias = fields.boolean("bias", default=False)
    if kind == "dense":
        ffn = Ffn("dense", hidden, gated, activation, bias)
    else:
        ffn = Ffn(
            "moe",
            hidden,
            gated,
            activation,
            bias,
            experts=fields.integer("experts", low=1, high=2**20),
            top_k=fields.integer("top_k", low=1, high=2**20),
            shared_hidden=fields.integer("shared_hidden", default=0),
            shared_gate=fields.boolean("shared_gate", default=False),
            router_bias=fields.boolean("router_bias", default=False),
            expert_groups=fields.integer("expert_groups", low=1, default=1),
            top_k_groups=fields.integer("top_k_groups", low=1, default=1),
            scoring=fields.choice("scoring", _SCORINGS, default="softmax"),
            renormalize=fields.boolean("renormalize", default=True),
            routed_scale=fields.number("routed_scale", low=1e-6, high=1e6, default=1.0),
            correction_bias=fields.boolean("correction_bias", default=False),
            scale_input=fields.boolean("scale_input", default=False),
            group_score=fields.choice("group_score", _GROUP_SCORES, default="max"),
        )
    fields.done()
    return ffn


def _read_gqa(fields: Fields, hidden: int) -> Attention:
    heads = fields.integer("heads", low=1)
    if fields.has("head_dim"):
        head_dim = fields.integer("head_dim", low=1)
    elif hidden % heads:
        raise fields.error("head_dim", f"an integer, since hidden = {hidden} is not a multiple of heads = {heads}")
    else:
        head_dim = hidden // heads
    rope = fields.choice("rope", _ROPES, default="half")
    return Attention(
        "gqa",
        heads,
        fields.integer("kv_heads", low=1, default=heads),
        head_dim,
        fields.integer("v_head_dim", low=1, default=head_dim),
        causal=fields.boolean("causal", default=True),
        window=fields.maybe_integer("window", low=1),
        chunk=fields.maybe_integer("chunk", low=1),
        q_bias=fields.boolean("q_bias", default=False),
        kv_bias=fields.boolean("kv_bias", default=False),
        o_bias=fields.boolean("o_bias", default=False),
        qk_norm=fields.choice("qk_norm", _QK_NORMS, default="none"),
        qk_norm_weights=fields.boolean("qk_norm_weights", default=True),
        sinks=fields.boolean("sinks", default=False),
        softcap=fields.maybe_number("softcap", low=1e-6),
        rope=rope,
        rotary_dim=fields.integer("rotary_dim", default=head_dim if rope != "none" else 0),
        scale_dim=fields.maybe_number("scale_dim", low=1e-6, high=HUGE),
    )


def _read_mla(fields: Fields) -> Attention:
    heads = fields.integer("heads", low=1)
    nope, rope_dim = fields.integer("nope_dim", low=1), fields.integer("rope_dim", low=2)
    return Attention(
        "mla",
        heads,
        heads,
        nope + rope_dim,
        fields.integer("v_head_dim", low=1),
        causal=fields.boolean("causal", default=True),
        rope=fields.choice("rope", _ROPES, default="interleaved"),
        rotary_dim=rope_dim,
        q_lora_rank=fields.maybe_integer("q_lora_rank", low=1),
        kv_lora_rank=fields.integer("kv_lora_rank", low=1),
        nope_dim=nope,
        rope_dim=rope_dim,
        indexer=_read_indexer(fields.maybe_mapping("indexer")),
    )


def _read_indexer(fields: Fields | None) -> Indexer | None:
    if fields is None:
        return None
    indexer = Indexer(
        fields.integer("heads", low=1),
        fields.integer("head_dim", low=1),
        fields.integer("top_k", low=1),
        fields.choice("rope", _INDEX_ROPES, default="half"),
    )
    fields.done()
    return indexer
