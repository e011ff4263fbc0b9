"""Whether a plan with experts on GPUs of their own is below a value: side by side at first, then pair by pair what is left.

Attention GPUs, dispatch, expert GPUs and combine are four machines that every micro-batch passes for each mixture layer, and a
wave of micro-batches begins after the last one's first chain. So no pass is shorter than all micro-batches on one machine, nor
than one chain for every wave. What the two sides need at the least, each by itself, leaves out most splits of the GPUs; of the
others every pair of options that may be below the value is bounded with its transfers, and what is left is stepped through.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from planner.certify.apart_sides import (
    Far,
    FarSides,
    Near,
    NearRows,
    Ranks,
    joined,
    near_rows,
    near_sides,
    summed,
    taken,
)
from planner.certify.branch import Branch, TooLargeError
from planner.certify.question import INF, TOLERANCE, Question
from planner.evaluate.separate import Cases, ExpertSide, expert_sides, separate_makespan, separate_price
from planner.evaluate.setting import Setting
from search_spaces.experts import ExpertPlacement
from search_spaces.space import SearchSpace

Array = NDArray[np.float64]
Ints = NDArray[np.int64]
Thing = TypeVar("Thing")
MOST_PAIRS = 20_000_000
"""Pairs of an attention side and an expert side of one branch that are looked at before it is given up as too large."""
AT_ONCE = 200_000
"""Pairs that are bounded together, about."""
EXACTLY = 4096
"""Pairs that are stepped through together."""
LOWER = 1.0 - TOLERANCE
"""Floors are sums in another order than the price's: they are taken this much lower."""


@dataclass(frozen=True)
class Split:
    """A split of a replica's GPUs, and how many there are on both sides with their dollars per second."""

    near: Ranks
    far: Ranks
    placements: tuple[ExpertPlacement, ...]
    used: int
    rate: float


@dataclass(frozen=True)
class Pairs:
    """Pairs [N] to be looked at together: split, row of the attention side, placement."""

    split: Ints
    row: Ints
    placement: Ints


class ApartPlans:
    """Plans of a space whose experts have GPUs of their own."""

    def __init__(self, env: Setting, space: SearchSpace, most_memory: float) -> None:
        self.env, self.space, self.sizes, self.most_memory = env, space, space.sizes, most_memory
        self.sequences = tuple(sorted({space.sequences(r, m) for r, m in space.branches}))
        self.fars = FarSides(env)

    def splits(self, stride: int) -> Iterator[tuple[Ranks, Ranks, tuple[ExpertPlacement, ...]]]:
        """(attention ranks, expert ranks, placements) that may be on `stride` ranks."""
        for attention, experts in self.space.separate_splits(stride):
            placements = self._placements(experts)
            for near, far in self._sides(attention, experts) if placements else ():
                yield near, far, placements

    def _sides(self, attention: int, experts: int) -> tuple[tuple[Ranks, Ranks], ...]:
        """The ranks of both sides; of large clusters as ranges."""
        if not self.space.regular:
            return self.space.sides(attention, experts)
        there = self.space.placed(0, attention) and self.space.placed(attention, experts)
        return ((range(attention), range(attention, attention + experts)),) if there else ()

    def _placements(self, ways: int) -> tuple[ExpertPlacement, ...]:
        if ways not in self._placed:
            self._placed[ways] = tuple(self.space.pinned(0).experts.separate(self.sizes, ways))
        return self._placed[ways]

    @cached_property
    def _placed(self) -> dict[int, tuple[ExpertPlacement, ...]]:
        return {}

    @cached_property
    def near(self) -> dict[Ranks, Near]:
        """The attention sides of all splits."""
        strides = sorted({self.space.stride(r) for r, _ in self.space.branches})
        places = list(dict.fromkeys(near for stride in strides for near, _, _ in self.splits(stride)))
        return near_sides(self.env, self.space, self.sequences, places)

    def below(self, question: Question, branch: Branch, below: float) -> float | None:
        """The value of a plan of a branch that is below `below`, None where there is none. Raises `TooLargeError`."""
        if not self.space.waves(branch.micro_batches):
            return None
        return ApartBranch(self, question, branch, below).run()

    def capacity(self, kind: str) -> float:
        """Bytes of a GPU that a plan may use."""
        return min(float(self.env.cluster.kinds[kind].memory_bytes), self.most_memory)

    def kind(self, ranks: Ranks) -> str:
        """GPU kind of the ranks of a side."""
        return self.env.cluster.device_kinds[ranks[0]]


