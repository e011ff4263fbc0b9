"""The dense FFN role: up-projection split by columns, down-projection by rows."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from planner.graph.context import RoleContext
from planner.graph.layouts import gather_tokens, shard_tokens, sum_partials
from planner.graph.ops import Kind, Layout, Op, Role, Shard, Size, Tensor
from planner.graph.rows import FfnRows, share
from planner.model import Ffn, Layer, Module


def mlp_role(ctx: RoleContext, layer: Layer, rows: FfnRows) -> Role:
    """The operators of norm and dense FFN of one layer; reads residual `x`, writes `y`."""
    hidden, shards = ctx.model.hidden, rows.ways // rows.mlp_ways
    residual = ctx.tensor("x", shard_tokens(rows.tokens, rows.residual_shards, rows.ways, rows.index), hidden)
    gathered = ctx.tensor("xg", shard_tokens(rows.tokens, shards, rows.ways, rows.index), hidden)
    width = share(layer.ffn.hidden, rows.mlp_ways, rows.index % rows.mlp_ways)
    ops = [ctx.norm("ffn_norm", ctx.ffn_input(layer), replace(residual, name="xn"))]
    ops.append(gather_tokens(ctx, "ffn_gather", "xn", gathered, rows.residual_shards, shards, rows.ways))
    ops += gated_ffn(ctx, layer.ffn, "", ("xg", "xn"), gathered.shape[0], width, "ffn")
    ops += sum_partials(ctx, "ffn", ops[-1].output, shards, replace(residual, name="f"), rows.residual_shards, rows.ways)
    return Role("mlp", residual, (*ops, *residual_tail(ctx, layer, "ffn", "f", residual)))


def gated_ffn(
    ctx: RoleContext, ffn: Ffn, prefix: str, inputs: tuple[str, ...], tokens: Size, width: Size, module: Module
) -> Iterator[Op]:
    """Gate (if any), up, activation and down of a dense FFN of `width` columns on this GPU; writes a partial sum."""
    hidden, biased = ctx.model.hidden, ffn.bias and ffn.kind == "dense"  # a mixture's bias is that of its routed experts
    inner = replace(ctx.tensor(f"{prefix}up", tokens, width), layout=Layout.HIDDEN)
    sources = []
    for name in ("gate", "up") if ffn.gated else ("up",):
        shards: list[Shard] = [ctx.shard(prefix + name, module, hidden, width)]
        if biased:
            shards.append(ctx.shard(f"{prefix}{name}_bias", module, width))
        sources.append(f"{prefix}{name}")
        yield Op(f"{prefix}{name}_proj", Kind.MATMUL, inputs, replace(inner, name=f"{prefix}{name}"), shards[0].dtype,
                 m=tokens, k=hidden, n=width, weights=tuple(shards))  # fmt: skip
    active = replace(inner, name=f"{prefix}active")
    yield ctx.elementwise(f"{prefix}activation", tuple(sources), active, passes=len(sources) + 1.0)
    down = [ctx.shard(f"{prefix}down", module, width, hidden)]
    if biased:
        down.append(ctx.shard(f"{prefix}down_bias", module, hidden))
    partial = replace(ctx.tensor(f"{prefix}partial", tokens, hidden), layout=Layout.PARTIAL)
    yield Op(f"{prefix}down_proj", Kind.MATMUL, (active.name,), partial, down[0].dtype, m=tokens, k=width, n=hidden,
             weights=tuple(down))  # fmt: skip


def residual_tail(ctx: RoleContext, layer: Layer, prefix: str, source: str, residual: Tensor) -> Iterator[Op]:
    """The post-norm where the model has one, and the residual sum into `y`."""
    shape = residual.shape
    if layer.norms > 2:
        yield ctx.norm(f"{prefix}_post_norm", source, ctx.tensor("fn", *shape))
        source = "fn"
    yield ctx.elementwise(f"{prefix}_residual", ("x", source), ctx.tensor("y", *shape), passes=3.0)
