"""Stages priced anew for a proof: the least seconds of a stage on given layers and ranks over every option that fits."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from planner.certify.branch import TooLargeError
from planner.certify.options import Options, stage_options
from planner.certify.thin import needed_pairs
from planner.evaluate.pipeline import crossing_fraction, feedback_seconds, send_seconds
from planner.evaluate.setting import Setting
from planner.evaluate.stage import Intervals, intervals, stage_price, view
from planner.evaluate.tables import Block, StageTable, price_blocks
from search_spaces.space import SearchSpace
from search_spaces.stages import block_pattern

Array = NDArray[np.float64]
ROWS = 2_000_000
"""Prices that are held at once."""
MOST_PRICES = 1_500_000_000
"""Prices of stages (options x layer intervals) of one certificate, about a minute; branches beyond it are given up."""


class StageTimes:
    """Seconds of stages and hand-overs of a space, priced through the evaluator alone."""

    def __init__(self, env: Setting, space: SearchSpace, most_memory: float) -> None:
        self.env, self.space, self.sizes, self.most_memory = env, space, space.sizes, most_memory
        self.sequences = tuple(sorted({space.sequences(r, m) for r, m in space.branches}))
        self.reach = max((space.stride(r) for r, _ in space.branches), default=0)
        self.spent = 0
        self._times: dict[tuple[object, int, int], Array] = {}
        self._sends: dict[tuple[int, int, float, int], float] = {}

    @cached_property
    def rows(self) -> tuple[Intervals, dict[tuple[int, int], int]]:
        """The layer intervals that cost differently, and which of them [start, stop) is."""
        total = self.sizes.layers
        bounds = [(a, b) for a in range(total) for b in range(a + 1, total + 1)]
        every, rows = intervals(self.env, bounds), dict[tuple[int, int], int]()
        known, keep = dict[object, int](), list[int]()
        for at, span in enumerate(bounds):
            key = (tuple(every.counts[at].tolist()), bool(every.first[at]), bool(every.last[at]))
            if key not in known:
                known[key] = len(keep)
                keep.append(at)
            rows[span] = known[key]
        return Intervals(every.counts[keep], every.first[keep], every.last[keep]), rows

    def site(self, first: int, width: int) -> object:
        """What stands for every place that looks like `width` ranks from `first`; None where no stage may stand."""
        if self._uniform:
            first %= self.space.ground.nodes[0]
        key = (first, width)
        if key not in self._sites:
            there = first + width <= self.sizes.devices and self.space.placed(first, width)
            self._sites[key] = (width, block_pattern(self.sizes, first, width)) if there else None
        return self._sites[key]

    @cached_property
    def _sites(self) -> dict[tuple[int, int], object]:
        return {}

    @cached_property
    def _uniform(self) -> bool:
        """Whether places that lie alike in their nodes look alike."""
        return self.space.regular and self.space.ground.uniform

    @cached_property
    def grounds(self) -> dict[object, tuple[Options, StageTable]]:
        """Every site with its options and their prices; of a space whose stages are fixed by their number."""
        places: dict[object, tuple[int, ...]] = {}
        if self.space.layout:
            kinds = self.sizes.kind_of_device
            places = {i: p.devices for i, p in enumerate(self.space.layout) if len({kinds[d] for d in p.devices}) == 1}
        else:
            for width, first in self._places():
                site = self.site(first, width)
                if site is not None:
                    places.setdefault(site, tuple(range(first, first + width)))
        found, blocks, known = dict[object, Options](), list[Block](), dict[object, Options | None]()
        for key, place in places.items():
            index = key if isinstance(key, int) else None
            alike = (len(place), index)
            if alike not in known:
                known[alike] = stage_options(self.space, *alike)
            own = known[alike]
            if own is not None:
                kind = self.env.cluster.device_kinds[place[0]]
                found[key] = own
                blocks.append(Block(kind, (place,), self.sequences, own.partitions, own.ffns, own.splits))
        tables = price_blocks(self.env, blocks) if found else []
        return dict(zip(found, zip(found.values(), tables, strict=True), strict=True))

    def _places(self) -> Iterator[tuple[int, int]]:
        for width in self.space.widths(self.reach):
            last = self.reach - width
            for first in range((min(last, self.space.ground.nodes[0] - 1) if self._uniform else last) + 1):
                yield width, first

    def least(self, site: object, sequences: int, micro_batches: int) -> Array:
        """Least seconds of a stage at a site for every row, over the options that fit; inf where none does [rows]."""
        key = (site, sequences, micro_batches)
        if key not in self._times:
            self._times[key] = self._least(site, sequences, micro_batches)
        return self._times[key]

    def _least(self, site: object, sequences: int, micro_batches: int) -> Array:
        spans = self.rows[0]
        best = np.full(spans.first.size, np.inf)
        if site not in self.grounds:
            return best
        own, table = self.grounds[site]
        usable = own.usable(self.sizes, sequences)
        if not usable.any():
            return best
        kind = self.env.cluster.kinds[table.block.kind]
        capacity = min(float(kind.memory_bytes), self.most_memory)
        batch = self.sequences.index(sequences)
        resident = np.ceil(sequences * micro_batches / own.parts)
        partitions, ffns = needed_pairs(table, batch, usable, own.split, resident)
        v = view(self.env, self.sizes, table, 0, batch, sequences * micro_batches, partitions, ffns, paired=True)
        step = max(1, ROWS // partitions.size)
        self.spent += best.size * partitions.size
        if self.spent > MOST_PRICES:
            raise TooLargeError(f"more than {MOST_PRICES:,} prices of stages")
        for at in range(0, best.size, step):
            some = slice(at, at + step)
            price = stage_price(v, Intervals(spans.counts[some], spans.first[some], spans.last[some]))
            best[some] = np.where(price.memory <= capacity, price.seconds, np.inf)[:, :, 0].min(axis=1)
        return best

    def fastest_layers(self, sequences: int) -> tuple[float, float] | None:
        """(seconds, GPU-seconds) of all layers, each with its fastest and its thriftiest option; None without options."""
        least, thrift = self._layer_kinds(sequences)
        layers = np.bincount(np.asarray(self.env.kind_of_layer), minlength=least.size)
        return (float(layers @ least), float(layers @ thrift)) if np.isfinite(least).all() else None

    def suffixes(self, sequences: int) -> tuple[list[float], list[float]]:
        """Least seconds, and least GPU-seconds, of the layers from one on, ends of the model apart [layers + 1]."""
        each = (kinds[np.asarray(self.env.kind_of_layer)] for kinds in self._layer_kinds(sequences))
        seconds, work = (np.append(np.cumsum(layers[::-1])[::-1], 0.0).tolist() for layers in each)
        return seconds, work

    def _layer_kinds(self, sequences: int) -> tuple[Array, Array]:
        """Least seconds, and least GPU-seconds, of one layer of every kind [kinds]."""
        if sequences not in self._layers:
            self._layers[sequences] = self._least_layers(sequences)
        return self._layers[sequences]

    @cached_property
    def _layers(self) -> dict[int, tuple[Array, Array]]:
        return {}

    def _least_layers(self, sequences: int) -> tuple[Array, Array]:
        kinds = len(self.env.kinds)
        least, thrift = np.full(kinds, np.inf), np.full(kinds, np.inf)
        batch = self.sequences.index(sequences)
        for own, table in self.grounds.values():
            a, f = np.nonzero(own.usable(self.sizes, sequences))
            if not a.size:
                continue
            shard = own.split[a]
            for kind in range(kinds):
                seconds = (
                    table.attention[kind].seconds[0, batch, a] + table.ffn[kind].seconds[0, batch, shard, table.own[kind][f]]
                )
                least[kind] = min(least[kind], float(seconds.min()))
                thrift[kind] = min(thrift[kind], float(seconds.min()) * table.block.width)
        return least, thrift

    def send(self, at: int, before: int, after: int, sequences: int) -> float:
        """Seconds from a stage of `before` ranks that ends at rank `at` to one of `after` ranks that begins there."""
        if self._uniform:  # moved by whole nodes, the ranks cross the same boundaries
            at = before + (at - before) % self.space.ground.nodes[0]
        source, target = tuple(range(at - before, at)), tuple(range(at, at + after))
        key = (before, after, self._crossing(at, before, after), sequences)
        if key not in self._sends:
            self._sends[key] = send_seconds(self.env, source, target, sequences)
        return self._sends[key]

    def _crossing(self, at: int, before: int, after: int) -> float:
        """Share of the hand-over that leaves its scale-up domain: with the widths all that its price depends on."""
        key = (at, before, after)
        if key not in self._shares:
            source, target = tuple(range(at - before, at)), tuple(range(at, at + after))
            self._shares[key] = crossing_fraction(self.env.cluster.domain_of, source, target)
        return self._shares[key]

    @cached_property
    def _shares(self) -> dict[tuple[int, int, int], float]:
        return {}

    def feedback(self, end: int, sequences: int) -> float:
        """Seconds of the sampled tokens' way from the last of `end` ranks back to the first, in decode."""
        if self.sizes.phase != "decode":
            return 0.0
        return feedback_seconds(self.env, (end - 1,), (0,), sequences)

    def sends_of(self, places: list[tuple[int, ...]], sequences: int) -> list[float]:
        """Hand-overs of a pipeline whose stages stand anywhere, in decode with the tokens' way back."""
        sends = [send_seconds(self.env, a, b, sequences) for a, b in pairwise(places)]
        if self.sizes.phase == "decode" and len(places) > 1:
            sends.append(feedback_seconds(self.env, places[-1], places[0], sequences))
        return sends
