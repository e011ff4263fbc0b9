"""The two sides of plans with experts apart: attention on some GPUs, experts on others, each priced by itself for a proof."""

from __future__ import annotations

from dataclasses import dataclass, fields
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from planner.certify.branch import Branch
from planner.certify.options import Options, attention_options
from planner.certify.thin import needed_pairs
from planner.evaluate.separate import TRANSFER_BUFFERS, AttentionSide, Cases, ExpertSide, expert_sides, fixed_bytes
from planner.evaluate.setting import Setting
from planner.evaluate.tables import Bill, Block, StageTable, price_blocks
from search_spaces.experts import ExpertPlacement
from search_spaces.sizes import Sizes
from search_spaces.space import SearchSpace

Array = NDArray[np.float64]
Ints = NDArray[np.int64]
Ranks = tuple[int, ...] | range
Ways = tuple[str, int]
"""GPU kind and number of the GPUs of the experts."""
Hosts = tuple[Ranks, tuple[ExpertPlacement, ...]]
"""Ranks, and the placements that experts may have on them."""


@dataclass(frozen=True)
class Near:
    """Ways to run attention and dense FFNs on given ranks, with their prices."""

    options: Options
    table: StageTable

    def seconds(self, env: Setting, batch: int) -> Array:
        """Seconds that the attention GPUs spend on a micro-batch, whatever the experts ask of them [A, F]."""
        own, beside = np.zeros(self.options.split.size), np.zeros((len(self.options.splits), len(self.options.ffns)))
        for end in (self.table.embedding, self.table.head):
            beside = beside if end is None else beside + end.seconds[0, batch][:, None]
        for kind, count in enumerate(layers_of_kind(env)):
            own = own + count * self.table.attention[kind].seconds[0, batch]
            if not env.kinds[kind].moe:
                beside = beside + count * self.table.ffn[kind].seconds[0, batch][:, self.table.own[kind]]
        return np.asarray(own[:, None] + beside[self.options.split])


@dataclass(frozen=True)
class NearRows:
    """Options [N] of several attention sides that no proof can do without, side by side, with their bills.

    `split` is the token split in the table of its side; `seconds` of a micro-batch and `bytes` of a GPU leave out what the
    experts ask for; `resident` sequences stay in the cache.
    """

    split: Ints
    shards: Ints
    resident: Array
    seconds: Array
    bytes: Array
    bills: AttentionSide


def near_sides(env: Setting, space: SearchSpace, sequences: tuple[int, ...], places: list[Ranks]) -> dict[Ranks, Near]:
    """The attention sides on given ranks; those without options are left out."""
    options, blocks = dict[Ranks, Options](), list[Block]()
    for ranks in places:
        own = attention_options(space, len(ranks))
        if own is not None:
            options[ranks] = own
            kind = env.cluster.device_kinds[ranks[0]]
            blocks.append(Block(kind, (tuple(ranks),), sequences, own.partitions, own.ffns, own.splits))
    tables = price_blocks(env, blocks) if blocks else []
    return {ranks: Near(own, table) for (ranks, own), table in zip(options.items(), tables, strict=True)}


