"""From options (partitions, placements) to the rows that the roles of the graph are built from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from planner.graph.attention import AttentionSignature
from planner.graph.devices import signature_of
from planner.graph.rows import AttentionRows, Ints
from planner.model import Attention
from search_spaces.attention import AttentionPartition, kv_heads_of_groups


@dataclass(frozen=True, slots=True)
class PartitionTable:
    """Partitions as columns, one entry per class of head group that may be the slowest: (heads, KV heads) that no other
    class exceeds in both. `owner` is the partition of each entry; entries of one partition are neighbours.
    """

    owner: Ints
    columns: dict[str, Ints]
    signatures: tuple[AttentionSignature, ...]


def head_classes(partition: AttentionPartition, spec: Attention) -> tuple[tuple[int, int], ...]:
    """(heads, KV heads) of the head groups that no other group exceeds in both."""
    heads = partition.heads(spec.heads)
    found = set(zip(heads, kv_heads_of_groups(heads, spec.heads, spec.kv_heads), strict=True))
    return tuple(sorted(c for c in found if not any(o != c and o[0] >= c[0] and o[1] >= c[1] for o in found)))


def partition_table(partitions: Sequence[AttentionPartition], spec: Attention, phase: str) -> PartitionTable:
    """All partitions as columns; every entry stands for the largest share of tokens, segments and columns."""
    entries: list[tuple[int, ...]] = []
    signatures = []
    classes: dict[tuple[int, tuple[int, ...]], tuple[tuple[int, int], ...]] = {}
    for owner, p in enumerate(partitions):
        key = (p.head_groups, p.heads_per_group)
        if key not in classes:
            classes[key] = head_classes(p, spec)
        for heads, kv_heads in classes[key]:
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
