"""Mixture-of-experts roles: experts local to replicated tokens, reached by dispatch, or on GPUs of their own."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from planner.graph.context import RoleContext
from planner.graph.layouts import gather_tokens, shard_tokens, sum_partials
from planner.graph.mlp import gated_ffn, residual_tail
from planner.graph.ops import Group, Kind, Layout, Op, Role, Size, Store, Tensor
from planner.graph.rows import Ints, MoeRows, share
from planner.model import Layer

Floats = NDArray[np.float64]


def local_role(ctx: RoleContext, layer: Layer, rows: MoeRows) -> Role:
    """Every GPU sees all tokens and computes its own experts; partial outputs are summed over the stage."""
    hidden, one = ctx.model.hidden, np.ones_like(rows.ways)
    residual = _residual(ctx, rows)
    everything = ctx.tensor("xg", rows.tokens, hidden)
    ops = [ctx.norm("ffn_norm", ctx.ffn_input(layer), replace(residual, name="xn"))]
    ops += _router(ctx, layer, "xn", residual.shape[0])
    ops.append(gather_tokens(ctx, "moe_gather", "xn", everything, rows.residual_shards, one, rows.ways))
    routes = Tensor("routes_all", (rows.tokens, layer.ffn.top_k), "fp32")
    ops.append(gather_tokens(ctx, "routes_gather", "routes", routes, rows.residual_shards, one, rows.ways))
    ops += _experts(ctx, layer, rows, ("xg", "xn", "routes_all", "routes"))
    partial = replace(ctx.tensor("moe_partial", rows.tokens, hidden), layout=Layout.PARTIAL)
    parts: tuple[str, ...] = ("expert_partial",)
    if layer.ffn.shared_hidden:
        width = share(layer.ffn.shared_hidden, rows.ways, rows.first)
        ops += gated_ffn(ctx, layer.ffn, "shared_", ("xg", "xn"), rows.tokens, width, "ffn")
        parts = (*parts, "shared_partial")
    if layer.ffn.shared_gate:
        ops.append(_shared_gate(ctx, ("xg", "xn"), rows.tokens))
        parts = (*parts, "shared_opening")
    moved = 2.0 * partial.bytes + ctx.tensor("", rows.routed, hidden).bytes
    ops.append(Op("unpermute", Kind.ELEMENTWISE, (*parts, "routes_all", "routes"), partial, ctx.dtype, bytes=moved))
    ops += sum_partials(ctx, "moe", partial, one, replace(residual, name="f"), rows.residual_shards, rows.ways)
    return Role("moe", residual, (*ops, *residual_tail(ctx, layer, "ffn", "f", residual)))


def dispatch_role(ctx: RoleContext, layer: Layer, rows: MoeRows) -> Role:
    """Tokens are split over the GPUs of the stage, travel to the GPUs of their experts and come back."""
    hidden = ctx.model.hidden
    residual = _residual(ctx, rows)
    own = shard_tokens(rows.tokens, rows.ways, rows.ways, rows.index)
    ops = [ctx.norm("ffn_norm", ctx.ffn_input(layer), ctx.tensor("xn", own, hidden)), *_router(ctx, layer, "xn", own)]
    sent = _sent_bytes(ctx, rows, own)
    stage = Group("stage", 1, rows.ways)
    arrived = _arrived_tokens(ctx, rows, attention_router=True)
    flows = rows.flows and replace(rows.flows, own_bytes=own * ctx.tensor("", 1, hidden).bytes)
    there = Op("dispatch", Kind.ALL_TO_ALL, ("xn", "routes"), arrived, ctx.dtype, bytes=sent, group=stage, flows=flows)
    ops += [there, *_experts(ctx, layer, rows, ("arrived", "xn"))]
    returned = returned_tokens(ctx, rows)
    ops.append(replace(there, name="combine", inputs=("expert_partial", "routes"), output=returned))
    ops += _finish(ctx, layer, rows, residual, own, returned)
    return Role("moe", residual, (*ops, *residual_tail(ctx, layer, "ffn", "f", residual)))


def route_role(ctx: RoleContext, layer: Layer, rows: MoeRows, attention_router: bool) -> Role:
    """Attention side before the tokens leave: norm, and the router where it sits here."""
    own = shard_tokens(rows.tokens, rows.ways, rows.ways, rows.index)
    ops = [ctx.norm("ffn_norm", ctx.ffn_input(layer), ctx.tensor("xn", own, ctx.model.hidden))]
    if attention_router:
        ops += _router(ctx, layer, "xn", own)
    return Role("route", _residual(ctx, rows), tuple(ops))


def expert_role(ctx: RoleContext, layer: Layer, rows: MoeRows, attention_router: bool) -> Role:
    """Expert side: the router where it sits here, the experts, and the sum of each token's local parts."""
    ops = [] if attention_router else list(_router(ctx, layer, "arrived", rows.tokens))
    ops += _experts(ctx, layer, rows, ("arrived",) if attention_router else ("arrived", "routes"))
    return Role("experts", _arrived_tokens(ctx, rows, attention_router), tuple(ops))


