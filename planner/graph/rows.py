"""Rows: the integer arrays that a role is built from; one row is an option to price or one GPU of an expanded graph."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from planner.graph.flows import Flows

Ints = NDArray[np.int64]


def share(total: Ints | int, parts: Ints | int, index: Ints | int) -> Ints:
    """Items of part `index` of `parts` even parts, larger parts first (elementwise)."""
    return np.asarray((np.asarray(total) + parts - 1 - np.asarray(index)) // parts, dtype=np.int64)


def share_tokens(total: Ints | int, parts: Ints | int, index: Ints | int) -> Ints:
    """Tokens of part `index` when consecutive tokens are cut at multiples of total / parts, rounded up; none is larger than
    the first. Cuts nest: the parts of a finer split lie inside those of a coarser one.
    """
    size = np.asarray(total)
    return np.asarray(-(-size * (np.asarray(index) + 1) // parts) + (-size * np.asarray(index) // parts), dtype=np.int64)


@dataclass(frozen=True, slots=True)
class AttentionRows:
    """Where a row's GPU stands in its stage's attention grid. All arrays have shape [rows].

    `sequences` are those of the whole micro-batch; `heads` and `kv_heads` those of the row's head group; `segment` and
    `position` its place among the segments and among the GPUs that hold the same tokens (0 = the largest share).
    Flags are 0 or 1.
    """

    sequences: Ints
    ways: Ints
    batch_parts: Ints
    context_parts: Ints
    groups: Ints
    segments: Ints
    heads: Ints
    kv_heads: Ints
    segment: Ints
    context: Ints
    position: Ints
    score_reduce: Ints
    scattered: Ints
    gather: Ints
    sequence_parallel: Ints
    heads_inner: Ints

    @property
    def tensor(self) -> Ints:
        """GPUs that share the heads of the same tokens."""
        return self.groups * self.segments


@dataclass(frozen=True, slots=True)
class FfnRows:
    """A row of an FFN role. All arrays have shape [rows].

    `tokens` are those of the whole micro-batch, `ways` the GPUs of the stage, `residual_shards` the parts the residual
    stream comes and goes in, `mlp_ways` the GPUs that share one copy of a dense FFN, `index` the row's place in the stage.
    """

    tokens: Ints
    ways: Ints
    residual_shards: Ints
    mlp_ways: Ints
    index: Ints


@dataclass(frozen=True, slots=True)
class MoeRows:
    """A row of a mixture-of-experts role. All arrays have shape [rows] unless said otherwise.

    `tokens`, `ways`, `residual_shards` as in `FfnRows`; `expert_ways` GPUs hold experts, `tensor_ways` of them share
    each. `experts` are the row's local experts, `routed` its routed token-expert pairs (expected, rounded up) and
    `active` the experts of them that get any token. `spread` is the expected number of expert groups that one token
    goes to, `reach` the chance that it goes to the group that gets most. `index` is the place in the stage, `column` the
    place among the GPUs that share an expert, `first` the place that decides the columns of a shared expert (in pricing
    the first GPU with these experts). `flows` says where dispatched tokens go; None: to all GPUs alike.
    """

    tokens: Ints
    ways: Ints
    residual_shards: Ints
    expert_ways: Ints
    tensor_ways: Ints
    experts: Ints
    active: Ints
    routed: Ints
    spread: NDArray[np.float64]
    reach: NDArray[np.float64]
    index: Ints
    column: Ints
    first: Ints
    flows: Flows | None = None
