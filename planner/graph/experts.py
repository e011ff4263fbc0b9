"""Rows of a mixture of experts: what each different group of GPUs, or each GPU, holds of a placement and gets of the load."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from planner.graph.flows import Floor, Flow, Flows, chance
from planner.graph.rows import Ints, MoeRows
from planner.model import Ffn, ModelSpec
from planner.workload import Workload
from search_spaces.experts import ExpertPlacement, Placement, contiguous_placement, of_row
from search_spaces.stages import StageChoice

Load = tuple[float, ...]


def layer_rows(model: ModelSpec, workload: Workload) -> tuple[int, ...]:
    """For every layer which entry of a placement by layer is its own (0 without experts): layers with equal loads have the
    first one's.
    """
    moe = [layer.ffn.kind == "moe" for layer in model.layers]
    rows = iter(workload.load_rows(sum(moe)))
    return tuple(next(rows) if mixture else 0 for mixture in moe)


def layer_loads(model: ModelSpec, workload: Workload) -> tuple[Load, ...]:
    """Expert loads of every layer, empty where equal; the rows of the workload's histogram go to MoE layers in turn."""
    loads, found, moe = workload.expert_load, [], 0
    for layer in model.layers:
        load: Load = ()
        if layer.ffn.kind == "moe" and loads:
            load = loads[moe % len(loads)]
            moe += 1
        found.append(load)
    return tuple(found)


@dataclass(frozen=True, slots=True)
class MoeTable:
    """Placements as columns, one entry per class of expert group; `owner` is the placement of each entry, `first` the
    place of the first GPU of its class in the stage. `spread` and `reach` are those of the whole placement (see `MoeRows`).
    `part` is 1, or what part of the reads of all its experts an entry of a bound has (`planner.graph.least`). `flows` has one
    for each owner.
    """

    owner: Ints
    expert_ways: Ints
    tensor_ways: Ints
    experts: Ints
    first: Ints
    spread: NDArray[np.float64]
    reach: NDArray[np.float64]
    shares: NDArray[np.float64]
    part: NDArray[np.float64]
    flows: tuple[Flow | Floor | None, ...]


def moe_table(ffn: Ffn, placements: Sequence[tuple[ExpertPlacement, int]], load: Load, row: int = 0) -> MoeTable:
    """(placement, GPUs that hold experts) pairs as columns; `shares` has shape [entries, most experts], zero-padded. `row` is
    the layer's entry of a placement by layer.
    """
    return moe_tables(ffn, placements, [load], [row])


def moe_tables(
    ffn: Ffn, placements: Sequence[tuple[ExpertPlacement, int]], loads: Sequence[Load], rows: Sequence[int] = (0,)
) -> MoeTable:
    """The same for several loads and their layers' entries of a placement by layer, one after another: the owner of an entry
    is its placement, counted on from load to load.
    """
    weights = np.array([load or (1.0,) * ffn.experts for load in loads]).reshape(len(loads), ffn.experts)
    weights = weights / weights.sum(axis=1, keepdims=True)
    even = np.array([not load for load in loads], dtype=bool)
    if len(loads) == 1 and not loads[0]:
        alike = [replace(p.at(rows[0]), form="local", devices=0, router_side="attention") for p, _ in placements]
        parts = [_plain_entries(ffn, placement, ways) for placement, (_, ways) in zip(alike, placements, strict=True)]
    else:
        parts = [_row_entries(ffn, placement, ways, weights, even, rows) for placement, ways in placements]
    count, width = len(placements), max((part.shares.shape[1] for part in parts), default=0)
    owner = np.concatenate([part.load * count + i for i, part in enumerate(parts)])
    order = np.argsort(owner, kind="stable")
    given = [[part.load.size for part in parts], [ways for _, ways in placements], [p.tensor_ways for p, _ in placements]]
    sizes, expert_ways, tensor_ways = (np.array(column, dtype=np.int64) for column in given)
    shares = np.concatenate([np.pad(part.shares, ((0, 0), (0, width - part.shares.shape[1]))) for part in parts])
    experts, first, spread, reach = (
        np.concatenate([getattr(part, name) for part in parts])[order] for name in ("experts", "first", "spread", "reach")
    )
    return MoeTable(
        owner[order], np.repeat(expert_ways, sizes)[order], np.repeat(tensor_ways, sizes)[order], experts, first, spread,
        reach, shares[order], np.ones(owner.size), tuple(part.flows[at] for at in range(len(loads)) for part in parts),
    )  # fmt: skip


@dataclass(frozen=True, slots=True)
class _Entries:
    """Expert groups of one placement under several loads, of groups that are alike the first; `flows` has one for each load."""

    load: Ints
    experts: Ints
    first: Ints
    spread: NDArray[np.float64]
    reach: NDArray[np.float64]
    shares: NDArray[np.float64]
    flows: tuple[Flow | None, ...]


