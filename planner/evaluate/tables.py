"""Stage tables: what every option of stages of one width costs, role by role, on each site and micro-batch size."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from planner.costs.pricer import RoleBill, Site, Sites
from planner.evaluate.parts import attentions
from planner.evaluate.rows import attention_rows, partition_table
from planner.evaluate.setting import LayerKind, Setting
from planner.graph.attention import attention_role
from planner.graph.experts import MoeTable, moe_rows, moe_tables
from planner.graph.head import embedding_role, head_role, receive_role
from planner.graph.least import EVERYTHING, INTERVALS, least_tables
from planner.graph.mlp import mlp_role
from planner.graph.moe import dispatch_role, local_role
from planner.graph.ops import Role
from planner.graph.rows import FfnRows, Ints, MoeRows
from planner.model import Layer
from search_spaces.attention import AttentionPartition, TokenSplit
from search_spaces.experts import ExpertPlacement

Array = NDArray[np.float64]
NEVER = 1e30
"""Cost of an option that a micro-batch cannot be split by: finite, so that none of it costs nothing."""
FEW_GROUPS = 3
"""Expert groups that may be the largest in something: seconds, routed pairs (tensors), experts (weights)."""
MOST_ROWS = 1_000_000
"""Rows of expert groups that are priced in one pass."""


@dataclass(frozen=True, slots=True)
class Bill:
    """What a role costs: seconds, weight bytes, peak bytes of live tensors, cache bytes per sequence, bytes sent."""

    seconds: Array
    weights: Array
    peak: Array
    cache: Array
    sent: Array

    def reshape(self, *shape: int) -> Bill:
        """The same bill with its rows arranged in `shape`."""
        return Bill(*(getattr(self, f.name).reshape(shape) for f in fields(self)))


@dataclass(frozen=True, slots=True)
class FfnOption:
    """How a stage shares its FFN: ways of the dense one, placement of the experts (None without experts)."""

    mlp_ways: int
    experts: ExpertPlacement | None = None


@dataclass(frozen=True)
class Block:
    """Stages of one width and GPU kind to be priced together.

    `places` are their ranks [sites], `sequences` the micro-batch sizes [batches]; `partitions` [A] and `ffns` [F] the
    options, `splits` [R] the different ways in which the partitions split the residual stream (see `token_split`).
    """

    kind: str
    places: tuple[Site, ...]
    sequences: tuple[int, ...]
    partitions: tuple[AttentionPartition, ...]
    ffns: tuple[FfnOption, ...]
    splits: tuple[TokenSplit, ...]

    @property
    def shards(self) -> tuple[int, ...]:
        """Parts of the residual stream of every split [R]."""
        return tuple(split.shards for split in self.splits)

    @property
    def width(self) -> int:
        """GPUs of a stage."""
        return len(self.places[0])

    @property
    def options(self) -> tuple[object, ...]:
        """Everything but the micro-batch sizes."""
        return self.kind, self.places, self.partitions, self.ffns, self.splits


@dataclass(frozen=True)
class StageTable:
    """Bills of a block: attention per layer kind [sites, batches, A]; FFN per layer kind [sites, batches, R, U];
    embedding, receive and head [sites, batches, R] (None where the model has none).

    A dense FFN asks only for the ways of an option, a mixture only for its placement: `own[kind]` [F] numbers the U
    different ones that a layer kind tells apart.
    """

    block: Block
    attention: tuple[Bill, ...]
    ffn: tuple[Bill, ...]
    own: tuple[Ints, ...]
    embedding: Bill | None
    receive: Bill
    head: Bill | None


def price_blocks(env: Setting, blocks: Sequence[Block]) -> list[StageTable]:
    """Price all blocks; roles of equal topology are priced in one pass over all blocks of a GPU kind."""
    tables: dict[int, StageTable] = {}
    for kind in dict.fromkeys(block.kind for block in blocks):
        chosen = [i for i, block in enumerate(blocks) if block.kind == kind]
        for index, table in zip(chosen, _price_kind(env, kind, [blocks[i] for i in chosen]), strict=True):
            tables[index] = table
    return [tables[i] for i in range(len(blocks))]


def _price_kind(env: Setting, kind: str, blocks: list[Block]) -> list[StageTable]:
    laid = [[[split.laid(place) for split in block.splits] for place in block.places] for block in blocks]
    places = tuple(dict.fromkeys(place for block in laid for row in block for place in row))
    number = {place: i for i, place in enumerate(places)}
    sites = [np.array([[number[place] for place in row] for row in block], dtype=np.int64) for block in laid]
    pricing = _Pricing(env, kind, places)
    own = [(kind.layer.attention, kind.layer.norms) for kind in env.kinds]  # of a layer attention depends on nothing else
    alike = {key: pricing.attention(blocks, sites, kind) for key, kind in dict(zip(own, env.kinds, strict=True)).items()}
    attention = [alike[key] for key in own]
    ffn = pricing.ffns(blocks, sites)
    embedding = pricing.ends(blocks, sites, embedding_role) if env.has_embedding else [None] * len(blocks)
    receive = pricing.ends(blocks, sites, receive_role)
    head = pricing.ends(blocks, sites, pricing.head) if env.has_head else [None] * len(blocks)
    return [
        StageTable(
            block,
            tuple(a[i] for a in attention),
            tuple(f[i] for f in ffn),
            tuple(_told_apart(block, k.layer)[1] for k in env.kinds),
            embedding[i],
            receive[i],
            head[i],
        )
        for i, block in enumerate(blocks)
    ]


class _Pricing:
    """Prices the cases of many blocks of one GPU kind together.

    `places` are ranks in the order of a grid; `sites` of a block [sites, R] number those of each token split.
    """

    def __init__(self, env: Setting, kind: str, places: tuple[Site, ...]) -> None:
        self.env, self.kind, self.places = env, kind, places

    def attention(self, blocks: list[Block], sites: list[Ints], layer: LayerKind) -> list[Bill]:
        """Attention bills [sites, batches, A] of each block."""
        phase = self.env.workload.phase
        partitions = list(dict.fromkeys(p for block in blocks for p in block.partitions))
        number = {p: i for i, p in enumerate(partitions)}
        options = [np.array([number[p] for p in block.partitions], dtype=np.int64) for block in blocks]
        laid = [s[:, _split_of(block)] for s, block in zip(sites, blocks, strict=True)]
        case = _cases(zip(laid, (block.sequences for block in blocks), options, strict=True))
        legal = np.nonzero(case[1] % np.array([p.batch_parts for p in partitions], dtype=np.int64)[case[2]] == 0)[0]
        few = attentions(self.env.cluster, self.places, partitions, *(column[legal] for column in case))
        table = partition_table(few.partitions, layer.layer.attention, phase)
        row, entry, starts = expand_cases(table.owner, few.option)

        def build(at: Ints) -> Role:
            rows = attention_rows(table, entry[at], few.sequences[row[at]])
            return attention_role(self.env.context, layer.layer, table.signatures[entry[at[0]]], rows)

        groups = {signature: i for i, signature in enumerate(dict.fromkeys(table.signatures))}
        group = np.array([groups[s] for s in table.signatures], dtype=np.int64)[entry]
        found = reduce_cases(self._by_group(group, few.site[row], build, few.places), starts)
        bill = Bill(*(np.full(case[0].shape, NEVER) for _ in fields(Bill)))
        for f in fields(Bill):
            getattr(bill, f.name)[legal] = getattr(found, f.name)[few.of]
        return _split(bill, [(len(b.places), len(b.sequences), len(b.partitions)) for b in blocks])

    def ffns(self, blocks: list[Block], sites: list[Ints]) -> list[list[Bill]]:
        """FFN bills of every layer kind; kinds that differ in their expert loads alone are priced together."""
        alike: dict[Layer, list[int]] = {}
        for index, kind in enumerate(self.env.kinds):
            alike.setdefault(kind.layer, []).append(index)
        found: dict[int, list[Bill]] = {}
        for layer, same in alike.items():
            found.update(zip(same, self._ffn(blocks, sites, layer, [self.env.kinds[i] for i in same]), strict=True))
        return [found[index] for index in range(len(self.env.kinds))]

    def _ffn(self, blocks: list[Block], sites: list[Ints], layer: Layer, kinds: list[LayerKind]) -> list[list[Bill]]:
        """FFN bills [sites, batches, R, U] of each block, for each of the kinds, which differ in their expert loads."""
        own = [_told_apart(block, layer)[0] for block in blocks]
        shapes = [(len(b.places), len(b.sequences), len(b.shards), len(u)) for b, u in zip(blocks, own, strict=True)]
        options = [np.arange(len(b.shards) * len(u)) for b, u in zip(blocks, own, strict=True)]
        laid = [np.repeat(s, len(u), axis=1) for s, u in zip(sites, own, strict=True)]
        case = _cases(zip(laid, (b.sequences for b in blocks), options, strict=True))
        sizes = [int(np.prod(shape)) for shape in shapes]
        width = np.repeat([b.width for b in blocks], sizes)
        chunks = list(zip(blocks, own, np.split(case[2], np.cumsum(sizes)[:-1]), strict=True))
        shards = np.concatenate([np.asarray(b.shards)[c // len(u)] for b, u, c in chunks])
        ffn = [u[i] for _, u, c in chunks for i in (c % len(u)).tolist()]
        tokens = case[1] * self.env.query_length
        if layer.ffn.kind == "moe":
            step = max(1, MOST_ROWS // max(1, int(width.sum())))
            some = (kinds[at : at + step] for at in range(0, len(kinds), step))
            bills = [bill for few in some for bill in self._moe(layer, few, case[0], tokens, width, shards, ffn)]
        else:
            ways = np.array([f.mlp_ways for f in ffn], dtype=np.int64)
            rows = FfnRows(tokens, width, shards, ways, np.zeros_like(ways))
            bills = [self._bill(mlp_role(self.env.context, layer, rows), case[0])] * len(kinds)
        return [_split(bill, shapes) for bill in bills]

    def _moe(
        self, layer: Layer, kinds: list[LayerKind], site: Ints, tokens: Ints, width: Ints, shards: Ints, ffn: list[FfnOption]
    ) -> list[Bill]:
        """Bills of cases for each load: of the groups of GPUs that hold different experts the largest."""
        loads = [kind.load for kind in kinds]
        keys = [(id(f), int(w)) for f, w in zip(ffn, width, strict=True)]  # a placement is long: not to be hashed for each case
        option = {id(f): f.experts or ExpertPlacement() for f in ffn}
        distinct = [(option[key], w) for key, w in dict.fromkeys(keys)]
        number = {key: i for i, key in enumerate(dict.fromkeys(keys))}
        own, count = np.array([number[key] for key in keys], dtype=np.int64), len(distinct)
        form = np.array([placement.form == "dispatch" for placement, _ in distinct], dtype=np.int64)
        if self.env.any_placement:
            each = INTERVALS if form.any() else (EVERYTHING,)
            tables = [least_tables(layer.ffn, distinct, loads, part, self.env.cluster.neighbours) for part in each]
        else:
            tables = [moe_tables(layer.ffn, distinct, loads, [kind.row for kind in kinds])]
        found = [self._placed(layer, table, form[table.owner % count], own, site, tokens, width, shards) for table in tables]
        least = Bill(*(np.minimum.reduce([getattr(bill, f.name) for bill in found]) for f in fields(Bill)))
        bills = [
            Bill(*(getattr(least, f.name)[at : at + own.size] for f in fields(Bill)))
            for at in range(0, own.size * len(loads), own.size)
        ]
        return self._raised(bills, kinds, distinct, own, site, tokens, shards) if self.env.least else bills

    def _raised(
        self, bills: list[Bill], kinds: list[LayerKind], distinct: list[tuple[ExpertPlacement, int]], own: Ints, site: Ints,
        tokens: Ints, shards: Ints,
    ) -> list[Bill]:  # fmt: skip
        """Bills of any placement with the seconds that are known more exactly; `own` are the cases' options in `distinct`."""
        looks = [self.env.pricer.places.look(place) for place in self.places]
        seconds = [np.array(bill.seconds) for bill in bills]
        for case, known in self.env.least:
            options = [(p.form, p.tensor_ways) == (case.form, case.tensor_ways) for p, _ in distinct]
            there = np.array([look == case.look for look in looks])[site] & (self.kind == case.kind)
            at = there & np.array(options)[own] & (tokens == case.tokens) & (shards == case.shards)
            for own_seconds, kind in zip(seconds, kinds, strict=True):
                if kind == case.layer:
                    own_seconds[at] = np.maximum(own_seconds[at], known)
        return [replace(bill, seconds=one) for bill, one in zip(bills, seconds, strict=True)]

    def _placed(
        self, layer: Layer, table: MoeTable, dispatched: Ints, own: Ints, site: Ints, tokens: Ints, width: Ints, shards: Ints
    ) -> Bill:
        """The bill of every case under each load in turn; `own` are the cases' owners in the table under the first load,
        `dispatched` [entries] says whether tokens travel.
        """
        count = int(own.max(initial=0)) + 1
        loads = (int(table.owner.max(initial=0)) + 1) // count

        def rows_of(entry: Ints, case: Ints) -> MoeRows:
            return moe_rows(table, entry, tokens[case], width[case], shards[case], layer.ffn.top_k)

        def price(entry: Ints, case: Ints) -> Bill:
            def build(at: Ints) -> Role:
                role = dispatch_role if dispatched[entry[at[0]]] else local_role
                return role(self.env.context, layer, rows_of(entry[at], case[at]))

            return self._by_group(dispatched[entry], site[case], build)

        def expanded(some: Ints) -> tuple[Ints, Ints, Ints]:
            every = (np.arange(loads)[:, None] * count + own[some]).ravel()
            row, entry, starts = expand_cases(table.owner, every)
            return some[row % some.size], entry, starts

        first, alike = np.unique(own * (int(tokens.max(initial=0)) + 1) + tokens, return_index=True, return_inverse=True)[1:]
        if table.owner.size <= 2 * FEW_GROUPS * count * loads:
            case, entry, starts = expanded(np.arange(own.size))
        else:  # which groups are the largest does not depend on where a stage stands, nor on how its tokens come
            case, entry, starts = expanded(first)
            routed = rows_of(entry, case).routed
            chosen = largest((price(entry, case).seconds, routed, table.experts[entry]), starts)
            chosen = np.sort(entry[chosen], axis=1).reshape(loads, first.size, FEW_GROUPS)[:, alike.ravel()]
            other = np.diff(chosen, axis=2, prepend=-1) > 0
            case = np.repeat(np.tile(np.arange(own.size), loads), other.sum(axis=2).ravel())
            entry, starts = chosen[other], np.cumsum(other.sum(axis=2).ravel()) - other.sum(axis=2).ravel()
        return reduce_cases(price(entry, case), starts)

    def ends(self, blocks: list[Block], sites: list[Ints], build: Callable[..., Role]) -> list[Bill]:
        """Bills [sites, batches, R] of a role at the ends of stages."""
        shapes = [(len(b.places), len(b.sequences), len(b.shards)) for b in blocks]
        case = _cases(zip(sites, (b.sequences for b in blocks), (np.asarray(b.shards) for b in blocks), strict=True))
        width = np.repeat([b.width for b in blocks], [int(np.prod(shape)) for shape in shapes])
        rows = FfnRows(case[1] * self.env.query_length, width, case[2], width, np.zeros_like(width))
        return _split(self._bill(build(self.env.context, rows), case[0]), shapes)

    def head(self, context: object, rows: FfnRows) -> Role:
        """The head role; its tokens are the sequences of the micro-batch unless all logits are wanted."""
        return head_role(self.env.context, rows, rows.tokens // self.env.query_length)

    def _by_group(self, group: Ints, site: Ints, build: Callable[[Ints], Role], places: tuple[Site, ...] | None = None) -> Bill:
        """Bills of rows that are built and priced group by group."""
        columns = [np.zeros(group.shape) for _ in fields(Bill)]
        for value in np.unique(group):
            at = np.nonzero(group == value)[0]
            bill = self._bill(build(at), site[at], places)
            for column, field in zip(columns, fields(Bill), strict=True):
                column[at] = getattr(bill, field.name)
        return Bill(*columns)

    def _bill(self, role: Role, site: Ints, places: tuple[Site, ...] | None = None) -> Bill:
        return to_bill(self.env.pricer.bill(role, Sites(places or self.places, site, self.kind)), site.shape)


def to_bill(found: RoleBill, shape: tuple[int, ...]) -> Bill:
    """The totals of a role's bill, every row spelled out."""
    parts = (found.seconds, found.weight_bytes, found.peak_bytes, found.kv_bytes, found.sent_bytes)
    return Bill(*(np.broadcast_to(part, shape) for part in parts))


def _split_of(block: Block) -> Ints:
    """The token split of every partition [A], as an index of the block's."""
    if len(block.splits) == 1:
        return np.zeros(len(block.partitions), dtype=np.int64)
    number = {split[1:]: i for i, split in enumerate(block.splits)}  # the ranks do not depend on the number of shards
    return np.array([number[p.spread] for p in block.partitions], dtype=np.int64)


def _cases(parts: object) -> tuple[Ints, Ints, Ints]:
    """Site, sequences and option of every case: for each part the product of sites, sequences and options, one after another;
    its sites are [sites, options], as an option may want the ranks in an order of its own.
    """
    columns: tuple[list[Ints], list[Ints], list[Ints]] = ([], [], [])
    for sites, sequences, options in parts:  # type: ignore[attr-defined]
        shape = (sites.shape[0], len(sequences), len(options))
        every = (sites[:, None, :], np.asarray(sequences, dtype=np.int64)[None, :, None], np.asarray(options)[None, None, :])
        for column, axis in zip(columns, every, strict=True):
            column.append(np.broadcast_to(axis, shape).ravel())
    return np.concatenate(columns[0]), np.concatenate(columns[1]), np.concatenate(columns[2])


def expand_cases(owner: Ints, case_option: Ints) -> tuple[Ints, Ints, Ints]:
    """Rows for cases whose option has several entries: case of each row, entry of each row, first row of each case."""
    first = np.searchsorted(owner, np.arange(int(owner.max(initial=0)) + 2))
    count = (first[1:] - first[:-1])[case_option]
    starts = np.concatenate(([0], np.cumsum(count)[:-1]))
    row = np.repeat(np.arange(case_option.size), count)
    entry = first[case_option][row] + np.arange(row.size) - starts[row]
    return row, entry, starts


def largest(columns: tuple[NDArray[Any], ...], starts: Ints) -> Ints:
    """For every case the first row with the largest value in each of the columns [cases, columns]."""
    rows = columns[0].size
    counts = np.diff(np.append(starts, rows))
    case = np.repeat(np.arange(starts.size), counts)
    found = []
    for column in columns:
        at = np.nonzero(column == np.repeat(np.maximum.reduceat(column, starts), counts))[0]
        found.append(at[np.unique(case[at], return_index=True)[1]])
    return np.stack(found, axis=1)


def reduce_cases(bill: Bill, starts: Ints) -> Bill:
    """The largest entry of every case."""
    if starts.size == bill.seconds.size:
        return bill
    return Bill(*(np.maximum.reduceat(getattr(bill, f.name), starts) for f in fields(Bill)))


def _split(bill: Bill, shapes: Sequence[tuple[int, ...]]) -> list[Bill]:
    """One bill per block, in the block's shape."""
    ends = np.cumsum([int(np.prod(shape)) for shape in shapes])
    columns = [np.split(getattr(bill, f.name), ends[:-1]) for f in fields(Bill)]
    return [Bill(*(column[i].reshape(shape) for column in columns)) for i, shape in enumerate(shapes)]


def _told_apart(block: Block, layer: Layer) -> tuple[list[FfnOption], Ints]:
    """The FFN options that a layer tells apart [U], each by its first option, and the one of each option [F]."""
    keys: list[object] = [f.experts if layer.ffn.kind == "moe" else f.mlp_ways for f in block.ffns]
    first = {key: f for key, f in reversed(list(zip(keys, block.ffns, strict=True)))}
    order = {key: i for i, key in enumerate(dict.fromkeys(keys))}
    return [first[key] for key in order], np.array([order[key] for key in keys], dtype=np.int64)
