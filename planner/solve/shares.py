"""A lower bound of a branch that knows its memory: what the layers take of the time, and what they hold of all GPUs' bytes.

The stages of a pipeline on G GPUs hold at most G times the room of one. A layer that runs on w GPUs holds w times its bytes
on one of them. So for any price p >= 0 of a byte, weights a of the chain and b of the slowest time (see `bounds`),
a x chain + b x slowest is at least the sum over the layers of min (seconds x (a + b x width / G) + p x width x bytes), over
all options of all widths, less p x G x room. The best price is searched for: the sum is concave in it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from planner.evaluate.tables import StageTable
from planner.solve.bounds import SHARES
from planner.solve.objective import SAME, Objective

Array = NDArray[np.float64]
Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]
PRICES = 2.0 ** np.arange(-4, 9)
"""Prices of a byte that are tried, as multiples of the bound without memory over all bytes."""


@dataclass(frozen=True)
class Side:
    """What one half of a layer of one kind may cost, an option per row [N]: block, seconds, weight bytes, cache bytes per
    sequence, parts of the batch; `start` is the first row of each group (a block and a residual split).
    """

    block: Ints
    seconds: Array
    weights: Array
    cache: Array
    parts: Ints
    start: Ints

    def least(self, scale: Array, price: Array, kept: int) -> Array:
        """Least seconds x scale + bytes x price of each group; both factors are per block."""
        held = self.weights + self.cache * np.ceil(kept / self.parts)
        return np.asarray(np.minimum.reduceat(scale[self.block] * self.seconds + price[self.block] * held, self.start))


@dataclass(frozen=True)
class Shares:
    """The options of all blocks for one micro-batch size: attention and FFN sides of every layer kind, first group of each
    block, widths [B] and room for bytes on a GPU [B], the ends' seconds and bytes [B, 2], and layers of each kind.
    """

    near: tuple[Side, ...]
    far: tuple[Side, ...]
    first: Ints
    widths: Ints
    room: Array
    end_seconds: Array
    end_bytes: Array
    layers: Ints

    def bound(self, objective: Objective, ranks: int, kept: int, enough: float = np.inf) -> float:
        """Lower bound of the objective of pipelines on `ranks` GPUs that keep `kept` sequences; it need not exceed `enough`."""
        if not self.widths.size or self.widths.min() > ranks:
            return np.inf
        count = float(objective.micro_batches)
        plain = replace(objective, latency_s=np.inf, steady_s=np.inf)
        pairs = {
            "latency": [(a, (1.0 - a) * count) for a in SHARES.tolist()] if objective.decode else [(1.0, count - 1.0)],
            "steady": [(0.0, count)],
        }
        caps = {"latency": objective.latency_s, "steady": objective.steady_s}
        name = "steady" if plain.name == "throughput" and not objective.decode else "latency"
        for other, most in caps.items():
            if np.isfinite(most) and self._best(pairs[other], ranks, kept, most * (1 + SAME)) > most * (1 + SAME):
                return np.inf
        return self._best(pairs[name], ranks, kept, enough)

    def _best(self, pairs: list[tuple[float, float]], ranks: int, kept: int, enough: float) -> float:
        """The best bound of any pair of weights of chain and slowest time."""
        found = [self._weighed(pair, ranks, kept, 0.0) for pair in pairs]
        best = max(found)
        pair = pairs[found.index(best)]
        room = ranks * float(self.room[self.widths <= ranks].max())
        if best > enough or not np.isfinite(best) or not 0.0 < room < np.inf:
            return best
        price, best = _climb(lambda p: self._weighed(pair, ranks, kept, p) - p * room, best / room, best, enough)
        if len(pairs) > 1 and best <= enough:
            best = max(best, *(self._weighed(other, ranks, kept, price) - price * room for other in pairs))
        return best

    def _weighed(self, pair: tuple[float, float], ranks: int, kept: int, price: float) -> float:
        """Least sum over the layers of weighted seconds and priced bytes."""
        usable = self.widths <= ranks
        scale, held = np.asarray(pair[0] + pair[1] * self.widths / ranks), np.asarray(price * self.widths, dtype=np.float64)
        total = 0.0
        for kind, count in enumerate(self.layers.tolist()):
            groups = self.near[kind].least(scale, held, kept) + self.far[kind].least(scale, held, kept)
            total += count * float(np.minimum.reduceat(groups, self.first)[usable].min(initial=np.inf))
        ends = scale[:, None] * self.end_seconds + held[:, None] * self.end_bytes
        return total + float(ends[usable].min(axis=0, initial=np.inf).sum())


def _climb(value: Callable[[float], float], unit: float, known: float, enough: float) -> tuple[float, float]:
    """The price, and the largest value of a concave function found: by doubling, then between the neighbours of the best."""
    best, at = (0.0, known), 0
    tried = [(0.0, known)]
    for factor in PRICES.tolist():
        tried.append((factor * unit, value(factor * unit)))
        if tried[-1][1] > enough:
            return tried[-1]
        if tried[-1][1] < best[1]:
            break
        best, at = tried[-1], len(tried) - 1
    low, high = tried[max(at - 1, 0)][0], tried[min(at + 1, len(tried) - 1)][0]
    for _ in range(3):
        for price in ((low + best[0]) / 2, (best[0] + high) / 2):
            found = (price, value(price))
            if found[1] > best[1]:
                low, high = (low, best[0]) if price < best[0] else (best[0], high)
                best = found
                break
        else:
            low, high = (low + best[0]) / 2, (best[0] + high) / 2
        if best[1] > enough:
            break
    return best


@dataclass(frozen=True)
class Usable:
    """A priced block: its table, the partitions [A], pairs of residual split and FFN option [R, F] and residual split of each
    partition [A] that a micro-batch can be split by, and the bytes on a GPU beside the reserve and the buffers.
    """

    table: StageTable
    rows: Bools
    pairs: Bools
    shard: Ints
    room: float


def shares(blocks: list[Usable], batch: int, layers: Ints) -> Shares:
    """The options of some blocks for one micro-batch size; blocks without options are left out."""
    groups: list[tuple[int, int]] = []
    used: list[Usable] = []
    for block in blocks:
        own = [r for r in range(block.pairs.shape[0]) if block.pairs[r].any() and (block.rows & (block.shard == r)).any()]
        groups += [(len(used), r) for r in own]
        used += [block] * bool(own)
    near = tuple(_near(used, groups, kind, batch) for kind in range(layers.size))
    far = tuple(_far(used, groups, kind, batch) for kind in range(layers.size))
    owners = np.array([b for b, _ in groups], dtype=np.int64)
    first = np.searchsorted(owners, np.arange(len(used)))
    ends = [(b.table.embedding, b.table.head) for b in used]
    seconds, held = (
        np.array([[0.0 if bill is None else float(getattr(bill, name)[:, batch].min()) for bill in row] for row in ends])
        for name in ("seconds", "weights")
    )
    widths = np.array([b.table.block.width for b in used], dtype=np.int64)
    room = np.array([b.room for b in used], dtype=np.float64)
    return Shares(near, far, first, widths, room, seconds.reshape(-1, 2), held.reshape(-1, 2), layers)


def _near(used: list[Usable], groups: list[tuple[int, int]], kind: int, batch: int) -> Side:
    """Attention sides of one kind of layer."""
    parts = {n: np.array([p.batch_parts for p in b.table.block.partitions], dtype=np.int64) for n, b in enumerate(used)}
    chosen = [np.nonzero(used[b].rows & (used[b].shard == r))[0] for b, r in groups]
    columns = []
    for (b, _), rows in zip(groups, chosen, strict=True):
        bill = used[b].table.attention[kind]
        own = [getattr(bill, name)[:, batch, rows].min(axis=0) for name in ("seconds", "weights", "cache")]
        columns.append(np.stack([np.full(rows.size, b), *own, parts[b][rows]]))
    return _side(columns)


def _far(used: list[Usable], groups: list[tuple[int, int]], kind: int, batch: int) -> Side:
    """FFN sides of one kind of layer."""
    columns = []
    for b, r in groups:
        bill, own = used[b].table.ffn[kind], np.unique(used[b].table.own[kind][used[b].pairs[r]])
        each = [getattr(bill, name)[:, batch, r, own].min(axis=0) for name in ("seconds", "weights", "cache")]
        columns.append(np.stack([np.full(own.size, b), *each, np.ones(own.size)]))
    return _side(columns)


def _side(columns: list[Array]) -> Side:
    """Groups one after another."""
    data = np.concatenate(columns, axis=1) if columns else np.zeros((5, 0))
    start = np.cumsum([0, *(column.shape[1] for column in columns)])[:-1]
    return Side(data[0].astype(np.int64), data[1], data[2], data[3], data[4].astype(np.int64), start.astype(np.int64))
