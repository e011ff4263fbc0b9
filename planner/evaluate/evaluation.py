"""Evaluation: what a plan costs: latency, its critical path and Get_Time expression, time and memory of every GPU."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields, replace
from typing import Any

from planner.costs.training import training_spreads
from planner.evaluate.capacity import over_capacity
from planner.evaluate.devices import DeviceBill, stage_devices
from planner.evaluate.interval import interval_of, path_classes
from planner.evaluate.linear import linear_path
from planner.evaluate.setting import Setting
from planner.evaluate.timeline import CriticalPath, Item
from planner.evaluate.training import StepPricing
from planner.evaluate.training_classes import class_seconds
from planner.evaluate.training_devices import trained_devices
from planner.evaluate.training_path import training_path
from planner.evaluate.training_stage import training_stages
from planner.evaluate.waves import waves_path
from planner.model import ModelSpec
from planner.workload import Workload
from search_spaces.sizes import Sizes
from search_spaces.stages import Choice, replica_stride

SCHEMA = "planner.evaluation/1"


@dataclass(frozen=True, slots=True)
class Memory:
    """The memory bill of one GPU, in bytes."""

    weights_bytes: int
    kv_cache_bytes: int
    activation_bytes: int
    scores_bytes: int
    logits_bytes: int
    gradient_bytes: int
    optimizer_bytes: int
    communication_buffer_bytes: int
    reserve_bytes: int
    total_bytes: int
    capacity_bytes: int


ITEMS = tuple(f.name.removesuffix("_bytes") for f in fields(Memory) if f.name not in ("total_bytes", "capacity_bytes"))
"""What fills a GPU's memory, by name."""


@dataclass(frozen=True, slots=True)
class DeviceReport:
    """One GPU within the latency: seconds it computes, is held by collectives and waits (they add up), and its memory.

    Sends between stages run beside the computation on their own streams and are not counted here.
    """

    rank: int
    busy_s: float
    communication_s: float
    idle_s: float
    memory: Memory


@dataclass(frozen=True, slots=True)
class Evaluation:
    """What a plan costs. `latency_s`: prefill, seconds of the batch; decode, seconds per output token.

    `flops_total` are the operations that all GPUs do, `flops_model` those of the unsplit model (causal pairs counted
    once), `mfu` the latter over peak of the GPUs in use. `over_capacity_bytes` is 0 when the plan fits: every item of a stage's
    memory is taken at its largest share, so it may exceed what the single GPUs add up to. `interval_s`: what a measured
    latency lies between in four of five cases (see `planner/costs/intervals.py`).
    """

    latency_s: float
    throughput_tokens_per_s: float
    critical_path: tuple[Item, ...]
    expression: str
    devices: tuple[DeviceReport, ...]
    flops_total: float
    flops_model: float
    mfu: float
    over_capacity_bytes: int
    slack: tuple[tuple[str, float], ...]
    interval_s: tuple[float, float]

    def to_dict(self) -> dict[str, Any]:
        """As JSON-ready data (`planner.evaluation/1`)."""
        return {"schema": SCHEMA, **asdict(self), "slack": [{"task": t, "seconds": s} for t, s in self.slack]}


def evaluate(env: Setting, sizes: Sizes, choice: Choice) -> Evaluation:
    """Price one plan; the choice must be sound (see `planner.check`)."""
    if choice.training is not None:
        return _evaluate_training(env, sizes, choice)
    path: CriticalPath = (waves_path if choice.stages[0].separate else linear_path)(env, sizes, choice)
    reports, total = [], 0.0
    stride = replica_stride(sizes, choice.replicas) or 0
    for index in range(len(choice.stages)):
        for bill in stage_devices(env, sizes, choice, index):
            total += bill.flops * choice.micro_batches * choice.replicas
            report = _report(env, bill, choice.micro_batches, path)
            reports += [replace(report, rank=report.rank + copy * stride) for copy in range(choice.replicas)]
    tokens = env.workload.batch * env.query_length
    model = model_flops(env.model, env.workload)
    used = sorted(rank for stage in choice.stages for rank in stage.devices)
    peak = choice.replicas * sum(env.cluster.kind_of(r).peak_flops.get(env.model.dtype, 0.0) for r in used)
    over = round(over_capacity(env, sizes, choice))
    return Evaluation(
        path.latency_s, tokens / path.latency_s, path.items, path.expression,
        tuple(sorted(reports, key=lambda r: r.rank)), total, model, model / (path.latency_s * peak) if peak else 0.0,
        max(over, 0), path.slack, interval_of(path.latency_s, path_classes(path.items)),
    )  # fmt: skip


