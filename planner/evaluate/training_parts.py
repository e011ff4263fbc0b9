"""The parts that stages of training plans are made of: each role of many options priced in one pass."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from planner.costs.pricer import Site, Sites
from planner.costs.training import CLASSES, COUNTS, stack_of_pricer
from planner.evaluate.rows import attention_rows, partition_table
from planner.evaluate.setting import LayerKind, Setting
from planner.evaluate.tables import expand_cases
from planner.evaluate.training_bills import PassRows, pass_rows
from planner.graph.attention import AttentionSignature
from planner.graph.experts import moe_rows, moe_table
from planner.graph.rows import FfnRows, Ints
from planner.graph.trained import (
    Trained,
    trained_attention,
    trained_embedding,
    trained_head,
    trained_leave,
    trained_mlp,
    trained_moe,
    trained_receive,
)
from planner.units import dtype_bytes
from search_spaces.attention import AttentionPartition
from search_spaces.experts import ExpertPlacement
from search_spaces.sizes import Sizes
from search_spaces.space import residual_shards
from search_spaces.training import RECOMPUTES, Recompute

Array = NDArray[np.float64]
UNFUSED = AttentionSignature("segments")
WHOLE = ("attention_norm", "q_norm", "k_norm", "q_a_norm", "kv_a_norm", "ffn_norm", "router", "router_bias")
"""Weights that every GPU of a stage holds whole."""
EXPERTS = ("expert_gate", "expert_up", "expert_down", "expert_gate_bias", "expert_up_bias", "expert_down_bias")


@dataclass(frozen=True, slots=True)
class Parameters:
    """Elements and stored bytes of weights on the fullest GPU of a stage, and how many GPUs hold each of them: of the stage, in
    the parts of a stage; of all replicas, in a stage.
    """

    elements: float
    bytes: float
    copies: int


@dataclass(frozen=True, slots=True)
class Passes:
    """Seconds of one micro-batch: forward, gradients of inputs (with what is computed again), gradients of weights; bytes
    kept from the forward to the backward pass, and most bytes that live for a moment besides; FLOPs. `spent` [pass, class]:
    GPU seconds of each pass by the classes of `planner/costs/training.py`, and last how many operators it has, of dense
    roles and of mixtures.
    """

    forward_s: float = 0.0
    inputs_s: float = 0.0
    weights_s: float = 0.0
    saved_bytes: float = 0.0
    transient_bytes: float = 0.0
    logits_bytes: float = 0.0
    flops: float = 0.0
    spent: Array = field(default_factory=lambda: np.zeros((3, len(CLASSES) + COUNTS)), compare=False, kw_only=True)

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
            spent=self.spent + times * other.spent,
        )


@dataclass(frozen=True, slots=True)
class Part:
    """A role, or the roles of a layer: its passes with each way to recompute, and its parameters."""

    passes: Mapping[Recompute, Passes]
    parameters: tuple[Parameters, ...] = ()


@dataclass(frozen=True, slots=True)
class StageCase:
    """A way to run a stage: its ranks, how they share attention and FFN, and the sequences of a micro-batch."""

    devices: Site
    attention: AttentionPartition
    mlp_ways: int
    experts: ExpertPlacement | None
    sequences: int

    @property
    def dispatched(self) -> bool:
        """Whether tokens travel to their experts."""
        return self.experts is not None and self.experts.form == "dispatch"

    @property
    def tensor(self) -> int:
        """GPUs that share the heads of the same tokens."""
        return self.attention.head_groups * self.attention.dimension_segments


@dataclass(frozen=True)
class StageParts:
    """The parts of one case; none depends on how many layers a stage has. `layers` has one for each kind of layer."""

    layers: tuple[Part, ...]
    receive: Part
    leave: Part
    embedding: Part | None
    head: Part | None


def stage_parts(env: Setting, sizes: Sizes, cases: Sequence[StageCase], fused: bool | None = None) -> list[StageParts]:
    """Price all cases; `fused` says whether attention is one kernel that keeps no scores (by default as the stack has it)."""
    fused = stack_of_pricer(env.pricer).fused if fused is None else fused
    found: list[StageParts | None] = [None] * len(cases)
    for kind in dict.fromkeys(env.cluster.device_kinds[case.devices[0]] for case in cases):
        chosen = [i for i, case in enumerate(cases) if env.cluster.device_kinds[case.devices[0]] == kind]
        for index, parts in zip(chosen, _Pricing(env, sizes, kind, [cases[i] for i in chosen], fused).parts(), strict=True):
            found[index] = parts
    return [parts for parts in found if parts is not None]


@dataclass(frozen=True, slots=True)
class _Group:
    """Rows of a role that share its topology: which they are, their bills, and name, elements and bytes of every weight."""

    at: Ints
    bills: PassRows
    weights: tuple[tuple[str, Array, Array], ...]


@dataclass(frozen=True, slots=True)
class _Priced:
    """A role in all cases: the first row of every case, and the rows by group."""

    starts: Ints
    groups: tuple[_Group, ...]

    def of(self, case: int) -> tuple[_Group, Ints]:
        """The group of a case, and which of its rows are the case's."""
        for group in self.groups:
            begin, end = np.searchsorted(group.at, self.starts[case : case + 2])
            if end > begin:
                return group, np.arange(begin, end)
        raise ValueError("a case without a row")