def return_role(ctx: RoleContext, layer: Layer, rows: MoeRows) -> Role:
    """Attention side after the experts: weighted sum of the returned parts, shared expert, residual."""
    residual = _residual(ctx, rows)
    own = shard_tokens(rows.tokens, rows.ways, rows.ways, rows.index)
    ops = _finish(ctx, layer, rows, residual, own, returned_tokens(ctx, rows))
    return Role("return", residual, (*ops, *residual_tail(ctx, layer, "ffn", "f", residual)))


def _arrived_tokens(ctx: RoleContext, rows: MoeRows, attention_router: bool) -> Tensor:
    """What reaches a GPU with experts: each token once, however many of its experts are there; all tokens unrouted."""
    tokens = np.minimum(rows.routed, rows.tokens) if attention_router else rows.tokens
    return Tensor("arrived", (tokens, ctx.model.hidden), ctx.dtype, store=Store.COMMUNICATION)


def returned_tokens(ctx: RoleContext, rows: MoeRows) -> Tensor:
    """What comes back to a GPU: one partial sum for each of its tokens from every GPU that holds some of its experts."""
    own = shard_tokens(rows.tokens, rows.ways, rows.ways, rows.index)
    arrived = np.ceil(own * rows.spread).astype(np.int64) * rows.tensor_ways
    return Tensor("returned", (arrived, ctx.model.hidden), ctx.dtype, store=Store.COMMUNICATION)


def transfer_bytes(ctx: RoleContext, rows: MoeRows, attention_router: bool) -> tuple[Floats, Floats]:
    """Bytes that the fullest attention GPU sends, and the fullest expert GPU receives, in one dispatch (combine: reversed).

    With the router on the expert side every expert GPU gets every token.
    """
    own = share(rows.tokens, rows.ways, 0)
    width = ctx.tensor("", 1, ctx.model.hidden).bytes
    if attention_router:
        sent = np.ceil(own * rows.spread) * rows.tensor_ways * width
        return sent, np.asarray(np.minimum(rows.routed, rows.tokens) * width)
    return np.asarray(own * rows.expert_ways * width), np.asarray(rows.tokens * width)


def _residual(ctx: RoleContext, rows: MoeRows) -> Tensor:
    return ctx.tensor("x", shard_tokens(rows.tokens, rows.residual_shards, rows.ways, rows.index), ctx.model.hidden)


def _router(ctx: RoleContext, layer: Layer, source: str, tokens: Size) -> Iterator[Op]:
    """Router scores and the choice of the top-k experts."""
    experts, hidden = layer.ffn.experts, ctx.model.hidden
    weights = [ctx.shard("router", "router", hidden, experts)]
    if layer.ffn.router_bias:
        weights.append(ctx.shard("router_bias", "router", experts))
    scores = Tensor("router_scores", (tokens, experts), "fp32")
    yield Op("router", Kind.MATMUL, (source,), scores, weights[0].dtype, m=tokens, k=hidden, n=experts, weights=tuple(weights))
    yield ctx.elementwise(
        "top_k", ("router_scores",), Tensor("routes", (tokens, layer.ffn.top_k), "fp32"), passes=2.0 * experts / layer.ffn.top_k
    )


