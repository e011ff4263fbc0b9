"""From options (partitions, placements) to the rows that the roles of the graph are built from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from planner.graph.attention import AttentionSignature, Form
from planner.graph.rows import AttentionRows, Ints, MoeRows
from planner.model import Attention, Ffn
from search_spaces.attention import AttentionPartition, kv_heads_of_groups
from search_spaces.experts import ExpertPlacement


@dataclass(frozen=True, slots=True)
class PartitionTable:
    """Partitions as columns, one entry per class of head group that may be the slowest: (heads, KV heads) that no other
    class exceeds in both. `owner` is the partition of each entry; entries of one partition are neighbours."""

    owner: Ints
    columns: dict[str, Ints]
    signatures: tuple[AttentionSignature, ...]


def signature_of(partition: AttentionPartition, phase: str) -> AttentionSignature:
    """Topology of the attention role that a partition leads to."""
    if partition.dimension_segments > 1:
        return AttentionSignature("segments")
    if partition.context_parts > 1:
        form: Form = "merge" if phase == "decode" else "ring"
        return AttentionSignature(form, partition.context_parts if form == "ring" else 1)
    return AttentionSignature("fused")


def head_classes(partition: AttentionPartition, spec: Attention) -> tuple[tuple[int, int], ...]:
    """(heads, KV heads) of the head groups that no other group exceeds in both."""
    heads = partition.heads(spec.heads)
    found = set(zip(heads, kv_heads_of_groups(heads, spec.heads, spec.kv_heads), strict=True))
    return tuple(sorted(c for c in found if not any(o != c and o[0] >= c[0] and o[1] >= c[1] for o in found)))


def partition_table(partitions: Sequence[AttentionPartition], spec: Attention, phase: str) -> PartitionTable:
    """All partitions as columns; every entry stands for the largest share of tokens, segments and columns."""
    entries: list[tuple[int, ...]] = []
    signatures = []
    for owner, p in enumerate(partitions):
        for heads, kv_heads in head_classes(p, spec):
            entries.append((
                owner, p.ways, p.batch_parts, p.context_parts, p.head_groups, p.dimension_segments, heads, kv_heads,
                int(p.score_reduce), int(p.softmax == "scattered"), int(p.output_projection == "gather"),
                int(p.sequence_parallel), int(p.order == "heads_inner"),
            ))  # fmt: skip
            signatures.append(signature_of(p, phase))
    names = ("owner", "ways", "batch_parts", "context_parts", "groups", "segments", "heads", "kv_heads", "score_reduce",
             "scattered", "gather", "sequence_parallel", "heads_inner")  # fmt: skip
    data = np.asarray(entries, dtype=np.int64).reshape(len(entries), len(names))
    columns = {name: data[:, i] for i, name in enumerate(names)}
    return PartitionTable(columns.pop("owner"), columns, tuple(signatures))


def attention_rows(table: PartitionTable, entry: Ints, sequences: Ints) -> AttentionRows:
    """Rows for entries of a table, each with the sequences of its micro-batch."""
    zero = np.zeros_like(entry)
    taken = {name: column[entry] for name, column in table.columns.items()}
    return AttentionRows(sequences=sequences, segment=zero, context=zero, position=zero, **taken)


@dataclass(frozen=True, slots=True)
class ExpertClass:
    """A group of GPUs that share experts: how many experts, the shares of all routed tokens that they get."""

    experts: int
    shares: tuple[float, ...]


def expert_classes(
    ffn: Ffn, placement: ExpertPlacement, ways: int, load: tuple[float, ...], distinct: bool = True
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


def expert_spread(ffn: Ffn, placement: ExpertPlacement, ways: int, load: tuple[float, ...]) -> float:
    """Expected number of expert groups that one token goes to.

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
        return sum(1.0 - (1.0 - min(share, 1.0)) ** ffn.top_k for share in held.values())
    missed = 0.0
    for count in counts.values():
        miss = 1.0
        for i in range(ffn.top_k):
            miss *= max(ffn.experts - count - i, 0) / (ffn.experts - i)
        missed += miss
    return len(counts) - missed


@dataclass(frozen=True, slots=True)
class MoeTable:
    """Placements as columns, one entry per class of expert group; `owner` is the placement of each entry."""

    owner: Ints
    expert_ways: Ints
    tensor_ways: Ints
    experts: Ints
    spread: np.ndarray  # type: ignore[type-arg]
    shares: np.ndarray  # type: ignore[type-arg]


def moe_table(ffn: Ffn, placements: Sequence[tuple[ExpertPlacement, int]], load: tuple[float, ...]) -> MoeTable:
    """(placement, GPUs that hold experts) pairs as columns; `shares` has shape [entries, most experts], zero-padded."""
    owners, ways, tensor, experts, spread, shares = [], [], [], [], [], []
    for owner, (placement, expert_ways) in enumerate(placements):
        reach = expert_spread(ffn, placement, expert_ways, load)
        for found in expert_classes(ffn, placement, expert_ways, load):
            owners.append(owner)
            ways.append(expert_ways)
            tensor.append(placement.tensor_ways)
            experts.append(found.experts)
            spread.append(reach)
            shares.append(found.shares)
    width = max((len(s) for s in shares), default=0)
    padded = np.array([s + (0.0,) * (width - len(s)) for s in shares]).reshape(len(shares), width)
    ints = [np.asarray(column, dtype=np.int64) for column in (owners, ways, tensor, experts)]
    return MoeTable(ints[0], ints[1], ints[2], ints[3], np.asarray(spread, dtype=np.float64), padded)


def moe_rows(table: MoeTable, entry: Ints, tokens: Ints, ways: Ints, residual_shards: Ints, top_k: int) -> MoeRows:
    """Rows for entries of a table: expected routed pairs and experts in use, both rounded up.

    An expert that gets share p of all token-expert pairs is idle with probability (1 - p k)^tokens.
    """
    pairs = tokens.astype(np.float64) * top_k
    shares = table.shares[entry]
    routed = np.ceil(np.round(pairs * shares.sum(axis=1), 6)).astype(np.int64)
    used = 1.0 - (1.0 - np.minimum(shares * top_k, 1.0)) ** tokens[:, None]
    active = np.minimum(np.ceil(np.round(used.sum(axis=1), 6)).astype(np.int64), np.maximum(routed, 0))
    zero = np.zeros_like(entry)
    return MoeRows(tokens, ways, residual_shards, table.expert_ways[entry], table.tensor_ways[entry], table.experts[entry],
                   active, routed, table.spread[entry], zero, zero)  # fmt: skip