class _Pricing:
    """Prices the roles of all cases of one GPU kind."""

    def __init__(self, env: Setting, sizes: Sizes, kind: str, cases: Sequence[StageCase], fused: bool) -> None:
        self.env, self.kind, self.cases, self.fused = env, kind, cases, fused
        self.places = tuple(dict.fromkeys(case.devices for case in cases))
        number = {place: i for i, place in enumerate(self.places)}
        self.site = np.array([number[case.devices] for case in cases], dtype=np.int64)
        self.sequences = np.array([case.sequences for case in cases], dtype=np.int64)
        self.tokens = self.sequences * env.query_length
        self.width = np.array([len(case.devices) for case in cases], dtype=np.int64)
        self.tensor = np.array([case.tensor for case in cases], dtype=np.int64)
        self.shards = np.array([residual_shards(sizes, case.attention) for case in cases], dtype=np.int64)

    def parts(self) -> list[StageParts]:
        """The parts of every case."""
        layers = [self._layer(kind) for kind in self.env.kinds]
        ctx, ends = self.env.context, self._vocab_rows()
        receive = self._ends(lambda at: trained_receive(ctx, _rows(self._ffn_rows(), at)))
        leave = self._ends(lambda at: trained_leave(ctx, _rows(self._ffn_rows(), at)))
        nothing: list[Part | None] = [None] * len(self.cases)
        embedding = self._ends(lambda at: trained_embedding(ctx, _rows(ends, at))) if self.env.has_embedding else nothing
        head = self._ends(lambda at: trained_head(ctx, _rows(ends, at))) if self.env.has_head else nothing
        found = []
        for i, (own, out) in enumerate(zip(receive, leave, strict=True)):
            assert own is not None and out is not None
            found.append(StageParts(tuple(layer[i] for layer in layers), own, out, embedding[i], head[i]))
        return found

    def _layer(self, layer: LayerKind) -> list[Part]:
        """Attention and FFN of one kind of layer in every case; with full recomputation only the layer's input is kept."""
        attention, ffn = self._attention(layer), self._ffn(layer)
        found = []
        for i, case in enumerate(self.cases):
            width, parts = len(case.devices), len(case.devices) // case.tensor
            copies = dict.fromkeys(WHOLE, width) | dict.fromkeys(EXPERTS, 1)
            default = (width if case.dispatched else 1) if layer.moe else width // case.mlp_ways
            passes, kept = {}, 0.0
            for how in RECOMPUTES:
                one, kept = self._passes(attention, i, how)
                other, _ = self._passes(ffn, i, how)
                both = one.plus(other)
                if how == "full":
                    both = Passes(both.forward_s, both.inputs_s, both.weights_s, kept, both.transient_bytes + both.saved_bytes,
                                  both.logits_bytes, both.flops, spent=both.spent)  # fmt: skip
                passes[how] = both
            held = (*self._parameters(attention, i, copies, parts), *self._parameters(ffn, i, copies, default))
            found.append(Part({how: self._accumulated(own, held) for how, own in passes.items()}, held))
        return found

    def _ends(self, build: Callable[[Ints], Trained]) -> Sequence[Part | None]:
        """An end of the model, or of a stage, in every case: never computed again."""
        priced = self._priced(np.arange(len(self.cases)), np.zeros(len(self.cases), dtype=np.int64), build)
        found = []
        for i, case in enumerate(self.cases):
            own = self._passes(priced, i, "none")[0]
            held = self._parameters(priced, i, {}, len(case.devices) // case.tensor)
            found.append(Part(dict.fromkeys(RECOMPUTES, self._accumulated(own, held)), held))
        return found

    def _accumulated(self, passes: Passes, held: Sequence[Parameters]) -> Passes:
        """The passes of a part whose stack adds gradients to a wider buffer with kernels of their own."""
        moved, own = stack_of_pricer(self.env.pricer).accumulate_bytes, self.env.workload.training
        if not moved or own is None or dtype_bytes(own.gradient_dtype) <= dtype_bytes(self.env.model.dtype):
            return passes
        seconds = float(self.env.pricer.sources[self.kind].elementwise(moved * sum(p.elements for p in held)))
        spent = passes.spent.copy()
        spent[2, CLASSES.index("memory")] += seconds
        return replace(passes, weights_s=passes.weights_s + seconds, spent=spent)

    def _attention(self, layer: LayerKind) -> _Priced:
        partitions = list(dict.fromkeys(case.attention for case in self.cases))
        number = {p: i for i, p in enumerate(partitions)}
        table = partition_table(partitions, layer.layer.attention, "prefill")
        signatures = [UNFUSED if not self.fused and s.form == "fused" else s for s in table.signatures]
        row, entry, _ = expand_cases(table.owner, np.array([number[case.attention] for case in self.cases], dtype=np.int64))
        kinds = list(dict.fromkeys(signatures))
        group = np.array([kinds.index(s) for s in signatures], dtype=np.int64)[entry]

        def build(at: Ints) -> Trained:
            rows = attention_rows(table, entry[at], self.sequences[row[at]])
            return trained_attention(self.env.context, layer.layer, kinds[group[at[0]]], rows)

        return self._priced(row, group, build)

    def _ffn(self, layer: LayerKind) -> _Priced:
        ctx = self.env.context
        every = np.arange(len(self.cases))
        if not layer.moe:
            return self._priced(
                every, np.zeros_like(every), lambda at: trained_mlp(ctx, layer.layer, _rows(self._ffn_rows(), at))
            )
        keys = [(case.experts or ExpertPlacement(), len(case.devices)) for case in self.cases]
        distinct = list(dict.fromkeys(keys))
        number = {key: i for i, key in enumerate(distinct)}
        table = moe_table(layer.layer.ffn, distinct, layer.load, layer.row)
        row, entry, _ = expand_cases(table.owner, np.array([number[key] for key in keys], dtype=np.int64))
        group = np.array([self.cases[i].dispatched for i in row], dtype=np.int64)

        def build(at: Ints) -> Trained:
            some = row[at]
            rows = moe_rows(table, entry[at], self.tokens[some], self.width[some], self.shards[some], layer.layer.ffn.top_k)
            return trained_moe(ctx, layer.layer, rows, bool(group[at[0]]))

        return self._priced(row, group, build)

    def _ffn_rows(self) -> FfnRows:
        ways = np.array([case.mlp_ways for case in self.cases], dtype=np.int64)
        return FfnRows(self.tokens, self.width, self.shards, ways, np.zeros_like(ways))

    def _vocab_rows(self) -> FfnRows:
        """Vocabulary parallel over the GPUs that share the heads of the same tokens."""
        parts = self.width // self.tensor
        shards = np.maximum(1, self.shards // parts)
        return FfnRows(-(-self.tokens // parts), self.tensor, shards, self.tensor, np.zeros_like(parts))

    def _priced(self, row: Ints, group: Ints, build: Callable[[Ints], Trained]) -> _Priced:
        """Bills of a role whose rows (of case `row`) are built and priced group by group."""
        found = []
        for value in np.unique(group):
            at = np.nonzero(group == value)[0]
            trained = build(at)
            bills = pass_rows(self.env, Sites(self.places, self.site[row[at]], self.kind), trained)
            weights = tuple(
                (shard.name, np.broadcast_to(shard.elements, at.shape), np.broadcast_to(shard.bytes, at.shape))
                for op in trained.forward.ops
                for shard in op.weights
            )
            found.append(_Group(at, bills, weights))
        return _Priced(np.searchsorted(row, np.arange(len(self.cases) + 1)), tuple(found))

    def _passes(self, priced: _Priced, case: int, recompute: Recompute) -> tuple[Passes, float]:
        """The passes of a case on its slowest and fullest rows, and the bytes of the role's input."""
        group, own = priced.of(case)
        rows = group.bills.at(own)
        extra, gone = np.zeros(own.size), np.zeros(own.size)
        if recompute == "selective":
            extra, gone = rows.core_s, rows.core_bytes
        elif recompute == "full":
            extra = rows.forward_s
        most = (rows.forward_s, rows.inputs_s + extra, rows.weights_s, rows.saved_bytes - gone, rows.transient_bytes,
                rows.logits_bytes, rows.flops)  # fmt: skip
        spent = rows.spent.max(axis=0)
        spent[1] += 0.0 if recompute == "none" else spent[3] if recompute == "selective" else spent[0]
        passes = Passes(*(float(column.max()) for column in most))
        return replace(passes, spent=spent[:3]), float(rows.input_bytes.max())

    def _parameters(self, priced: _Priced, case: int, copies: Mapping[str, int], default: int) -> tuple[Parameters, ...]:
        """The weights of a role on the fullest GPU of a case."""
        group, own = priced.of(case)
        return tuple(
            Parameters(float(elements[own].max()), float(stored[own].max()), copies.get(name, default))
            for name, elements, stored in group.weights
        )


def _rows(rows: FfnRows, at: Ints) -> FfnRows:
    """Some rows."""
    return FfnRows(rows.tokens[at], rows.ways[at], rows.residual_shards[at], rows.mlp_ways[at], rows.index[at])
