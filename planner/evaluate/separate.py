"""Attention and experts on GPUs of their own: the four machines (attention, dispatch, experts, combine) and their makespan."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace

import numpy as np
from numpy.typing import NDArray

from planner.costs.memory import COLLECTIVE_BYTES, reserve_bytes
from planner.costs.pricer import Site, Sites
from planner.evaluate.pipeline import crossing_share
from planner.evaluate.setting import LayerKind, Setting
from planner.evaluate.tables import MOST_ROWS, Bill, expand_cases, reduce_cases, to_bill
from planner.graph.experts import MoeTable, moe_rows, moe_tables
from planner.graph.least import least_tables
from planner.graph.moe import expert_role, return_role, route_role, transfer_bytes
from planner.graph.rows import Ints, MoeRows
from planner.model import Layer
from search_spaces.experts import ExpertPlacement

Array = NDArray[np.float64]
MACHINES = 4
Price = Callable[..., list[Array]]
TRANSFER_BUFFERS = 2  # micro-batches whose tokens wait on an expert GPU


@dataclass(frozen=True)
class Times:
    """Durations of one micro-batch: attention tasks [positions + 1, N]; dispatch, experts and combine [positions, N].

    Position p is the p-th mixture layer: task p of the attention side runs up to its routing, the last one to the end.
    """

    attention: Array
    dispatch: Array
    experts: Array
    combine: Array

    @property
    def bound(self) -> tuple[Array, Array]:
        """(chain of one micro-batch, load of the busiest machine per micro-batch), each [N]."""
        loads = [part.sum(axis=0) for part in (self.attention, self.dispatch, self.experts, self.combine)]
        return np.sum(loads, axis=0), np.max(loads, axis=0)

    def take(self, index: Ints) -> Times:
        """The durations of some columns."""
        return Times(self.attention[:, index], self.dispatch[:, index], self.experts[:, index], self.combine[:, index])


def separate_makespan(times: Times, micro_batches: int, in_flight: int) -> Array:
    """Seconds until the last micro-batch ends [N], `in_flight` micro-batches in one wave.

    Each machine takes position 0 of all micro-batches of a wave, then position 1, and so on, wave after wave. One wave
    is a linear map (max, +) of the times at which the machines come free, so the waves are a power of its matrix.
    """
    power = _power(_wave_matrix(times, in_flight), micro_batches // in_flight)
    return np.asarray(power[0].max(axis=0))


def _wave_matrix(times: Times, in_flight: int) -> Array:
    """Matrix [to, from, N]: when machine `to` comes free after a wave if machine `from` is free at 0 and no other binds."""
    count = times.attention.shape[1]
    free = np.full((MACHINES, MACHINES, count), -np.inf)
    free[np.arange(MACHINES), np.arange(MACHINES)] = 0.0
    ready = [np.full((MACHINES, count), -np.inf)] * in_flight
    for position in range(times.attention.shape[0]):
        for micro in range(in_flight):
            free[0] = np.maximum(free[0], ready[micro]) + times.attention[position]
            if position == times.dispatch.shape[0]:
                continue
            free[1] = np.maximum(free[1], free[0]) + times.dispatch[position]
            free[2] = np.maximum(free[2], free[1]) + times.experts[position]
            free[3] = np.maximum(free[3], free[2]) + times.combine[position]
            ready[micro] = free[3].copy()
    return free


def _power(matrix: Array, exponent: int) -> Array:
    """The exponent-th power of a (max, +) matrix [to, from, N]."""
    result, square = None, matrix
    while exponent:
        if exponent & 1:
            result = square if result is None else _times(square, result)
        exponent >>= 1
        if exponent:
            square = _times(square, square)
    if result is None:
        raise ValueError("at least one wave")
    return result


def _times(left: Array, right: Array) -> Array:
    """(max, +) product of two matrices [4, 4, N]."""
    return np.asarray(np.max(left[:, :, None, :] + right[None, :, :, :], axis=1))


@dataclass(frozen=True)
class Cases:
    """Stages with experts apart, to be priced together; every array [N] indexes the tuples beside it.

    `sequences` of a micro-batch and `shards` of the residual stream are plain numbers per case.
    """

    sequences: Ints
    shards: Ints
    placement: Ints
    attention_site: Ints
    expert_site: Ints
    placements: tuple[ExpertPlacement, ...]
    attention_places: tuple[Site, ...]
    expert_places: tuple[Site, ...]
    attention_kind: str
    expert_kind: str


@dataclass(frozen=True)
class ExpertSide:
    """One mixture layer with its experts apart, per case [N]: bills of routing, return and experts, seconds of transfers,
    and the bytes that the fullest expert GPU receives for one micro-batch.
    """

    route: Bill
    finish: Bill
    experts: Bill
    dispatch: Array
    combine: Array
    arrived: Array

    def take(self, index: Ints) -> ExpertSide:
        """Some cases, in the order of `index`."""

        def taken(bill: Bill) -> Bill:
            return Bill(*(getattr(bill, f.name)[index] for f in fields(Bill)))

        times = self.dispatch[index], self.combine[index]
        return ExpertSide(taken(self.route), taken(self.finish), taken(self.experts), times[0], times[1], self.arrived[index])


def expert_side(env: Setting, layer: LayerKind, cases: Cases) -> ExpertSide:
    """Price one kind of mixture layer for every case; where expert groups differ the slowest counts."""
    return expert_sides(env, [layer], cases)[0]


def expert_sides(env: Setting, layers: Sequence[LayerKind], cases: Cases) -> list[ExpertSide]:
    """The same for several kinds; those that differ in their expert loads alone are priced in one pass."""
    return [_expert_side(columns) for columns in _priced(env, layers, cases, _side, 3 * len(fields(Bill)) + 3)]


def expert_floors(
    env: Setting, kind: str, layers: Sequence[LayerKind], sides: Sequence[tuple[Site, Sequence[ExpertPlacement]]],
    sequences: Sequence[int],
) -> list[Array]:  # fmt: skip
    """Least seconds of the experts of a layer of each kind [batches, sides], of any of the placements on the ranks of a side.

    All ranks are of one GPU `kind`. Where expert loads differ it is what no placement on as many GPUs goes below.
    """
    placements = tuple(dict.fromkeys(placement for _, own in sides for placement in own))
    if any(layer.load for layer in layers):
        env = replace(env, any_placement=True)
        alike = {(p.tensor_ways, p.router_side): p for p in placements}
        placements = tuple(alike.values())
        sides = [
            (site, [alike[key] for key in dict.fromkeys((p.tensor_ways, p.router_side) for p in own)]) for site, own in sides
        ]
    number = {placement: i for i, placement in enumerate(placements)}
    placement = np.array([number[p] for _, own in sides for p in own], dtype=np.int64)
    site = np.repeat(np.arange(len(sides)), [len(own) for _, own in sides])
    sites, batches = tuple(ranks for ranks, _ in sides), len(sequences)
    every = np.repeat(np.asarray(sequences, dtype=np.int64), site.size)
    where, none = np.tile(site, batches), np.ones_like(every)
    cases = Cases(every, none, np.tile(placement, batches), where, where, placements, sites, sites, kind, kind)
    starts = np.searchsorted(site, np.arange(len(sides)))
    found = _priced(env, layers, cases, _experts_alone, 1)
    return [np.minimum.reduceat(seconds.reshape(batches, site.size), starts, axis=1) for (seconds,) in found]


def _priced(env: Setting, layers: Sequence[LayerKind], cases: Cases, price: Price, width: int) -> list[list[Array]]:
    """The `width` columns [N] that are asked for, of each kind of mixture layer."""
    alike: dict[Layer, list[int]] = {}
    for index, kind in enumerate(layers):
        alike.setdefault(kind.layer, []).append(index)
    found: dict[int, list[Array]] = {}
    step = _at_once(cases)
    for layer, same in alike.items():
        for some in (same[at : at + step] for at in range(0, len(same), step)):
            found.update(zip(some, _loads(env, layer, [layers[i] for i in some], cases, price, width), strict=True))
    return [found[index] for index in range(len(layers))]


def _at_once(cases: Cases) -> int:
    """Loads that are priced in one pass."""
    groups = max((len(place) for place in cases.expert_places), default=1)
    return max(1, MOST_ROWS // max(1, cases.sequences.size * groups))


def _loads(
    env: Setting, layer: Layer, kinds: list[LayerKind], cases: Cases, price: Price, width: int
) -> list[list[Array]]:  # fmt: skip
    """Equal layers under several expert loads."""
    count, size = len(kinds), cases.sequences.size
    expert_ways = np.array([len(p) for p in cases.expert_places])[cases.expert_site]
    pairs = list(zip(cases.placement.tolist(), expert_ways.tolist(), strict=True))
    distinct = list(dict.fromkeys(pairs))
    placed, loads = [(cases.placements[p], w) for p, w in distinct], [kind.load for kind in kinds]
    if env.any_placement:
        table = least_tables(layer.ffn, placed, loads)
    else:
        table = moe_tables(layer.ffn, placed, loads, [kind.row for kind in kinds])
    number = {pair: i for i, pair in enumerate(distinct)}
    own = np.array([number[pair] for pair in pairs], dtype=np.int64)
    on_attention = np.array([p.router_side == "attention" for p in cases.placements])[cases.placement]
    columns = [np.zeros((count, size)) for _ in range(width)]
    for side in (True, False):
        at = np.nonzero(on_attention == side)[0]
        if at.size:
            found = price(env, layer, _taken(cases, at), table, np.arange(count)[:, None] * len(distinct) + own[at], side)
            for column, values in zip(columns, found, strict=True):
                column[:, at] = values.reshape(count, at.size)
    return [[column[i] for column in columns] for i in range(count)]


def _taken(cases: Cases, at: Ints) -> Cases:
    """Some of the cases."""
    names = ("sequences", "shards", "placement", "attention_site", "expert_site")
    return replace(cases, **{name: getattr(cases, name)[at] for name in names})


def _expert_side(columns: list[Array]) -> ExpertSide:
    width = len(fields(Bill))
    route, finish, experts = (Bill(*columns[at : at + width]) for at in (0, width, 2 * width))
    return ExpertSide(route, finish, experts, *columns[3 * width :])


def _side(env: Setting, layer: Layer, cases: Cases, table: MoeTable, options: Ints, on_attention: bool) -> list[Array]:
    """Columns of an `ExpertSide` for cases whose router sits on the same side, under several loads: `options` [loads, cases]
    are owners in the table. What the GPUs of the experts do depends on the owner, the tokens and their ranks alone.
    """
    loads, size = options.shape
    ctx, pricer, base = env.context, env.pricer, int(cases.sequences.max(initial=0)) + 1
    case, option, tokens = np.tile(np.arange(size), loads), options.ravel(), cases.sequences * env.query_length
    ways = np.array([len(p) for p in cases.attention_places])[cases.attention_site]
    alike = (option * base + cases.sequences[case]) * len(cases.expert_places) + cases.expert_site[case]
    first, inverse = np.unique(alike, return_index=True, return_inverse=True)[1:]
    experts, rows, entry, starts = _experts(env, layer, cases, table, (case[first], option[first]), on_attention)
    received, back_received = (
        np.maximum.reduceat(np.asarray(transfer_bytes(ctx, rows, router)[1], dtype=np.float64), starts)[inverse.ravel()]
        for router in (on_attention, True)
    )
    lead = entry[starts][inverse.ravel()]
    rows = moe_rows(table, lead, tokens[case], ways[case], cases.shards[case], layer.ffn.top_k)
    near = Sites(cases.attention_places, cases.attention_site[case], cases.attention_kind)
    sent, back_sent = (transfer_bytes(ctx, rows, router)[0] for router in (on_attention, True))
    bills = [
        to_bill(pricer.bill(route_role(ctx, layer, rows, on_attention), near), case.shape),
        to_bill(pricer.bill(return_role(ctx, layer, rows), near), case.shape),
        Bill(*(getattr(experts, field.name)[inverse.ravel()] for field in fields(Bill))),
    ]
    crossing, m2n = _crossing(env, cases)[case], pricer.collectives.m2n_time
    return [
        *(getattr(bill, field.name) for bill in bills for field in fields(Bill)),
        m2n(sent, received, rows.ways, rows.expert_ways, crossing),
        m2n(back_received, back_sent, rows.expert_ways, rows.ways, crossing),
        received,
    ]


def _experts(
    env: Setting, layer: Layer, cases: Cases, table: MoeTable, at: tuple[Ints, Ints], on_attention: bool
) -> tuple[Bill, MoeRows, Ints, Ints]:
    """The bills of the GPUs of the experts for (case, option) pairs, with their rows: entry of each, first of each pair."""
    row, entry, starts = expand_cases(table.owner, at[1])
    here = at[0][row]
    ways = np.array([len(p) for p in cases.attention_places])[cases.attention_site[here]]
    rows = moe_rows(table, entry, cases.sequences[here] * env.query_length, ways, cases.shards[here], layer.ffn.top_k)
    far = Sites(cases.expert_places, cases.expert_site[here], cases.expert_kind)
    bill = to_bill(env.pricer.bill(expert_role(env.context, layer, rows, on_attention), far), row.shape)
    return reduce_cases(bill, starts), rows, entry, starts


def _experts_alone(env: Setting, layer: Layer, cases: Cases, table: MoeTable, options: Ints, on_attention: bool) -> list[Array]:
    """Seconds of the GPUs of the experts, as the one column of a `Price`."""
    case = np.tile(np.arange(options.shape[1]), options.shape[0])
    return [_experts(env, layer, cases, table, (case, options.ravel()), on_attention)[0].seconds]


def _crossing(env: Setting, cases: Cases) -> Array:
    """Largest share of any GPU's tokens that leaves its domain [N]."""
    pairs, inverse = np.unique(np.stack([cases.attention_site, cases.expert_site]), axis=1, return_inverse=True)
    places = cases.attention_places, cases.expert_places
    found = [crossing_share(env.pricer.places.domain_of, places[0][a], places[1][e]) for a, e in pairs.T]
    return np.array(found)[inverse.ravel()]


