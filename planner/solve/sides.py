"""The two sides of plans with experts apart, summed up over the layers each on its own: pairs of them are bounded by adding.

Nothing is priced twice: an attention side is the same whatever experts stand beside it, and an expert side is the same for
all attention options that split the residual stream alike.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from planner.costs.pricer import Site
from planner.evaluate.separate import TRANSFER_BUFFERS, AttentionSide, Cases, ExpertSide, expert_sides, fixed_bytes
from planner.evaluate.setting import Setting
from planner.evaluate.tables import Bill, StageTable
from search_spaces.experts import ExpertPlacement

Array = NDArray[np.float64]
Ints = NDArray[np.int64]


@dataclass(frozen=True)
class Near:
    """Attention options [P] of one side and micro-batch size: partition, FFN option and index of the residual split of each.

    `seconds` of a micro-batch on the attention GPUs without what the experts ask of them; bytes of `weights`, of the fullest
    moment (`peak`), of `cache` per sequence and `held` by a micro-batch in flight; `parts` that the batch is split into.
    """

    table: StageTable
    batch: int
    partition: Ints
    ffn: Ints
    split: Ints
    parts: Ints
    held: Array
    seconds: Array
    weights: Array
    peak: Array
    cache: Array


def attention_bills(env: Setting, table: StageTable, batch: int, partition: Ints, ffn: Ints, split: Ints) -> AttentionSide:
    """The bills of some options of an attention side [N]; a mixture has no FFN there."""

    def taken(bill: Bill | None, *at: Ints) -> Bill:
        if bill is None:
            return Bill(*(np.zeros(partition.shape) for _ in Bill.__slots__))
        return Bill(*(getattr(bill, name)[0, batch][at] for name in Bill.__slots__))

    dense = tuple(
        None if kind.moe else taken(bill, split, own[ffn])
        for kind, bill, own in zip(env.kinds, table.ffn, table.own, strict=True)
    )
    attention = tuple(taken(bill, partition) for bill in table.attention)
    return AttentionSide(attention, dense, taken(table.embedding, split), taken(table.head, split))


def near_options(env: Setting, table: StageTable, batch: int, pairs: Ints, split: Ints) -> Near:
    """Sum up the (partition, FFN) `pairs` [2, P] of an attention side; `split` numbers the residual split of each pair."""
    partition, ffn = pairs
    block, counts = table.block, np.bincount(np.asarray(env.kind_of_layer), minlength=len(env.kinds))
    found = attention_bills(env, table, batch, partition, ffn, split)
    seconds, weights = found.embedding.seconds + found.head.seconds, found.embedding.weights
    weights = weights + (0.0 if env.model.tied_embeddings else 1.0) * found.head.weights
    peak, cache = np.maximum(found.embedding.peak, found.head.peak), np.zeros(partition.shape)
    for kind, count in enumerate(counts.tolist()):
        for bill in (found.attention[kind], found.dense[kind]):
            if bill is not None:
                seconds, weights = seconds + count * bill.seconds, weights + count * bill.weights
                peak, cache = np.maximum(peak, bill.peak), cache + count * bill.cache
    parts = np.array([p.batch_parts for p in block.partitions], dtype=np.int64)[partition]
    tokens = -(-block.sequences[batch] * env.query_length // np.array(block.shards, dtype=np.int64)[split])
    held = np.asarray(env.context.tensor("", tokens, env.model.hidden).bytes)
    return Near(table, batch, partition, ffn, split, parts, held, seconds, weights, peak, cache)


@dataclass(frozen=True)
class Far:
    """The experts' side of one split of the GPUs for every residual split and placement [R, Q], summed up over the layers.

    `near_*` is what the experts ask of the attention GPUs; `dispatch`, `experts` and `combine` are seconds of the other
    machines, `bytes` those on an expert GPU. `sides` has the bills of every kind of mixture layer [R x Q].
    """

    placements: int
    sides: dict[int, ExpertSide]
    near_seconds: Array
    near_weights: Array
    near_peak: Array
    dispatch: Array
    experts: Array
    combine: Array
    bytes: Array


@dataclass(frozen=True)
class Job:
    """An expert side to be summed up: attention ranks and residual shards [R] of each residual split, expert ranks."""

    near: tuple[Site, ...]
    shards: tuple[int, ...]
    far: Site
    placements: tuple[ExpertPlacement, ...]


def far_options(env: Setting, sequences: int, jobs: Sequence[Job]) -> list[Far]:
    """Sum up expert sides for micro-batches of `sequences`; all of them have GPUs of the same two kinds."""
    nears = {ranks: i for i, ranks in enumerate(dict.fromkeys(ranks for job in jobs for ranks in job.near))}
    fars = {ranks: i for i, ranks in enumerate(dict.fromkeys(job.far for job in jobs))}
    placed = {p: i for i, p in enumerate(dict.fromkeys(p for job in jobs for p in job.placements))}
    columns = []
    for job in jobs:
        numbers, count = [placed[p] for p in job.placements], len(job.placements)
        near, shards = np.array([nears[ranks] for ranks in job.near]), np.array(job.shards)
        far = np.full(near.size * count, fars[job.far])
        columns.append(np.stack([np.repeat(shards, count), np.tile(numbers, near.size), np.repeat(near, count), far]))
    shard, placement, near_site, far_site = np.concatenate(columns, axis=1).astype(np.int64)
    kinds = [env.cluster.device_kinds[ranks[0]] for ranks in (jobs[0].near[0], jobs[0].far)]
    batch = np.full(shard.shape, sequences, dtype=np.int64)
    cases = Cases(batch, shard, placement, near_site, far_site, tuple(placed), tuple(nears), tuple(fars), *kinds)
    mixtures = [kind for kind, layer in enumerate(env.kinds) if layer.moe]
    sides = dict(zip(mixtures, expert_sides(env, [env.kinds[kind] for kind in mixtures], cases), strict=True))
    ends = np.cumsum([0, *(column.shape[1] for column in columns)]).tolist()
    parts = [np.arange(a, b) for a, b in pairwise(ends)]
    return [
        _summed(env, job, {kind: side.take(part) for kind, side in sides.items()})
        for job, part in zip(jobs, parts, strict=True)
    ]


def _summed(env: Setting, job: Job, sides: dict[int, ExpertSide]) -> Far:
    """The sums over all layers of one expert side."""
    counts = np.bincount(np.asarray(env.kind_of_layer), minlength=len(env.kinds))
    shape = (len(job.shards), len(job.placements))

    def total(*parts: tuple[int, Array]) -> Array:
        return np.asarray(sum(counts[kind] * part for kind, part in parts), dtype=np.float64).reshape(shape)

    def most(*parts: Array) -> Array:
        return np.asarray(np.max(parts, axis=0), dtype=np.float64).reshape(shape)

    some = list(sides.items())
    arrived = most(*(s.arrived for _, s in some))
    held = total(*((k, s.experts.weights) for k, s in some)) + most(*(s.experts.peak for _, s in some))
    return Far(
        len(job.placements), sides,
        total(*((k, s.route.seconds + s.finish.seconds) for k, s in some)),
        total(*((k, s.route.weights + s.finish.weights) for k, s in some)),
        most(*(np.maximum(s.route.peak, s.finish.peak) for _, s in some)),
        total(*((k, s.dispatch) for k, s in some)),
        total(*((k, s.experts.seconds) for k, s in some)),
        total(*((k, s.combine) for k, s in some)),
        held + TRANSFER_BUFFERS * 2.0 * arrived + fixed_bytes(env, env.cluster.device_kinds[job.far[0]]),
    )  # fmt: skip


def pair_bounds(near: Near, far: Far) -> tuple[Array, Array]:
    """(chain of one micro-batch, load of the busiest machine for it) of every pair of sides [P, Q]."""
    own = near.seconds[:, None] + far.near_seconds[near.split]
    others = [part[near.split] for part in (far.dispatch, far.experts, far.combine)]
    return np.asarray(own + sum(others)), np.max([own, *others], axis=0)


def pair_excess(env: Setting, near: Near, far: Far, kept: int, wave: int, capacity: tuple[float, float]) -> Array:
    """Bytes by which the fuller side of every pair exceeds its memory with `wave` micro-batches in flight [P, Q]."""
    rest = near.cache * np.ceil(kept / near.parts) + near.weights + wave * near.held
    peak = np.maximum(near.peak[:, None], far.near_peak[near.split])
    kind = near.table.block.kind
    own = rest[:, None] + far.near_weights[near.split] + peak + fixed_bytes(env, kind) - capacity[0]
    return np.asarray(np.maximum(own, far.bytes[near.split] - capacity[1]))
