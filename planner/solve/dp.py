"""Exact dynamic program over (layers, ranks): the least chain of a pipeline whose slowest stage or send is limited."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from planner.evaluate.pipeline import feedback_seconds
from planner.solve.branch import Branch, StageArrays

Array = NDArray[np.float64]
Ints = NDArray[np.int64]
EVERY = slice(None)


@dataclass(frozen=True)
class Leg:
    """A stage of a found pipeline: layers [start, stop) on `width` ranks from `first`."""

    start: int
    stop: int
    first: int
    width: int


@dataclass(frozen=True)
class Path:
    """A found pipeline with its chain (all stages and sends) and slowest time."""

    legs: tuple[Leg, ...]
    chain: float
    slowest: float


class PipelineTable:
    """Stage and send times of a branch, laid out for the dynamic program."""

    def __init__(self, branch: Branch, arrays: StageArrays, counts: tuple[int, ...] | None = None) -> None:
        self.branch, self.arrays, self.counts = branch, arrays, counts
        self.layers, self.ranks = branch.priced.sizes.layers, branch.stride
        self.widths = arrays.widths

    @cached_property
    def rows(self) -> Ints:
        """`rows[start, stop]`: where the seconds of a stage on layers [start, stop) are; alike layers share a row."""
        return self.branch.priced.spans[1]

    @cached_property
    def seconds(self) -> Array:
        """Seconds [rows, first, w] of a stage on the layers of a row."""
        if not self.branch.priced.space.use_all:
            return self.arrays.seconds
        whole = np.arange(self.ranks)[:, None] + np.array(self.widths)[None, :] == self.ranks
        last = np.unique(self.rows[: self.layers, self.layers])
        found = self.arrays.seconds.copy()
        found[last] = np.where(whole[None], found[last], np.inf)
        return found

    def within(self, limit: float) -> tuple[Array, NDArray[np.bool_]]:
        """The seconds [rows, first, w] with inf above a limit, and the rows that have any within it."""
        found = np.where(self.seconds <= limit, self.seconds, np.inf)
        return found, np.asarray(np.isfinite(found).any(axis=(1, 2)))

    def column(self, stop: int, first: int, w: int) -> Array:
        """Seconds of the stages on layers [start, stop) for every start, on `first` and width index `w` [stop]."""
        return np.asarray(self.seconds[self.rows[:stop, stop], first, w])

    @cached_property
    def send(self) -> Array:
        """`send[at, w1, w2]`: seconds from a stage of width w1 that ends at rank `at` to one of width w2 that begins there."""
        every = self.branch.priced.sends(self.ranks, self.branch.widths, self.branch.sequences)
        if self.widths == self.branch.widths:
            return every
        some = np.array([self.branch.widths.index(width) for width in self.widths], dtype=np.int64)
        return every[:, some[:, None], some]

    @cached_property
    def feedback(self) -> Array:
        """`feedback[end, w]`: seconds of the sampled tokens' way back, 0 for a single stage or outside decode."""
        table = np.zeros((self.ranks + 1, len(self.widths)))
        if self.branch.priced.sizes.phase == "decode":
            for end in range(1, self.ranks + 1):
                back = feedback_seconds(self.branch.priced.env, (end - 1,), (0,), self.branch.sequences)
                table[end] = [0.0 if width == end else back for width in self.widths]
        return table

    @cached_property
    def times(self) -> Array:
        """Every different time that a stage, a send or the tokens' way back may take, ascending."""
        parts = [self.arrays.seconds.ravel(), self.send.ravel(), self.feedback.ravel()]
        found = np.unique(np.concatenate(parts))
        return found[np.isfinite(found)]

    def sweep(self, limit: float = np.inf, *, minimax: bool = False, ends: slice = EVERY) -> Sweep:
        """Run the program with every stage and send at most `limit`; of several stage counts the best on `ends`."""
        if self.counts is None:
            return Sweep(self, limit, minimax, None)
        sweeps = [Sweep(self, limit, minimax, count) for count in self.counts]
        return min(sweeps, key=lambda s: float(s.final[ends].min()))

    def sweep_open(self) -> Array:
        """Least chain before a stage that starts at a layer and rank with width index w [layers, ranks, D], any stage count."""
        return Sweep(self, np.inf, False, None).before


class MemoryTable(PipelineTable):
    """The missing bytes of stages in place of their seconds: a minimax sweep gives the least memory that must be added."""

    def __init__(self, branch: Branch, arrays: StageArrays, counts: tuple[int, ...] | None = None) -> None:
        super().__init__(branch, StageArrays(arrays.over, arrays.option, arrays.over, arrays.widths), counts)

    @cached_property
    def send(self) -> Array:
        """Hand-overs need no memory; those that do not fit the ranks stay impossible."""
        every = self.branch.priced.sends(self.ranks, self.widths, self.branch.sequences)
        return np.where(np.isfinite(every), 0.0, np.inf)

    @cached_property
    def feedback(self) -> Array:
        """The tokens' way back needs no memory."""
        return np.zeros((self.ranks + 1, len(self.widths)))