@dataclass(frozen=True)
class AttentionSide:
    """Bills of the attention GPUs per case [N]: attention and dense FFN per layer kind (None for a mixture), both ends."""

    attention: tuple[Bill, ...]
    dense: tuple[Bill | None, ...]
    embedding: Bill
    head: Bill


@dataclass(frozen=True)
class SeparatePrice:
    """Times of the four machines, bytes of the fullest GPU on each side, bytes sent: per case [N].

    `held_bytes` are what an attention GPU needs besides for every micro-batch in flight.
    """

    times: Times
    attention_bytes: Array
    held_bytes: Array
    expert_bytes: Array
    sent: Array


def separate_price(
    env: Setting, near: AttentionSide, far: dict[int, ExpertSide], cases: Cases, resident: Array
) -> SeparatePrice:
    """Add the layers up to tasks and bytes. `far` has an entry per mixture kind, `resident` the sequences in the cache."""
    tasks, dispatch, experts, combine = [near.embedding.seconds], [], [], []
    weights = [near.embedding.weights + (0.0 if env.model.tied_embeddings else 1.0) * near.head.weights]
    peak, cache, sent = near.embedding.peak, np.zeros(near.head.peak.shape), near.head.sent
    far_weights, far_peak = np.zeros(near.head.peak.shape), np.zeros(near.head.peak.shape)
    arrived = np.zeros(near.head.peak.shape)
    for kind in env.kind_of_layer:
        block, dense = near.attention[kind], near.dense[kind]
        tasks[-1] = tasks[-1] + block.seconds
        own = [block]
        if dense is not None:
            tasks[-1] = tasks[-1] + dense.seconds
            own.append(dense)
        else:
            side = far[kind]
            tasks[-1] = tasks[-1] + side.route.seconds
            tasks.append(side.finish.seconds)
            dispatch.append(side.dispatch)
            experts.append(side.experts.seconds)
            combine.append(side.combine)
            own += [side.route, side.finish]
            far_weights, far_peak = far_weights + side.experts.weights, np.maximum(far_peak, side.experts.peak)
            arrived = np.maximum(arrived, side.arrived)
            sent = sent + 2.0 * side.arrived
        for bill in own:
            weights.append(bill.weights)
            peak, cache, sent = np.maximum(peak, bill.peak), cache + bill.cache, sent + bill.sent
    tasks[-1] = tasks[-1] + near.head.seconds
    near_bytes = (
        np.sum(weights, axis=0) + np.maximum(peak, near.head.peak) + cache * resident + fixed_bytes(env, cases.attention_kind)
    )
    far_bytes = far_weights + far_peak + TRANSFER_BUFFERS * 2.0 * arrived + fixed_bytes(env, cases.expert_kind)
    times = Times(np.array(tasks), np.array(dispatch), np.array(experts), np.array(combine))
    return SeparatePrice(times, near_bytes, _held_bytes(env, cases), np.asarray(far_bytes), np.asarray(sent))


def _held_bytes(env: Setting, cases: Cases) -> Array:
    """Residual stream of one micro-batch on one attention GPU while its experts run."""
    tokens = -(-cases.sequences * env.query_length // cases.shards)
    return np.asarray(env.context.tensor("", tokens, env.model.hidden).bytes)


def fixed_bytes(env: Setting, kind: str) -> float:
    """Reserve and transfer buffers of a GPU."""
    return reserve_bytes(env.cluster.kinds[kind]) + COLLECTIVE_BYTES
