"""What one stage of a training plan costs: seconds and kept bytes of every pass, parameters and who else holds them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from planner.costs.pricer import Sites, live_peak
from planner.evaluate.rows import attention_rows, partition_table
from planner.evaluate.setting import LayerKind, Setting
from planner.graph.attention import AttentionSignature
from planner.graph.experts import moe_rows, moe_table
from planner.graph.ops import Op, Role, Store, Tensor
from planner.graph.rows import FfnRows
from planner.graph.trained import (
    Trained,
    trained_attention,
    trained_embedding,
    trained_head,
    trained_mlp,
    trained_moe,
    trained_receive,
)
from search_spaces.experts import ExpertPlacement
from search_spaces.sizes import Sizes
from search_spaces.space import residual_shards
from search_spaces.stages import Choice
from search_spaces.training import TrainingChoice

Array = NDArray[np.float64]
CORE = frozenset({"scores", "softmax", "attention_value", "attention"})
"""The attention core, which selective recomputation computes again (Korthikanti et al., arXiv:2205.05198)."""
UNFUSED = AttentionSignature("segments")
WHOLE = ("attention_norm", "q_norm", "k_norm", "q_a_norm", "kv_a_norm", "ffn_norm", "router", "router_bias")
"""Weights that every GPU of a stage holds whole."""
EXPERTS = ("expert_gate", "expert_up", "expert_down", "expert_gate_bias", "expert_up_bias", "expert_down_bias")


@dataclass(frozen=True, slots=True)
class Parameters:
    """Elements and stored bytes of weights on the fullest GPU of a stage, and how many GPUs hold each of them."""

    elements: float
    bytes: float
    copies: int


@dataclass(frozen=True, slots=True)
class Passes:
    """Seconds of one micro-batch: forward, gradients of inputs (with what is computed again), gradients of weights; bytes
    kept from the forward to the backward pass, and most bytes that live for a moment besides.
    """

    forward_s: float = 0.0
    inputs_s: float = 0.0
    weights_s: float = 0.0
    saved_bytes: float = 0.0
    transient_bytes: float = 0.0
    logits_bytes: float = 0.0
    flops: float = 0.0

    def plus(self, other: Passes, times: int = 1) -> Passes:
        """Both one after another, the other `times` over."""
        return Passes(
            self.forward_s + times * other.forward_s,
            self.inputs_s + times * other.inputs_s,
            self.weights_s + times * other.weights_s,
            self.saved_bytes + times * other.saved_bytes,
            max(self.transient_bytes, other.transient_bytes),
            max(self.logits_bytes, other.logits_bytes),
            self.flops + times * other.flops,
        )


@dataclass(frozen=True, slots=True)
class Part:
    """A role, or the roles of a layer: its passes, and its parameters by how many GPUs hold them."""

    passes: Passes = Passes()
    parameters: tuple[Parameters, ...] = ()


@dataclass(frozen=True, slots=True)
class TrainingStage:
    """A stage: the passes of each chunk of its layers, and its parameters by how often they are held."""

    chunks: tuple[Passes, ...]
    parameters: tuple[Parameters, ...]
    layers: int


def training_stage(env: Setting, sizes: Sizes, choice: Choice, index: int, fused: bool = True) -> TrainingStage:
    """Price stage `index` of a training plan; `fused` says whether attention is one kernel that keeps no scores."""
    parts = StageParts(env, sizes, choice, index, fused)
    training = choice.training or TrainingChoice()
    layers = chunk_layers([stage.layers for stage in choice.stages], training.virtual_stages)[index]
    return assembled(env, parts, layers, first=index == 0, last=index == len(choice.stages) - 1)


def assembled(env: Setting, parts: StageParts, chunks: Sequence[range], *, first: bool, last: bool) -> TrainingStage:
    """A stage of some chunks of layers, from its parts; `first` and `last` say whether it has an end of the model."""
    found: list[Passes] = []
    held: dict[int, list[float]] = {}
    for c, layers in enumerate(chunks):
        passes = Passes()
        for part, times in _pieces(env, parts, layers, first and c == 0, last and c == len(chunks) - 1):
            passes = passes.plus(part.passes, times)
            for own in part.parameters:
                amounts = held.setdefault(own.copies, [0.0, 0.0])
                amounts[0] += times * own.elements
                amounts[1] += times * own.bytes
        found.append(passes)
    parameters = tuple(Parameters(elements, stored, copies) for copies, (elements, stored) in held.items())
    return TrainingStage(tuple(found), parameters, sum(map(len, chunks)))


def _pieces(env: Setting, parts: StageParts, layers: range, first: bool, last: bool) -> list[tuple[Part, int]]:
    """The parts of a chunk and how often it has each."""
    numbers = [env.kind_of_layer[layer] for layer in layers]
    pieces = [(parts.layer(kind), numbers.count(kind)) for kind in dict.fromkeys(numbers)]
    if not first:
        pieces.insert(0, (parts.receive, 1))
    elif env.has_embedding:
        pieces.insert(0, (parts.embedding, 1))
    if last and env.has_head:
        tied = first and env.model.tied_embeddings
        pieces.append((replace(parts.head, parameters=()) if tied else parts.head, 1))
    return pieces


def chunk_layers(stages: Sequence[int], virtual: int) -> tuple[tuple[range, ...], ...]:
    """The layers of every chunk of every stage: all stages of a chunk before the first of the next, larger chunks first."""
    found: list[list[range]] = [[] for _ in stages]
    start = 0
    for c in range(virtual):
        for stage, layers in enumerate(stages):
            count = (layers + virtual - 1 - c) // virtual
            found[stage].append(range(start, start + count))
            start += count
    return tuple(map(tuple, found))


class StageParts:
    """The parts that stage `index` of a training plan is made of, each priced once; none depends on how many layers it has."""

    def __init__(self, env: Setting, sizes: Sizes, choice: Choice, index: int, fused: bool = True) -> None:
        self.env, self.stage, self.fused = env, choice.stages[index], fused
        self.training = choice.training or TrainingChoice()
        self.replicas = choice.replicas
        self.sequences = sizes.batch // choice.replicas // choice.micro_batches
        self.tokens = self.sequences * env.query_length
        self.partition = self.stage.attention
        self.shards = residual_shards(sizes, self.partition)
        self.width = len(self.stage.devices)
        self.sites = (self.stage.devices,)
        self.kind = env.cluster.device_kinds[self.stage.devices[0]]
        self._layers: dict[int, Part] = {}

    @cached_property
    def embedding(self) -> Part:
        """Token ids to the residual stream."""
        return self._end(trained_embedding(self.env.context, self._vocab_rows()))

    @cached_property
    def receive(self) -> Part:
        """The arrival of a micro-batch from another stage."""
        return Part(self._passes(trained_receive(self.env.context, self._ffn_rows()), again=False))

    @cached_property
    def head(self) -> Part:
        """Final norm, logits and loss."""
        return self._end(trained_head(self.env.context, self._vocab_rows()))

    def layer(self, kind: int) -> Part:
        """One layer of a kind; with full recomputation only its input is kept."""
        if kind not in self._layers:
            self._layers[kind] = self._layer(self.env.kinds[kind])
        return self._layers[kind]

    @property
    def _tensor(self) -> int:
        return self.partition.head_groups * self.partition.dimension_segments

    def _end(self, trained: Trained) -> Part:
        copies = self.width // self._tensor * self.replicas
        return Part(self._passes(trained, again=False), tuple(_parameters(trained.forward, {}, copies)))

    def _layer(self, layer: LayerKind) -> Part:
        attention, ffn = self._attention(layer), self._ffn(layer)
        everywhere = dict.fromkeys(WHOLE, self.width * self.replicas)
        held = list(_parameters(attention.forward, everywhere, self.width // self._tensor * self.replicas))
        if layer.moe:
            experts = dict.fromkeys(EXPERTS, self.replicas)
            shared = self.width * self.replicas if self._dispatched else self.replicas
            held += _parameters(ffn.forward, everywhere | experts, shared)
        else:
            held += _parameters(ffn.forward, everywhere, self.width // self.stage.mlp_ways * self.replicas)
        full = self.training.recompute == "full"
        both = self._passes(attention, again=full).plus(self._passes(ffn, again=full))
        if full and attention.forward.x is not None:
            kept = float(np.max(attention.forward.x.bytes))
            both = replace(both, saved_bytes=kept, transient_bytes=both.transient_bytes + both.saved_bytes)
        return Part(both, tuple(held))

    def _attention(self, layer: LayerKind) -> Trained:
        spec = layer.layer.attention
        table = partition_table([self.partition], spec, "prefill")
        entry = np.arange(table.owner.size)
        rows = attention_rows(table, entry, np.full(entry.shape, self.sequences, dtype=np.int64))
        signature = table.signatures[0]
        if not self.fused and signature.form == "fused":
            signature = UNFUSED
        return trained_attention(self.env.context, layer.layer, signature, rows)

    @property
    def _dispatched(self) -> bool:
        return (self.stage.experts or ExpertPlacement()).form == "dispatch"

    def _ffn(self, layer: LayerKind) -> Trained:
        if not layer.moe:
            return trained_mlp(self.env.context, layer.layer, self._ffn_rows())
        table = moe_table(layer.layer.ffn, [(self.stage.experts or ExpertPlacement(), self.width)], layer.load)
        entry = np.arange(table.owner.size)
        tokens, ways, shards = (np.full(entry.shape, n, dtype=np.int64) for n in (self.tokens, self.width, self.shards))
        rows = moe_rows(table, entry, tokens, ways, shards, layer.layer.ffn.top_k)
        return trained_moe(self.env.context, layer.layer, rows, self._dispatched)

    def _ffn_rows(self) -> FfnRows:
        return _row(self.tokens, self.width, self.shards, self.stage.mlp_ways)

    def _vocab_rows(self) -> FfnRows:
        """Vocabulary parallel over the GPUs that share the heads of the same tokens."""
        parts = self.width // self._tensor
        return _row(-(-self.tokens // parts), self._tensor, max(1, self.shards // parts), self._tensor)

    def _passes(self, trained: Trained, again: bool) -> Passes:
        """Seconds, kept and passing bytes of a role; `again`: computed once more in the backward pass."""
        forward, inputs, weights = trained.forward, trained.backward.inputs, trained.backward.weights
        rows = max(_rows(forward), _rows(inputs), _rows(weights))
        sites = Sites(self.sites, np.zeros(rows, dtype=np.int64), self.kind)
        seconds = [self.env.pricer.bill(role, sites).seconds for role in (forward, inputs, weights)]
        extra, names = np.zeros(rows), trained.backward.saved
        if again:
            extra = seconds[0]
        elif self.training.recompute == "selective":
            core = [op for op in forward.ops if op.name in CORE and op.attention is None]
            extra = sum((self.env.pricer.seconds(op, sites) for op in core), extra)
            names = tuple(n for n in names if n not in {op.output.name for op in core if op.name != "attention_value"})
        saved = kept_bytes(forward, names, rows)
        if self.env.context.training is not None and self.env.context.training.dropout:
            saved = saved + dropout_bytes(forward)
        transient = live_peak(inputs, (rows,))[0]
        logits = max((float(np.max(op.output.bytes)) for op in inputs.ops if op.output.store == Store.LOGITS), default=0.0)
        flops = sum(float(np.max(op.flops)) for role in (forward, inputs, weights) for op in role.ops)
        return Passes(
            float(seconds[0].max()), float((seconds[1] + extra).max()), float(seconds[2].max()), float(saved.max()),
            float(transient.max()), logits, flops,
        )  # fmt: skip


def _parameters(role: Role, copies: Mapping[str, int], default: int) -> Iterator[Parameters]:
    """The weights of a role on the fullest GPU, and how many GPUs hold each."""
    for op in role.ops:
        for shard in op.weights:
            yield Parameters(float(np.max(shard.elements)), float(np.max(shard.bytes)), copies.get(shard.name, default))


def kept_bytes(role: Role, names: tuple[str, ...], rows: int) -> Array:
    """Bytes [rows] of forward tensors that are kept until the backward pass; one that no operator wrote is not there."""
    total = np.zeros(rows)
    for name in names:
        writers = [op for op in role.ops if op.output.name == name]
        if writers:
            total = total + np.max([np.broadcast_to(_written(op), (rows,)) for op in writers], axis=0)
        elif role.x is not None and role.x.name == name:
            total = total + role.x.bytes
    return total


def dropout_bytes(role: Role) -> Array:
    """One byte for each element that a residual branch drops."""
    return np.asarray(sum(_elements(op.output) for op in role.ops if op.name.endswith("_residual")))


def _written(op: Op) -> Array:
    present = np.asarray(op.exists, dtype=np.float64)
    if op.group is not None:
        present = present * (np.asarray(op.group.size) > 1)
    return np.asarray(op.output.bytes * present)


def _elements(tensor: Tensor) -> Array:
    total = np.asarray(1.0)
    for size in tensor.shape:
        total = total * np.asarray(size, dtype=np.float64)
    return total


def _rows(role: Role) -> int:
    sizes: Iterator[int] = (np.size(value) for op in role.ops for value in (op.exists, op.m, op.n, op.bytes, *op.output.shape))
    return max(sizes, default=1)


def _row(*numbers: int) -> FfnRows:
    columns = [np.array([n], dtype=np.int64) for n in numbers]
    return FfnRows(columns[0], columns[1], columns[2], columns[3], np.zeros(1, dtype=np.int64))
