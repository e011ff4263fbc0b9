"""Plans with experts apart where there are too many to tabulate: pairs of sides are bounded, the rest is priced."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import fields
from functools import cached_property
from itertools import groupby

import numpy as np
from numpy.typing import NDArray

from planner.costs.pricer import Site
from planner.evaluate.separate import AttentionSide, Cases, ExpertSide, separate_price
from planner.evaluate.setting import Setting
from planner.evaluate.tables import Bill, Block, FfnOption, StageTable
from planner.solve.apart import ApartSpace
from planner.solve.apart_sides import ROUNDING
from planner.solve.blocks import PricedSpace, StageSlot
from planner.solve.candidates import ApartAsked, Candidates
from planner.solve.pin import pinned
from planner.solve.sides import Far, Job, Near, attention_bills, far_options, near_options, pair_bounds, pair_excess
from search_spaces.space import SearchSpace

Array = NDArray[np.float64]
Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]
MANY = 100_000
"""So many candidates of one branch are not tabulated."""
FIRST_SPLITS, MOST_SPLITS = 8, 128
FIRST_ROWS, MOST_ROWS = 256, 4096


class ApartPairs(ApartSpace):
    """The plans of a space whose experts are apart, pair by pair where a branch has many."""

    def __init__(self, env: Setting, space: SearchSpace, priced: PricedSpace, extra: float, most_memory: float) -> None:
        super().__init__(env, space, extra, most_memory)
        self._linear = priced
        self._fars: tuple[int, dict[int, Far]] = (0, {})

    @cached_property
    def splits(self) -> tuple[tuple[Site, Site], ...]:
        """(attention ranks, expert ranks) of every split over all branches; ranges on a large cluster."""
        if not self.space.regular:
            return super().splits
        strides = sorted({self.space.stride(r) for r, _ in self.space.branches})
        pairs = dict.fromkeys(pair for stride in strides for pair in self.space.separate_splits(stride))
        return tuple(
            (range(near), range(near, near + far))
            for near, far in pairs
            if self.space.placed(0, near) and self.space.placed(near, far) and self.placements(far)
        )

    @cached_property
    def near(self) -> dict[Site, StageTable]:
        """Priced attention sides by their ranks: those of linear stages on the same ranks, where they are open."""
        places = tuple(dict.fromkeys(near for near, _ in self.splits))
        found = {}
        for near in () if self.space.layout else places:
            slot, ways = self._slot(near), self.space.pinned(0).mlp_choices(len(near))
            table = None if slot is None else self._linear.tables[slot.block]
            if slot is not None and table is not None and ways:
                found[near] = attention_table(table, slot.site, near, ways)
        lacking = self._sides_on(tuple(near for near in places if near not in found))
        return {near: side for near in places for side in [found.get(near, lacking.get(near))] if side is not None}

    def _slot(self, near: Site) -> StageSlot | None:
        """Where linear stages on the ranks of an attention side are priced."""
        return self._linear.spot_slot(0, len(near)) if self.space.regular else self._linear.slots.get(tuple(near))

    def _candidates(self, asked: ApartAsked) -> Iterator[tuple[Candidates, Bools]]:
        key = self._key(asked.replicas, asked.micro_batches)
        if key in self._branches or (not self._few(asked) and not self._many(key[0])):
            yield from super()._candidates(asked)
            return
        for candidates in self._promising(asked, key):
            yield candidates, np.ones(candidates.split.shape, dtype=bool)

    def _few(self, asked: ApartAsked) -> bool:
        """Whether so few splits are open that no table pays; one serves many pins."""
        return not asked.pin and int(np.count_nonzero(asked.floors < asked.cutoff)) <= FIRST_SPLITS

    def _many(self, sequences: int) -> bool:
        """Whether there are too many candidates to tabulate: always on a large cluster."""
        if sequences not in self._counts:
            self._counts[sequences] = (
                self.space.regular
                or sum(
                    self._useful(near, sequences).shape[1] * len(self.placements(len(far)))
                    for near, far in self.splits
                    if self.usable(near, sequences)
                )
                > MANY
            )
        return self._counts[sequences]

    @cached_property
    def _counts(self) -> dict[int, bool]:
        return {}

    def _near(self, near: Site, sequences: int) -> Near:
        """The options of an attention side."""
        key = (near, sequences)
        if key not in self._nears:
            table = self.near[near]
            pairs = self._useful(near, sequences)
            split = self.grids(near)[0][pairs[0]]
            self._nears[key] = near_options(self.env, table, self.sequences.index(sequences), pairs, split)
        return self._nears[key]

    @cached_property
    def _nears(self) -> dict[tuple[Site, int], Near]:
        return {}

    def _far(self, numbers: Sequence[int], sequences: int) -> dict[int, Far]:
        """The expert sides of some splits; those of one micro-batch size are kept."""
        if self._fars[0] != sequences:
            self._fars = (sequences, {})
        kept = self._fars[1]
        lacking = sorted((n for n in numbers if n not in kept), key=self._kinds)
        for _, group in groupby(lacking, key=self._kinds):
            some = list(group)
            jobs = []
            for near, far in (self.splits[n] for n in some):
                splits = self.near[near].block.splits
                laid = tuple(split.laid(near) for split in splits)
                jobs.append(Job(laid, tuple(split.shards for split in splits), far, self.placements(len(far))))
            kept.update(zip(some, far_options(self.env, sequences, jobs), strict=True))
        return {n: kept[n] for n in numbers}

    def _kinds(self, number: int) -> tuple[str, str]:
        """GPU kinds of both sides of a split."""
        near, far = self.splits[number]
        return self.env.cluster.device_kinds[near[0]], self.env.cluster.device_kinds[far[0]]

    def _capacity(self, number: int) -> tuple[float, float]:
        """Bytes of a GPU on either side of a split."""
        near, far = (min(self.env.cluster.kinds[kind].memory_bytes, self._most) + self._extra for kind in self._kinds(number))
        return near, far

    def _promising(self, asked: ApartAsked, key: tuple[int, int]) -> Iterator[Candidates]:
        """Candidates below the cutoff, that of the moment, the splits with the lowest bounds first."""
        order, at, step = np.argsort(asked.floors, kind="stable"), 0, FIRST_SPLITS
        while at < order.size:
            some = [int(n) for n in order[at : at + step] if asked.floors[n] < asked.cutoff]
            if not some:
                return
            yield from self._of_splits(some, asked, key)
            at, step = at + step, min(2 * step, MOST_SPLITS)

    def _of_splits(self, numbers: list[int], asked: ApartAsked, key: tuple[int, int]) -> Iterator[Candidates]:
        """Candidates of some splits below the cutoff, the lowest bounds first."""
        fars = self._far(numbers, key[0])
        for _, group in groupby(sorted(numbers, key=self._kinds), key=self._kinds):
            found = [self._below(n, fars[n], asked, key) for n in group]
            rows = np.concatenate([ints for ints, _ in found], axis=1)
            bound = np.concatenate([values for _, values in found])
            order, at, step = np.argsort(bound, kind="stable"), 0, FIRST_ROWS
            while at < order.size and bound[order[at]] < asked.cutoff:
                chosen = order[at : at + step]
                yield self._exactly(rows[:, chosen[bound[chosen] < asked.cutoff]], fars, key)
                at, step = at + step, min(2 * step, MOST_ROWS)

    def _below(self, number: int, far: Far, asked: ApartAsked, key: tuple[int, int]) -> tuple[Ints, Array]:
        """Split, pair and placement [3, N] of what may be below the cutoff, with its bound [N]."""
        near = self._near(self.splits[number][0], key[0])
        chain, load = pair_bounds(near, far)
        waves = self.space.waves(asked.micro_batches)
        seconds = np.maximum(chain * (asked.micro_batches // max(waves)), asked.micro_batches * load) * (1 - ROUNDING)
        few = pair_excess(self.env, near, far, key[1], min(waves), self._capacity(number))
        bound = seconds * asked.weights[number]
        open_ = (bound < asked.cutoff) & (seconds <= asked.limits[number]) & (few <= 1.0)
        if asked.pin:
            block, placements = near.table.block, self.placements(len(self.splits[number][1]))
            own = pinned(block.partitions, asked.pin)[near.partition] & pinned(block.ffns, asked.pin)[near.ffn]
            open_ &= own[:, None] & pinned(placements, asked.pin)[None, :]
        pair, placement = np.nonzero(open_)
        return np.stack([np.full(pair.size, number), pair, placement]), bound[pair, placement]

    def _exactly(self, rows: Ints, fars: dict[int, Far], key: tuple[int, int]) -> Candidates:
        """Price split, pair and placement [3, N] of one pair of GPU kinds exactly."""
        rows = rows[:, np.argsort(rows[0], kind="stable")]
        numbers, first = np.unique(rows[0], return_index=True)
        parts: list[tuple[AttentionSide, dict[int, ExpertSide], Ints]] = []
        for number, some in zip(numbers.tolist(), np.split(rows[1:], first[1:], axis=1), strict=True):
            near, far, (pair, placement) = self._near(self.splits[number][0], key[0]), fars[number], some
            at = near.partition[pair], near.ffn[pair], near.split[pair]
            bills = attention_bills(self.env, near.table, near.batch, *at)
            own = {kind: side.take(at[2] * far.placements + placement) for kind, side in far.sides.items()}
            shards = np.array(near.table.block.shards, dtype=np.int64)[at[2]]
            parts.append((bills, own, np.stack([at[0], at[1], shards, near.parts[pair]])))
        near_side, far_side = joined_near([p[0] for p in parts]), joined_far([p[1] for p in parts])
        partition, ffn, shards, batch_parts = np.concatenate([p[2] for p in parts], axis=1)
        kinds, capacity = self._kinds(int(numbers[0])), self._capacity(int(numbers[0]))
        none = np.zeros_like(shards)
        cases = Cases(np.full(shards.shape, key[0]), shards, none, none, none, (), (), (), *kinds)
        price = separate_price(self.env, near_side, far_side, cases, np.ceil(key[1] / batch_parts))
        spare = capacity[0] - price.attention_bytes, capacity[1] - price.expert_bytes
        option = np.zeros((3, shards.size), dtype=np.int64)
        return Candidates(rows[0], partition, ffn, rows[2], option, price, *price.times.bound, *spare)

    def least(self, replicas: int, micro_batches: int) -> tuple[float, float]:
        """(chain of one micro-batch, lower bound of the makespan) of a branch; of many only of the attention side."""
        key = self._key(replicas, micro_batches)
        if not self._many(key[0]):
            return super().least(replicas, micro_batches)
        room = zip(self.splits, self._reachable(replicas).tolist(), strict=True)
        sides = dict.fromkeys(near for (near, _), fits in room if fits and self.usable(near, key[0]))
        least = min((float(self._near(near, key[0]).seconds.min(initial=np.inf)) for near in sides), default=np.inf)
        return least, micro_batches * least

    def least_excess(self, replicas: int, micro_batches: int, most_ranks: float = np.inf) -> float:
        """Fewest bytes by which a candidate on at most `most_ranks` GPUs exceeds the memory (inf without candidates)."""
        key = self._key(replicas, micro_batches)
        if not self._many(key[0]):
            return super().least_excess(replicas, micro_batches, most_ranks)
        wave, least, room = min(self.space.waves(micro_batches), default=1), np.inf, self._reachable(replicas)
        numbers = [
            n for n, (near, far) in enumerate(self.splits)
            if room[n] and self.usable(near, key[0]) and len(near) + len(far) <= most_ranks
        ]  # fmt: skip
        for at in range(0, len(numbers), MOST_SPLITS):
            for number, far in self._far(numbers[at : at + MOST_SPLITS], key[0]).items():
                near = self._near(self.splits[number][0], key[0])
                excess = pair_excess(self.env, near, far, key[1], wave, self._capacity(number))
                least = min(least, float(excess.min(initial=np.inf)))
        return least


def attention_table(table: StageTable, site: int, near: Site, mlp_ways: tuple[int, ...]) -> StageTable:
    """The table of an attention side, from that of whole stages on the same ranks; a mixture's FFN bills mean nothing in it."""
    block = table.block
    first = {f.mlp_ways: i for i, f in reversed(list(enumerate(block.ffns)))}
    chosen = np.array([first[ways] for ways in mlp_ways], dtype=np.int64)

    def here(bill: Bill | None) -> Bill | None:
        return None if bill is None else Bill(*(getattr(bill, f.name)[site : site + 1] for f in fields(Bill)))

    def there(bill: Bill) -> Bill:
        return Bill(*(getattr(bill, f.name)[site : site + 1] for f in fields(Bill)))

    ffns = tuple(FfnOption(ways) for ways in mlp_ways)
    own = Block(block.kind, (near,), block.sequences, block.partitions, ffns, block.splits)
    return StageTable(
        own, tuple(map(there, table.attention)), tuple(map(there, table.ffn)), tuple(index[chosen] for index in table.own),
        here(table.embedding), there(table.receive), here(table.head),
    )  # fmt: skip


