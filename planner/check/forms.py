"""Forms: tokens, scores and groups are split as the plan declares, where sizes alone would allow another split."""

from __future__ import annotations

from collections.abc import Iterator

from planner.check.findings import Finding
from planner.check.index import Index
from planner.graph.nodes import Node
from planner.graph.rows import share_tokens
from planner.workload import Workload
from search_spaces.attention import AttentionPartition
from search_spaces.sizes import Sizes, share
from search_spaces.space import residual_shards
from search_spaces.stages import Choice

SEGMENTS = ("score_all_reduce", "score_reduce_scatter", "probabilities_all_gather", "qk_norm_reduce")
CONTEXT = ("merge_all_to_all",)
HOLDERS = ("gather_tokens", "gather_heads", "o_all_reduce", "o_reduce_scatter", "o_all_gather", "o_all_to_all")


def check_forms(workload: Workload, sizes: Sizes, choice: Choice, index: Index) -> Iterator[Finding]:
    """Every operator whose rows, dims or group are not those of the plan's partition."""
    sequences = sizes.batch // choice.replicas // choice.micro_batches
    for node in index.graph.operators():
        stage = choice.stages[node.stage]
        ranks = stage.attention_devices
        if node.transfer is not None or not set(node.devices) <= set(ranks) or node.role == "experts":
            continue
        grid = Grid(stage.attention, workload.phase == "decode", len(ranks))
        places = [ranks.index(device) for device in node.devices]
        if node.name in ("attention_residual", "ffn_residual", "attention_norm"):
            shards = residual_shards(sizes, stage.attention)
            yield from _residual(node, places[0], shards, len(ranks), sequences * workload.query_length)
        elif node.role == "attention":
            yield from _attention(node, grid, places, sequences, sizes)
    yield from _score_sums(choice, index)


class Grid:
    """Which part of the attention grid each place of a stage has."""

    def __init__(self, partition: AttentionPartition, decode: bool, ways: int) -> None:
        self.partition, self.decode, self.ways = partition, decode, ways

    def at(self, place: int) -> tuple[int, int, int, int]:
        """Batch part, context part, head group and segment of a place."""
        p = self.partition
        part, inner = divmod(place, p.head_groups * p.dimension_segments)
        if p.order == "heads_inner":
            segment, group = divmod(inner, p.head_groups)
        else:
            group, segment = divmod(inner, p.dimension_segments)
        return part // p.context_parts, part % p.context_parts, group, segment

    def group(self, name: str, place: int) -> tuple[int, ...]:
        """Places that a place exchanges with in a collective of this name, itself among them."""
        batch, context, group, segment = self.at(place)
        found = []
        for other in range(self.ways):
            b, c, g, s = self.at(other)
            if name in SEGMENTS:
                same = (b, c, g) == (batch, context, group)
            elif name in CONTEXT or name.startswith("ring_"):
                same = (b, g, s) == (batch, group, segment)
            else:  # all that hold the same tokens
                same = b == batch and (self.decode or c == context)
            found += [other] if same else []
        return tuple(found)


def _residual(node: Node, place: int, shards: int, ways: int, tokens: int) -> Iterator[Finding]:
    """A GPU goes on with its part of the residual stream."""
    rows = int(share_tokens(tokens, shards, place // (ways // shards)))
    if node.output is not None and node.output.shape[0] != rows:
        yield _error(node, "its GPU has another part of the tokens", node.output.shape[0], rows)


def _attention(node: Node, grid: Grid, places: list[int], sequences: int, sizes: Sizes) -> Iterator[Finding]:
    """Groups join the parts of one thing; segments multiply their dims; softmax has all rows or its share of them."""
    p = grid.partition
    known = node.name in (*SEGMENTS, *CONTEXT, *HOLDERS) or (node.name.startswith("ring_") and node.family)
    if known and tuple(places) != grid.group(node.name, places[0]):
        yield _error(
            node, "it joins GPUs that hold parts of different things", str(places), str(grid.group(node.name, places[0]))
        )
    _, _, group, segment = grid.at(places[0])
    heads = p.heads(sizes.heads)[group] * (sequences // p.batch_parts)
    if node.name == "scores" and (p.dimension_segments == 1 or node.batch != heads):
        yield _error(node, "it multiplies other heads than its GPU has", node.batch, heads)
    if node.name == "softmax" and node.output is not None:
        queries = sizes.query_length
        rows = share(queries, p.dimension_segments, segment) if p.softmax == "scattered" else queries
        if node.output.shape[1] != rows:
            yield _error(node, "it has other rows of the scores than its share", node.output.shape[1], rows)


def _score_sums(choice: Choice, index: Index) -> Iterator[Finding]:
    """Scores of segments are summed where the plan says so and only there, for every segment or a share of rows each."""
    for (_, stage, *_), nodes in index.parts.items():
        partial = next((node for node in nodes if node.name == "scores"), None)
        if partial is None:
            continue
        p = choice.stages[stage].attention
        wanted = SEGMENTS[p.softmax == "scattered"] if p.score_reduce else "none"
        found = next((node.name for node in nodes if node.name in SEGMENTS[:2]), "none")
        if found != wanted:
            yield _error(partial, f"the sum of its scores is {found}, and the plan's {wanted}", found, wanted)


def _error(node: Node, message: str, measured: str | int, expected: str | int) -> Finding:
    return Finding("STRUCT023", "error", node.id, message, measured, expected, "split it as the plan says")
