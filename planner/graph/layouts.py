"""Conversions of the residual stream between token splits, and the sum of partial outputs, as explicit collectives."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np

from planner.graph.context import RoleContext
from planner.graph.ops import Group, Kind, Layout, Op, Tensor
from planner.graph.rows import Ints, share, share_tokens


def shard_tokens(tokens: Ints, shards: Ints, ways: Ints, index: Ints) -> Ints:
    """Tokens on GPU `index` of a stage of `ways` GPUs when they are split into `shards` (consecutive GPUs share a part)."""
    return share_tokens(tokens, shards, index // (ways // shards))


def gather_tokens(ctx: RoleContext, name: str, source: str, target: Tensor, have: Ints, want: Ints, ways: Ints) -> Op:
    """All-gather from `have` token shards to the coarser `want`; absent where `have` is as coarse already."""
    group = Group(name, ways // have, np.maximum(have // want, 1))
    return Op(name, Kind.ALL_GATHER, (source,), target, target.dtype, bytes=target.bytes, group=group)


def sum_partials(
    ctx: RoleContext, prefix: str, source: Tensor, have: Ints, residual: Tensor, want: Ints, ways: Ints
) -> Iterator[Op]:
    """From partial sums over the `ways // have` GPUs of each token shard to `want` shards of finished tokens.

    Equal shards, or finer ones that are no full split: all-reduce (slicing is free). Full split: reduce-scatter.
    Coarser ones: reduce-scatter, then all-gather.
    """
    holders = Group("holders", 1, ways // have)
    full, coarser = want == ways, want < have
    result = replace(residual, layout=Layout.REPLICATED)
    part = np.where(full, residual.shape[0], share(source.shape[0], ways // have, 0))
    scattered = replace(residual, name=f"{prefix}_shard", shape=(part, source.shape[1]))
    yield Op(f"{prefix}_all_reduce", Kind.ALL_REDUCE, (source.name,), result, source.dtype, bytes=source.bytes, group=holders,
             exists=~full & ~coarser)  # fmt: skip
    yield Op(f"{prefix}_reduce_scatter", Kind.REDUCE_SCATTER, (source.name,), scattered, source.dtype, bytes=source.bytes,
             group=holders, exists=full | coarser)  # fmt: skip
    returned = Group("residual", 1, np.where(coarser, ways // want, 1))
    yield Op(f"{prefix}_all_gather", Kind.ALL_GATHER, (scattered.name, source.name), result, source.dtype, bytes=result.bytes,
             group=returned)  # fmt: skip
