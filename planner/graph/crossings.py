"""How gradients pass the collectives of each role: the crossings that `backward` needs.

Where the forward pass gathers tokens, partial gradients are summed; where it sums, gradients are gathered: the residual
stream's gradient is held as the stream itself, complete on every GPU that holds the tokens.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from planner.graph.backward import Crossing
from planner.graph.context import RoleContext
from planner.graph.layouts import gather_tokens, sum_partials
from planner.graph.ops import Kind, Layout, Role, Tensor
from planner.graph.rows import FfnRows, Ints, MoeRows
from planner.graph.turned import gradient_of


def attention_crossings(role: Role) -> tuple[Crossing, ...]:
    """Of norm, attention and a row-split output projection, with the residual stream split by tokens or not."""
    ops = {op.name: op for op in role.ops}
    gather, scatter = ops["gather_tokens"], ops["o_reduce_scatter"]
    split = np.asarray(gather.exists) == 1
    normed = replace(_tensor(role, "xn"), name=gradient_of("xg"))
    summed = [
        replace(gather, name="x_grad_reduce_scatter", kind=Kind.REDUCE_SCATTER, inputs=("xg",), output=normed, exists=split),
        replace(gather, name="x_grad_all_reduce", kind=Kind.ALL_REDUCE, inputs=("xg",), output=normed, exists=~split),
    ]
    whole = replace(_tensor(role, "op"), name=gradient_of("o"), layout=Layout.REPLICATED)
    returned = replace(scatter, name="o_grad_gather", kind=Kind.ALL_GATHER, inputs=("o",), output=whole)
    return Crossing("xg", "xn", tuple(summed), again=True), Crossing("o", "op", (returned,))


def mlp_crossings(ctx: RoleContext, role: Role, rows: FfnRows) -> tuple[Crossing, ...]:
    """Of a dense FFN split by columns, then rows, over `mlp_ways` GPUs."""
    shards = rows.ways // rows.mlp_ways
    return (
        _summed(ctx, role, "xg", "xn", shards, rows),
        _gathered(ctx, role, "f", "partial", shards, rows),
    )


def local_crossings(ctx: RoleContext, role: Role, rows: MoeRows) -> tuple[Crossing, ...]:
    """Of a mixture whose GPUs see all tokens and sum their experts' parts."""
    one = np.ones_like(rows.ways)
    return (
        _summed(ctx, role, "xg", "xn", one, rows),
        _summed(ctx, role, "routes_all", "routes", one, rows),
        _gathered(ctx, role, "f", "moe_partial", one, rows),
    )


def dispatch_crossings(ctx: RoleContext, role: Role, rows: MoeRows) -> tuple[Crossing, ...]:
    """Of a mixture whose tokens travel: gradients travel the same ways, and return to the residual stream's split.

    The weights of a token's experts get their gradient where its gradient meets what the experts made of it (or what they
    got, where the weights scale that): before it travels back.
    """
    ops = {op.name: op for op in role.ops}
    sent, back = ops["dispatch"], ops["combine"]
    back_grad = replace(_tensor(role, "expert_partial"), name=gradient_of("combine"), layout=Layout.REPLICATED)
    sent_grad = replace(_tensor(role, "xn"), name=gradient_of("dispatch"))
    whole = replace(_tensor(role, "x"), name="x_slices")
    norm = gradient_of("ffn_norm")
    gather = gather_tokens(ctx, "x_grad_gather", norm, whole, rows.ways, rows.residual_shards, rows.ways)
    return (
        Crossing("f", "fs"),  # the gradient is complete wherever the token is: each GPU takes its slice
        Crossing(
            "returned",
            "expert_partial",
            (replace(back, name="combine_backward", inputs=("returned", "expert_partial"), output=back_grad),),
        ),
        Crossing(
            "arrived",
            "xn",
            (replace(sent, name="dispatch_backward", inputs=("arrived",), output=sent_grad),),
            also="routes",
        ),
        Crossing(norm, "x", (gather,)),
    )


def embedding_crossings(ctx: RoleContext, role: Role, rows: FfnRows) -> tuple[Crossing, ...]:
    """Of a vocabulary-parallel lookup: every GPU needs the gradient of all tokens."""
    return (_gathered(ctx, role, "y", "embedded", np.ones_like(rows.ways), rows),)


def head_crossings(ctx: RoleContext, role: Role, rows: FfnRows) -> tuple[Crossing, ...]:
    """Of vocabulary-parallel logits."""
    return (_summed(ctx, role, "xg", "xn", np.ones_like(rows.ways), rows),)


def receive_crossings() -> tuple[Crossing, ...]:
    """Of the arrival from the stage before: each GPU sends back its slice of a gradient that is complete."""
    return (Crossing("y", "x"),)


def _summed(ctx: RoleContext, role: Role, gathered: str, source: str, have: Ints, rows: FfnRows | MoeRows) -> Crossing:
    """Partial gradients of gathered tokens, `have` shards of them, to finished ones of the residual stream's shards."""
    partial = replace(_tensor(role, gathered), layout=Layout.PARTIAL)
    finished = replace(_tensor(role, source), name=gradient_of(gathered))
    ops = tuple(sum_partials(ctx, f"{gathered}_grad", partial, have, finished, rows.residual_shards, rows.ways))
    return Crossing(gathered, source, ops, again=gathered != "routes_all")


def _gathered(ctx: RoleContext, role: Role, output: str, partial: str, want: Ints, rows: FfnRows | MoeRows) -> Crossing:
    """The gradient of summed tokens, held as the residual stream, to all GPUs that had a part of the sum."""
    target = replace(_tensor(role, partial), name=gradient_of(output), layout=Layout.REPLICATED)
    have = np.maximum(rows.residual_shards, want)
    return Crossing(output, partial, (gather_tokens(ctx, f"{output}_grad_gather", output, target, have, want, rows.ways),))


def _tensor(role: Role, name: str) -> Tensor:
    if role.x is not None and role.x.name == name:
        return role.x
    return next(op.output for op in role.ops if op.output.name == name)
