"""Time and memory of every GPU of a stage for one micro-batch, from its own shares."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
from numpy.typing import NDArray

from planner.costs.memory import BOUNDARY_BUFFERS, COLLECTIVE_BYTES, communication_bytes, reserve_bytes
from planner.costs.pricer import RoleBill, Sites
from planner.evaluate.separate import TRANSFER_BUFFERS
from planner.evaluate.setting import LayerKind, Setting
from planner.graph.attention import attention_role
from planner.graph.devices import attention_device_rows, ffn_device_rows, signature_of
from planner.graph.experts import moe_device_rows
from planner.graph.head import embedding_role, head_role, receive_role
from planner.graph.mlp import mlp_role
from planner.graph.moe import dispatch_role, expert_role, local_role, return_role, route_role
from planner.graph.ops import Role, Store
from planner.graph.rows import MoeRows
from search_spaces.experts import ExpertPlacement
from search_spaces.sizes import Sizes
from search_spaces.space import residual_shards
from search_spaces.stages import Choice

Array = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class DeviceBill:
    """One GPU for one micro-batch: seconds it computes and communicates, FLOPs; bytes by item."""

    rank: int
    busy_s: float
    communication_s: float
    flops: float
    weights: float
    cache: float
    activation: float
    scores: float
    logits: float
    communication_bytes: float
    reserve: float


@dataclass
class _Side:
    """Running totals of the GPUs of one side of a stage, per GPU."""

    devices: tuple[int, ...]
    busy: Array
    sent: Array
    flops: Array
    weights: Array
    cache: Array
    peak: Array
    at_peak: dict[Store, Array]
    waiting: Array


def stage_devices(env: Setting, sizes: Sizes, choice: Choice, index: int) -> tuple[DeviceBill, ...]:
    """Every GPU of one stage (of the first replica)."""
    build = StageRoles(env, sizes, choice, index)
    key = (build.stage, build.first, build.last, build.kinds, build.sequences)
    sides = env.once("GPUs of a stage", key, partial(_sides, env, build))
    return tuple(bill for at, side in enumerate(sides) for bill in _bills(env, choice, index, side, at == 1, build))


def _sides(env: Setting, build: StageRoles) -> list[_Side]:
    """Totals of the attention GPUs of a stage, and of its expert GPUs where those are apart."""
    stage = build.stage
    sides = [_side(stage.attention_devices)]
    for role, count in build.near():
        _add(env, sides[0], role, count)
    if stage.separate:
        sides.append(_side(stage.expert_devices))
        for role, count in build.far():
            _add(env, sides[1], role, count)
    return sides


def _side(devices: tuple[int, ...]) -> _Side:
    busy, sent, flops, weights, cache, peak, waiting = (np.zeros(len(devices)) for _ in range(7))
    at_peak = {store: np.zeros(len(devices)) for store in Store}
    return _Side(devices, busy, sent, flops, weights, cache, peak, at_peak, waiting)


def _add(env: Setting, side: _Side, role: Role, count: int) -> None:
    """Add a role that runs on `count` layers of the stage."""
    rows = (len(side.devices),)
    for kind in dict.fromkeys(env.cluster.device_kinds[d] for d in side.devices):
        mine = np.array([env.cluster.device_kinds[d] == kind for d in side.devices])
        sites = Sites((side.devices,), np.zeros(len(side.devices), dtype=np.int64), kind)
        for op in role.ops:
            seconds = np.where(mine, env.pricer.seconds(op, sites), 0.0) * count
            if op.group is None:
                side.busy = side.busy + seconds
            elif op.stream == "compute":
                side.sent = side.sent + seconds
        bill: RoleBill = env.pricer.bill(role, sites)
    side.flops = side.flops + count * sum((np.broadcast_to(op.flops, rows) for op in role.ops), np.zeros(rows))
    side.weights, side.cache = side.weights + count * bill.weight_bytes, side.cache + count * bill.kv_bytes
    if role.name == "experts" and role.x is not None:
        side.waiting = np.maximum(side.waiting, role.x.bytes)
    higher = bill.peak_bytes > side.peak
    side.peak = np.where(higher, bill.peak_bytes, side.peak)
    side.at_peak = {s: np.where(higher, bill.at_peak[s], side.at_peak[s]) for s in Store}


def _bills(env: Setting, choice: Choice, index: int, side: _Side, far: bool, build: StageRoles) -> Iterator[DeviceBill]:
    stage, model = choice.stages[index], env.model
    width = len(stage.devices)
    resident = -(-env.workload.batch // choice.replicas // stage.attention.batch_parts)
    buffers = float(COLLECTIVE_BYTES) if stage.separate else communication_bytes(width)
    if index:
        slice_tokens = -(-build.tokens // width)
        buffers += BOUNDARY_BUFFERS * float(env.context.tensor("", slice_tokens, model.hidden).bytes)
    held = 0.0
    if stage.separate and not far:
        held = choice.in_flight * float(env.context.tensor("", -(-build.tokens // build.shards), model.hidden).bytes)
    for at, rank in enumerate(side.devices):
        store = {s: float(side.at_peak[s][at]) for s in Store}
        waiting = TRANSFER_BUFFERS * 2.0 * float(side.waiting[at]) if far else 0.0
        yield DeviceBill(
            rank, float(side.busy[at]), float(side.sent[at]), float(side.flops[at]), float(side.weights[at]),
            float(side.cache[at]) * resident, store[Store.ACTIVATION] + held, store[Store.SCORES], store[Store.LOGITS],
            store[Store.COMMUNICATION] + buffers + waiting, reserve_bytes(env.cluster.kind_of(rank)),
        )  # fmt: skip


class StageRoles:
    """The roles of a stage with one row per GPU, and on how many of its layers each runs."""

    def __init__(self, env: Setting, sizes: Sizes, choice: Choice, index: int) -> None:
        self.env, self.stage = env, choice.stages[index]
        self.first, self.last = index == 0, index == len(choice.stages) - 1
        start = sum(stage.layers for stage in choice.stages[:index])
        self.kinds = env.kind_of_layer[start : start + self.stage.layers]
        self.layers = [(env.kinds[kind], self.kinds.count(kind)) for kind in dict.fromkeys(self.kinds)]
        self.sequences = sizes.batch // choice.replicas // choice.micro_batches
        self.tokens = self.sequences * env.query_length
        self.shards = residual_shards(sizes, self.stage.attention)
        self.placement = self.stage.experts or ExpertPlacement()

    def near(self) -> Iterator[tuple[Role, int]]:
        """Roles of the GPUs that compute attention."""
        ctx, rows = self.env.context, ffn_device_rows(self.stage, self.tokens, self.shards)
        if self.first and self.env.has_embedding:
            yield embedding_role(ctx, rows), 1
        if not self.first:
            yield receive_role(ctx, rows), 1
        decode = self.env.workload.phase == "decode"
        for layer, count in self.layers:
            spec = layer.layer.attention
            signature = signature_of(self.stage.attention, self.env.workload.phase)
            yield (
                attention_role(ctx, layer.layer, signature, attention_device_rows(self.stage, spec, self.sequences, decode)),
                count,
            )
            if not layer.moe:
                yield mlp_role(ctx, layer.layer, rows), count
                continue
            moe = self.moe_rows(layer)
            if self.stage.separate:
                yield route_role(ctx, layer.layer, moe, self.placement.router_side == "attention"), count
                yield return_role(ctx, layer.layer, moe), count
            else:
                build = dispatch_role if self.placement.form == "dispatch" else local_role
                yield build(ctx, layer.layer, moe), count
        if self.last and self.env.has_head:
            head = head_role(ctx, rows, np.full(rows.ways.shape, self.sequences, dtype=np.int64))
            if self.first and self.env.model.tied_embeddings:
                head = replace(head, ops=tuple(replace(op, weights=()) if op.name == "lm_head" else op for op in head.ops))
            yield head, 1

    def far(self) -> Iterator[tuple[Role, int]]:
        """Roles of the GPUs that hold experts alone."""
        for layer, count in self.layers:
            if layer.moe:
                rows = self.moe_rows(layer, experts_apart=True)
                yield expert_role(self.env.context, layer.layer, rows, self.placement.router_side == "attention"), count

    def moe_rows(self, layer: LayerKind, experts_apart: bool = False) -> MoeRows:
        """Rows of a mixture, one per GPU: its own group of experts, its place and its column."""
        return moe_device_rows(self.stage.at(layer.row), layer.layer.ffn, layer.load, self.tokens, self.shards, experts_apart)
