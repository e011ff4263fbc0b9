"""Whether a plan with experts on GPUs of their own is below a value: option by option, what no end can save left out.

An attention side that needs too long for all micro-batches, or an expert side that does, is left out before the two are put
together; every pair that is left is priced, and stepped through wave by wave.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from planner.certify.branch import Branch, TooLargeError
from planner.certify.question import Question
from planner.evaluate.separate import (
    AttentionSide,
    Cases,
    ExpertSide,
    SeparatePrice,
    expert_sides,
    separate_makespan,
    separate_price,
)
from planner.evaluate.setting import Setting
from planner.evaluate.tables import Bill, Block, FfnOption, StageTable, price_blocks
from search_spaces.attention import TokenSplit
from search_spaces.experts import ExpertPlacement
from search_spaces.space import SearchSpace, nested, token_split

Array = NDArray[np.float64]
Ints = NDArray[np.int64]
Ranks = tuple[int, ...]
MOST_PAIRS = 3_000_000
"""Pairs of an attention side and an expert side of one branch that are priced before it is given up as too large."""


@dataclass(frozen=True)
class NearSide:
    """The ways to run attention and dense FFNs on some ranks: (partition, FFN option) pairs with what they split.

    `split` is the index of each pair's token split in the table.
    """

    table: StageTable
    partition: Ints
    ffn: Ints
    split: Ints
    parts: Ints

    @property
    def shards(self) -> Ints:
        """Token shards of each pair."""
        return np.array(self.table.block.shards, dtype=np.int64)[self.split]


class ApartPlans:
    """Plans of a space whose experts have GPUs of their own."""

    def __init__(self, env: Setting, space: SearchSpace, most_memory: float) -> None:
        self.env, self.space, self.sizes, self.most_memory = env, space, space.sizes, most_memory
        self.sequences = tuple(sorted({space.sequences(r, m) for r, m in space.branches}))

    def splits(self, stride: int) -> Iterator[tuple[Ranks, Ranks, tuple[ExpertPlacement, ...]]]:
        """(attention ranks, expert ranks, placements) that may be on `stride` ranks."""
        for attention, experts in self.space.separate_splits(stride):
            placements = self._placements(experts)
            for near, far in self.space.sides(attention, experts) if placements else ():
                yield near, far, placements

    def _placements(self, ways: int) -> tuple[ExpertPlacement, ...]:
        if ways not in self._placed:
            self._placed[ways] = tuple(self.space.pinned(0).experts.separate(self.sizes, ways))
        return self._placed[ways]

    @cached_property
    def _placed(self) -> dict[int, tuple[ExpertPlacement, ...]]:
        return {}

    @cached_property
    def near(self) -> dict[Ranks, NearSide]:
        """The attention sides of all splits."""
        strides = sorted({self.space.stride(r) for r, _ in self.space.branches})
        sides: dict[Ranks, tuple[Block, list[tuple[int, int]]]] = {}
        own = self.space.pinned(0)
        for ranks in dict.fromkeys(near for stride in strides for near, _, _ in self.splits(stride)):
            partitions = tuple(own.attention.partitions(self.sizes, len(ranks)))
            ffns = tuple(FfnOption(ways) for ways in own.mlp_choices(len(ranks)))
            splits = [token_split(self.sizes, p) for p in partitions]
            pairs = [
                (a, f)
                for a, split in enumerate(splits)
                for f, ffn in enumerate(ffns)
                if nested(split.shards, len(ranks) // ffn.mlp_ways)
            ]
            if pairs:
                kind = self.env.cluster.device_kinds[ranks[0]]
                sides[ranks] = Block(kind, (ranks,), self.sequences, partitions, ffns, tuple(dict.fromkeys(splits))), pairs
        tables = price_blocks(self.env, [block for block, _ in sides.values()]) if sides else []
        return {ranks: self._side(t, pairs) for (ranks, (_, pairs)), t in zip(sides.items(), tables, strict=True)}

    def _side(self, table: StageTable, pairs: list[tuple[int, int]]) -> NearSide:
        partition, ffn = np.array(pairs, dtype=np.int64).T
        chosen = [table.block.partitions[a] for a in partition.tolist()]
        split = np.array([table.block.splits.index(token_split(self.sizes, p)) for p in chosen], dtype=np.int64)
        return NearSide(table, partition, ffn, split, np.array([p.batch_parts for p in chosen], dtype=np.int64))

    def below(self, question: Question, branch: Branch, below: float) -> float | None:
        """The value of a plan of a branch that is below `below`, None where there is none."""
        found, seen = np.inf, 0
        for near, far, placements in self.splits(branch.space.stride(branch.replicas)):
            used = sorted((*near, *far))
            if near not in self.near or branch.replicas * len(used) > question.most.gpus:
                continue
            side, batch = self.near[near], self.sequences.index(branch.sequences)
            pairs = self._usable(side, branch)
            seconds = branch.micro_batches * self._near_seconds(side, batch)
            pairs = pairs[question.of_pass(branch.replicas, used, seconds[pairs]) < below]
            seen += pairs.size * len(placements)
            if seen > MOST_PAIRS:
                raise TooLargeError(f"more than {MOST_PAIRS} plans with experts apart in one branch")
            if pairs.size:
                found = min(found, self._least(question, branch, side, pairs, (near, far), placements, below))
        return found if found < below else None

    def _usable(self, side: NearSide, branch: Branch) -> Ints:
        """Pairs that a micro-batch can be split by."""
        sequences, ways = branch.sequences, side.table.block.width
        mlp = np.array([f.mlp_ways for f in side.table.block.ffns])[side.ffn]
        most = np.maximum(side.shards, ways // mlp)
        if self.sizes.moe:
            most = np.maximum(most, ways)  # tokens leave for their experts from every GPU
        return np.nonzero((sequences % side.parts == 0) & (most <= sequences * self.sizes.query_length))[0]

    def _near_seconds(self, side: NearSide, batch: int) -> Array:
        """Seconds of a micro-batch that every pair spends on attention and dense FFNs alone [pairs]."""
        total = np.zeros(side.partition.shape)
        for kind in self.env.kind_of_layer:
            total = total + side.table.attention[kind].seconds[0, batch, side.partition]
            if not self.env.kinds[kind].moe:
                total = total + side.table.ffn[kind].seconds[0, batch, side.split, side.ffn]
        return total

    def _least(
        self, question: Question, branch: Branch, side: NearSide, pairs: Ints, ranks: tuple[Ranks, Ranks],
        placements: tuple[ExpertPlacement, ...], below: float,
    ) -> float:  # fmt: skip
        """Least value of the plans of one split that fit, of those that may be below the value."""
        pair, placement = np.repeat(pairs, len(placements)), np.tile(np.arange(len(placements)), pairs.size)
        price = self._price(branch, side, pair, ranks, placement, placements)
        chain, load = price.times.bound
        used, kinds = sorted((*ranks[0], *ranks[1])), self.env.cluster
        floor = question.of_pass(branch.replicas, used, np.maximum(chain, branch.micro_batches * load))
        room = [min(float(kinds.kind_of(place[0]).memory_bytes), self.most_memory) for place in ranks]
        found = np.inf
        for wave in self.space.waves(branch.micro_batches):
            near_bytes = price.attention_bytes + wave * price.held_bytes
            at = np.nonzero((floor < below) & (near_bytes <= room[0]) & (price.expert_bytes <= room[1]))[0]
            if at.size:
                seconds = separate_makespan(price.times.take(at), branch.micro_batches, wave)
                found = min(found, float(question.of_pass(branch.replicas, used, seconds).min()))
        return found

    def _price(
        self, branch: Branch, side: NearSide, pair: Ints, ranks: tuple[Ranks, Ranks], placement: Ints,
        placements: tuple[ExpertPlacement, ...],
    ) -> SeparatePrice:  # fmt: skip
        """Price every (pair, placement)."""
        batch, zero = self.sequences.index(branch.sequences), np.zeros_like(pair)
        kinds = [self.env.cluster.device_kinds[place[0]] for place in ranks]
        splits, index = side.table.block.splits, side.split[pair]
        case = (np.full(pair.shape, branch.sequences, dtype=np.int64), side.shards[pair], placement, index, zero)
        cases = Cases(*case, placements, tuple(s.laid(ranks[0]) for s in splits), (ranks[1],), *kinds)

        def taken(bill: Bill | None, *at: Ints) -> Bill:
            if bill is None:
                return Bill(*(np.zeros(pair.shape) for _ in Bill.__slots__))
            return Bill(*(getattr(bill, name)[0, batch][at] for name in Bill.__slots__))

        table, layers = side.table, self.env.kinds
        attention = tuple(taken(bill, side.partition[pair]) for bill in table.attention)
        dense = tuple(None if k.moe else taken(table.ffn[i], index, side.ffn[pair]) for i, k in enumerate(layers))
        near = AttentionSide(attention, dense, taken(table.embedding, index), taken(table.head, index))
        at = (batch * len(splits) + index) * len(placements) + placement
        far = {kind: every.take(at) for kind, every in self._far(ranks, splits, placements).items()}
        resident = np.ceil(self.sizes.batch // branch.replicas / side.parts[pair])
        return separate_price(self.env, near, far, cases, resident)

    def _far(
        self, ranks: tuple[Ranks, Ranks], splits: tuple[TokenSplit, ...], placements: tuple[ExpertPlacement, ...]
    ) -> dict[int, ExpertSide]:
        """The expert side of a split for every micro-batch size, token split and placement, per kind of mixture layer."""
        if ranks not in self._sides:
            grid = np.meshgrid(self.sequences, np.arange(len(splits)), np.arange(len(placements)), indexing="ij")
            batch, split, placement = (np.asarray(axis.ravel(), dtype=np.int64) for axis in grid)
            kinds, zero = [self.env.cluster.device_kinds[place[0]] for place in ranks], np.zeros_like(batch)
            shards, near = np.array([s.shards for s in splits])[split], tuple(s.laid(ranks[0]) for s in splits)
            cases = Cases(batch, shards, placement, split, zero, placements, near, (ranks[1],), *kinds)
            layers = [(i, kind) for i, kind in enumerate(self.env.kinds) if kind.moe]
            sides = expert_sides(self.env, [kind for _, kind in layers], cases)
            self._sides[ranks] = {i: side for (i, _), side in zip(layers, sides, strict=True)}
        return self._sides[ranks]

    @cached_property
    def _sides(self) -> dict[tuple[Ranks, Ranks], dict[int, ExpertSide]]:
        return {}
