"""Whether a linear pipeline of a branch is below a value: all of them in order of layers, those left out that no end can save.

The search closes a branch by sweeps under limits on the slowest time. Here partial pipelines are grown stage by stage; each is
kept as (chain, slowest time) unless another that ends at the same place is no worse in both, or unless the best conceivable
end of it, the least chain and the least slowest time from there on, is not below the value.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from planner.certify.branch import Branch, TooLargeError
from planner.certify.question import Question
from planner.certify.runs import two_runs_below
from planner.certify.stages import StageTimes

Array = NDArray[np.float64]
MOST_PARTIAL = 400_000
"""Partial pipelines that are grown before a branch is given up as too large."""
State = tuple[int, int, int]
"""Ranks used, index of the last stage's width, number of stages (0 where it does not matter)."""


class PipelineTimes:
    """Times of a branch as arrays: `stage[start, stop, first, w]`, `send[at, before, after]`, `back[end, w]`."""

    def __init__(self, times: StageTimes, branch: Branch, ranks: int) -> None:
        self.branch, self.ranks, self.layers = branch, ranks, times.sizes.layers
        stride = branch.space.stride(branch.replicas)
        self.widths = tuple(w for w in branch.space.widths(stride) if w <= ranks)
        shape = (self.layers + 1, self.layers + 1, ranks + 1, len(self.widths))
        if np.prod(shape) > 50_000_000:
            raise TooLargeError(f"{np.prod(shape):.3g} stages of one branch")
        self.stage = np.full(shape, np.inf)
        spans = list(times.rows[1])
        start, stop = np.array(spans).T
        row = np.array([times.rows[1][span] for span in spans])
        for w, width in enumerate(self.widths):
            for first in range(ranks - width + 1):
                site = times.site(first, width)
                if site is not None:
                    self.stage[start, stop, first, w] = times.least(site, branch.sequences, branch.micro_batches)[row]
        if branch.space.use_all:
            for w, width in enumerate(self.widths):
                self.stage[:, self.layers, np.arange(ranks + 1) + width != stride, w] = np.inf
        self.send = np.full((ranks + 1, len(self.widths), len(self.widths)), np.inf)
        self.back = np.zeros((ranks + 1, len(self.widths)))
        self._hand_over(times)

    def _hand_over(self, times: StageTimes) -> None:
        sequences = self.branch.sequences
        for at in range(1, self.ranks + 1):
            for i, before in enumerate(self.widths):
                self.back[at, i] = times.feedback(at, sequences) if before < at else 0.0
                for j, after in enumerate(self.widths):
                    if before <= at and at + after <= self.ranks:
                        self.send[at, i, j] = times.send(at, before, after, sequences)

    def to_come(self, *, slowest: bool) -> Array:
        """Least sum (or least maximum) of what follows a stage that ends at [layers + 1, ranks + 1, widths]."""
        join = np.maximum if slowest else np.add
        found = np.full((self.layers + 1, self.ranks + 1, len(self.widths)), np.inf)
        found[self.layers] = self.back
        for layer in range(self.layers - 1, 0, -1):
            best = np.full((self.ranks + 1, len(self.widths)), np.inf)
            for w, width in enumerate(self.widths):
                room = self.ranks + 1 - width
                tails = join(self.stage[layer, layer + 1 :, :room, w], found[layer + 1 :, width:, w])
                best[:room, w] = tails.min(axis=0)
            found[layer] = join(self.send, best[:, None, :]).min(axis=2)
        return found