@lru_cache(maxsize=8192)
def _plain_entries(ffn: Ffn, placement: ExpertPlacement, ways: int) -> _Entries:
    """Entries of a placement where all experts get the same load."""
    return _entries(ffn, placement, ways, np.full((1, ffn.experts), 1.0 / ffn.experts), np.ones(1, dtype=bool))


def _entries(
    ffn: Ffn, placement: ExpertPlacement, ways: int, weights: NDArray[np.float64], even: NDArray[np.bool_]
) -> _Entries:
    """Entries of a placement for weights [L, E] that sum to one; `even` [L] says which loads are equal by themselves."""
    served = _served(placement, ffn.experts, ways, weights)
    drawn = even & (not placement.placement)
    hits, spread, reach = _reach(ffn, served, drawn)
    kinds = np.array([_kinds(rows, served.counts) for rows in served.shares], dtype=np.int64)
    load, own = np.nonzero(kinds.reshape(len(weights), served.counts.size) == np.arange(served.counts.size))
    flows = tuple(None if plain else _flow(rows, placement) for rows, plain in zip(hits, drawn.tolist(), strict=True))
    first, shares = own * placement.tensor_ways, served.shares[load, own]
    return _Entries(load, served.counts[own], first, spread[load], reach[load], shares, flows)


def _flow(hits: NDArray[np.float64], placement: ExpertPlacement) -> Flow:
    return Flow(tuple(map(tuple, hits.tolist())), placement.tensor_ways, placement.serve_within)


@dataclass(frozen=True, slots=True)
class _Served:
    """What the groups of a placement get under each load.

    `counts` [G] are their experts, `shares` [L, G, most experts] what part of all pairs each of their copies gets, ascending,
    zero-padded; `blocks` [L, B, G] what part of the pairs of each block of senders a group gets, `senders` [B] what part of all
    tokens a block has.
    """

    counts: Ints
    shares: NDArray[np.float64]
    blocks: NDArray[np.float64]
    senders: NDArray[np.float64]