def joined_bill(bills: Sequence[Bill]) -> Bill:
    """Bills one after another."""
    return Bill(*(np.concatenate([getattr(bill, f.name) for bill in bills]) for f in fields(Bill)))


def joined_near(sides: Sequence[AttentionSide]) -> AttentionSide:
    """Attention sides one after another."""
    dense = [[bill for bill in column if bill is not None] for column in zip(*(s.dense for s in sides), strict=True)]
    return AttentionSide(
        tuple(joined_bill(column) for column in zip(*(s.attention for s in sides), strict=True)),
        tuple(joined_bill(column) if column else None for column in dense),
        joined_bill([s.embedding for s in sides]),
        joined_bill([s.head for s in sides]),
    )


def joined_far(sides: Sequence[dict[int, ExpertSide]]) -> dict[int, ExpertSide]:
    """Expert sides one after another, for each kind of mixture layer."""
    found = {}
    for kind in sides[0]:
        own = [side[kind] for side in sides]
        bills = [joined_bill([getattr(side, name) for side in own]) for name in ("route", "finish", "experts")]
        times = [np.concatenate([getattr(side, name) for side in own]) for name in ("dispatch", "combine", "arrived")]
        found[kind] = ExpertSide(bills[0], bills[1], bills[2], *times)
    return found