class Growth:
    """Partial pipelines of a branch grown until one is below a value, or none can be."""

    def __init__(self, times: PipelineTimes, question: Question, below: float) -> None:
        self.times, self.question, self.below = times, question, below
        self.chain_left, self.slowest_left = times.to_come(slowest=False), times.to_come(slowest=True)
        branch = times.branch
        counts = branch.space.stage_counts(branch.space.stride(branch.replicas))
        self.counts = None if branch.space.stages is None else frozenset(counts)
        self.partial: list[dict[State, list[tuple[float, float]]]] = [{} for _ in range(times.layers + 1)]
        self.grown = 0
        self.found: float | None = None

    def run(self) -> float | None:
        """The value of a pipeline below `below`; None where there is none. Raises `TooLargeError`."""
        if self.counts == frozenset():
            return None
        self._grow(0, (0, -1, 0), (0.0, 0.0))
        for layer in range(1, self.times.layers):
            for state, labels in self.partial[layer].items():
                for label in labels:
                    if self.found is not None:
                        return self.found
                    self._grow(layer, state, label)
            self.partial[layer] = {}
        return self.found

    def _grow(self, layer: int, state: State, label: tuple[float, float]) -> None:
        """Add every next stage that may still end below the value."""
        self.grown += 1
        if self.grown > MOST_PARTIAL:
            raise TooLargeError(f"more than {MOST_PARTIAL} partial pipelines of one branch")
        times, (at, before, count) = self.times, state
        sent = times.send[at, before] if layer else np.zeros(len(times.widths))
        stage = times.stage[layer, layer + 1 :, at]  # [stops, widths]
        chain = label[0] + sent + stage
        slowest = np.maximum(np.maximum(label[1], sent), stage)
        ends = np.minimum(at + np.array(times.widths), times.ranks)
        stops = np.arange(layer + 1, times.layers + 1)
        left = (stops[:, None], ends[None, :], np.arange(len(times.widths))[None, :])
        branch = times.branch
        bound = self.question.of_pipeline(
            branch.replicas, branch.micro_batches, ends[None, :],
            chain + self.chain_left[left], np.maximum(slowest, self.slowest_left[left]),
        )  # fmt: skip
        for i, w in zip(*np.nonzero(bound < self.below), strict=True):
            stop, stages = int(stops[i]), count + 1 if self.counts is not None else 0
            if self.counts is not None and stages > max(self.counts):
                continue
            if stop < times.layers:
                self._keep(stop, (int(ends[w]), int(w), stages), (float(chain[i, w]), float(slowest[i, w])))
            elif self.counts is None or stages in self.counts:  # the bound of a whole pipeline is its value
                self.found = min(float(bound[i, w]), self.found or np.inf)

    def _keep(self, stop: int, state: State, label: tuple[float, float]) -> None:
        """Keep a partial pipeline unless another is no worse in both times, and drop those that it makes needless."""
        labels = self.partial[stop].setdefault(state, [])
        if any(other[0] <= label[0] and other[1] <= label[1] for other in labels):
            return
        labels[:] = [other for other in labels if not (label[0] <= other[0] and label[1] <= other[1])]
        labels.append(label)


def pipeline_below(times: StageTimes, question: Question, branch: Branch, below: float) -> float | None:
    """The value of a linear pipeline of a branch that is below `below`, None where there is none.

    Raises `TooLargeError` where there is too much to go through.
    """
    ranks = branch.most_ranks(question)
    if ranks < 1 or not times.rows[1]:
        return None
    if branch.space.layout:
        return _fixed(times, question, branch, below)
    if branch.space.regular:
        return two_runs_below(times, question, branch, below)
    return Growth(PipelineTimes(times, branch, ranks), question, below).run()


def _fixed(times: StageTimes, question: Question, branch: Branch, below: float) -> float | None:
    """The same where the space fixes the stages: each takes its fastest option."""
    layout, seconds, start = branch.space.layout, [], 0
    places = [pin.devices for pin in layout]
    if max(max(place) for place in places) >= branch.space.stride(branch.replicas):
        return None
    for index, pin in enumerate(layout):
        row = times.rows[1][start, start + pin.layers]
        seconds.append(float(times.least(index, branch.sequences, branch.micro_batches)[row]))
        start += pin.layers
    sends = times.sends_of(places, branch.sequences)
    used = sorted(rank for place in places for rank in place)
    chain, slowest = sum(seconds) + sum(sends), max(*seconds, *sends, 0.0)
    value = question.of_places(branch.replicas, branch.micro_batches, used, chain, slowest)
    return value if value < below else None