def _evaluate_training(env: Setting, sizes: Sizes, choice: Choice) -> Evaluation:
    """Price one step of a training plan; `flops_model` are those of the forward pass three times."""
    pricing = StepPricing(env, sizes, choice, training_stages(env, sizes, choice))
    step, path = pricing.step(), training_path(pricing, env.pricer.sources[env.cluster.device_kinds[0]].source)
    tokens, model = env.workload.batch * env.query_length, 3.0 * model_flops(env.model, env.workload.forward)
    reports = []
    for own in trained_devices(pricing, step):
        memory = _memory(
            env, own.rank, weights=own.weights, activation=own.activation, logits=own.logits, gradient=own.gradients,
            optimizer=own.optimizer, communication_buffer=own.communication_bytes, reserve=own.reserve,
        )  # fmt: skip
        idle = max(step.seconds - own.busy_s - own.communication_s, 0.0)
        reports.append(DeviceReport(own.rank, own.busy_s, own.communication_s, idle, memory))
    peak = sum(env.cluster.kind_of(report.rank).peak_flops.get(env.model.dtype, 0.0) for report in reports)
    reports.sort(key=lambda report: report.rank)
    over = max(round(pricing.over_capacity()), 0)
    interval = interval_of(step.seconds, class_seconds(step, choice.micro_batches), training_spreads())
    return Evaluation(
        step.seconds, tokens / step.seconds, path.items, path.expression, tuple(reports), step.flops, model,
        model / (step.seconds * peak) if peak else 0.0, over, path.slack, interval,
    )  # fmt: skip


def _report(env: Setting, bill: DeviceBill, micro_batches: int, path: CriticalPath) -> DeviceReport:
    busy, sent = bill.busy_s * micro_batches, bill.communication_s * micro_batches
    memory = _memory(
        env, bill.rank, weights=bill.weights, kv_cache=bill.cache, activation=bill.activation, scores=bill.scores,
        logits=bill.logits, communication_buffer=bill.communication_bytes, reserve=bill.reserve,
    )  # fmt: skip
    return DeviceReport(bill.rank, busy, sent, max(path.latency_s - busy - sent, 0.0), memory)


def _memory(env: Setting, rank: int, **items: float) -> Memory:
    """The bill of a GPU from what it holds, by the names of `Memory` without their unit; what is not named is 0."""
    held = dict.fromkeys(ITEMS, 0) | {name: round(amount) for name, amount in items.items()}
    capacity = env.cluster.kind_of(rank).memory_bytes
    whole = {f"{name}_bytes": amount for name, amount in held.items()}
    return Memory(**whole, total_bytes=sum(held.values()), capacity_bytes=capacity)


def model_flops(model: ModelSpec, workload: Workload) -> float:
    """FLOPs of the unsplit model for one pass of the batch: two per multiply-add, no recomputation.

    Matmul weights meet every token (routed experts their top-k share, the head only tokens whose logits are wanted);
    attention counts the pairs that the mask keeps.
    """
    tokens = workload.batch * workload.query_length
    total = 0.0
    for layer in model.layers:
        share = layer.ffn.top_k / layer.ffn.experts if layer.ffn.kind == "moe" else 1.0
        for weight in layer.weights(model.hidden):
            if len(weight.shape) > 1 and weight.module != "norm" and "bias" not in weight.name:
                total += 2.0 * tokens * weight.parameters * (share if weight.module == "experts" else 1.0)
        a = layer.attention
        limit = min(x for x in (workload.kv_length, a.window, a.chunk, a.indexer.top_k if a.indexer else None) if x is not None)
        q = workload.query_length
        causal = workload.phase == "prefill" and a.causal
        pairs = limit * (limit + 1) / 2 + (q - limit) * limit if causal else float(q * limit)
        total += 2.0 * workload.batch * a.heads * pairs * (a.head_dim + a.v_head_dim)
    if model.vocab and workload.logits != "none":
        rows = tokens if workload.logits == "all" else workload.batch
        total += 2.0 * rows * model.hidden * model.vocab
    return total