def _served(placement: ExpertPlacement, experts: int, ways: int, weights: NDArray[np.float64]) -> _Served:
    """The copies of an expert that may serve a block of senders share its load evenly."""
    expert, group, copies = _held(of_row(placement.placement, 0), experts, ways // placement.tensor_ways)
    within = placement.serve_within or ways
    senders = np.bincount(np.arange(ways) // within) / ways
    near = np.zeros((senders.size, experts))  # copies of every expert in a block
    home = group * placement.tensor_ways // within
    np.add.at(near, (home, expert), 1.0)
    near = near[:, expert]
    own = np.where(near > 0, (home == np.arange(senders.size)[:, None]) / np.maximum(near, 1.0), 1.0 / copies)
    counts = np.bincount(group, minlength=ways // placement.tensor_ways)
    column = np.arange(group.size) - np.repeat(np.cumsum(counts) - counts, counts)
    padded = np.full((len(weights), counts.size, int(counts.max(initial=1))), np.inf)
    padded[:, group, column] = weights[:, expert] * (senders @ own if senders.size > 1 else 1.0 / copies)
    padded.sort(axis=2)
    padded[np.isinf(padded)] = 0.0
    if senders.size == 1:
        return _Served(counts, padded, padded.sum(axis=2)[:, None], senders)
    belongs = (group[:, None] == np.arange(counts.size)).astype(np.float64)
    return _Served(counts, padded, (weights[:, None, expert] * own) @ belongs, senders)


def _row_entries(
    ffn: Ffn, placement: ExpertPlacement, ways: int, weights: NDArray[np.float64], even: NDArray[np.bool_], rows: Sequence[int]
) -> _Entries:
    """Entries of a placement that may be another one under every load: `rows` [L] says which entry of one by layer."""
    if not placement.by_layer:
        return _entries(ffn, placement, ways, weights, even)
    each = [_entries(ffn, placement.at(row), ways, weights[at : at + 1], even[at : at + 1]) for at, row in enumerate(rows)]
    width = max(part.shares.shape[1] for part in each)
    shares = [np.pad(part.shares, ((0, 0), (0, width - part.shares.shape[1]))) for part in each]
    load = np.repeat(np.arange(len(each)), [part.load.size for part in each])
    names = ("experts", "first", "spread", "reach")
    experts, first, spread, reach = (np.concatenate([getattr(part, name) for part in each]) for name in names)
    return _Entries(load, experts, first, spread, reach, np.concatenate(shares), tuple(part.flows[0] for part in each))


def _kinds(shares: NDArray[np.float64], counts: Ints) -> list[int]:
    """For every group [G] the first one that holds the same: as many experts with the same shares [G, most experts]."""
    keys = [(count, row.tobytes()) for count, row in zip(counts.tolist(), shares, strict=True)]
    first = {key: group for group, key in reversed(list(enumerate(keys)))}
    return [first[key] for key in keys]


@lru_cache(maxsize=4096)
def _held(placement: Placement, experts: int, groups: int) -> tuple[Ints, Ints, Ints]:
    """Expert, group, and copies of that expert, of every copy: group by group, in each by expert."""
    placed = placement or contiguous_placement(experts, groups)
    copies = np.array([len(held) for held in placed], dtype=np.int64)
    expert = np.repeat(np.arange(len(placed)), copies)
    group = np.array([g for held in placed for g in held], dtype=np.int64)
    order = np.argsort(group, kind="stable")
    return expert[order], group[order], copies[expert[order]]


def _reach(
    ffn: Ffn, served: _Served, drawn: NDArray[np.bool_]
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Chances that a token of each block goes to each group [L, B, G], expected number of groups that a token of the block with
    most goes to [L], and the chance that a token of any block goes to the group that gets most [L].

    Equal loads (`drawn` [L]): a token's k experts are a uniform draw without repetition, so a group of n experts is missed
    with probability C(E - n, k) / C(E, k). Unequal loads: k independent draws (assumed, slightly high).
    """
    counts = served.counts
    hit = chance(served.blocks, ffn.top_k)
    hit = np.where(counts > 0, hit, 0.0)
    most = (hit * served.senders[:, None]).sum(axis=1) if served.senders.size > 1 else hit[:, 0]
    miss = np.ones(counts.size)
    for i in range(ffn.top_k):
        miss = miss * np.maximum(ffn.experts - counts - i, 0) / (ffn.experts - i)
    groups = np.count_nonzero(counts)
    plain = groups - miss[counts > 0].sum(), 1.0 - miss.min(initial=1.0)
    spread = np.where(drawn, plain[0], hit.sum(axis=2).max(axis=1, initial=0.0))
    return hit, spread, np.where(drawn, plain[1], most.max(axis=1, initial=0.0))


def moe_rows(table: MoeTable, entry: Ints, tokens: Ints, ways: Ints, residual_shards: Ints, top_k: int) -> MoeRows:
    """Rows for entries of a table: expected routed pairs and experts in use, both rounded up.

    An expert that gets share p of all token-expert pairs is idle with probability (1 - p k)^tokens.
    """
    base = int(tokens.max(initial=0)) + 1
    cases, inverse = np.unique(entry * base + tokens, return_inverse=True)
    shares, drawn = table.shares[cases // base], cases % base
    routed = np.ceil(np.round(drawn.astype(np.float64) * top_k * shares.sum(axis=1), 6)).astype(np.int64)
    with np.errstate(divide="ignore", invalid="ignore"):  # an expert that gets every token is never idle: log 0
        idle = np.log1p(-np.minimum(table.shares * top_k, 1.0))[cases // base]
        used = np.where(drawn[:, None] > 0, -np.expm1(idle * drawn[:, None]), 0.0)
    part = table.part[cases // base]
    active = np.minimum(np.ceil(np.round(part * used.sum(axis=1), 6)).astype(np.int64), np.maximum(routed, 0))
    routed = np.where(part < 1.0, active, routed)
    routed, active = routed[inverse], active[inverse]
    zero = np.zeros_like(entry)
    flows = Flows(table.flows, table.owner[entry]) if any(table.flows) else None
    return MoeRows(tokens, ways, residual_shards, table.expert_ways[entry], table.tensor_ways[entry], table.experts[entry],
                   active, routed, table.spread[entry], table.reach[entry], zero, zero, table.first[entry], flows)  # fmt: skip


def moe_device_rows(
    stage: StageChoice, ffn: Ffn, load: Load, tokens: int, residual_shards: int, experts_apart: bool = False
) -> MoeRows:
    """One row per GPU of a stage: its own group of experts, its place and its column.

    Where the experts have GPUs of their own: the attention GPUs, or with `experts_apart` the GPUs of the experts.
    """
    placement, near, far = stage.experts or ExpertPlacement(), len(stage.attention_devices), len(stage.expert_devices)
    table = moe_table(ffn, [(placement, far)], load)
    weights = np.array([load or (1.0,) * ffn.experts])
    served = _served(placement, ffn.experts, far, weights / weights.sum())
    kinds = np.unique(_kinds(served.shares[0], served.counts), return_inverse=True)[1]
    index = np.arange(far if experts_apart else near)
    entry = kinds[(index // placement.tensor_ways) % kinds.size]
    tokens_of, ways, shards = (np.full(index.shape, value, dtype=np.int64) for value in (tokens, near, residual_shards))
    rows = moe_rows(table, entry, tokens_of, ways, shards, ffn.top_k)
    return replace(rows, index=index % near, column=index % placement.tensor_ways, first=index)
