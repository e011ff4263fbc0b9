"""Roles of a training step: every role of the forward pass with its backward pass."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from planner.errors import InputError
from planner.graph.attention import AttentionSignature, attention_role
from planner.graph.backward import Backward, Crossing, backward
from planner.graph.context import RoleContext
from planner.graph.crossings import (
    attention_crossings,
    dispatch_crossings,
    embedding_crossings,
    head_crossings,
    local_crossings,
    mlp_crossings,
    receive_crossings,
)
from planner.graph.head import embedding_role, head_role, receive_role
from planner.graph.layouts import gather_tokens, shard_tokens
from planner.graph.loss import loss_gradient, loss_role
from planner.graph.mlp import mlp_role
from planner.graph.moe import dispatch_role, local_role
from planner.graph.ops import Kind, Op, Role
from planner.graph.rows import AttentionRows, FfnRows, MoeRows
from planner.model import Layer


@dataclass(frozen=True, slots=True)
class Trained:
    """A role of the forward pass and its backward pass."""

    forward: Role
    backward: Backward


def trained_attention(ctx: RoleContext, layer: Layer, signature: AttentionSignature, rows: AttentionRows) -> Trained:
    """Norm, attention and output projection of one layer."""
    if rows.segments.max(initial=1) > 1 or rows.gather.any():
        raise ValueError("training has one dimension segment and a row-split output projection")
    role = attention_role(ctx, layer, signature, rows)
    return _trained(ctx, role, attention_crossings(role))


def trained_mlp(ctx: RoleContext, layer: Layer, rows: FfnRows) -> Trained:
    """A dense FFN."""
    if layer.parallel_residual:
        raise InputError("model.parallel_residual", True, "false: training of parallel residuals is not planned yet")
    role = mlp_role(ctx, layer, rows)
    return _trained(ctx, role, mlp_crossings(ctx, role, rows))


def trained_moe(ctx: RoleContext, layer: Layer, rows: MoeRows, dispatched: bool) -> Trained:
    """A mixture of experts: tokens that travel, or local experts on all tokens."""
    role = (dispatch_role if dispatched else local_role)(ctx, layer, rows)
    scaled = layer.ffn.scale_input
    crossings = dispatch_crossings(ctx, role, rows) if dispatched else local_crossings(ctx, role, rows)
    return _trained(ctx, role, crossings, scaled)


def trained_embedding(ctx: RoleContext, rows: FfnRows) -> Trained:
    """Token ids to the residual stream."""
    role = embedding_role(ctx, rows)
    return _trained(ctx, role, embedding_crossings(ctx, role, rows))


def trained_receive(ctx: RoleContext, rows: FfnRows) -> Trained:
    """The arrival of a micro-batch; on the way back the gradient leaves in slices."""
    return _trained(ctx, receive_role(ctx, rows), receive_crossings())


def trained_leave(ctx: RoleContext, rows: FfnRows) -> Trained:
    """The end of a stage: nothing on the way there; on the way back the slices of the gradient are gathered."""
    own = ctx.tensor("dy", shard_tokens(rows.tokens, rows.ways, rows.ways, rows.index), ctx.model.hidden)
    whole = ctx.tensor("dx", shard_tokens(rows.tokens, rows.residual_shards, rows.ways, rows.index), ctx.model.hidden)
    gather = gather_tokens(ctx, "gradient_gather", "dy", whole, rows.ways, rows.residual_shards, rows.ways)
    inputs = Role("leave_backward", own, (gather,))
    return Trained(Role("leave", whole, ()), Backward(inputs, Role("leave_weights", own, ()), ()))


def trained_head(ctx: RoleContext, rows: FfnRows) -> Trained:
    """Final norm, logits of all tokens and the loss."""
    head = head_role(ctx, rows, np.zeros_like(rows.tokens))
    crossings = head_crossings(ctx, head, rows)
    found = backward(ctx, head, crossings, (loss_gradient(head),))
    return Trained(loss_role(ctx, head, rows), replace(found, saved=(*found.saved, "loss_maximum", "loss_sums")))


def _trained(ctx: RoleContext, role: Role, crossings: Sequence[Crossing], scaled: bool = False) -> Trained:
    role = replace(role, ops=tuple(_narrowed(ctx, op) for op in role.ops))
    return Trained(role, backward(ctx, role, crossings, scaled=scaled))


def _narrowed(ctx: RoleContext, op: Op) -> Op:
    """The operator in the precision of the training, where it is a product of a weight that is stored as the model is."""
    if ctx.training is None or op.kind not in (Kind.MATMUL, Kind.GROUPED) or op.dtype != ctx.model.dtype or not op.weights:
        return op
    return op if op.weights[0].name == "router" else replace(op, dtype=ctx.training.precision)