def near_rows(env: Setting, sizes: Sizes, near: Near, batch: int, branch: Branch) -> NearRows:
    """The options of one side for the micro-batches of a branch."""
    own, table = near.options, near.table
    resident = np.ceil(sizes.batch // branch.replicas / own.parts)
    a, f = needed_pairs(table, batch, own.usable(sizes, branch.sequences), own.split, resident)
    split = own.split[a]

    def taken(bill: Bill | None, *at: Ints) -> Bill:
        if bill is None:
            return Bill(*(np.zeros(a.shape) for _ in fields(Bill)))
        return Bill(*(getattr(bill, field.name)[0, batch][at] for field in fields(Bill)))

    attention = tuple(taken(bill, a) for bill in table.attention)
    dense = tuple(None if kind.moe else taken(table.ffn[i], split, table.own[i][f]) for i, kind in enumerate(env.kinds))
    bills = AttentionSide(attention, dense, taken(table.embedding, split), taken(table.head, split))
    held = _near_bytes(env, bills, table.block.kind, resident[a])
    return NearRows(split, own.shards[a], resident[a], near.seconds(env, batch)[a, f], held, bills)


def _near_bytes(env: Setting, bills: AttentionSide, kind: str, resident: Array) -> Array:
    """Bytes of an attention GPU, but for the residual stream of the micro-batches in flight and what the experts add [N]."""
    weights = bills.embedding.weights + (0.0 if env.model.tied_embeddings else 1.0) * bills.head.weights
    cache, peak = np.zeros(resident.shape), np.maximum(bills.embedding.peak, bills.head.peak)
    for number, count in enumerate(layers_of_kind(env)):
        for bill in (bills.attention[number], bills.dense[number]):
            if bill is not None:
                weights, cache = weights + count * bill.weights, cache + count * bill.cache
                peak = np.maximum(peak, bill.peak)
    return np.asarray(weights + peak + cache * resident + fixed_bytes(env, kind))


@dataclass(frozen=True)
class Far:
    """What the GPUs of the experts do under each placement [Q]: seconds of a micro-batch over all layers, bytes of a GPU."""

    seconds: Array
    bytes: Array


class FarSides:
    """Expert sides by micro-batch size, GPU kind and number of ranks.

    GPUs of experts exchange nothing among themselves: where they stand, and where the tokens come from, changes neither what
    they compute nor what they hold.
    """

    def __init__(self, env: Setting) -> None:
        self.env = env
        self.mixtures = [number for number, kind in enumerate(env.kinds) if kind.moe]

    def price(self, sequences: int, sides: dict[Ways, Hosts]) -> None:
        """Price the sides that are not known yet for a micro-batch size."""
        for kind in dict.fromkeys(kind for kind, _ in sides):
            fresh = {key: side for key, side in sides.items() if key[0] == kind and (sequences, *key) not in self._known}
            if fresh:
                self._price(sequences, kind, fresh)

    def of(self, sequences: int, kind: str, ways: int) -> Far:
        """A side that was priced."""
        return self._known[sequences, kind, ways]

    @cached_property
    def _known(self) -> dict[tuple[int, str, int], Far]:
        return {}

    def _price(
        self, sequences: int, kind: str, sides: dict[tuple[str, int], tuple[Ranks, tuple[ExpertPlacement, ...]]]
    ) -> None:
        placements = list(dict.fromkeys(p for _, own in sides.values() for p in own))
        number = {p: i for i, p in enumerate(placements)}
        placement = np.array([number[p] for _, own in sides.values() for p in own], dtype=np.int64)
        counts = [len(own) for _, own in sides.values()]
        site, none = np.repeat(np.arange(len(counts)), counts), np.zeros_like(placement)
        places = tuple(ranks for ranks, _ in sides.values())
        cases = Cases(
            none + sequences, none + 1, placement, none, site, tuple(placements), (places[0][:1],), places, kind, kind
        )  # fmt: skip
        found = expert_sides(self.env, [self.env.kinds[number] for number in self.mixtures], cases)
        layers = layers_of_kind(self.env)
        bills, layers = [side.experts for side in found], [layers_of_kind(self.env)[number] for number in self.mixtures]
        seconds = np.sum([count * bill.seconds for count, bill in zip(layers, bills, strict=True)], axis=0)
        weights = np.sum([count * bill.weights for count, bill in zip(layers, bills, strict=True)], axis=0)
        peak, arrived = np.max([bill.peak for bill in bills], axis=0), np.max([side.arrived for side in found], axis=0)
        held = weights + peak + TRANSFER_BUFFERS * 2.0 * arrived + fixed_bytes(self.env, kind)
        for key, at in zip(sides, np.split(np.arange(placement.size), np.cumsum(counts)[:-1]), strict=True):
            self._known[sequences, *key] = Far(seconds[at], held[at])


def joined(rows: list[NearRows]) -> NearRows:
    """Rows one after another."""

    def bill(columns: tuple[Bill, ...]) -> Bill:
        return Bill(*(np.concatenate([getattr(column, field.name) for column in columns]) for field in fields(Bill)))

    dense = [tuple(b for b in column if b is not None) for column in zip(*(r.bills.dense for r in rows), strict=True)]
    bills = AttentionSide(
        tuple(bill(column) for column in zip(*(r.bills.attention for r in rows), strict=True)),
        tuple(bill(column) if column else None for column in dense),
        bill(tuple(r.bills.embedding for r in rows)), bill(tuple(r.bills.head for r in rows)),
    )  # fmt: skip
    split, shards = (np.concatenate([getattr(r, name) for r in rows]) for name in ("split", "shards"))
    resident, seconds, held = (np.concatenate([getattr(r, name) for r in rows]) for name in ("resident", "seconds", "bytes"))
    return NearRows(split, shards, resident, seconds, held, bills)


def taken(side: AttentionSide, at: Ints) -> AttentionSide:
    """Some rows of an attention side."""

    def some(bill: Bill) -> Bill:
        return Bill(*(getattr(bill, field.name)[at] for field in fields(Bill)))

    return AttentionSide(
        tuple(map(some, side.attention)), tuple(None if bill is None else some(bill) for bill in side.dense),
        some(side.embedding), some(side.head),
    )  # fmt: skip


@dataclass(frozen=True)
class FarSums:
    """Expert sides [C] summed up over the layers: seconds of a micro-batch on the attention GPUs (what the experts ask of
    them), in dispatch, on the experts' GPUs and in combine.
    """

    near: Array
    dispatch: Array
    experts: Array
    combine: Array


def summed(env: Setting, sides: dict[int, ExpertSide]) -> FarSums:
    """Sums over the layers of every kind of mixture."""
    layers = layers_of_kind(env)

    def total(part: str) -> Array:
        return np.asarray(sum(layers[number] * getattr(side, part) for number, side in sides.items()))

    near = sum(layers[number] * (side.route.seconds + side.finish.seconds) for number, side in sides.items())
    experts = sum(layers[number] * side.experts.seconds for number, side in sides.items())
    return FarSums(np.asarray(near), total("dispatch"), np.asarray(experts), total("combine"))


def layers_of_kind(env: Setting) -> list[int]:
    """How many layers there are of every kind."""
    found: list[int] = np.bincount(np.asarray(env.kind_of_layer), minlength=len(env.kinds)).tolist()
    return found
