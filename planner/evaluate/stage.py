"""A stage's price: the bills of its roles added up over its layers, for every option and several layer intervals."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from planner.costs.memory import BOUNDARY_BUFFERS, communication_bytes, reserve_bytes
from planner.evaluate.setting import Setting
from planner.evaluate.tables import Bill, StageTable
from search_spaces.sizes import Sizes
from search_spaces.space import token_split

Array = NDArray[np.float64]
Ints = NDArray[np.int64]
SUMMED, PEAK = ((0, "seconds"), (1, "weights"), (2, "sent"), (4, "cache")), 3
"""Places of what layers add up, and of the largest of them, among seconds, weights, bytes sent, peak and cache."""
MANY_KINDS = 8


@dataclass(frozen=True)
class Intervals:
    """Layer intervals that cost the same are one row: layers of each kind [I, K], whether first or last stage [I]."""

    counts: Ints
    first: NDArray[np.bool_]
    last: NDArray[np.bool_]


@dataclass(frozen=True)
class StagePrice:
    """Seconds, bytes of the fullest GPU (the largest share of every item) and bytes sent, each [I, A, F]."""

    seconds: Array
    memory: Array
    sent: Array


def intervals(env: Setting, bounds: Sequence[tuple[int, int]]) -> Intervals:
    """Intervals [start, stop) of layers as counts of layer kinds."""
    kinds, total = np.asarray(env.kind_of_layer), len(env.kind_of_layer)
    prefix = np.zeros((total + 1, len(env.kinds)), dtype=np.int64)
    for kind in range(len(env.kinds)):
        prefix[1:, kind] = np.cumsum(kinds == kind)
    start, stop = np.array([b[0] for b in bounds]), np.array([b[1] for b in bounds])
    return Intervals(prefix[stop] - prefix[start], start == 0, stop == total)


@dataclass(frozen=True)
class StageView:
    """One site and micro-batch size of a stage table, for the chosen `partitions` [A] and `ffns` [F] of its block.

    `paired`: partition i goes with FFN option i alone (A = F); shapes [A, F] below are then [A, 1].
    """

    env: Setting
    table: StageTable
    site: int
    batch: int
    replica_batch: int
    shard_index: Ints
    partitions: Ints
    ffns: Ints
    paired: bool = False

    @property
    def sequences(self) -> int:
        """Sequences in a micro-batch."""
        return self.table.block.sequences[self.batch]

    def attention(self, kind: int) -> Bill:
        """Attention bills [A] of a layer kind."""
        bill = self.table.attention[kind]
        return Bill(*(getattr(bill, name)[self.site, self.batch, self.partitions] for name in Bill.__slots__))

    def ffn(self, kind: int) -> Bill:
        """FFN bills [A, F] of a layer kind."""
        bill, own = self.table.ffn[kind], self.table.own[kind][self.ffns]
        grid = (self.shard_index[:, None], own[:, None] if self.paired else own[None, :])
        return Bill(*(getattr(bill, name)[self.site, self.batch][grid] for name in Bill.__slots__))

    def end(self, bill: Bill | None) -> Bill:
        """An end role's bills [A]; zeros where there is none."""
        if bill is None:
            return Bill(*(np.zeros(self.shard_index.shape) for _ in Bill.__slots__))
        return Bill(*(getattr(bill, name)[self.site, self.batch, self.shard_index] for name in Bill.__slots__))

    @property
    def resident(self) -> Array:
        """Sequences whose cache a GPU keeps, per partition [A]: the replica's whole batch over its batch parts."""
        parts = np.array([p.batch_parts for p in self.table.block.partitions])[self.partitions]
        return np.ceil(self.replica_batch / parts)

    @property
    def fixed_bytes(self) -> float:
        """Reserve and collective buffers of a GPU of this stage."""
        kind = self.env.cluster.kinds[self.table.block.kind]
        return reserve_bytes(kind) + communication_bytes(self.table.block.width)

    @property
    def boundary_bytes(self) -> float:
        """Bytes that wait at the entry of a stage that is not the first."""
        tokens = -(-self.sequences * self.env.query_length // self.table.block.width)
        return float(BOUNDARY_BUFFERS * self.env.context.tensor("", tokens, self.env.model.hidden).bytes)


def view(
    env: Setting,
    sizes: Sizes,
    table: StageTable,
    site: int,
    batch: int,
    replica_batch: int,
    partitions: Ints | None = None,
    ffns: Ints | None = None,
    *,
    paired: bool = False,
) -> StageView:
    """A view of one site and micro-batch size; `replica_batch` is the sequences of one replica (default: all options)."""
    chosen = np.arange(len(table.block.partitions)) if partitions is None else partitions
    columns = np.arange(len(table.block.ffns)) if ffns is None else ffns
    index = {split: i for i, split in enumerate(table.block.splits)}
    shards = [index[token_split(sizes, table.block.partitions[i])] for i in chosen.tolist()]
    return StageView(env, table, site, batch, replica_batch, np.array(shards, dtype=np.int64), chosen, columns, paired)


def stage_price(v: StageView, spans: Intervals) -> StagePrice:
    """Seconds and memory of every option on every interval."""
    embedding, receive, head = v.end(v.table.embedding), v.end(v.table.receive), v.end(v.table.head)
    first, last = spans.first[:, None], spans.last[:, None]
    seconds, weights, sent, peak, cache = (
        np.where(first, getattr(embedding, n)[None, :], getattr(receive, n)[None, :])
        + (np.where(last, getattr(head, n)[None, :], 0.0) if n != "peak" else 0.0)
        for n in ("seconds", "weights", "sent", "peak", "cache")
    )
    peak = np.maximum(peak, np.where(last, head.peak[None, :], 0.0))
    if v.env.model.tied_embeddings:
        weights = weights - np.where(first & last, head.weights[None, :], 0.0)
    others = 1 if v.paired else v.ffns.size
    total = [np.broadcast_to(x[:, :, None], (*x.shape, others)) for x in (seconds, weights, sent, peak, cache)]
    add = _add_many if spans.counts.shape[1] > MANY_KINDS else _add_few
    total = add(v, spans.counts, total)
    memory = total[1] + total[3] + total[4] * v.resident[None, :, None] + v.fixed_bytes
    memory = memory + np.where(spans.first, 0.0, v.boundary_bytes)[:, None, None]
    return StagePrice(total[0], memory, total[2])


def _add_few(v: StageView, counts: Ints, total: list[Array]) -> list[Array]:
    """Seconds, weights, bytes sent, peak and cache [I, A, F] with those of the layers, `counts` [I, K] of each kind."""
    for kind in range(counts.shape[1]):
        count = counts[:, kind][:, None, None]
        attention, ffn = v.attention(kind), v.ffn(kind)
        for at, name in SUMMED:
            total[at] = total[at] + count * (getattr(attention, name)[:, None] + getattr(ffn, name))[None]
        here = np.maximum(attention.peak[:, None], ffn.peak)[None]
        total[PEAK] = np.maximum(total[PEAK], np.where(count > 0, here, 0.0))
    return total


def _add_many(v: StageView, counts: Ints, total: list[Array]) -> list[Array]:
    """The same where there are many kinds, since every layer has expert loads of its own: sums as one product."""
    bills = [(v.attention(kind), v.ffn(kind)) for kind in range(counts.shape[1])]
    for at, name in SUMMED:
        each = np.stack([getattr(attention, name)[:, None] + getattr(ffn, name) for attention, ffn in bills])
        total[at] = total[at] + np.einsum("ik,kaf->iaf", counts.astype(np.float64), each)  # no threads, as a product has
    here = np.stack([np.maximum(attention.peak[:, None], ffn.peak) for attention, ffn in bills])
    total[PEAK] = np.maximum(total[PEAK], _largest(counts > 0, here))
    return total


def _largest(present: NDArray[np.bool_], values: Array) -> Array:
    """The largest of the values [K, ...] of the kinds that are present, [I, K] -> [I, ...]: of runs of kinds (the layers of a
    stage where all differ) by the largest of every 1, 2, 4, ... neighbours.
    """
    first, last = present.argmax(axis=1), present.shape[1] - 1 - present[:, ::-1].argmax(axis=1)
    if (present.sum(axis=1) != last - first + 1).any():
        return np.stack([values[row].max(axis=0) for row in present])
    runs, level = [values], np.floor(np.log2(last - first + 1)).astype(np.int64)
    for step in range(int(level.max(initial=0))):
        before = runs[-1]
        runs.append(np.maximum(before[: -(2**step) or None], before[2**step :]))
    found = np.empty((present.shape[0], *values.shape[1:]))
    for step, run in enumerate(runs):
        at = np.nonzero(level == step)[0]
        found[at] = np.maximum(run[first[at]], run[last[at] + 1 - 2**step])
    return found
