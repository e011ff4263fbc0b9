"""Shards: every GPU holds the part of each weight, and computes the heads and routed rows, that the plan gives it.

Totals over all GPUs cannot tell an even split from an uneven one. Which part is whose is told by the loader of the numeric
run, here for the sizes of the plan itself.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from math import ceil

import numpy as np

from planner.check.destinations import served_share
from planner.check.findings import Finding
from planner.check.index import Index
from planner.check.reference import Tokens, Trace
from planner.check.run.load import ALL, AXES
from planner.check.run.split import Split
from planner.check.run.twin import Twin
from planner.check.run.world import StageTokens, World
from planner.graph.experts import layer_loads, layer_rows
from planner.graph.nodes import Node
from planner.graph.ops import AttentionDims, Kind
from planner.model import Layer, ModelSpec
from planner.workload import Workload
from search_spaces.sizes import Sizes
from search_spaces.stages import Choice, StageChoice

EMPTY = np.zeros((1, 1), dtype=np.int64)


@dataclass
class _Parts:
    """The part of every weight that every GPU of a plan holds, by stage, GPU, side and layer."""

    model: ModelSpec
    workload: Workload
    sizes: Sizes
    choice: Choice
    _splits: dict[tuple[StageChoice, int, bool, Layer | None], Split] = field(default_factory=dict)
    _shapes: dict[tuple[StageChoice, int, bool, Layer | None, str], tuple[int, ...] | None] = field(default_factory=dict)

    @cached_property
    def _rows(self) -> tuple[int, ...]:
        return layer_rows(self.model, self.workload)

    def split(self, node: Node) -> Split | None:
        """What a GPU holds of an operator's layer; None where it is not one of those that run it."""
        stage, apart = self._stage(node), node.role == "experts"
        ranks = stage.expert_devices if apart else stage.attention_devices
        if node.devices[0] not in ranks:
            return None
        layer = None if node.layer is None else self.model.layers[node.layer]
        key = stage, node.devices[0], apart, layer
        if key not in self._splits:
            twin = Twin(self.model, self.workload, self.sizes, self.choice, (), 1)
            world = World(twin, {}, Tokens(EMPTY, EMPTY, EMPTY > 0), Trace({}))
            self._splits[key] = Split(world, StageTokens(world, stage, 0), ranks.index(node.devices[0]), layer, apart)
        return self._splits[key]

    def _stage(self, node: Node) -> StageChoice:
        """The stage of an operator, its experts as its layer has them."""
        return self.choice.stages[node.stage].at(0 if node.layer is None else self._rows[node.layer])

    def shape(self, node: Node, split: Split, name: str) -> tuple[int, ...] | None:
        """The shape of a GPU's part of a weight; None where the model has no such weight or it is held whole."""
        key = split.at.stage, node.devices[0], split.apart, split.layer, name
        if key not in self._shapes:
            weights = self.model.outer_weights() if split.layer is None else split.layer.weights(self.model.hidden)
            whole = {weight.name: weight.shape for weight in weights}
            whole.setdefault("head", (self.model.hidden, self.model.vocab))
            axes = zip(AXES.get(name, ()), whole.get(name, ()), strict=False)
            self._shapes[key] = tuple(size if axis == ALL else len(split.index(axis)) for axis, size in axes) or None
        return self._shapes[key]


def check_shards(model: ModelSpec, workload: Workload, sizes: Sizes, choice: Choice, index: Index) -> Iterator[Finding]:
    """Weights, heads and routed rows of every GPU against those that the plan gives it."""
    parts, loads = _Parts(model, workload, sizes, choice), layer_loads(model, workload)
    tokens = sizes.batch // choice.replicas // choice.micro_batches * workload.query_length
    for node in index.graph.operators():
        split = None if node.communicates else parts.split(node)
        if split is None:
            continue
        for weight in node.weights:
            shape = parts.shape(node, split, weight.name)
            if shape is not None and weight.shape != shape:
                message = f"GPU {node.devices[0]} holds {weight.text} where the plan gives it {list(shape)}"
                yield _error("WORK005", node, message, weight.text, str(shape))
        if node.attention is not None:
            yield from _heads(node, split, node.attention)
        if node.kind == Kind.GROUPED and node.layer is not None:
            yield from _rows(node, split, loads[node.layer], tokens)


def _heads(node: Node, split: Split, dims: AttentionDims) -> Iterator[Finding]:
    """A fused kernel has the heads of its GPU, in full."""
    spec, heads = split.attention, len(split.heads)
    kv_heads, qk, v = len(split.kv_heads), spec.head_dim, spec.v_head_dim
    if spec.kind == "mla":
        absorbed = split.at.decode  # queries meet the latent cache, which serves all heads as keys and as values
        kv_heads = 1 if absorbed else heads
        qk, v = (spec.kv_lora_rank + spec.rope_dim, spec.kv_lora_rank) if absorbed else (qk, v)
    found = tuple(int(size) for size in (dims.heads, dims.kv_heads, dims.qk_dim, dims.v_dim))
    if found != (heads, kv_heads, qk, v):
        message = "it computes other heads than its GPU has (heads, KV heads, dims of a key and of a value)"
        yield _error("WORK005", node, message, str(found), str((heads, kv_heads, qk, v)))
    if dims.shared_kv != (spec.kind == "mla" and split.at.decode):
        yield _error("WORK005", node, "keys and values are one tensor only where latent attention is absorbed", "", "")


def _rows(node: Node, split: Split, load: tuple[float, ...], tokens: int) -> Iterator[Finding]:
    """A GPU's experts get their share of the routed tokens, and replicas of an expert the shares that the plan gives them."""
    ffn = split.layer.ffn if split.layer is not None else None
    if ffn is None or node.output is None:
        return
    if ffn.kind != "moe":
        yield _error("WORK005", node, "its layer has no experts", node.name, ffn.kind)
        return
    weights = load or (1.0,) * ffn.experts
    ways, groups = len(split.at.stage.expert_devices), split.expert_groups
    own = sum(weights[e] * served_share(split.placement, groups[e], split.expert_group, ways) for e in split.experts.tolist())
    wanted = ceil(round(tokens * ffn.top_k * own / sum(weights), 6))
    if node.output.shape[0] != wanted:
        message = f"GPU {node.devices[0]} serves {node.output.shape[0]} routed tokens, and its experts' share is {wanted}"
        yield _error("WORK004", node, message, node.output.shape[0], wanted)


def _error(code: str, node: Node, message: str, measured: str | int, expected: str | int) -> Finding:
    return Finding(code, "error", node.id, message, measured, expected, "give every GPU the part that the plan says")
