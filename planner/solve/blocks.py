"""Pricing a space: every stage option on every site, once per micro-batch size, and the best option per stage."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from planner.costs.memory import communication_bytes, reserve_bytes
from planner.costs.pricer import Site
from planner.evaluate.pipeline import crossing_share
from planner.evaluate.setting import Setting
from planner.evaluate.slices import price_blocks
from planner.evaluate.stage import Intervals, StageView, intervals
from planner.evaluate.tables import StageTable
from planner.solve.alike import distinct_sites
from planner.solve.bounds import LayerFloor
from planner.solve.options import Allowed, OptionBlock, option_block
from planner.solve.pin import Pin, pinned
from planner.solve.shares import Shares, Usable, shares
from planner.solve.spots import Runs, Spots
from search_spaces.space import SearchSpace
from search_spaces.stages import block_pattern

Array = NDArray[np.float64]
Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]


@dataclass(frozen=True)
class StageSlot:
    """Where a stage may stand: its ranks, the block that prices it and the site inside that block."""

    devices: Site
    block: int
    site: int


class PricedSpace:
    """All linear-pipeline options of a space, priced: one table per width (or pinned stage) and GPU kind."""

    def __init__(self, env: Setting, space: SearchSpace, extra_memory: float = 0.0, most_memory: float = float("inf")) -> None:
        self.env, self.space, self.sizes, self._extra, self._most = env, space, space.sizes, extra_memory, most_memory
        self.sequences = tuple(sorted({space.sequences(r, m) for r, m in space.branches}))
        self.blocks: list[OptionBlock] = []
        self.slots: dict[tuple[int, ...], StageSlot] = {}
        strides = {space.stride(r) for r, _ in space.branches}
        if space.layout:
            self._pinned_slots()
        elif space.regular:
            self._spot_blocks()
        else:
            self._open_slots(max(strides, default=0))
        usable = [b for b in self.blocks if b.allowed.count()]
        priced = dict(zip(map(id, usable), price_blocks(env, [b.block for b in usable]), strict=True))
        self.tables: list[StageTable | None] = [priced.get(id(b)) for b in self.blocks]
        self.priced = sum(b.allowed.count() * len(b.block.places) * len(self.sequences) for b in self.blocks)
        """Stage options that were priced: options x sites x micro-batch sizes."""
        if not space.regular:
            self._tell_sites_apart()
        self._sends: dict[tuple[int, int], Array] = {}
        self._crossing: dict[int, Array] = {}
        self._fitting: dict[tuple[int, int], Allowed] = {}
        self._masks: dict[tuple[int, tuple[tuple[str, object], ...]], tuple[Bools, Bools]] = {}
        self.fitting_seconds: dict[tuple[int, int, int], Array] = {}
        kept = env.room(("pipelines", tuple(b.block.options for b in self.blocks), extra_memory, most_memory))
        self.undominated: dict[tuple[int, int, int], tuple[Ints, Ints]] = kept.setdefault("undominated", {})
        self.best: dict[tuple[int, int, int, int], tuple[Array, Ints, Array, Bools]] = kept.setdefault("best", {})

    def _open_slots(self, stride: int) -> None:
        for width in self.space.widths(stride):
            places: dict[tuple[object, ...], list[tuple[int, ...]]] = {}
            for first in range(stride - width + 1):
                devices = tuple(range(first, first + width))
                if self.space.one_kind(devices):
                    places.setdefault(block_pattern(self.sizes, first, width), []).append(devices)
            kinds: dict[str, list[list[tuple[int, ...]]]] = {}
            for same in places.values():
                kinds.setdefault(self.env.cluster.device_kinds[same[0][0]], []).append(same)
            for kind, groups in kinds.items():
                block = option_block(self.space, kind, tuple(same[0] for same in groups), self.sequences, None)
                for site, same in enumerate(groups):
                    for devices in same:
                        self.slots[devices] = StageSlot(devices, len(self.blocks), site)
                self.blocks.append(block)

    @cached_property
    def spots(self) -> Spots:
        """Where the stages of a large cluster may stand."""
        return Spots.build(self.env, self.space)

    @cached_property
    def runs(self) -> tuple[Runs, Runs]:
        """Runs of equal stages on the first layers, and on the last ones."""
        layers, rows = self.sizes.layers, self.spans[1]
        heads = Runs.of([(0, stop) for stop in range(1, layers + 1)], rows)
        return heads, Runs.of([(start, layers) for start in range(1, layers)], rows)

    def _spot_blocks(self) -> None:
        """One block for each width and GPU kind, with a site for each spot."""
        for width, places in zip(self.spots.widths, self.spots.places, strict=True):
            for kind in dict.fromkeys(kind for kind, _ in places):
                firsts = [(spot, first) for spot, (other, first) in enumerate(places) if other == kind]
                ranks = tuple(range(first, first + width) for _, first in firsts)
                for site, (spot, _) in enumerate(firsts):
                    self._sites[width, spot] = (len(self.blocks), site)
                self.blocks.append(option_block(self.space, kind, ranks, self.sequences, None))

    @cached_property
    def _sites(self) -> dict[tuple[int, int], tuple[int, int]]:
        """Block and site of every (width, spot) of a large cluster."""
        return {}

    def spot_slot(self, first: int, width: int) -> StageSlot | None:
        """The slot of a stage of a large cluster."""
        spot = int(self.spots.of[self.spots.widths.index(width), first])
        return None if spot < 0 else StageSlot(range(first, first + width), *self._sites[width, spot])

    def _pinned_slots(self) -> None:
        for index, pin in enumerate(self.space.layout):
            if self.space.one_kind(pin.devices):
                kind = self.env.cluster.device_kinds[pin.devices[0]]
                self.slots[pin.devices] = StageSlot(pin.devices, len(self.blocks), 0)
                self.blocks.append(option_block(self.space, kind, (pin.devices,), self.sequences, index))

    def _tell_sites_apart(self) -> None:
        """Keep one of the sites of a block that cost the same."""
        of: dict[int, Ints] = {}
        for number, table in enumerate(self.tables):
            if table is not None and len(table.block.places) > 1:
                table, of[number] = distinct_sites(table)
                self.tables[number], self.blocks[number] = table, replace(self.blocks[number], block=table.block)
        for ranks, slot in self.slots.items():
            if slot.block in of:
                self.slots[ranks] = replace(slot, site=int(of[slot.block][slot.site]))

    @cached_property
    def spans(self) -> tuple[Intervals, Ints]:
        """The different layer intervals, and for every [start, stop) its row (-1 where stop <= start)."""
        total = self.sizes.layers
        bounds = [(a, b) for a in range(total) for b in range(a + 1, total + 1)]
        if self.space.layout:
            ends = np.cumsum([0, *(pin.layers for pin in self.space.layout)])
            bounds = list(zip(ends[:-1].tolist(), ends[1:].tolist(), strict=True))
        every = intervals(self.env, bounds)
        keys = np.column_stack([every.counts, every.first, every.last])
        first, inverse = np.unique(keys, axis=0, return_index=True, return_inverse=True)[1:]
        rows = np.full((total + 1, total + 1), -1, dtype=np.int64)
        for (a, b), row in zip(bounds, inverse.ravel(), strict=True):
            rows[a, b] = row
        return Intervals(every.counts[first], every.first[first], every.last[first]), rows

    def allowed(self, block: int, sequences: int, pin: Pin | None) -> Allowed:
        """Allowed options of a block for a micro-batch size and a pin."""
        options, key = self.blocks[block], (block, sequences)
        if key not in self._fitting:
            self._fitting[key] = options.fits(self.sizes, sequences)
        if not pin:
            return self._fitting[key]
        held = (block, tuple(pin.items()))
        if held not in self._masks:
            self._masks[held] = pinned(options.block.partitions, pin), pinned(options.block.ffns, pin)
        return self._fitting[key].narrowed(*self._masks[held])

    def view(
        self, slot: StageSlot, sequences: int, replica_batch: int, partitions: Ints, ffns: Ints, *, paired: bool
    ) -> StageView:
        """The chosen options of a slot: all pairs of them, or the i-th with the i-th where `paired`."""
        table, at = self.tables[slot.block], self.sequences.index(sequences)
        if table is None:
            raise ValueError("no option for this stage")
        shards = self.blocks[slot.block].allowed.shard[partitions]
        return StageView(self.env, table, slot.site, at, replica_batch, shards, partitions, ffns, paired)

    def layer_floor(self, sequences: int, pin: Pin | None = None, most: float = np.inf) -> LayerFloor:
        """Least seconds of the layers, and of the ends of the model, on stages of every width up to `most`."""
        some = [n for n, b in enumerate(self.blocks) if self.tables[n] is not None and b.block.width <= most]
        seconds = [self._least_seconds(number, sequences, pin) for number in some]
        widths = np.array([self.blocks[number].block.width for number in some], dtype=np.int64)
        ends = [self._end_seconds(number, sequences) for number in some]
        layers = np.append(np.bincount(np.asarray(self.env.kind_of_layer), minlength=len(self.env.kinds)), [1, 1])
        columns = [np.array(seconds).reshape(widths.size, len(self.env.kinds)), np.array(ends).reshape(widths.size, 2)]
        return LayerFloor(widths, np.concatenate(columns, axis=1), layers)

    def shares(self, sequences: int) -> Shares:
        """The options of all blocks for micro-batches of `sequences`, for a bound that knows memory."""
        if sequences not in self._shares:
            used = []
            for number, table in enumerate(self.tables):
                if table is not None:
                    allowed = self.allowed(number, sequences, None)
                    used.append(Usable(table, allowed.rows, allowed.pairs, allowed.shard, self.room(number)))
            layers = np.bincount(np.asarray(self.env.kind_of_layer), minlength=len(self.env.kinds))
            self._shares[sequences] = shares(used, self.sequences.index(sequences), layers)
        return self._shares[sequences]

    @cached_property
    def _shares(self) -> dict[int, Shares]:
        return {}

    def least_layer(self, sequences: int, pin: Pin | None = None) -> tuple[float, float] | None:
        """(seconds of all layers, GPU-seconds of all layers) with the fastest, and the thriftiest, option of each layer.

        No pipeline of micro-batches of `sequences` has a shorter chain, or does less work; None where there is no option.
        """
        floor = self.layer_floor(sequences, pin)
        layers, seconds = floor.layers[:-2], floor.seconds[:, :-2]
        chain = seconds.min(axis=0, initial=np.inf)
        work = (seconds * floor.widths[:, None]).min(axis=0, initial=np.inf)
        return (float(layers @ chain), float(layers @ work)) if np.isfinite(chain).all() else None

    def fastest(self, block: int, sequences: int, pin: Pin | None) -> tuple[Array, tuple[float, float]]:
        """Least seconds of one layer of each kind [K], and of embedding and head, on the best site of a block."""
        return self._least_seconds(block, sequences, pin), self._end_seconds(block, sequences)

    def _end_seconds(self, block: int, sequences: int) -> tuple[float, float]:
        """Least seconds of the embedding, and of the head, on the best site; 0 where the model has none."""
        table, at = self.tables[block], self.sequences.index(sequences)
        bills = (None, None) if table is None else (table.embedding, table.head)
        first, last = (0.0 if bill is None else float(bill.seconds[:, at].min()) for bill in bills)
        return first, last

    def _least_seconds(self, block: int, sequences: int, pin: Pin | None) -> Array:
        """Least seconds of one layer of each kind on the best site [K], inf where nothing is allowed."""
        key = (block, sequences, tuple(pin.items()) if pin else ())
        if key not in self._layers:
            allowed, table, at = self.allowed(block, sequences, pin), self.tables[block], self.sequences.index(sequences)
            if table is None:
                raise ValueError("no option for this stage")
            found = []
            for attention, ffn, own in zip(table.attention, table.ffn, table.own, strict=True):
                heads = np.full((attention.seconds.shape[0], len(table.block.shards)), np.inf)
                chosen = np.nonzero(allowed.rows)[0]
                np.minimum.at(heads.T, allowed.shard[chosen], attention.seconds[:, at, chosen].T)
                rest = np.where(allowed.pairs, ffn.seconds[:, at][:, :, own], np.inf).min(axis=2, initial=np.inf)
                found.append(float((heads + rest).min(initial=np.inf)))
            self._layers[key] = np.array(found)
        return self._layers[key]

    @cached_property
    def _layers(self) -> dict[tuple[int, int, tuple[tuple[str, object], ...]], Array]:
        return {}

    @cached_property
    def block_widths(self) -> Ints:
        """GPUs of a stage of every block [B]."""
        return np.array([block.block.width for block in self.blocks], dtype=np.int64)

    def slot_numbers(self, stride: int, widths: tuple[int, ...]) -> tuple[Ints, Ints]:
        """Block and site of the slot at every first rank below `stride` and of every width [stride, D]; -1 where none is."""
        if stride not in self._numbers:
            blocks, sites = (np.full((stride, len(widths)), -1, dtype=np.int64) for _ in range(2))
            for at, width in enumerate(widths):
                for first in range(stride + 1 - width):
                    slot = self.slots.get(tuple(range(first, first + width)))
                    if slot is not None:
                        blocks[first, at], sites[first, at] = slot.block, slot.site
            self._numbers[stride] = blocks, sites
        return self._numbers[stride]

    @cached_property
    def _numbers(self) -> dict[int, tuple[Ints, Ints]]:
        return {}

    def least_bytes(self, block: int, sequences: int, replica_batch: int) -> Array:
        """Fewest bytes of weights and cache of one layer of each kind on a GPU of a block [K], on whatever site."""
        key = (block, sequences, replica_batch)
        if key not in self._bytes:
            allowed, table, at = self.allowed(block, sequences, None), self.tables[block], self.sequences.index(sequences)
            if table is None:
                raise ValueError("no option for this stage")
            rows, some = np.nonzero(allowed.rows)[0], np.nonzero(allowed.pairs.any(axis=0))[0]
            resident = np.ceil(replica_batch / np.array([p.batch_parts for p in table.block.partitions])[rows])
            found = []
            for attention, ffn, own in zip(table.attention, table.ffn, table.own, strict=True):
                near = attention.weights[:, at][:, rows] + attention.cache[:, at][:, rows] * resident
                far = ffn.weights[:, at][:, :, np.unique(own[some])]
                found.append(float(near.min(initial=np.inf) + far.min(initial=np.inf)))
            self._bytes[key] = np.array(found)
        return self._bytes[key]

    @cached_property
    def _bytes(self) -> dict[tuple[int, int, int], Array]:
        return {}

    def room(self, block: int) -> float:
        """Bytes of one GPU of a block beside its reserve and the buffers of collectives."""
        kind, width = self.blocks[block].block.kind, self.blocks[block].block.width
        return self._capacity(kind) - reserve_bytes(self.env.cluster.kinds[kind]) - communication_bytes(width)

    def capacity(self, slot: StageSlot) -> float:
        """Bytes of one GPU of a slot, at most the cap, with those that the search was granted besides."""
        return self._capacity(self.blocks[slot.block].block.kind)

    def _capacity(self, kind: str) -> float:
        """Bytes of one GPU of a kind, at most the cap, with those that the search was granted besides."""
        return min(float(self.env.cluster.kinds[kind].memory_bytes), self._most) + self._extra

    def sends(self, ranks: int, widths: tuple[int, ...], sequences: int) -> Array:
        """Hand-over seconds [rank, width before, width after] of neighbouring stages; inf where they do not fit."""
        key = (ranks, sequences)
        if key not in self._sends:
            index, sizes = self._neighbours(ranks, widths)
            slices = sizes.min(axis=1)
            tokens = -(-sequences * self.env.query_length // slices)
            amount = np.asarray(self.env.context.tensor("", tokens, self.env.model.hidden).bytes) * slices
            price = self.env.pricer.collectives.m2n_time
            crossing = self._crossing[ranks]
            table = np.full((ranks, len(widths), len(widths)), np.inf)
            if index.size:
                seconds = price(amount / sizes[:, 0], amount / sizes[:, 1], sizes[:, 0], sizes[:, 1], crossing)
                table[tuple(index.T)] = seconds
            self._sends[key] = table
        return self._sends[key]

    def _neighbours(self, ranks: int, widths: tuple[int, ...]) -> tuple[Ints, Ints]:
        """Index [n, 3] into the table of hand-overs and the two widths [n, 2] of every pair of neighbours that fits."""
        index = [
            (at, i, j)
            for at in range(1, ranks)
            for i, left in enumerate(widths)
            if left <= at
            for j, right in enumerate(widths)
            if at + right <= ranks
        ]
        found = np.array(index, dtype=np.int64).reshape(-1, 3)
        number = np.array(widths, dtype=np.int64)
        if ranks not in self._crossing:
            domains, known = np.asarray(self.env.cluster.domain_of), dict[tuple[int, int, bytes], float]()
            shares = []
            for at, i, j in index:  # what matters is where the domains change among the ranks of both
                near, far = widths[i], widths[j]
                around = domains[at - near : at + far]
                key = (near, far, (around - around[0]).tobytes())
                if key not in known:
                    known[key] = crossing_share(domains, range(at - near, at), range(at, at + far))
                shares.append(known[key])
            self._crossing[ranks] = np.array(shares)
        return found, number[found[:, 1:]]
