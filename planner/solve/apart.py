"""Search of plans whose experts have GPUs of their own: every candidate tabulated with its exact price, best bound first."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from planner.evaluate.separate import (
    AttentionSide,
    Cases,
    ExpertSide,
    SeparatePrice,
    expert_side,
    separate_makespan,
    separate_price,
)
from planner.evaluate.setting import Setting
from planner.evaluate.tables import Bill, Block, FfnOption, StageTable, price_blocks
from planner.solve.pin import Pin, pinned
from search_spaces.experts import ExpertPlacement
from search_spaces.space import SearchSpace, StageOption, residual_shards
from search_spaces.stages import StageChoice

Array = NDArray[np.float64]
Ints = NDArray[np.int64]
CHUNK = 256


@dataclass(frozen=True)
class ApartFound:
    """The best plan with experts apart in one branch: its stage, micro-batches in flight and seconds."""

    stage: StageChoice
    in_flight: int
    value: float
    sent: float


@dataclass(frozen=True)
class Candidates:
    """Candidates of one branch [N]: split of the GPUs, option indexes, price without waves, missing bytes per wave size."""

    split: Ints
    partition: Ints
    mlp: Ints
    placement: Ints
    prices: dict[int, SeparatePrice]


class ApartSpace:
    """The plans of a space whose experts are apart."""

    def __init__(self, env: Setting, space: SearchSpace) -> None:
        self.env, self.space, self.sizes = env, space, space.sizes
        self.sequences = tuple(sorted({space.sequences(r, m) for r, m in space.branches}))

    @cached_property
    def splits(self) -> tuple[tuple[tuple[int, ...], tuple[int, ...]], ...]:
        """(attention ranks, expert ranks) of every split over all branches."""
        strides = {self.space.stride(r) for r, _ in self.space.branches}
        found = []
        for attention, experts in dict.fromkeys(s for stride in sorted(strides) for s in self.space.separate_splits(stride)):
            devices = self.space.layout[0].devices if self.space.layout else tuple(range(attention + experts))
            near, far = devices[:attention], devices[attention:]
            if self.space.one_kind(near) and self.space.one_kind(far) and self.placements(len(far)):
                found.append((near, far))
        return tuple(found)

    def placements(self, ways: int) -> tuple[ExpertPlacement, ...]:
        """Placements on `ways` expert GPUs."""
        return tuple(self.space.pinned(0).experts.separate(self.sizes, ways))

    @cached_property
    def near(self) -> dict[tuple[int, ...], StageTable]:
        """Priced attention sides by their ranks."""
        own = self.space.pinned(0)
        blocks = []
        for near in dict.fromkeys(near for near, _ in self.splits):
            partitions = tuple(own.attention.partitions(self.sizes, len(near)))
            ffns = tuple(FfnOption(m) for m in own.mlp_choices(len(near)))
            if partitions and ffns:
                shards = tuple(dict.fromkeys(residual_shards(self.sizes, p) for p in partitions))
                kind = self.env.cluster.device_kinds[near[0]]
                blocks.append(Block(kind, (near,), self.sequences, partitions, ffns, shards))
        return {t.block.places[0]: t for t in price_blocks(self.env, blocks)} if blocks else {}

    @property
    def priced(self) -> int:
        """Options that were priced, before waves."""
        return sum(
            len(self.near[near].block.partitions) * len(self.near[near].block.ffns) * len(self.placements(len(far)))
            for near, far in self.splits
            if near in self.near
        ) * len(self.sequences)

    def best(self, replicas: int, micro_batches: int, cutoff: float, pin: Pin | None = None) -> ApartFound | None:
        """The best plan of a branch below `cutoff` seconds, among those that agree with the pin."""
        found = None
        for candidates in self._branch(replicas, micro_batches):
            for wave, price in candidates.prices.items():
                fits = np.nonzero(self._fits(candidates, price) & self._agree(candidates, wave, pin))[0]
                better = self._wave(candidates, price, micro_batches, wave, fits, cutoff)
                if better is not None:
                    found, cutoff = better, better.value
        return found

    def _agree(self, candidates: Candidates, wave: int, pin: Pin | None) -> NDArray[np.bool_]:
        """Which candidates agree with a pin."""
        keep = np.ones(candidates.split.shape, dtype=bool)
        if not pin:
            return keep
        if pin.get("in_flight", wave) != wave:
            return ~keep
        for number, (near, far) in enumerate(self.splits):
            if near in self.near:
                block = self.near[near].block
                sides = (block.partitions, candidates.partition), (block.ffns, candidates.mlp), (self.placements(len(far)), candidates.placement)
                for options, column in sides:
                    at = candidates.split == number
                    keep[at] &= pinned(options, pin)[column[at]]
        return keep

    def least_excess(self, replicas: int, micro_batches: int) -> float:
        """Fewest bytes by which a candidate exceeds the memory (inf without candidates)."""
        least = np.inf
        for candidates in self._branch(replicas, micro_batches):
            price = candidates.prices[min(candidates.prices)]
            least = min(least, float(np.maximum(*self._excess(candidates, price)).min(initial=np.inf)))
        return least

    def _wave(
        self, candidates: Candidates, price: SeparatePrice, micro_batches: int, wave: int, index: Ints, cutoff: float
    ) -> ApartFound | None:
        chain, load = price.times.bound
        bound = np.maximum(chain, micro_batches * load)[index]
        order = index[np.argsort(bound, kind="stable")]
        bound = np.sort(bound, kind="stable")
        found = None
        for at in range(0, order.size, CHUNK):
            if bound[at] >= cutoff:
                break
            some = order[at : at + CHUNK]
            value = separate_makespan(price.times.take(some), micro_batches, wave)
            pick = int(value.argmin())
            if value[pick] < cutoff:
                cutoff = float(value[pick])
                row = int(some[pick])
                found = ApartFound(self._stage(candidates, row), wave, cutoff, float(price.sent[row]))
        return found

    def _excess(self, candidates: Candidates, price: SeparatePrice) -> tuple[Array, Array]:
        kinds, of = self.env.cluster.kinds, self.env.cluster.device_kinds
        near = np.array([kinds[of[s[0][0]]].memory_bytes for s in self.splits])[candidates.split]
        far = np.array([kinds[of[s[1][0]]].memory_bytes for s in self.splits])[candidates.split]
        return price.attention_bytes - near, price.expert_bytes - far

    def _fits(self, candidates: Candidates, price: SeparatePrice) -> NDArray[np.bool_]:
        near, far = self._excess(candidates, price)
        return np.asarray((near <= 0) & (far <= 0))

    def _stage(self, candidates: Candidates, row: int) -> StageChoice:
        near, far = self.splits[int(candidates.split[row])]
        block = self.near[near].block
        placement = self.placements(len(far))[int(candidates.placement[row])]
        mlp = block.ffns[int(candidates.mlp[row])].mlp_ways
        return StageChoice(self.sizes.layers, near + far, block.partitions[int(candidates.partition[row])], mlp, placement)

    def _branch(self, replicas: int, micro_batches: int) -> tuple[Candidates, ...]:
        """Candidates of a branch; attention options that another one beats in everything are left out."""
        key = (self.space.sequences(replicas, micro_batches), replicas, micro_batches)
        if key not in self._branches:
            self._branches[key] = self._tabulate(*key)
        return self._branches[key]

    @cached_property
    def _branches(self) -> dict[tuple[int, int, int], tuple[Candidates, ...]]:
        return {}

    def _tabulate(self, sequences: int, replicas: int, micro_batches: int) -> tuple[Candidates, ...]:
        """One table per pair of GPU kinds."""
        rows: dict[tuple[str, str], list[tuple[int, int, int, int]]] = {}
        allowed, kinds = self.space.separate_splits(self.space.stride(replicas)), self.env.cluster.device_kinds
        for number, (near, far) in enumerate(self.splits):
            if near not in self.near or (len(near), len(far)) not in allowed:
                continue
            block = self.near[near].block
            for a, f in self._useful(near, sequences):
                for x, placement in enumerate(self.placements(len(far))):
                    option = StageOption(block.partitions[a], block.ffns[f].mlp_ways, placement)
                    if self.space.fits_micro_batch(option, len(near), sequences):
                        rows.setdefault((kinds[near[0]], kinds[far[0]]), []).append((number, a, f, x))
        return tuple(
            self._price(sequences, replicas, micro_batches, pair, *np.array(some, dtype=np.int64).T)
            for pair, some in rows.items()
        )

    def _useful(self, near: tuple[int, ...], sequences: int) -> list[tuple[int, int]]:
        """(partition, FFN) pairs of an attention side that no other with the same grid and residual split beats in all bills."""
        table = self.near[near]
        block, batch = table.block, self.sequences.index(sequences)
        index = np.array([block.shards.index(residual_shards(self.sizes, p)) for p in block.partitions])
        parts = np.array([p.batch_parts for p in block.partitions])
        legal = (sequences % parts == 0) & (np.array(block.shards)[index] <= sequences * self.sizes.query_length)
        grids = list(dict.fromkeys((p.head_groups, p.dimension_segments, p.batch_parts, p.context_parts) for p in block.partitions))
        grid = np.array([grids.index((p.head_groups, p.dimension_segments, p.batch_parts, p.context_parts)) for p in block.partitions])
        columns = []
        for bill in table.attention:
            columns += [bill.seconds[0, batch], bill.weights[0, batch], bill.peak[0, batch], bill.cache[0, batch], bill.sent[0, batch]]
        data = np.stack(columns, axis=1)
        below = (data[:, None, :] <= data[None, :, :]).all(axis=2) & (index[:, None] == index[None, :]) & (grid[:, None] == grid[None, :]) & legal[:, None]
        strict = below & ~(below.T & (np.arange(len(index))[:, None] > np.arange(len(index))[None, :]))
        np.fill_diagonal(strict, False)
        keep = np.nonzero(legal & ~strict.any(axis=0))[0]
        return [
            (int(a), f)
            for a in keep
            for f, ffn in enumerate(block.ffns)
            if _nested(block.shards[index[a]], block.width // ffn.mlp_ways)
        ]

    def _price(
        self, sequences: int, replicas: int, micro: int, kinds: tuple[str, str], split: Ints, partition: Ints, mlp: Ints, placement: Ints
    ) -> Candidates:
        nears = tuple(dict.fromkeys(near for near, _ in self.splits))
        fars = tuple(dict.fromkeys(far for _, far in self.splits))
        placements = tuple(dict.fromkeys(p for far in fars for p in self.placements(len(far))))
        near_of = np.array([nears.index(near) for near, _ in self.splits])[split]
        far_of = np.array([fars.index(far) for _, far in self.splits])[split]
        own = [np.array([placements.index(p) for p in self.placements(len(far))]) for _, far in self.splits]
        place = np.array([own[s][p] for s, p in zip(split, placement, strict=True)])
        tables = [self.near[near] for near in nears]
        shard = np.array([residual_shards(self.sizes, tables[n].block.partitions[a]) for n, a in zip(near_of, partition, strict=True)])
        parts = np.array([tables[n].block.partitions[a].batch_parts for n, a in zip(near_of, partition, strict=True)])
        batch = np.full(split.shape, sequences, dtype=np.int64)
        cases = Cases(batch, shard, place, near_of, far_of, placements, nears, fars, *kinds)
        near = self._near_side(tables, near_of, partition, mlp, shard, sequences)
        far: dict[int, ExpertSide] = {
            kind: expert_side(self.env, layer, cases) for kind, layer in enumerate(self.env.kinds) if layer.moe
        }
        resident = np.ceil(self.sizes.batch // replicas / parts)
        prices = {w: separate_price(self.env, near, far, cases, resident, w) for w in self.space.waves(micro)}
        return Candidates(split, partition, mlp, placement, prices)

    def _near_side(self, tables: list[StageTable], near: Ints, a: Ints, f: Ints, shard: Ints, sequences: int) -> AttentionSide:
        """Bills of the attention GPUs for every candidate."""
        batch = self.sequences.index(sequences)
        r = np.array([tables[n].block.shards.index(int(s)) for n, s in zip(near, shard, strict=True)])

        def gather(pick: Callable[[StageTable], Bill | None], *index: Ints) -> Bill:
            columns = [np.zeros(near.shape) for _ in Bill.__slots__]
            for n, table in enumerate(tables):
                at, bill = np.nonzero(near == n)[0], pick(table)
                if bill is not None and at.size:
                    for column, name in zip(columns, Bill.__slots__, strict=True):
                        column[at] = getattr(bill, name)[0, batch][tuple(i[at] for i in index)]
            return Bill(*columns)

        kinds = range(len(self.env.kinds))
        attention = tuple(gather(lambda t, k=k: t.attention[k], a) for k in kinds)  # type: ignore[misc]
        dense = tuple(None if self.env.kinds[k].moe else gather(lambda t, k=k: t.ffn[k], r, f) for k in kinds)  # type: ignore[misc]
        return AttentionSide(attention, dense, gather(lambda t: t.embedding, r), gather(lambda t: t.head, r))


def _nested(first: int, second: int) -> bool:
    return first % second == 0 or second % first == 0

