"""The two sides of plans with experts apart: splits of the GPUs, priced attention sides, options, and closed-form floors."""

from __future__ import annotations

from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from planner.costs.pricer import Site
from planner.evaluate.separate import expert_floors
from planner.evaluate.setting import Setting
from planner.evaluate.slices import price_blocks
from planner.evaluate.tables import Bill, Block, FfnOption, StageTable
from planner.solve.dominance import undominated
from search_spaces.attention import AttentionPartition
from search_spaces.experts import ExpertPlacement
from search_spaces.space import SearchSpace, nested, token_split

Array = NDArray[np.float64]
Ints = NDArray[np.int64]
ROUNDING = 1e-9
"""Sums over layers in another order differ by less, relative to each other."""


class ApartSides:
    """The sides that plans with experts apart may have, each on its own."""

    def __init__(self, env: Setting, space: SearchSpace, extra_memory: float = 0.0, most_memory: float = float("inf")) -> None:
        self.env, self.space, self.sizes, self._extra, self._most = env, space, space.sizes, extra_memory, most_memory
        self.sequences = tuple(sorted({space.sequences(r, m) for r, m in space.branches}))

    @cached_property
    def splits(self) -> tuple[tuple[Site, Site], ...]:
        """(attention ranks, expert ranks) of every split over all branches."""
        strides = {self.space.stride(r) for r, _ in self.space.branches}
        found: list[tuple[Site, Site]] = []
        for attention, experts in dict.fromkeys(s for stride in sorted(strides) for s in self.space.separate_splits(stride)):
            if self.placements(experts):
                found += self.space.sides(attention, experts)
        return tuple(found)

    def placements(self, ways: int) -> tuple[ExpertPlacement, ...]:
        """Placements on `ways` expert GPUs."""
        if ways not in self._placements:
            self._placements[ways] = tuple(self.space.pinned(0).experts.separate(self.sizes, ways))
        return self._placements[ways]

    @cached_property
    def _placements(self) -> dict[int, tuple[ExpertPlacement, ...]]:
        return {}

    @cached_property
    def near(self) -> dict[Site, StageTable]:
        """Priced attention sides by their ranks."""
        return self._sides_on(tuple(dict.fromkeys(near for near, _ in self.splits)))

    def _sides_on(self, places: tuple[Site, ...]) -> dict[Site, StageTable]:
        """Priced attention sides on some ranks."""
        own = self.space.pinned(0)
        blocks = []
        for near in places:
            partitions = tuple(own.attention.partitions(self.sizes, len(near)))
            ffns = tuple(FfnOption(m) for m in own.mlp_choices(len(near)))
            if partitions and ffns:
                splits = tuple(dict.fromkeys(token_split(self.sizes, p) for p in partitions))
                kind = self.env.cluster.device_kinds[near[0]]
                blocks.append(Block(kind, (near,), self.sequences, partitions, ffns, splits))
        return {t.block.places[0]: t for t in price_blocks(self.env, blocks)} if blocks else {}

    @property
    def priced(self) -> int:
        """Options that were priced, before waves."""
        return sum(
            len(self.near[near].block.partitions) * len(self.near[near].block.ffns) * len(self.placements(len(far)))
            for near, far in self.splits
            if near in self.near
        ) * len(self.sequences)

    @cached_property
    def options(self) -> tuple[tuple[AttentionPartition, ...], tuple[FfnOption, ...], tuple[ExpertPlacement, ...]]:
        """Every partition, FFN option and placement that some split may use."""
        blocks = [table.block for table in self.near.values()]
        return (
            tuple(dict.fromkeys(p for block in blocks for p in block.partitions)),
            tuple(dict.fromkeys(f for block in blocks for f in block.ffns)),
            tuple(dict.fromkeys(p for _, far in self.splits for p in self.placements(len(far)))),
        )

    def floors(self, replicas: int, micro_batches: int, *, experts: bool = True) -> Array:
        """Lower bound of the seconds of a branch on every split of the GPUs [splits], from both sides each on its own.

        Each of the machines takes all micro-batches, and the attention GPUs begin a wave after the last one's chain. Without
        `experts` it is that of the attention side.
        """
        sequences = self.space.sequences(replicas, micro_batches)
        batch, far = self.sequences.index(sequences), 0.0
        sides, number = self.attention_sides
        near = np.array([self.attention_floor(side)[batch] for side in sides])[number]
        if experts and not self.space.regular:
            far = self._expert_floors[batch]
        waves = micro_batches // max(self.space.waves(micro_batches), default=1)
        seconds = np.maximum(micro_batches * np.maximum(near, far), waves * (near + far))
        return np.asarray(np.where(self._reachable(replicas), seconds * (1 - ROUNDING), np.inf))

    def floor(self, replicas: int, micro_batches: int) -> float:
        """The least of `floors`."""
        return float(self.floors(replicas, micro_batches).min(initial=np.inf))

    def _reachable(self, replicas: int) -> NDArray[np.bool_]:
        """Which splits a replica's ranks have room for."""
        stride = self.space.stride(replicas)
        if stride not in self._room:
            pairs = set(self.space.separate_splits(stride))
            self._room[stride] = np.array([(len(near), len(far)) in pairs for near, far in self.splits], dtype=bool)
        return self._room[stride]

    @cached_property
    def _room(self) -> dict[int, NDArray[np.bool_]]:
        return {}

    @cached_property
    def attention_sides(self) -> tuple[list[Site], Ints]:
        """The different attention sides, and for every split which it has."""
        nears = list(dict.fromkeys(near for near, _ in self.splits))
        number = {near: i for i, near in enumerate(nears)}
        return nears, np.array([number[near] for near, _ in self.splits], dtype=np.int64)

    def usable(self, near: Site, sequences: int) -> bool:
        """Whether an attention side has options, and a token for each of its GPUs."""
        return near in self.near and len(near) <= sequences * self.sizes.query_length

    def attention_floor(self, near: Site) -> Array:
        """Least seconds of a micro-batch of every size [batches] on an attention side, each layer with its fastest option."""
        if near not in self._floors:
            self._floors[near] = self._attention_floor(near)
        return self._floors[near]

    @cached_property
    def _floors(self) -> dict[Site, Array]:
        return {}

    def _attention_floor(self, near: Site) -> Array:
        if near not in self.near:
            return np.full(len(self.sequences), np.inf)
        table, (index, _, parts) = self.near[near], self.grids(near)
        sequences = np.array(self.sequences, dtype=np.int64)[:, None]
        counts = np.bincount(np.asarray(self.env.kind_of_layer), minlength=len(self.env.kinds)).tolist()
        beside = np.zeros((sequences.size, len(table.block.splits)))
        for bill in (table.embedding, table.head):
            beside = beside if bill is None else beside + bill.seconds[0]
        own = np.zeros((sequences.size, index.size))
        for kind, count in enumerate(counts):
            own = own + count * table.attention[kind].seconds[0]
            if not self.env.kinds[kind].moe:
                beside = beside + count * table.ffn[kind].seconds[0].min(axis=2, initial=np.inf)
        tokens = sequences * self.sizes.query_length
        shards = np.array(table.block.shards, dtype=np.int64)[index]
        legal = (sequences % parts == 0) & (shards <= tokens) & (len(near) <= tokens)
        return np.asarray(np.where(legal, own + beside[:, index], np.inf).min(axis=1, initial=np.inf))

    @cached_property
    def _expert_floors(self) -> Array:
        """Least seconds of a micro-batch on the GPUs of the experts [batches, splits], each layer with its fastest placement.

        Of their GPUs the kind and the number decide: the experts of a layer exchange nothing among themselves.
        """
        kinds = [self.env.cluster.device_kinds[far[0]] for _, far in self.splits]
        found = np.zeros((len(self.sequences), len(self.splits)))
        counts = np.bincount(np.asarray(self.env.kind_of_layer), minlength=len(self.env.kinds)).tolist()
        for kind in dict.fromkeys(kinds):
            some = [n for n, own in enumerate(kinds) if own == kind]
            sites = {len(self.splits[n][1]): self.splits[n][1] for n in some}
            width = np.array([list(sites).index(len(self.splits[n][1])) for n in some])
            layers = [(count, layer) for count, layer in zip(counts, self.env.kinds, strict=True) if layer.moe]
            jobs = [(far, self.placements(ways)) for ways, far in sites.items()]
            least = expert_floors(self.env, kind, [layer for _, layer in layers], jobs, self.sequences)
            found[:, some] = sum(count * own[:, width] for (count, _), own in zip(layers, least, strict=True))
        return found

    def _useful(self, near: Site, sequences: int) -> Ints:
        """(partition, FFN) pairs [2, n] of an attention side that no other with the same grid and split beats in all bills."""
        key = (near, sequences)
        if key not in self._pairs:
            self._pairs[key] = self._undominated(near, sequences)
        return self._pairs[key]

    @cached_property
    def _pairs(self) -> dict[tuple[Site, int], Ints]:
        return {}

    def _undominated(self, near: Site, sequences: int) -> Ints:
        """The pairs [2, n] of `_useful`."""
        table, batch = self.near[near], self.sequences.index(sequences)
        block, shards, (index, grid, _) = table.block, table.block.shards, self.grids(near)
        legal = self.legal(near, sequences)
        columns = [getattr(bill, name)[0, batch] for bill in table.attention for name in Bill.__slots__]
        data = np.stack(columns, axis=1)
        alike = [np.nonzero(legal & (grid == number))[0] for number in np.unique(grid[legal])]
        keep = np.sort(np.concatenate([some[undominated(data[some])] for some in alike] or [grid[:0]]))
        beside = [[f for f, x in enumerate(block.ffns) if nested(count, len(near) // x.mlp_ways)] for count in shards]
        pairs = [(a, f) for a, split in zip(keep.tolist(), index[keep].tolist(), strict=True) for f in beside[split]]
        return np.array(pairs, dtype=np.int64).reshape(-1, 2).T

    def legal(self, near: Site, sequences: int) -> NDArray[np.bool_]:
        """Which partitions of an attention side a micro-batch can be split by [A]."""
        index, _, parts = self.grids(near)
        shards = np.array(self.near[near].block.shards, dtype=np.int64)[index]
        return np.asarray((sequences % parts == 0) & (shards <= sequences * self.sizes.query_length))

    def grids(self, near: Site) -> tuple[Ints, Ints, Ints]:
        """Of each partition of an attention side: index of its token split, number of its grid and split, batch parts [A]."""
        if near not in self._grids:
            block = self.near[near].block
            number = {split: i for i, split in enumerate(block.splits)}
            index = [number[token_split(self.sizes, p)] for p in block.partitions]
            grids = [(p.head_groups, p.dimension_segments, p.batch_parts, p.context_parts) for p in block.partitions]
            keys = {key: i for i, key in enumerate(dict.fromkeys(zip(index, grids, strict=True)))}
            each = [keys[key] for key in zip(index, grids, strict=True)]
            columns = (index, each, [p.batch_parts for p in block.partitions])
            self._grids[near] = tuple(np.array(column, dtype=np.int64) for column in columns)  # type: ignore[assignment]
        return self._grids[near]

    @cached_property
    def _grids(self) -> dict[Site, tuple[Ints, Ints, Ints]]:
        return {}