def _shared_gate(ctx: RoleContext, inputs: tuple[str, ...], tokens: Size) -> Op:
    """How much of the shared expert's output each token takes: one number per token, computed wherever the token is."""
    weight = ctx.shard("shared_router", "router", ctx.model.hidden, 1)
    return Op("shared_router", Kind.MATMUL, inputs, ctx.tensor("shared_opening", tokens, 1), weight.dtype, m=tokens,
              k=ctx.model.hidden, n=1, weights=(weight,))  # fmt: skip


def _experts(ctx: RoleContext, layer: Layer, rows: MoeRows, inputs: tuple[str, ...]) -> Iterator[Op]:
    """Permutation of tokens by expert, then the row's experts as grouped products of its columns."""
    ffn, hidden = layer.ffn, ctx.model.hidden
    width = share(ffn.hidden, rows.tensor_ways, rows.column)
    each = -(-rows.routed // np.maximum(rows.active, 1))
    sorted_tokens = ctx.tensor("permuted", rows.routed, hidden)
    yield ctx.elementwise("permute", inputs, sorted_tokens)
    inner = replace(ctx.tensor("", rows.routed, width), layout=Layout.HIDDEN)
    names = ("expert_gate", "expert_up") if ffn.gated else ("expert_up",)
    for name in names:
        weights = [ctx.shard(name, "experts", rows.experts, hidden, width)]
        if ffn.bias:
            weights.append(ctx.shard(f"{name}_bias", "experts", rows.experts, width))
        yield Op(f"{name}_proj", Kind.GROUPED, ("permuted",), replace(inner, name=name), weights[0].dtype, m=each, k=hidden,
                 n=width, batch=rows.active, weights=tuple(weights))  # fmt: skip
    active = replace(inner, name="expert_active")
    yield ctx.elementwise("expert_activation", names, active, passes=len(names) + 1.0)
    down = [ctx.shard("expert_down", "experts", rows.experts, width, hidden)]
    if ffn.bias:
        down.append(ctx.shard("expert_down_bias", "experts", rows.experts, hidden))
    partial = replace(ctx.tensor("expert_partial", rows.routed, hidden), layout=Layout.PARTIAL)
    yield Op("expert_down_proj", Kind.GROUPED, ("expert_active",), partial, down[0].dtype, m=each, k=width, n=hidden,
             batch=rows.active, weights=tuple(down))  # fmt: skip


def _sent_bytes(ctx: RoleContext, rows: MoeRows, own: Ints) -> Floats:
    """Bytes the busiest GPU holds for dispatch: each token goes once to every expert group it needs, to all its tensor ways.

    That is a GPU that sends its own tokens, or one of the group that gets most: the exchange ends when the last one is done.
    """
    copies = np.maximum(np.ceil(own * rows.spread) * rows.tensor_ways, np.ceil(np.round(rows.tokens * rows.reach, 6)))
    return np.asarray(copies * ctx.tensor("", 1, ctx.model.hidden).bytes)


def _finish(ctx: RoleContext, layer: Layer, rows: MoeRows, residual: Tensor, own: Ints, returned: Tensor) -> list[Op]:
    """Weighted sum of returned parts, the shared expert on the GPU's own tokens (weights copied), back to the split."""
    hidden, ops = ctx.model.hidden, list[Op]()
    parts: tuple[str, ...] = ("returned",)
    if layer.ffn.shared_hidden:
        ops += list(gated_ffn(ctx, layer.ffn, "shared_", ("xn",), own, layer.ffn.shared_hidden, "ffn"))
        parts = ("returned", "shared_partial")
    if layer.ffn.shared_gate:
        ops.append(_shared_gate(ctx, ("xn",), own))
        parts = (*parts, "shared_opening")
    summed = ctx.tensor("fs", own, hidden)
    ops.append(Op("unpermute", Kind.ELEMENTWISE, (*parts, "routes"), summed, ctx.dtype, bytes=returned.bytes + summed.bytes))
    whole = replace(residual, name="f")
    ops.append(gather_tokens(ctx, "moe_return", "fs", whole, rows.ways, rows.residual_shards, rows.ways))
    return ops
