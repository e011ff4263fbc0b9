"""Rows of a plan: one row per GPU of a stage, with its exact share of heads, segments, columns, experts and tokens."""

from __future__ import annotations

import numpy as np

from planner.graph.attention import AttentionSignature, Form
from planner.graph.rows import AttentionRows, FfnRows, Ints
from planner.model import Attention
from search_spaces.attention import AttentionPartition, kv_heads_of_groups
from search_spaces.stages import StageChoice


def signature_of(partition: AttentionPartition, phase: str) -> AttentionSignature:
    """Topology of the attention role that a partition leads to."""
    if partition.dimension_segments > 1:
        return AttentionSignature("segments")
    if partition.context_parts > 1:
        form: Form = "merge" if phase == "decode" else "ring"
        return AttentionSignature(form, partition.context_parts if form == "ring" else 1)
    return AttentionSignature("fused")


def families(site: tuple[int, ...], stride: int, size: int) -> tuple[tuple[int, ...], ...]:
    """The groups of `size` places, `stride` apart, that partition the places of a stage."""
    block = stride * size
    return tuple(site[at + x : at + x + block : stride][:size] for at in range(0, len(site), block) for x in range(stride))


def attention_device_rows(stage: StageChoice, spec: Attention, sequences: int, decode: bool) -> AttentionRows:
    """One row per attention GPU of a stage in the order of its grid (see `AttentionPartition`)."""
    p, ways = stage.attention, len(stage.attention_devices)
    tensor = p.head_groups * p.dimension_segments
    place = np.arange(ways)
    inner = place % tensor
    if p.order == "heads_inner":
        segment, group = inner // p.head_groups, inner % p.head_groups
    else:
        group, segment = inner // p.dimension_segments, inner % p.dimension_segments
    heads = np.array(p.heads(spec.heads), dtype=np.int64)
    kv_heads = np.array(kv_heads_of_groups(tuple(heads.tolist()), spec.heads, spec.kv_heads), dtype=np.int64)
    holders = tensor * p.context_parts if decode else tensor

    def full(value: int | bool) -> Ints:
        return np.full(ways, int(value), dtype=np.int64)

    return AttentionRows(
        sequences=full(sequences), ways=full(ways), batch_parts=full(p.batch_parts), context_parts=full(p.context_parts),
        groups=full(p.head_groups), segments=full(p.dimension_segments), heads=heads[group], kv_heads=kv_heads[group],
        segment=segment, context=place // tensor % p.context_parts, position=place % holders,
        score_reduce=full(p.score_reduce), scattered=full(p.softmax == "scattered"),
        gather=full(p.output_projection == "gather"),
        sequence_parallel=full(p.sequence_parallel), heads_inner=full(p.order == "heads_inner"),
    )  # fmt: skip


def ffn_device_rows(stage: StageChoice, tokens: int, residual_shards: int) -> FfnRows:
    """One row per attention GPU of a stage."""
    ways = len(stage.attention_devices)
    numbers = (tokens, ways, residual_shards, stage.mlp_ways)
    columns = [np.full(ways, x, dtype=np.int64) for x in numbers]
    return FfnRows(columns[0], columns[1], columns[2], columns[3], np.arange(ways))
