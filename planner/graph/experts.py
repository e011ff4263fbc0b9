"""Rows of a mixture of experts: what each different group of GPUs, or each GPU, holds of a placement and gets of the load."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from planner.graph.rows import Ints, MoeRows
from planner.model import Ffn, ModelSpec
from planner.workload import Workload
from search_spaces.experts import ExpertPlacement
from search_spaces.stages import StageChoice

Load = tuple[float, ...]


@dataclass(frozen=True, slots=True)
class ExpertClass:
    """A group of GPUs that share experts: how many experts, the shares of all routed tokens that they get."""

    experts: int
    shares: tuple[float, ...]


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


def expert_classes(
    ffn: Ffn, placement: ExpertPlacement, ways: int, load: Load, distinct: bool = True
) -> tuple[ExpertClass, ...]:
    """The different expert groups of a placement on `ways` GPUs (or all of them); replicas share an expert's load evenly."""
    held: dict[int, list[float]] = {group: [] for group in range(ways // placement.tensor_ways)}
    weights = load or (1.0,) * ffn.experts
    total = sum(weights)
    for expert, groups in enumerate(placement.groups(ffn.experts, ways)):
        for group in groups:
            held[group].append(weights[expert] / total / len(groups))
    classes = tuple(ExpertClass(len(shares), tuple(sorted(shares))) for shares in held.values())
    return tuple(dict.fromkeys(classes)) if distinct else classes


def expert_reach(ffn: Ffn, placement: ExpertPlacement, ways: int, load: Load) -> tuple[float, float]:
    """Expected number of expert groups that one token goes to, and the chance that it goes to the one that gets most.

    Equal loads: a token's k experts are a uniform draw without repetition, so a group of n experts is missed with
    probability C(E - n, k) / C(E, k). Unequal loads: k independent draws (assumed, slightly high).
    """
    held: dict[int, float] = {}
    counts: dict[int, int] = {}
    weights = load or (1.0,) * ffn.experts
    total = sum(weights)
    for expert, groups in enumerate(placement.groups(ffn.experts, ways)):
        for group in groups:
            held[group] = held.get(group, 0.0) + weights[expert] / total / len(groups)
            counts[group] = counts.get(group, 0) + 1
    if load or placement.placement:
        found = [1.0 - (1.0 - min(share, 1.0)) ** ffn.top_k for share in held.values()]
        return sum(found), max(found)
    missed, least = 0.0, 1.0
    for count in counts.values():
        miss = 1.0
        for i in range(ffn.top_k):
            miss *= max(ffn.experts - count - i, 0) / (ffn.experts - i)
        missed, least = missed + miss, min(least, miss)
    return len(counts) - missed, 1.0 - least


@dataclass(frozen=True, slots=True)
class MoeTable:
    """Placements as columns, one entry per class of expert group; `owner` is the placement of each entry, `first` the
    place of the first GPU of its class in the stage. `spread` and `reach` are those of the whole placement (see `MoeRows`).
    `part` is 1, or what part of the reads of all its experts an entry of `least_table` has.
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


def moe_table(ffn: Ffn, placements: Sequence[tuple[ExpertPlacement, int]], load: Load) -> MoeTable:
    """(placement, GPUs that hold experts) pairs as columns; `shares` has shape [entries, most experts], zero-padded."""
    owners, ways, tensor, experts, first, shares = [], [], [], [], [], []
    spread, most = [], []
    for owner, (placement, expert_ways) in enumerate(placements):
        groups, chance = expert_reach(ffn, placement, expert_ways, load)
        every = expert_classes(ffn, placement, expert_ways, load, distinct=False)
        for found in dict.fromkeys(every):
            owners.append(owner)
            ways.append(expert_ways)
            tensor.append(placement.tensor_ways)
            experts.append(found.experts)
            first.append(every.index(found) * placement.tensor_ways)
            spread.append(groups)
            most.append(chance)
            shares.append(found.shares)
    width = max((len(s) for s in shares), default=0)
    padded = np.array([s + (0.0,) * (width - len(s)) for s in shares]).reshape(len(shares), width)
    ints = [np.asarray(column, dtype=np.int64) for column in (owners, ways, tensor, experts, first)]
    reached = [np.asarray(column, dtype=np.float64) for column in (spread, most)]
    return MoeTable(ints[0], ints[1], ints[2], ints[3], ints[4], reached[0], reached[1], padded, np.ones(len(owners)))


def least_table(ffn: Ffn, placements: Sequence[tuple[ExpertPlacement, int]], load: Load) -> MoeTable:
    """Two entries for each (placement, GPUs) that no placement on as many groups goes below on its fullest GPU.

    Some GPU gets at least the mean of the routed pairs, for one expert or more. Some GPU reads at least the mean of the
    experts in use, rounded up, with a pair for each. Some GPU holds at least the mean of the experts.
    """
    weights = np.array(load or (1.0,) * ffn.experts) / (sum(load) or ffn.experts)
    groups = np.array([ways // placement.tensor_ways for placement, ways in placements], dtype=np.int64).repeat(2)
    owner = np.arange(len(placements)).repeat(2)
    ways, tensor = (np.array(column, dtype=np.int64).repeat(2) for column in (
        [ways for _, ways in placements], [placement.tensor_ways for placement, _ in placements]))  # fmt: skip
    reads = np.arange(owner.size) % 2 == 1
    shares = np.where(reads[:, None], weights, 0.0)
    shares[:, 0] = np.where(reads, shares[:, 0], 1.0 / groups)
    reach = 1.0 - (1.0 - 1.0 / groups) ** ffn.top_k
    part = np.where(reads, 1.0 / groups, 1.0)
    return MoeTable(
        owner, ways, tensor, -(-ffn.experts // groups), np.zeros_like(owner), np.ones(owner.size), reach, shares, part
    )


def moe_rows(table: MoeTable, entry: Ints, tokens: Ints, ways: Ints, residual_shards: Ints, top_k: int) -> MoeRows:
    """Rows for entries of a table: expected routed pairs and experts in use, both rounded up.

    An expert that gets share p of all token-expert pairs is idle with probability (1 - p k)^tokens.
    """
    base = int(tokens.max(initial=0)) + 1
    cases, inverse = np.unique(entry * base + tokens, return_inverse=True)
    shares, drawn = table.shares[cases // base], cases % base
    routed = np.ceil(np.round(drawn.astype(np.float64) * top_k * shares.sum(axis=1), 6)).astype(np.int64)
    used = 1.0 - (1.0 - np.minimum(shares * top_k, 1.0)) ** drawn[:, None]
    part = table.part[cases // base]
    active = np.minimum(np.ceil(np.round(part * used.sum(axis=1), 6)).astype(np.int64), np.maximum(routed, 0))
    routed = np.where(part < 1.0, active, routed)
    routed, active = routed[inverse], active[inverse]
    zero = np.zeros_like(entry)
    return MoeRows(tokens, ways, residual_shards, table.expert_ways[entry], table.tensor_ways[entry], table.experts[entry],
                   active, routed, table.spread[entry], table.reach[entry], zero, zero, table.first[entry])  # fmt: skip


def moe_device_rows(
    stage: StageChoice, ffn: Ffn, load: Load, tokens: int, residual_shards: int, experts_apart: bool = False
) -> MoeRows:
    """One row per GPU of a stage: its own group of experts, its place and its column.

    Where the experts have GPUs of their own: the attention GPUs, or with `experts_apart` the GPUs of the experts.
    """
    placement, near, far = stage.experts or ExpertPlacement(), len(stage.attention_devices), len(stage.expert_devices)
    table = moe_table(ffn, [(placement, far)], load)
    every = expert_classes(ffn, placement, far, load, distinct=False)
    classes = tuple(dict.fromkeys(every))
    index = np.arange(far if experts_apart else near)
    own = (index // placement.tensor_ways) % len(every)
    entry = np.array([classes.index(every[group]) for group in own], dtype=np.int64)
    tokens_of, ways, shards = (np.full(index.shape, value, dtype=np.int64) for value in (tokens, near, residual_shards))
    rows = moe_rows(table, entry, tokens_of, ways, shards, ffn.top_k)
    return replace(rows, index=index % near, column=index % placement.tensor_ways, first=index)