class Sweep:
    """One run: `final[end, w]` is the least chain (or slowest time) of all layers on ranks [0, end), last width w."""

    def __init__(self, table: PipelineTable, limit: float, minimax: bool, count: int | None) -> None:
        self.table, self.limit = table, limit
        self._join = np.maximum if minimax else np.add
        self._levels = 1 if count is None else count
        self._open = count is None
        shape = (self._levels, table.layers + 1, table.ranks + 1, len(table.widths))
        self._values = np.full(shape, np.inf)
        self._ready = np.full(shape, np.inf)
        self._send = np.where(table.send <= limit, table.send, np.inf)
        self._run()
        last = self._values[-1, table.layers]
        back = np.where(table.feedback <= limit, table.feedback, np.inf)
        self.final: Array = self._join(last, back)

    @property
    def before(self) -> Array:
        """Least chain before a stage [start, first, w] of an open sweep."""
        return self._ready[0, :-1, :-1]

    def _before(self, level: int, stop: int | None = None) -> Array:
        """Values that a stage of this level may follow [start, first, w]."""
        return self._ready[0 if self._open else level, :stop, :-1]

    def _run(self) -> None:
        table, ranks = self.table, self.table.ranks
        self._ready[0, 0, 0, :] = 0.0
        seconds, alive = table.within(self.limit)
        for stop in range(1, table.layers + 1):
            some = np.nonzero(alive[table.rows[:stop, stop]])[0]
            if not some.size:
                continue
            times = seconds[table.rows[some, stop]]
            for level in range(self._levels):
                best = self._join(self._before(level)[some], times).min(axis=0)
                for w, width in enumerate(table.widths):
                    self._values[level, stop, width:, w] = best[: ranks + 1 - width, w]
                following = 0 if self._open else level + 1
                if following < self._levels:
                    arrived = self._join(self._values[level, stop, :-1, :, None], self._send).min(axis=1)
                    self._ready[following, stop, :-1] = np.minimum(self._ready[following, stop, :-1], arrived)

    def path(self, end: int, w: int) -> Path:
        """Walk back from the pipeline that ends at rank `end` with a last stage of width index `w`."""
        table, legs, level, stop = self.table, [], self._levels - 1, self.table.layers
        back = float(table.feedback[end, w])
        times = [back] if back else []
        while True:
            width = table.widths[w]
            first = end - width
            before = self._before(level, stop)[:, first, w]
            own = table.column(stop, first, w)
            start = int(self._join(before, np.where(own <= self.limit, own, np.inf)).argmin())
            legs.append(Leg(start, stop, first, width))
            times.append(float(own[start]))
            if start == 0:
                return Path(tuple(reversed(legs)), sum(times), max(times))
            level = 0 if self._open else level - 1
            previous = int(self._join(self._values[level, start, first], self._send[first, :, w]).argmin())
            times.append(float(table.send[first, previous, w]))
            stop, end, w = start, first, previous


class LevelSweep:
    """One run for every stage count up to `levels`: `final[s, end, w]` is the least chain of s + 1 stages."""

    def __init__(self, table: PipelineTable, levels: int, limit: float = np.inf, *, minimax: bool = False) -> None:
        self.table, self._limit = table, limit
        self._join = np.maximum if minimax else np.add
        shape = (levels, table.layers + 1, table.ranks + 1, len(table.widths))
        self._values, self._ready = np.full(shape, np.inf), np.full(shape, np.inf)
        self._send = np.where(table.send <= limit, table.send, np.inf)
        self._run()
        back = np.where(table.feedback <= limit, table.feedback, np.inf)
        self.final: Array = self._join(self._values[:, table.layers], back)

    def _run(self) -> None:
        table = self.table
        self._ready[0, 0, 0, :] = 0.0
        seconds, alive = table.within(self._limit)
        for stop in range(1, table.layers + 1):
            some = np.nonzero(alive[table.rows[:stop, stop]])[0]
            if not some.size:
                continue
            times = seconds[table.rows[some, stop]]
            lanes = min(stop, self._values.shape[0])  # a pipeline of more stages than layers does not exist
            best = self._join(self._ready[:lanes, some, :-1], times).min(axis=1)
            for w, width in enumerate(table.widths):
                self._values[:lanes, stop, width:, w] = best[:, : table.ranks + 1 - width, w]
            following = self._ready[1 : lanes + 1, stop, :-1]
            following[:] = self._join(self._values[: len(following), stop, :-1, :, None], self._send).min(axis=2)

    def slowest(self, level: int, end: int, w: int) -> float:
        """Slowest time of the pipeline that `final[level, end, w]` stands for."""
        table, stop, found = self.table, self.table.layers, float(self.table.feedback[end, w])
        while True:
            first = end - table.widths[w]
            times = table.column(stop, first, w)
            times = np.where(times <= self._limit, times, np.inf)
            start = int(self._join(self._ready[level, :stop, first, w], times).argmin())
            found = max(found, float(times[start]))
            if start == 0:
                return found
            level -= 1
            previous = int(self._join(self._values[level, start, first], self._send[first, :, w]).argmin())
            found = max(found, float(table.send[first, previous, w]))
            stop, end, w = start, first, previous
