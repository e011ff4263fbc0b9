"""The ends of the model: embedding, LM head, and the hand-over of a micro-batch between pipeline stages."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from planner.graph.context import RoleContext
from planner.graph.layouts import gather_tokens, shard_tokens, sum_partials
from planner.graph.ops import Group, Kind, Layout, Op, Role, Store, Tensor
from planner.graph.rows import FfnRows, Ints, share


def embedding_role(ctx: RoleContext, rows: FfnRows) -> Role:
    """Vocabulary-parallel lookup: every GPU looks up its part of the table for all tokens, the parts are summed."""
    hidden, one = ctx.model.hidden, np.ones_like(rows.ways)
    residual = ctx.tensor("y", shard_tokens(rows.tokens, rows.residual_shards, rows.ways, rows.index), hidden)
    partial = replace(ctx.tensor("embedded", rows.tokens, hidden), layout=Layout.PARTIAL)
    weights = [ctx.shard("embedding", "embedding", share(ctx.model.vocab, rows.ways, rows.index), hidden)]
    if ctx.model.positions:
        weights.append(ctx.shard("positions", "embedding", ctx.model.positions, hidden))
    lookup = Op("embedding", Kind.LOOKUP, (), partial, ctx.dtype, bytes=2.0 * partial.bytes, weights=tuple(weights))
    return Role(
        "embedding", None, (lookup, *sum_partials(ctx, "embedding", partial, one, residual, rows.residual_shards, rows.ways))
    )


def receive_role(ctx: RoleContext, rows: FfnRows) -> Role:
    """The arrival of a micro-batch at a stage: each GPU got an equal slice of the tokens, the residual split is gathered."""
    tokens = shard_tokens(rows.tokens, rows.residual_shards, rows.ways, rows.index)
    residual = ctx.tensor("y", tokens, ctx.model.hidden)
    arrived = ctx.tensor("x", shard_tokens(rows.tokens, rows.ways, rows.ways, rows.index), ctx.model.hidden)
    return Role(
        "receive", arrived, (gather_tokens(ctx, "stage_gather", "x", residual, rows.ways, rows.residual_shards, rows.ways),)
    )


def head_role(ctx: RoleContext, rows: FfnRows, sequences: Ints) -> Role:
    """Final norm and vocabulary-parallel logits of the tokens that need them; last-token logits are gathered for sampling."""
    hidden, vocab = ctx.model.hidden, ctx.model.vocab
    every = ctx.workload.logits == "all"
    tokens = rows.tokens if every else sequences
    here = shard_tokens(rows.tokens, rows.residual_shards, rows.ways, rows.index)
    own = ctx.tensor("xn", np.minimum(here, -(-tokens // np.minimum(rows.residual_shards, tokens))), hidden)
    gathered = ctx.tensor("xg", tokens, hidden)
    columns = share(vocab, rows.ways, rows.index)
    weights = [ctx.shard("head", "head", hidden, columns)]
    if ctx.model.head_bias:
        weights.append(ctx.shard("head_bias", "head", columns))
    local = Tensor("logits", (tokens, columns), "fp32", Layout.HIDDEN, Store.LOGITS)
    gather = Group("shards", rows.ways // rows.residual_shards, rows.residual_shards)
    ops = [
        ctx.norm("final_norm", "x", own),
        Op("head_gather", Kind.ALL_GATHER, ("xn",), gathered, ctx.dtype, bytes=gathered.bytes, group=gather),
        Op(
            "lm_head", Kind.MATMUL, ("xg", "xn"), local, weights[0].dtype, m=tokens, k=hidden, n=columns, weights=tuple(weights)
        ),
    ]
    if not every:
        whole = Tensor("y", (tokens, vocab), "fp32", store=Store.LOGITS)
        ops.append(
            Op(
                "logits_gather",
                Kind.ALL_GATHER,
                ("logits",),
                whole,
                "fp32",
                bytes=whole.bytes,
                group=Group("stage", 1, rows.ways),
            )
        )
    return Role("head", ctx.tensor("x", here, hidden), tuple(ops))