class ApartBranch:
    """The plans of one branch with experts apart, looked through for one below a value."""

    def __init__(self, plans: ApartPlans, question: Question, branch: Branch, below: float) -> None:
        self.plans, self.question, self.branch, self.limit = plans, question, branch, below
        self.env, self.sequences = plans.env, branch.sequences
        self.batch = plans.sequences.index(branch.sequences)
        self.waves = plans.space.waves(branch.micro_batches)
        self.seen = 0

    def run(self) -> float | None:
        """The least value below the limit that there is, None where there is none."""
        below, open_ = self.limit, self._open()
        for kinds in dict.fromkeys((self.plans.kind(s.near), self.plans.kind(s.far)) for s in open_):
            some = [s for s in open_ if (self.plans.kind(s.near), self.plans.kind(s.far)) == kinds]
            sides = dict.fromkeys(s.near for s in some)
            parts = [near_rows(self.env, self.plans.sizes, self.plans.near[ranks], self.batch, self.branch) for ranks in sides]
            ends = np.cumsum([0, *(part.split.size for part in parts)])
            first = {ranks: range(a, b) for ranks, a, b in zip(sides, ends[:-1].tolist(), ends[1:].tolist(), strict=True)}
            rows = joined(parts)
            for pairs in self._promising(some, rows, first):
                self._least(some, rows, pairs, kinds)
        return self.limit if self.limit < below else None

    def _open(self) -> list[Split]:
        """The splits whose sides, each with its fastest option, may be below the limit."""
        plans, branch = self.plans, self.branch
        splits = [
            Split(near, far, placements, len(near) + len(far), self._rate(near, far))
            for near, far, placements in plans.splits(branch.space.stride(branch.replicas))
            if near in plans.near and branch.replicas * (len(near) + len(far)) <= self.question.most.gpus
        ]
        least = {ranks: self._fastest(plans.near[ranks]) for ranks in dict.fromkeys(s.near for s in splits)}
        splits = self._below(splits, least, [0.0] * len(splits))
        plans.fars.price(self.sequences, {(plans.kind(s.far), len(s.far)): (s.far, s.placements) for s in splits})
        return self._below(splits, least, [float(self._far(s).seconds.min()) for s in splits])

    def _below(self, splits: list[Split], least: dict[Ranks, float], experts: list[float]) -> list[Split]:
        """The splits that may be below the limit, given the seconds that both sides need for a micro-batch at the least."""
        used, rate = np.array([s.used for s in splits], dtype=np.int64), np.array([s.rate for s in splits])
        near, far = np.array([least[s.near] for s in splits]), np.array(experts)
        value = self._floor(used, rate, near + far, np.maximum(near, far))
        return [split for split, lower in zip(splits, value.tolist(), strict=True) if lower < self.limit]

    def _rate(self, near: Ranks, far: Ranks) -> float:
        """Dollars per second of the GPUs of a split; those of both sides are the first ranks, unless the space fixes them."""
        if self.branch.space.layout:
            return self.question.rate([*near, *far])
        return float(self.question.rate_of_first[len(near) + len(far)])

    def _far(self, split: Split) -> Far:
        return self.plans.fars.of(self.sequences, self.plans.kind(split.far), len(split.far))

    def _fastest(self, near: Near) -> float:
        """Least seconds of a micro-batch on an attention side, inf where it can be split by no option."""
        usable = near.options.usable(self.plans.sizes, self.sequences)
        return float(np.where(usable, near.seconds(self.env, self.batch), np.inf).min(initial=INF))

    def _floor(self, used: Ints, rate: Array, chain: Array, load: Array) -> Array:
        """Lower bound of the value of plans with a chain of one micro-batch and a load of the busiest machine."""
        count = self.branch.micro_batches
        seconds = np.maximum(count // max(self.waves) * chain, count * load) * LOWER
        return self.question.of_pass(self.branch.replicas, used, rate, seconds)

    def _promising(self, splits: list[Split], rows: NearRows, first: dict[Ranks, range]) -> Iterator[Pairs]:
        """Pairs of sides that may be below the limit and fit, each side by itself, chunk by chunk."""
        kept, size = list[Ints](), 0
        for number, split in enumerate(splits):
            own, far = np.array(first[split.near], dtype=np.int64), self._far(split)
            room = self.plans.capacity(self.plans.kind(split.near)), self.plans.capacity(self.plans.kind(split.far))
            own, other = own[rows.bytes[own] * LOWER <= room[0]], np.nonzero(far.bytes * LOWER <= room[1])[0]
            near, experts = rows.seconds[own][:, None], far.seconds[other]
            value = self._floor(np.array(split.used), np.array(split.rate), near + experts, np.maximum(near, experts))
            row, placement = np.nonzero(value < self.limit)
            kept.append(np.stack([np.full(row.size, number), own[row], other[placement]]))
            size += row.size
            self.seen += row.size
            if self.seen > MOST_PAIRS:
                raise TooLargeError(f"more than {MOST_PAIRS:,} plans with experts apart in one branch")
            if size > AT_ONCE:
                yield Pairs(*np.concatenate(kept, axis=1))
                kept, size = [], 0
        if size:
            yield Pairs(*np.concatenate(kept, axis=1))

    def _least(self, splits: list[Split], rows: NearRows, pairs: Pairs, kinds: tuple[str, str]) -> None:
        """Lower the limit to the least value of the plans of some pairs, the lowest bounds first."""
        case, sides = self._experts(splits, rows, pairs, kinds)
        sums = summed(self.env, sides)
        loads = [rows.seconds[pairs.row] + sums.near[case], *(s[case] for s in (sums.dispatch, sums.experts, sums.combine))]
        used, rate = (np.array(column)[pairs.split] for column in ([s.used for s in splits], [s.rate for s in splits]))
        bound = self._floor(used, rate, np.sum(loads, axis=0), np.max(loads, axis=0))
        order, room = np.argsort(bound, kind="stable"), [self.plans.capacity(kind) for kind in kinds]
        for at in (order[first : first + EXACTLY] for first in range(0, order.size, EXACTLY)):
            at = at[bound[at] < self.limit]
            if not at.size:
                return
            far = {kind: side.take(case[at]) for kind, side in sides.items()}
            batch, none = np.full(at.shape, self.sequences, dtype=np.int64), np.zeros_like(at)
            row = pairs.row[at]
            cases = Cases(batch, rows.shards[row], none, none, none, (), (), (), *kinds)
            price = separate_price(self.env, taken(rows.bills, row), far, cases, rows.resident[row])
            for wave in self.waves:
                fits = (price.attention_bytes + wave * price.held_bytes <= room[0]) & (price.expert_bytes <= room[1])
                seconds = separate_makespan(price.times.take(np.nonzero(fits)[0]), self.branch.micro_batches, wave)
                value = self.question.of_pass(self.branch.replicas, used[at][fits], rate[at][fits], seconds)
                self.limit = min(self.limit, float(value.min(initial=INF)))

    def _experts(
        self, splits: list[Split], rows: NearRows, pairs: Pairs, kinds: tuple[str, str]
    ) -> tuple[Ints, dict[int, ExpertSide]]:
        """The different expert sides of some pairs, priced where they stand [C], and which of them each pair has [N]: they
        depend on the split of the GPUs, on that of the tokens, and on the placement.
        """
        token = rows.split[pairs.row]
        few = int(token.max(initial=0)) + 1, int(pairs.placement.max(initial=0)) + 1
        key = (pairs.split * few[0] + token) * few[1] + pairs.placement
        first, case = np.unique(key, return_index=True, return_inverse=True)[1:]
        own = [splits[number] for number in pairs.split[first].tolist()]
        chosen = [split.placements[q] for split, q in zip(own, pairs.placement[first].tolist(), strict=True)]
        sides = self.plans.near
        laid = [sides[s.near].options.splits[t].laid(s.near) for s, t in zip(own, token[first].tolist(), strict=True)]
        (placements, placement), (nears, near), (fars, far) = (
            _numbered(chosen),
            _numbered(laid),
            _numbered([s.far for s in own]),
        )
        batch, shards = np.full(first.shape, self.sequences, dtype=np.int64), rows.shards[pairs.row[first]]
        cases = Cases(batch, shards, placement, near, far, placements, nears, fars, *kinds)
        mixtures = self.plans.fars.mixtures
        found = expert_sides(self.env, [self.env.kinds[number] for number in mixtures], cases)
        return case.ravel(), dict(zip(mixtures, found, strict=True))


def _numbered(values: list[Thing]) -> tuple[tuple[Thing, ...], Ints]:
    """The different ones of some values, and the number of each."""
    number = {value: i for i, value in enumerate(dict.fromkeys(values))}
    return tuple(number), np.array([number[value] for value in values], dtype=np.int64)
