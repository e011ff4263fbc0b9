"""The exact optimum of a branch of a large cluster: pipelines of one run of equal stages, or of two.

A run is n stages of as many layers and GPUs each. For every cut of the layers the runs before it and those behind it are
summed up once; pairs are closed by a bound that takes every stage on its best spot, and the rest is priced where it stands.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from planner.evaluate.pipeline import feedback_seconds
from planner.solve.branch import Branch, SpotArrays
from planner.solve.dp import Leg, Path
from planner.solve.exact import BranchOptimum
from planner.solve.objective import SAME, Objective
from planner.solve.spots import Runs

Array = NDArray[np.float64]
Ints = NDArray[np.int64]
CHUNK = 8192


@dataclass(frozen=True)
class Asked:
    """What is asked of a branch: the objective, what its seconds are multiplied by and the seconds allowed, both by GPUs in
    use of a replica [ranks + 1], values to beat, and the least and most such GPUs.
    """

    objective: Objective
    weight: Array
    most_seconds: Array
    cutoff: float
    first_end: int
    last_end: int

    def values(self, chain: Array, slowest: Array, ends: Ints) -> Array:
        """Values [N] of pipelines, inf where something is not allowed."""
        slowest = np.where(np.isfinite(chain), slowest, 0.0)
        inside = (ends >= self.first_end) & (ends <= self.last_end)
        at = np.where(inside, ends, 0)
        seconds = self.objective.latency(chain, slowest)
        with np.errstate(invalid="ignore"):  # no GPU is no price, and no plan
            value = self.objective.values(chain, slowest) * self.weight[at]
        return np.where(inside & (seconds <= self.most_seconds[at] * (1 + SAME)), value, np.inf)


@dataclass(frozen=True)
class _Bounded:
    """Runs of every width [widths, P]: where each begins or ends, apart from the model's own end [P, ascending], least chain
    and slowest time, GPUs and stages.
    """

    at: Ints
    chain: Array
    slowest: Array
    ends: Ints
    stages: Ints
    layers: int

    def of(self, some: slice) -> tuple[Array, Array, Ints, Ints]:
        """Chain, slowest time, GPUs and stages of some of them."""
        return self.chain[:, some], self.slowest[:, some], self.ends[:, some], self.stages[:, some]

    @cached_property
    def least(self) -> tuple[Array, Array]:
        """Least chain and least slowest time of the runs that find room, at every layer [layers + 1]."""
        found = []
        for times in (self.chain, np.where(np.isfinite(self.chain), self.slowest, np.inf)):
            least = np.full(self.layers + 1, np.inf)
            np.minimum.at(least, self.at, times.min(axis=0, initial=np.inf))
            found.append(least)
        return found[0], found[1]


@dataclass(frozen=True)
class _Shapes:
    """Pipelines [N] as two runs (the second may have no stage): stages, layers and width index of each [6, N], a bound of
    the value, and the GPUs and stages in all.
    """

    columns: Ints
    bound: Array
    ends: Ints
    stages: Ints

    @classmethod
    def joined(cls, parts: list[tuple[Ints, Array]], widths: Ints) -> _Shapes:
        """All of them, the lowest bound first, then the fewest GPUs and stages."""
        columns = np.concatenate([part[0] for part in parts], axis=1)
        bound = np.concatenate([part[1] for part in parts])
        ends, stages = columns[0] * widths[columns[2]] + columns[3] * widths[columns[5]], columns[0] + columns[3]
        return cls(columns, bound, ends, stages).take(np.lexsort((stages, ends, bound)))

    def take(self, index: Ints | slice | NDArray[np.bool_]) -> _Shapes:
        """Some of them."""
        return _Shapes(self.columns[:, index], self.bound[index], self.ends[index], self.stages[index])


_NONE = (np.zeros((6, 0), dtype=np.int64), np.zeros(0))


@dataclass(frozen=True)
class _Best:
    """The best pipeline so far: value, GPUs of a replica, stages, and where it goes."""

    value: float
    ends: int
    stages: int
    path: Path | None


class RunTable:
    """The pipelines of a branch that the rules of a large cluster allow."""

    def __init__(self, branch: Branch, arrays: SpotArrays, *, memory: bool = False) -> None:
        self.branch, self.arrays, self.memory = branch, arrays, memory
        self.layers, self.ranks = branch.priced.sizes.layers, branch.stride
        self.counts = np.zeros(self.layers + 2, dtype=bool)
        self.counts[list(branch.priced.space.stage_counts(branch.stride))] = True
        self.widths = np.array(branch.widths, dtype=np.int64)
        self.seconds = arrays.over if memory else arrays.seconds
        self.least = self.seconds.min(axis=1)
        spots = branch.priced.spots
        self._at = np.array([spots.widths.index(width) for width in branch.widths], dtype=np.int64)
        self.between = spots.least_sends(branch.sequences)[np.ix_(self._at, self._at)] * (not memory)
        self.back = self._least_back()
        self._heads, self._tails = (self._bounded(runs) for runs in branch.priced.runs)

    def _least_back(self) -> float:
        """Lower bound of the seconds of the sampled tokens' way back, in decode."""
        if self.branch.priced.env.workload.phase != "decode" or self.memory:
            return 0.0
        return float(self._back_of(np.array([1, self.branch.priced.sizes.devices])).min())

    def of(self, stages: int) -> RunTable:
        """The same pipelines, of one number of stages alone."""
        other = copy.copy(self)
        other.counts = np.zeros_like(self.counts)
        other.counts[stages] = self.counts[stages]
        return other

    def least_excess(self, most: int) -> float:
        """Fewest bytes that every GPU would need besides for some pipeline on at most `most` ranks to fit."""
        if most < 1:
            return np.inf
        table, plain = RunTable(self.branch, self.arrays, memory=True), np.ones(self.ranks + 1)
        first = self.ranks if self.branch.priced.space.use_all else 1
        found = table.optimum(Asked(Objective("throughput", False, 1), plain, plain * np.inf, np.inf, first, most))
        return found.value if found.path is not None else np.inf

    def widths_below(self, asked: Asked) -> NDArray[np.bool_]:
        """Widths [D] that some pipeline has whose bound is below the cutoff."""
        found = np.zeros(self.widths.size, dtype=bool)
        for shapes in (self._single, self._double):
            for columns, _ in shapes(asked):
                found[columns[2]] = True
                found[columns[5][columns[3] > 0]] = True
                if found.all():
                    return found
        return found

    def optimum(self, asked: Asked) -> BranchOptimum:
        """The least value below the cutoff; of ties the plan on the fewest GPUs, then of the fewest stages."""
        best, steps = _Best(np.inf, 0, 0, None), 0
        for shapes in (self._single, self._double):
            found = _Shapes.joined(
                [_NONE, *shapes(replace(asked, cutoff=min(asked.cutoff, best.value * (1 + SAME))))], self.widths
            )
            at = 0
            while at < found.bound.size and found.bound[at] <= min(asked.cutoff, best.value * (1 + SAME)):
                some = found.take(slice(at, at + CHUNK))
                tied = some.bound >= best.value * (1 - SAME)  # at best a tie: only fewer GPUs or stages would do
                some = some.take(~tied | (some.ends < best.ends) | ((some.ends == best.ends) & (some.stages < best.stages)))
                if some.bound.size:
                    best, steps = self._better(best, some, asked), steps + 1
                at += CHUNK
        if best.path is None:
            return BranchOptimum(None, np.inf, steps)
        return BranchOptimum(best.path, asked.objective.value(best.path.chain, best.path.slowest), steps)

    def _better(self, best: _Best, some: _Shapes, asked: Asked) -> _Best:
        """The best of the pipeline found so far and of some others, priced where they stand."""
        chain, slowest, ends = self._exact(some.columns)
        value = asked.values(chain, slowest, ends)
        least = float(value.min())
        if not least < asked.cutoff or least > best.value * (1 + SAME):
            return best
        ties = np.nonzero(value <= least * (1 + SAME))[0]
        pick = int(ties[np.lexsort((some.stages[ties], ends[ties]))[0]])
        own = int(ends[pick]), int(some.stages[pick])
        if float(value[pick]) >= best.value * (1 - SAME) and own >= (best.ends, best.stages):
            return best
        return _Best(
            float(value[pick]), *own, Path(self._legs(some.columns[:, pick]), float(chain[pick]), float(slowest[pick]))
        )

    def _single(self, asked: Asked) -> Iterator[tuple[Ints, Array]]:
        """Pipelines of one run."""
        whole = slice(*np.searchsorted(self._heads.at, (self.layers, self.layers + 1)))
        chain, slowest, ends, stages = self._heads.of(whole)
        more = stages > 1
        value = asked.values(chain + more * self.back, np.maximum(slowest, more * self.back), ends)
        w, p = np.nonzero((value <= asked.cutoff) & self.counts[stages])
        n = stages[w, p]
        none = np.zeros_like(w)
        yield np.stack([n, self.layers // n, w, none, none, none]), value[w, p]

    def _double(self, asked: Asked) -> Iterator[tuple[Ints, Array]]:
        """Pipelines of two runs, cut by cut."""
        for cut in self._cuts(asked):
            head, tail = (self._side(runs, cut, asked) for runs in (self._heads, self._tails))
            if head[0].size and tail[0].size:
                few = [self._promising(one, other, asked) for one, other in ((head, tail), (tail, head))]
                if few[0].size and few[1].size:
                    yield from self._pairs(cut, few[0], few[1], asked)

    def _cuts(self, asked: Asked) -> list[int]:
        """Cuts of the layers where the least chain and slowest time of either side, each for itself, are below the cutoff."""
        (before, first), (after, last) = self._heads.least, self._tails.least
        chain, slowest = (before + after + self.back)[1:-1], np.maximum(first, last)[1:-1]
        some = np.nonzero(np.isfinite(chain))[0]
        value = asked.objective.values(chain[some], slowest[some])
        below = value * asked.weight[asked.first_end : asked.last_end + 1].min(initial=np.inf) <= asked.cutoff
        return [int(cut) for cut in 1 + some[below]]

    def _side(self, runs: _Bounded, cut: int, asked: Asked) -> Array:
        """Runs of every width beside a cut as columns [5, N]: chain, slowest, GPUs, stages, width index."""
        chain, slowest, ends, stages = runs.of(slice(*np.searchsorted(runs.at, (cut, cut + 1))))
        w, p = np.nonzero(np.isfinite(chain) & (ends < asked.last_end))
        return np.stack([chain[w, p], slowest[w, p], ends[w, p], stages[w, p], w]).astype(np.float64)

    def _bounded(self, runs: Runs) -> _Bounded:
        """Chain and slowest time of runs on the best spots, with their GPUs and stages; inf where they find no room."""
        sums = most = self.least[:, runs.rows]
        if runs.begin.size:
            sums, most = (join.reduceat(sums, runs.begin, axis=1) for join in (np.add, np.maximum))
        stages = np.broadcast_to(runs.stages, sums.shape)
        inner = np.diagonal(self.between)[:, None]
        ends = stages * self.widths[:, None]
        chain = np.where(ends <= self.ranks, sums + (stages - 1) * inner, np.inf)
        slowest = np.maximum(most, np.where(stages > 1, inner, 0.0))
        at = runs.stop if not runs.start.any() else runs.start
        return _Bounded(at, chain, slowest, ends, stages, self.layers)

    def _promising(self, side: Array, other: Array, asked: Asked) -> Array:
        """Those of one side that could beat the cutoff beside the best that the other side has, in the room left to it."""
        order = np.argsort(other[2], kind="stable")
        at = np.searchsorted(other[2, order], asked.last_end - side[2], side="right") - 1
        side, at = side[:, at >= 0], at[at >= 0]
        chain, slowest = np.minimum.accumulate(other[0, order])[at], np.minimum.accumulate(other[1, order])[at]
        value = asked.objective.values(side[0] + chain + self.back, np.maximum(side[1], slowest))
        return side[:, value * asked.weight[asked.first_end : asked.last_end + 1].min() <= asked.cutoff]

    def _pairs(self, cut: int, head: Array, tail: Array, asked: Asked) -> Iterator[tuple[Ints, Array]]:
        """Pairs of runs around a cut that no bound excludes."""
        w, v = head[4].astype(np.int64), tail[4].astype(np.int64)
        n, m = head[3].astype(np.int64), tail[3].astype(np.int64)
        sent = self.between[np.ix_(w, v)]
        chain = head[0][:, None] + tail[0][None, :] + sent + self.back
        slowest = np.maximum(np.maximum(head[1][:, None], tail[1][None, :]), np.maximum(sent, self.back))
        ends = (head[2][:, None] + tail[2][None, :]).astype(np.int64)
        value = asked.values(chain, slowest, ends)
        stages = np.minimum(n[:, None] + m[None, :], self.counts.size - 1)
        a, b = cut // np.maximum(n, 1), (self.layers - cut) // np.maximum(m, 1)
        same = (a[:, None] == b[None, :]) & (w[:, None] == v[None, :])
        i, j = np.nonzero((value <= asked.cutoff) & self.counts[stages] & ~same)
        yield np.stack([n[i], a[i], w[i], m[j], b[j], v[j]]), value[i, j]

    def _exact(self, columns: Ints) -> tuple[Array, Array, Ints]:
        """Chain, slowest time and GPUs [N] of pipelines where they stand; inf where a stage may not stand there."""
        n, a, w, m, b, v = columns
        rows, spots = self.branch.priced.spans[1], self.branch.priced.spots
        chain, slowest, rank, layer = np.zeros(n.size), np.zeros(n.size), np.zeros_like(n), np.zeros_like(n)
        before = np.zeros_like(n)
        for step in range(int((n + m).max(initial=0))):
            on = np.nonzero((step < n + m) & np.isfinite(chain))[0]
            first = step < n[on]
            width, count = np.where(first, w[on], v[on]), np.where(first, a[on], b[on])
            spot = spots.of[self._at[width], np.minimum(rank[on], self.ranks - 1)].astype(np.int64)
            room = (spot >= 0) & (rank[on] + self.widths[width] <= self.ranks)
            chain[on[~room]] = np.inf
            on, width, count, spot = on[room], width[room], count[room], spot[room]
            if step and not self.memory:
                sent = spots.sends(self._at[before[on]], self._at[width], rank[on], self.branch.sequences)
                chain[on], slowest[on] = chain[on] + sent, np.maximum(slowest[on], sent)
            seconds = self.seconds[width, spot, rows[layer[on], layer[on] + count]]
            chain[on], slowest[on] = chain[on] + seconds, np.maximum(slowest[on], seconds)
            rank[on], layer[on], before[on] = rank[on] + self.widths[width], layer[on] + count, width
        if self.back:
            back = np.where(n + m > 1, self._back_of(rank), 0.0)
            chain, slowest = chain + back, np.maximum(slowest, back)
        return chain, slowest, rank

    def _back_of(self, ends: Ints) -> Array:
        """Seconds of the way back from the last rank before each end."""
        env = self.branch.priced.env
        inside = feedback_seconds(env, (0,), (0,), self.branch.sequences)
        domain = np.asarray(env.cluster.domain_of)
        last = np.minimum(ends, domain.size) - 1
        far = int(np.nonzero(domain != domain[0])[0][0]) if (domain != domain[0]).any() else 0
        outside = feedback_seconds(env, (far,), (0,), self.branch.sequences)
        return np.where(domain[last] == domain[0], inside, outside)

    def _legs(self, column: Ints) -> tuple[Leg, ...]:
        """The stages of a pipeline."""
        n, a, w, m, b, v = (int(x) for x in column)
        legs, layer, rank = [], 0, 0
        for count, width in [(a, int(self.widths[w]))] * n + [(b, int(self.widths[v]))] * m:
            legs.append(Leg(layer, layer + count, rank, width))
            layer, rank = layer + count, rank + width
        return tuple(legs)
