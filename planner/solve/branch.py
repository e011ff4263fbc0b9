"""A branch (replicas, micro-batches): the best option of every stage it may have, as arrays for the exact search."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from planner.evaluate.stage import Intervals, StagePrice, stage_price
from planner.solve.blocks import PricedSpace, StageSlot
from planner.solve.dominance import undominated_pairs
from planner.solve.pin import Pin
from search_spaces.space import StageOption

Array = NDArray[np.float64]
Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]

EVERY = slice(None)
TIE = 1e-12
AT_ONCE = 400_000
"""Prices of one slot that are made at once, at most."""
KEPT = 1_200_000
"""Prices of one block that are kept for later questions, at most."""


@dataclass(frozen=True)
class StageArrays:
    """Best seconds and flat option index of a stage on every interval row, first rank and width [I, O, D]; inf where none fits.

    `over` is the least number of bytes by which the options exceed the memory where none fits [I, O, D] (else 0). `widths` are
    those of the stages [D]: all of the branch, or some.
    """

    seconds: Array
    option: Ints
    over: Array
    widths: tuple[int, ...]


@dataclass(frozen=True)
class SpotArrays:
    """The same for a large cluster: best seconds, option and missing bytes by width, spot and interval row [D, spots, I]."""

    seconds: Array
    option: Ints
    over: Array


@dataclass(frozen=True)
class Branch:
    """One (replicas, micro-batches) of a priced space."""

    priced: PricedSpace
    replicas: int
    micro_batches: int

    @property
    def sequences(self) -> int:
        """Sequences in a micro-batch."""
        return self.priced.space.sequences(self.replicas, self.micro_batches)

    @property
    def replica_batch(self) -> int:
        """Sequences whose cache a replica keeps: its whole batch, or none where no cache is kept."""
        return self.sequences * self.micro_batches if self.priced.env.context.keeps_cache else 0

    @cached_property
    def stride(self) -> int:
        """Ranks that one replica may use."""
        return self.priced.space.stride(self.replicas)

    @cached_property
    def widths(self) -> tuple[int, ...]:
        """Stage widths, ascending."""
        return tuple(w for w in self.priced.space.widths(self.stride))

    def slot(self, first: int, width: int) -> StageSlot | None:
        """The slot of a stage that starts at rank `first`."""
        if first + width > self.stride:
            return None
        if self.priced.space.regular:
            return self.priced.spot_slot(first, width)
        return self.priced.slots.get(tuple(range(first, first + width)))

    def arrays(self, pin: Pin | None = None) -> StageArrays:
        """Best options of all slots, among those that agree with the pin."""
        rows = self.priced.spans[0].first.size
        shape = (rows, self.stride, len(self.widths))
        seconds, option, over = np.full(shape, np.inf), np.zeros(shape, dtype=np.int64), np.full(shape, np.inf)
        done: dict[tuple[int, int], tuple[Array, Ints, Array]] = {}
        for at, width in enumerate(self.widths):
            for first in range(self.stride):
                slot = self.slot(first, width)
                if slot is None:
                    continue
                if (slot.block, slot.site) not in done:
                    done[slot.block, slot.site] = self.best(slot, pin)
                seconds[:, first, at], option[:, first, at], over[:, first, at] = done[slot.block, slot.site]
        return StageArrays(seconds, option, over, self.widths)

    def some(self, columns: Ints, keep: Bools, pin: Pin | None = None) -> StageArrays:
        """Best options, among those that agree with the pin, of some stages alone: those that `keep` [I, O, D] names of the
        widths at `columns` [D].
        """
        blocks, sites = (numbers[:, columns] for numbers in self.priced.slot_numbers(self.stride, self.widths))
        seconds, option = np.full(keep.shape, np.inf), np.zeros(keep.shape, dtype=np.int64)
        on = np.argwhere(keep.any(axis=0))
        for block, site in dict.fromkeys(zip(blocks[tuple(on.T)].tolist(), sites[tuple(on.T)].tolist(), strict=True)):
            first, at = np.nonzero((blocks == block) & (sites == site))
            wanted = keep[:, first, at]
            found = self.best(StageSlot((), block, site), pin, np.asarray(wanted.any(axis=1)))
            seconds[:, first, at] = np.where(wanted, found[0][:, None], np.inf)
            option[:, first, at] = found[1][:, None]
        widths = tuple(self.widths[at] for at in columns.tolist())
        return StageArrays(seconds, option, np.zeros(keep.shape), widths)

    def floors(self, pin: Pin | None = None) -> Array:
        """Lower bound of the seconds of stages of each width on every interval row [D, I]: the fastest option of each layer."""
        spans, spots = self.priced.spans[0], self.priced.spots
        found = np.full((len(self.widths), spans.first.size), np.inf)
        for at, width in enumerate(self.widths):
            slots = (self.slot(first, width) for _, first in spots.places[spots.widths.index(width)])
            for block in {slot.block for slot in slots if slot is not None}:
                if self.priced.tables[block] is not None:
                    layer, ends = self.priced.fastest(block, self.sequences, pin)
                    own = np.where(spans.counts > 0, spans.counts * np.where(spans.counts > 0, layer, 0.0), 0.0).sum(axis=1)
                    found[at] = np.minimum(found[at], own + spans.first * ends[0] + spans.last * ends[1])
        return found

    def spots(self, pin: Pin | None = None, some: NDArray[np.bool_] | None = None) -> SpotArrays:
        """Best options on every spot, among those that agree with the pin; only of some widths [D] where they are given."""
        rows, spots = self.priced.spans[0].first.size, self.priced.spots
        shape = (len(self.widths), spots.most, rows)
        seconds, option, over = np.full(shape, np.inf), np.zeros(shape, dtype=np.int64), np.full(shape, np.inf)
        for at, width in enumerate(self.widths):
            if some is not None and not some[at]:
                continue
            for spot, (_, first) in enumerate(spots.places[spots.widths.index(width)]):
                slot = self.slot(first, width)
                if slot is not None:
                    seconds[at, spot], option[at, spot], over[at, spot] = self.best(slot, pin)
        return SpotArrays(seconds, option, over)

    def least(self, pin: Pin) -> StageArrays:
        """Best seconds of all slots among options that agree with the pin; the options themselves are not told."""
        rows = self.priced.spans[0].first.size
        shape = (rows, self.stride, len(self.widths))
        seconds = np.full(shape, np.inf)
        found: dict[int, Array | None] = {}
        for at, width in enumerate(self.widths):
            for first in range(self.stride):
                slot = self.slot(first, width)
                if slot is None:
                    continue
                if slot.block not in found:
                    found[slot.block] = self._least_of_block(slot.block, pin)
                values = found[slot.block]
                if values is not None:
                    seconds[:, first, at] = values[slot.site]
        return StageArrays(seconds, np.zeros(shape, dtype=np.int64), np.zeros(shape), self.widths)

    def _least_of_block(self, block: int, pin: Pin) -> Array | None:
        """Least seconds [sites, I] of a block's options that agree with a pin (None where none does)."""
        if self.priced.tables[block] is None:
            return None
        allowed, places = self.priced.allowed(block, self.sequences, pin), self.priced.blocks[block].block.places
        if not allowed.count():
            return None
        slots = [StageSlot(place, block, site) for site, place in enumerate(places)]
        if self.priced.spans[0].first.size * allowed.rows.size * allowed.pairs.shape[1] * len(places) > KEPT:
            return np.stack([self.best(slot, pin)[0] for slot in slots])
        key = (block, self.sequences, self.replica_batch)
        if key not in self.priced.fitting_seconds:
            self.priced.fitting_seconds[key] = np.stack([self._fitting_seconds(slot) for slot in slots])
        chosen = np.nonzero(allowed.matrix().ravel())[0]
        return np.asarray(self.priced.fitting_seconds[key][:, :, chosen].min(axis=2))

    def _fitting_seconds(self, slot: StageSlot) -> Array:
        """Seconds [I, A x F] of every option of a slot, inf where it does not fit the memory."""
        block = self.priced.blocks[slot.block].block
        price = self._price(slot, np.arange(len(block.partitions)), np.arange(len(block.ffns)), paired=False)
        rows = price.seconds.shape[0]
        return np.where(price.memory <= self.priced.capacity(slot), price.seconds, np.inf).reshape(rows, -1)

    def best(self, slot: StageSlot, pin: Pin | None = None, rows: Bools | None = None) -> tuple[Array, Ints, Array]:
        """Best seconds, its option and the missing bytes of one slot on every interval row [I]; where `rows` [I] are given,
        of those: what is said of the others means nothing.
        """
        key, size = (slot.block, slot.site, self.sequences, self.replica_batch), self.priced.spans[0].first.size
        kept = None if pin else self.priced.best.get(key)
        if kept is None:
            blank = np.full(size, np.inf), np.zeros(size, dtype=np.int64), np.full(size, np.inf)
            kept = (*blank, np.zeros(size, dtype=np.bool_))
            if not pin:
                self.priced.best[key] = kept
        seconds, option, over, known = kept
        lacking = np.nonzero(~known if rows is None else rows & ~known)[0]
        if lacking.size:
            seconds[lacking], option[lacking], over[lacking] = self._best(slot, pin, lacking)
            known[lacking] = True
        return seconds, option, over

    def _best(self, slot: StageSlot, pin: Pin | None, rows: Ints) -> tuple[Array, Ints, Array]:
        """The same of some rows [I'], priced."""
        found, option, over = np.full(rows.size, np.inf), np.zeros(rows.size, dtype=np.int64), np.full(rows.size, np.inf)
        partitions, ffns = self._candidates(slot.block, pin, rows.size)
        if not partitions.size:
            return found, option, over
        step = max(1, AT_ONCE // partitions.size)
        for some in (slice(at, at + step) for at in range(0, rows.size, step)):
            price = self._price(slot, partitions, ffns, paired=True, rows=rows[some])
            missing = price.memory[:, :, 0] - self.priced.capacity(slot)
            time = np.where(missing <= 0, price.seconds[:, :, 0], np.inf)
            least = time.min(axis=1)
            sent = np.where(time <= (least * (1 + TIE))[:, None], price.sent[:, :, 0], np.inf)
            pick = sent.argmin(axis=1)
            found[some] = time[np.arange(pick.size), pick]
            option[some] = partitions[pick] * len(self.priced.blocks[slot.block].block.ffns) + ffns[pick]
            over[some] = np.where(np.isfinite(found[some]), 0.0, missing.min(axis=1))
        return found, option, over

    def _candidates(self, block: int, pin: Pin | None, rows: int) -> tuple[Ints, Ints]:
        """Pairs (partition, FFN option) of a block that no other pair beats in everything, in order; with a pin those that
        agree with it. All pairs where to price them on so few `rows` is quicker than to compare them.
        """
        none, table = np.zeros(0, dtype=np.int64), self.priced.tables[block]
        if table is None:
            return none, none
        key = (block, self.sequences, self.replica_batch)
        if not pin and key in self.priced.undominated:
            return self.priced.undominated[key]
        allowed = self.priced.allowed(block, self.sequences, pin)
        if rows * allowed.count() <= AT_ONCE:
            first, second = np.nonzero(allowed.matrix())
            return first, second
        at = self.priced.sequences.index(self.sequences)
        found = undominated_pairs(table, allowed, at, self.replica_batch)
        if not pin:
            self.priced.undominated[key] = found
        return found

    def _price(self, slot: StageSlot, partitions: Ints, ffns: Ints, *, paired: bool, rows: Ints | slice = EVERY) -> StagePrice:
        """Price of some options of a slot on every interval row, or some of them."""
        chosen = self.priced.view(slot, self.sequences, self.replica_batch, partitions, ffns, paired=paired)
        spans = self.priced.spans[0]
        return stage_price(chosen, Intervals(spans.counts[rows], spans.first[rows], spans.last[rows]))

    def option_at(self, slot: StageSlot, index: int) -> StageOption:
        """The stage option behind a flat index of a slot."""
        return self.priced.blocks[slot.block].option(index)
