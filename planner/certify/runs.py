"""Pipelines of large clusters: one run of equal stages, or two, all of them by a bound, and stage by stage what it leaves.

A run that begins the pipeline stands on the first ranks, and is priced there. One that ends it is priced on the best places of
its width; every pair of the two that may be below the value is then walked through, stage by stage, where it stands.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from planner.certify.branch import Branch, TooLargeError
from planner.certify.places import Places
from planner.certify.question import INF, Question
from planner.certify.stages import StageTimes

Array = NDArray[np.float64]
Ints = NDArray[np.int64]
MOST_WALKED = 2_000_000
"""Pipelines of a branch that are walked through before it is given up as too large."""
AT_ONCE = 1_000_000
"""Pairs of runs that are looked at together, about."""


@dataclass(frozen=True)
class Side:
    """Runs [N]: stages, layers and width index of each, and their chain, slowest time and ranks in all."""

    count: Ints
    layers: Ints
    width: Ints
    chain: Array
    slowest: Array
    used: Ints

    def take(self, index: Ints | NDArray[np.bool_] | slice) -> Side:
        """Some of them."""
        return Side(*(getattr(self, name)[index] for name in self.__dataclass_fields__))


class Runs:
    """The pipelines of a branch as runs of equal stages."""

    def __init__(self, times: StageTimes, question: Question, branch: Branch, below: float) -> None:
        self.question, self.branch, self.below = question, branch, below
        self.ranks, self.layers = branch.most_ranks(question), times.sizes.layers
        self.stride = branch.space.stride(branch.replicas)
        self.counts = np.zeros(2 * self.layers + 1, dtype=bool)
        self.counts[list(branch.space.stage_counts(self.stride))] = True
        self.places = Places(times, branch, self.ranks)
        self.walked = 0

    def below_value(self) -> float | None:
        """The value of a pipeline below the value asked about, None where there is none."""
        if not self.counts.any() or not self.places.widths.size:
            return None
        heads, tails = self._sides(last=False), self._sides(last=True)
        found = self._least(_alone(heads[self.layers]))
        for cut in range(1, self.layers):
            head, tail = self._promising(heads[cut], tails[cut]), self._promising(tails[cut], heads[cut])
            step = max(1, AT_ONCE // max(1, tail.count.size))
            for at in range(0, head.count.size, step):
                found = min(found, self._least(self._pairs(head.take(slice(at, at + step)), tail)))
            if found < self.below:
                break
        return found if found < self.below else None

    def _sides(self, *, last: bool) -> dict[int, Side]:
        """The runs that begin the pipeline by the layer that they end at, or those that end it by that which they begin at."""
        every: dict[int, list[Side]] = {cut: [] for cut in range(self.layers + 1)}
        width = np.arange(self.places.widths.size)[:, None]
        for layers in range(1, self.layers + 1):
            number = np.arange(self.layers // layers)
            seconds, sent = self._times(width, number, layers, last=last)
            chain, slowest = (seconds + sent).cumsum(axis=1), np.maximum.accumulate(np.maximum(seconds, sent), axis=1)
            for k in number.tolist():
                some = np.nonzero(np.isfinite(chain[:, k]))[0]
                same = np.full(some.size, k + 1), np.full(some.size, layers)
                own = Side(*same, some, chain[some, k], slowest[some, k], (k + 1) * self.places.widths[some])
                every[self.layers - (k + 1) * layers if last else (k + 1) * layers].append(own)
        return {cut: _joined(sides) for cut, sides in every.items()}

    def _times(self, width: Ints, number: Ints, layers: int, *, last: bool) -> tuple[Array, Array]:
        """Seconds of the stages of a run, and of the hand-overs to them [widths, numbers]; those of the last run from its end,
        on the best places.
        """
        places, at = self.places, number * self.places.widths[width]
        if last:
            row = places.row[self.layers - (number + 1) * layers, self.layers - number * layers]
            room = at + places.widths[width] <= self.ranks
            return np.where(room, places.least[width, row], np.inf), np.where(number > 0, places.least_send[width, width], 0.0)
        seconds = places.stage(width, at, places.row[number * layers, (number + 1) * layers])
        every = np.broadcast_to(width, at.shape)
        sent = np.zeros(at.shape)
        later = np.isfinite(seconds) & (number > 0)
        sent[later] = places.send(at[later], every[later], every[later])
        return seconds, sent

    def _promising(self, side: Side, other: Side) -> Side:
        """Those of one side that may be below the value beside the least chain and the least slowest time of the other side, of
        the runs that find room beside them.
        """
        order = np.argsort(other.used, kind="stable")
        at = np.searchsorted(other.used[order], self.ranks - side.used, side="right") - 1
        side, at = side.take(at >= 0), at[at >= 0]
        chain, slowest = np.minimum.accumulate(other.chain[order])[at], np.minimum.accumulate(other.slowest[order])[at]
        value = self._value(side.used, side.chain + chain, np.maximum(side.slowest, slowest))
        return side.take(value < self.below)

    def _pairs(self, head: Side, tail: Side) -> Ints:
        """Pairs of runs that may be below the value [6, N]: stages, layers and width index of the one and of the other."""
        places = self.places
        sent = places.least_send[head.width[:, None], tail.width]
        used, count = head.used[:, None] + tail.used, head.count[:, None] + tail.count
        chain = head.chain[:, None] + tail.chain + sent
        slowest = np.maximum(np.maximum(head.slowest[:, None], tail.slowest), sent)
        i, j = np.nonzero(self._whole(used, count, chain, slowest) < self.below)
        one, two = head.take(i), tail.take(j)
        return np.stack([one.count, one.layers, one.width, two.count, two.layers, two.width])

    def _least(self, columns: Ints) -> float:
        """The least value of pipelines of two runs (the second may have no stage), each walked through where it stands."""
        self.walked += columns.shape[1]
        if self.walked > MOST_WALKED:
            raise TooLargeError(f"more than {MOST_WALKED:,} pipelines of one branch")
        n, a, w, m, b, v = columns
        chain, slowest, rank, layer = np.zeros(n.size), np.zeros(n.size), np.zeros_like(n), np.zeros_like(n)
        for step in range(int((n + m).max(initial=0))):
            on = np.nonzero((step < n + m) & np.isfinite(chain))[0]
            first = step < n[on]
            width, layers = np.where(first, w[on], v[on]), np.where(first, a[on], b[on])
            times = self.places.stage(width, rank[on], self.places.row[layer[on], layer[on] + layers])
            stands = np.isfinite(times)
            chain[on[~stands]] = INF
            on, width, layers, times = on[stands], width[stands], layers[stands], times[stands]
            if step:
                sent = self.places.send(rank[on], np.where(step - 1 < n[on], w[on], v[on]), width)
                chain[on], slowest[on] = chain[on] + sent, np.maximum(slowest[on], sent)
            chain[on], slowest[on] = chain[on] + times, np.maximum(slowest[on], times)
            rank[on], layer[on] = rank[on] + self.places.widths[width], layer[on] + layers
        return float(self._whole(rank, n + m, chain, slowest).min(initial=INF))

    def _whole(self, used: Ints, count: Ints, chain: Array, slowest: Array) -> Array:
        """The value of whole pipelines, in decode with the sampled tokens' way back; inf where the space has none such."""
        there = (used <= self.ranks) & self.counts[np.minimum(count, self.counts.size - 1)]
        if self.branch.space.use_all:
            there &= used == self.stride
        back = np.where(count > 1, self.places.back[np.minimum(used, self.ranks)], 0.0)
        return np.where(there, self._value(used, chain + back, np.maximum(slowest, back)), INF)

    def _value(self, used: Ints, chain: Array, slowest: Array) -> Array:
        branch, used = self.branch, np.minimum(used, self.ranks)
        return self.question.of_pipeline(
            branch.replicas, branch.micro_batches, used, chain, np.where(chain < INF, slowest, 0.0)
        )


def _joined(sides: list[Side]) -> Side:
    """All of them as one."""
    none = np.zeros(0, dtype=np.int64)
    sides = [Side(none, none, none, none.astype(np.float64), none.astype(np.float64), none), *sides]
    return Side(*(np.concatenate([getattr(side, name) for side in sides]) for name in Side.__dataclass_fields__))


def _alone(side: Side) -> Ints:
    """Single runs as pairs with none."""
    none = np.zeros_like(side.count)
    return np.stack([side.count, side.layers, side.width, none, none, none])


def two_runs_below(times: StageTimes, question: Question, branch: Branch, below: float) -> float | None:
    """The value of a pipeline of at most two kinds of stages that is below `below`, None where there is none.

    Raises `TooLargeError` where there is too much to go through.
    """
    return Runs(times, question, branch, below).below_value()
