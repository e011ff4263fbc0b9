"""Pipelines of large clusters: one run of equal stages, or two, each gone through by its place and its layers."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from planner.certify.branch import Branch, TooLargeError
from planner.certify.question import INF, Question
from planner.certify.stages import StageTimes
from search_spaces.sizes import divisors

MOST_RUNS = 300_000
"""Runs of a branch that are gone through before it is given up as too large."""


@dataclass(frozen=True, slots=True)
class Run:
    """Equal stages side by side: `count` of them with `layers` and `width` ranks each; their chain and slowest time."""

    count: int
    layers: int
    width: int
    chain: float
    slowest: float


NO_RUN = Run(0, 0, 0, 0.0, 0.0)


class Runs:
    """The pipelines of a branch as runs of equal stages."""

    def __init__(self, times: StageTimes, question: Question, branch: Branch, below: float) -> None:
        self.times, self.question, self.branch, self.below = times, question, branch, below
        self.ranks, self.layers = branch.most_ranks(question), times.sizes.layers
        self.stride = branch.space.stride(branch.replicas)
        self.counts = frozenset(branch.space.stage_counts(self.stride))
        self.widths = tuple(w for w in branch.space.widths(self.stride) if w <= self.ranks)
        self.left, self.work = times.suffixes(branch.sequences)
        self.seen = 0

    def below_value(self) -> float | None:
        """The value of a pipeline below the value asked about, None where there is none."""
        found = [value for value in self._values() if value < self.below]
        return min(found, default=None)

    def _values(self) -> Iterator[float]:
        most = max(self.counts, default=0)
        for first in self._runs(0, 0, most):
            done, used = first.count * first.layers, first.count * first.width
            if done == self.layers:
                yield self._whole((first,), used)
                continue
            if used == self.ranks or not self._open(first.chain, first.slowest, used, done):
                continue
            for second in self._runs(done, used, most - first.count, first):
                other = (second.layers, second.width) != (first.layers, first.width)
                if other and done + second.count * second.layers == self.layers:
                    yield self._whole((first, second), used + second.count * second.width)

    def _runs(self, start: int, at: int, most: int, before: Run = NO_RUN) -> Iterator[Run]:
        """Runs from a layer and a rank on (after another run only those whose layers can be the rest)."""
        left = self.layers - start
        sizes = [left // n for n in divisors(left)] if before.count else range(1, left + 1)
        for layers in sizes:
            for width in self.widths:
                yield from self._grow(start, at, layers, width, before, min(most, left // layers))

    def _grow(self, start: int, at: int, layers: int, width: int, before: Run, most: int) -> Iterator[Run]:
        """A run of 1, 2, ... stages while the least conceivable end is below: more stages never make it less."""
        chain = slowest = 0.0
        for count in range(1, most + 1):
            first, end = at + (count - 1) * width, at + count * width
            if end > self.ranks:
                return
            self.seen += 1
            if self.seen > MOST_RUNS:
                raise TooLargeError(f"more than {MOST_RUNS} runs of stages of one branch")
            seconds = self._stage(start + (count - 1) * layers, layers, first, width)
            sent = self.times.send(first, width, width, self.branch.sequences) if count > 1 else 0.0
            chain, slowest = chain + seconds + sent, max(slowest, seconds, sent)
            if not self._open(before.chain + chain, max(slowest, before.slowest), end, start + count * layers):
                return
            yield Run(count, layers, width, chain, slowest)

    def _stage(self, start: int, layers: int, first: int, width: int) -> float:
        site = self.times.site(first, width)
        if site is None:
            return INF
        row = self.times.rows[1][start, start + layers]
        return float(self.times.least(site, self.branch.sequences, self.branch.micro_batches)[row])

    def _open(self, chain: float, slowest: float, used: int, done: int) -> bool:
        """Whether stages of these times on the first `used` ranks may be the start of a pipeline below the value.

        The layers left take at least their least seconds, and share their work over the ranks left.
        """
        if done < self.layers:
            free = self.ranks - used
            slowest = max(slowest, self.work[done] / free) if free else INF
        branch = self.branch
        return self.question.of_one(branch.replicas, branch.micro_batches, used, chain + self.left[done], slowest) < self.below

    def _whole(self, runs: tuple[Run, ...], used: int) -> float:
        """The value of a pipeline of one run or two."""
        count, branch = sum(run.count for run in runs), self.branch
        if count not in self.counts or (branch.space.use_all and used != self.stride):
            return INF
        chain, slowest = sum(run.chain for run in runs), max(run.slowest for run in runs)
        sequences, extra = branch.sequences, 0.0
        if len(runs) == 2:
            sent = self.times.send(runs[0].count * runs[0].width, runs[0].width, runs[1].width, sequences)
            chain, slowest = chain + sent, max(slowest, sent)
        if count > 1:
            extra = self.times.feedback(used, sequences)
        return float(self.question.of_pipeline(branch.replicas, branch.micro_batches, used, chain + extra, max(slowest, extra)))


def two_runs_below(times: StageTimes, question: Question, branch: Branch, below: float) -> float | None:
    """The value of a pipeline of at most two kinds of stages that is below `below`, None where there is none."""
    return Runs(times, question, branch, below).below_value()
