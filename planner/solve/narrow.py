"""Stages that a pipeline no worse than a limit may have, told before any stage is priced.

A stage takes at least the seconds of the fastest options of its layers, and has room for at least their smallest weights and
caches. Two sieves follow. In closed form: with the seconds of a stage, the other layers on the GPUs that it leaves them must
stay within the limit (see `bounds`). Then by a program over layers and ranks on what is left: the least chain before a stage
and behind it. Hand-overs count as nothing in both, so no stage of a pipeline within the limit is excluded.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from planner.solve.blocks import PricedSpace
from planner.solve.bounds import SHARES, LayerFloor
from planner.solve.branch import Branch
from planner.solve.objective import Objective
from planner.solve.pin import Pin

Array = NDArray[np.float64]
Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]
MARGIN = 1e-6
"""Relative room left to a limit: far more than sums in another order can differ by."""


@dataclass(frozen=True)
class Stages:
    """Stages that are left: columns [D'] among the branch's widths that have any, and which of them `keep` [I, O, D'] on
    every interval row and first rank.
    """

    columns: Ints
    keep: Bools


def stages_within(branch: Branch, objective: Objective, limit: float, most: int, pin: Pin | None = None) -> Stages:
    """The stages that a pipeline on at most `most` ranks may have whose objective is at most `limit`; with a pin of options
    that agree with it.
    """
    roomy = replace(
        objective, latency_s=objective.latency_s * (1 + MARGIN), steady_s=objective.steady_s * (1 + MARGIN)
    )  # fmt: skip
    limit *= 1 + MARGIN
    layer = branch.priced.layer_floor(branch.sequences, pin, most)
    floors = _floors(branch, most, pin)
    for number, width in enumerate(branch.priced.block_widths.tolist()):
        if np.isfinite(floors[number]).any():
            floors[number][_excluded(branch.priced, layer, floors[number], width, roomy, limit, most)] = np.inf
    slots = branch.priced.slot_numbers(branch.stride, branch.widths)[0]
    some = np.isfinite(np.append(floors.min(axis=1, initial=np.inf), np.inf))[slots]
    columns = np.nonzero(some.any(axis=0))[0]
    times = np.append(floors, np.full((1, floors.shape[1]), np.inf), axis=0)[slots[:, columns]]
    least = float(layer.weighed(np.zeros(1), np.ones(1), np.array([most]))[0]) if most else np.inf
    widths = np.array(branch.widths, dtype=np.int64)[columns]
    program = _Program(branch, np.ascontiguousarray(np.moveaxis(times, 2, 0)), widths, most)
    return Stages(columns, program.within(roomy, limit, least))


def _floors(branch: Branch, most: int, pin: Pin | None) -> Array:
    """Least seconds of the stages of every block [B, I], inf where they find no room for what they hold at least."""
    priced = branch.priced
    spans, found = priced.spans[0], np.full((len(priced.blocks), priced.spans[0].first.size), np.inf)
    for number, table in enumerate(priced.tables):
        if table is None or table.block.width > most:
            continue
        seconds, ends = priced.fastest(number, branch.sequences, pin)
        own = _over_layers(spans.counts, seconds) + spans.first * ends[0] + spans.last * ends[1]
        held = _over_layers(spans.counts, priced.least_bytes(number, branch.sequences, branch.replica_batch))
        found[number] = np.where(held <= priced.room(number) * (1 + MARGIN), own, np.inf)
    return found


def _over_layers(counts: Ints, each: Array) -> Array:
    """Sums over the layers of rows, `counts` [I, K] of each kind; kinds that a row lacks count nothing, if inf, too."""
    return np.asarray(np.where(counts > 0, counts * np.where(counts > 0, each, 0.0), 0.0).sum(axis=1))


def _excluded(
    priced: PricedSpace, layer: LayerFloor, own: Array, width: int, objective: Objective, limit: float, most: int
) -> Bools:
    """Rows [I] whose stages of one width, of at least `own` [I] seconds, leave too little to the other layers."""
    spans, left = priced.spans[0], most - width
    counts = np.column_stack([spans.counts, spans.first, spans.last])
    others = layer.layers - counts
    usable = layer.widths <= left
    excluded = ~np.isfinite(own)
    own = np.where(excluded, 0.0, own)
    for (chain, alone, shared), allowed in _weights(objective, limit):
        if np.isfinite(allowed):
            scale = chain + shared * layer.widths[usable] / max(left, 1)
            with np.errstate(invalid="ignore"):  # what weighs nothing excludes nothing
                each = np.nan_to_num(layer.seconds[usable] * scale[:, None], nan=0.0, posinf=np.inf)
            rest = _over_layers(others, each.min(axis=0, initial=np.inf))
            excluded |= (chain + alone) * own + rest > allowed
    return excluded


def _weights(objective: Objective, limit: float) -> Iterator[tuple[tuple[float, float, float], float]]:
    """Triples (a, b, c) with the most that a x chain + (b + c) x slowest time may be: of the latter, b counts as at least the
    stage's own seconds and c as at least the work of the others over the GPUs left to them.
    """
    count = float(objective.micro_batches)
    steady = min(objective.steady_s, limit if objective.name == "throughput" else np.inf)
    latency = min(objective.latency_s, np.inf if objective.name == "throughput" else limit)
    if objective.decode:
        steady = latency = min(steady, latency)
        yield from (((a, 0.0, (1.0 - a) * count), latency) for a in SHARES.tolist())
    else:
        yield from (((1.0, b, count - 1.0 - b), latency) for b in (0.0, count - 1.0))
    yield from (((0.0, b, count - b), steady) for b in (0.0, count))


class _Program:
    """The least chain before and behind every stage: `times` [I, O, D] of stages of some widths, inf where excluded."""

    def __init__(self, branch: Branch, times: Array, widths: Ints, most: int) -> None:
        self.times, self.widths, self.ranks = times, widths, branch.stride
        self.layers, self.rows = branch.priced.sizes.layers, branch.priced.spans[1]
        self.alive = np.asarray(np.isfinite(times).any(axis=(1, 2)))
        self.before = np.full((self.layers + 1, self.ranks + 1), np.inf)
        self.behind = np.full((self.layers + 1, self.ranks, widths.size), np.inf)  # by first rank and width of the last stage
        self.before[0, 0] = 0.0
        after = np.full(self.ranks + 1, np.inf)
        after[self.ranks if branch.priced.space.use_all else 0 : most + 1] = 0.0
        self._go_back(after)
        self._go_on()

    def _go_on(self) -> None:
        """Fill the chains before stages."""
        for stop in range(1, self.layers):
            some = self._starts(stop)
            if some.size and np.isfinite(self.behind[stop]).any():
                best = (self.before[some, :-1, None] + self.times[self.rows[some, stop]]).min(axis=0)
                for at, width in enumerate(self.widths.tolist()):
                    np.minimum(self.before[stop, width:], best[: self.ranks + 1 - width, at], out=self.before[stop, width:])

    def _go_back(self, after: Array) -> None:
        """Fill the chains behind stages."""
        for start in range(self.layers, -1, -1):
            if start < self.layers:
                some = start + 1 + np.nonzero(self.alive[self.rows[start, start + 1 :]])[0]
                after = np.full(self.ranks + 1, np.inf)
                if some.size:
                    after[:-1] = (self.times[self.rows[start, some]] + self.behind[some]).min(axis=(0, 2), initial=np.inf)
            for at, width in enumerate(self.widths.tolist()):
                self.behind[start, : self.ranks + 1 - width, at] = after[width:]

    def _starts(self, stop: int) -> Ints:
        """First layers of stages that end before layer `stop` and that some pipeline reaches."""
        some = np.nonzero(self.alive[self.rows[:stop, stop]])[0]
        return np.asarray(some[np.isfinite(self.before[some]).any(axis=1)])

    def within(self, objective: Objective, limit: float, slowest: float) -> Bools:
        """Stages [I, O, D] of pipelines of at most `limit`, the slowest stage of any being at least `slowest`."""
        keep = np.zeros(self.times.shape, dtype=np.bool_)
        for stop in range(1, self.layers + 1):
            some = self._starts(stop)
            if some.size:
                rows = self.rows[some, stop]
                own = self.times[rows]
                chain = self.before[some, :-1, None] + own + self.behind[stop]
                finite = np.isfinite(chain)
                value = objective.values(chain, np.where(finite, np.maximum(own, slowest), 0.0))
                keep[rows] |= finite & (value <= limit)
        return keep
