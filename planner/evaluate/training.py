"""A training step: the pipeline of all micro-batches, what the replicas exchange, and the optimizer; memory of each stage."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from planner.costs.memory import communication_bytes, reserve_bytes
from planner.costs.training import Stack, stack_of_pricer, training_pricer
from planner.evaluate.pipeline import send_seconds
from planner.evaluate.setting import Setting
from planner.evaluate.training_parts import Parameters
from planner.evaluate.training_stage import TrainingStage, training_stages
from planner.graph.ops import Kind as OpKind
from planner.graph.schedule import Kind, Work, finish_times, held_counts, stage_order
from planner.graph.schedule import Step as Pass
from planner.units import dtype_bytes
from search_spaces.sizes import Sizes
from search_spaces.stages import Choice, replica_stride
from search_spaces.training import TrainingChoice

OPTIMIZER_BYTES = {"adam": 12.0, "sgd": 4.0}
"""Bytes of optimizer state for each parameter: fp32 weights, and with adam two fp32 moments."""


@dataclass(frozen=True, slots=True)
class StageMemory:
    """Bytes of the fullest GPU of a stage, by item."""

    weights: float
    gradients: float
    optimizer: float
    activations: float
    transient: float
    logits: float
    communication: float
    reserve: float

    @property
    def total(self) -> float:
        """All items."""
        return (self.weights + self.gradients + self.optimizer + self.activations + self.transient + self.logits
                + self.communication + self.reserve)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Step:
    """Seconds of an optimizer step: the pipeline until the last stage is done, exchange of gradients and weights that
    nothing hides, and the optimizer; what each stage costs and holds.
    """

    seconds: float
    pipeline_s: float
    exchange_s: float
    optimizer_s: float
    stages: tuple[TrainingStage, ...]
    memory: tuple[StageMemory, ...]
    flops: float


def training_step(env: Setting, sizes: Sizes, choice: Choice, fused: bool | None = None, stack: Stack | None = None) -> Step:
    """Price a training plan and its memory; under `stack`, by default the one that the prices of `env` are for."""
    if stack is not None:
        pricer = training_pricer(env.cluster, stack, env.pricer.sources)
        env, fused = Setting(env.model, env.workload, env.cluster, pricer), stack.fused
    return StepPricing(env, sizes, choice, training_stages(env, sizes, choice, fused)).step()


def pipeline_bound(stages: Sequence[TrainingStage], micro_batches: int) -> float:
    """Seconds that no schedule of these stages goes below: a stage's own work, behind the first micro-batch's way there and
    before the last gradient's way back.
    """
    ahead = most = 0.0
    for stage in stages:
        work = sum(p.forward_s + p.inputs_s + p.weights_s for p in stage.chunks)
        most = max(most, ahead + micro_batches * work)
        ahead += stage.chunks[0].forward_s + stage.chunks[0].inputs_s
    return most


class StepPricing:
    """The step of a plan whose stages are priced already."""

    def __init__(self, env: Setting, sizes: Sizes, choice: Choice, stages: tuple[TrainingStage, ...]) -> None:
        self.env, self.sizes, self.choice, self.stages = env, sizes, choice, stages
        self.stack = stack_of_pricer(env.pricer)
        self.training = choice.training or TrainingChoice()
        chunks = self.training.virtual_stages
        count = len(stages)
        self.orders = [stage_order(self.training.schedule, i, count, choice.micro_batches, chunks) for i in range(count)]
        stride = replica_stride(sizes, choice.replicas) or 0
        self.exchanges = [_Exchange(env, choice, i, stage.parameters, stride) for i, stage in enumerate(stages)]

    def step(self, ends: Sequence[float] | None = None) -> Step:
        """Everything; `ends` where they are known."""
        ends = self.ends() if ends is None else ends
        tails = [x.tail(self._backward(i)) for i, x in enumerate(self.exchanges)]
        heads = [x.head(self._forward(i)) for i, x in enumerate(self.exchanges)]
        done = max(end + tail for end, tail in zip(ends, tails, strict=True))
        optimizer = max(x.optimizer_seconds() for x in self.exchanges) + self.stack.step_s
        pipeline = max(ends)
        exchange = done - pipeline + max(heads)
        flops = (
            self.choice.micro_batches
            * self.choice.replicas
            * sum(
                p.flops * len(s.devices) for s, stage in zip(self.choice.stages, self.stages, strict=True) for p in stage.chunks
            )
        )
        return Step(pipeline + exchange + optimizer, pipeline, exchange, optimizer, self.stages, self.memory(), flops)

    def bound(self) -> float:
        """Seconds that no step of these stages goes below."""
        return pipeline_bound(self.stages, self.choice.micro_batches) + max(x.optimizer_seconds() for x in self.exchanges)

    def memory(self) -> tuple[StageMemory, ...]:
        """The memory of every stage."""
        return tuple(self._memory(i) for i in range(len(self.stages)))

    def over_capacity(self, most: float = float("inf")) -> float:
        """Bytes by which the fullest GPU exceeds its memory, or `most` of it; 0 or less where the plan fits."""
        return max(
            memory.total - min(most, self.env.cluster.kind_of(stage.devices[0]).memory_bytes)
            for memory, stage in zip(self.memory(), self.choice.stages, strict=True)
        )

    def _forward(self, stage: int) -> float:
        return sum(p.forward_s for p in self.stages[stage].chunks)

    def _backward(self, stage: int) -> float:
        return sum(p.inputs_s + p.weights_s for p in self.stages[stage].chunks)

    def ends(self, trace: dict[tuple[int, Work], Pass] | None = None) -> list[float]:
        """When each stage has done its last pass; `trace` is filled with what each pass waited for."""
        apart = self.training.schedule == "zb_h1"
        sequences = self.sizes.batch // self.choice.replicas // self.choice.micro_batches
        places = [stage.devices for stage in self.choice.stages]
        known: dict[tuple[int, int], float] = {}
        spent: dict[tuple[int, str, int], float] = {}

        def seconds(stage: int, work: Work) -> float:
            key = (stage, work.kind, work.chunk)
            if key not in spent:
                spent[key] = once(stage, work)
            return spent[key]

        def once(stage: int, work: Work) -> float:
            p, exchange = self.stages[stage].chunks[work.chunk], self.exchanges[stage]
            share = 1.0 / len(self.stages[stage].chunks)
            if work.kind == "weights":
                return p.weights_s
            blocked = self._blocked(stage, work)
            if work.kind == "forward":
                return p.forward_s + exchange.forward_extra(p.forward_s, share) + blocked
            whole = p.inputs_s + (0.0 if apart else p.weights_s)
            return whole + exchange.backward_extra(whole, share) + blocked

        def send(stage: int, other: int, kind: Kind) -> float:
            if stage == other or self.stack.blocking:
                return 0.0
            if (stage, other) not in known:
                known[stage, other] = send_seconds(self.env, places[stage], places[other], sequences)
            return known[stage, other]

        return finish_times(self.orders, self.training.virtual_stages, seconds, send, trace)

    def _blocked(self, stage: int, work: Work) -> float:
        """Seconds for which a stage computes nothing while it hands a micro-batch over, whole from each of its GPUs."""
        count, chunks = len(self.stages), self.training.virtual_stages
        place = work.chunk * count + stage + (1 if work.kind == "forward" else -1)
        if not self.stack.blocking or count == 1 or not 0 <= place < chunks * count:
            return 0.0
        own, other = self.choice.stages[stage], self.choice.stages[place % count]
        slices = 1 if own.attention.sequence_parallel else own.attention.head_groups
        sequences = self.sizes.batch // self.choice.replicas // self.choice.micro_batches
        return self.stack.blocking * slices * send_seconds(self.env, own.devices, other.devices, sequences)

    def _memory(self, index: int) -> StageMemory:
        stage, exchange = self.stages[index], self.exchanges[index]
        kind = self.env.cluster.kind_of(self.choice.stages[index].devices[0])
        counts = held_counts(
            self.training.schedule, index, len(self.stages), self.choice.micro_batches, self.training.virtual_stages
        )
        saved = [p.saved_bytes for p in stage.chunks]
        activations = max(sum(n * own for n, own in zip(held, saved, strict=True)) for held in counts)
        logits = max(p.logits_bytes for p in stage.chunks)  # kept once: their gradient is written in their place
        transient = max(max(p.transient_bytes - p.logits_bytes, 0.0) for p in stage.chunks)
        many = len(self.choice.stages[index].devices) * self.choice.replicas
        return StageMemory(
            exchange.weight_bytes(), exchange.gradient_bytes(), exchange.optimizer_bytes(), activations - logits, transient,
            logits, communication_bytes(many), reserve_bytes(kind),
        )  # fmt: skip


class _Exchange:
    """What the copies of a stage's weights exchange in a step, and what each holds of them."""

    def __init__(self, env: Setting, choice: Choice, index: int, parameters: Sequence[Parameters], stride: int) -> None:
        self.env, self.choice, self.stage, self.parameters = env, choice, choice.stages[index], parameters
        self.training = choice.training or TrainingChoice()
        self.stride = stride
        self.stack = stack_of_pricer(env.pricer)
        own = env.workload.training
        self.gradient = dtype_bytes(own.gradient_dtype if own else "fp32")
        self.state = OPTIMIZER_BYTES[own.optimizer if own else "adam"]
        self.layers = max(1, self.stage.layers)
        self._known: dict[OpKind, float] = {}

    def tail(self, backward_s: float) -> float:
        """Seconds after the last backward pass until the gradients are reduced; overlapped but for the last layer's part."""
        if self.training.zero >= 2:
            return 0.0
        return self._beside(self._gradients_s(), backward_s)

    def head(self, forward_s: float) -> float:
        """Seconds until the new weights are back, where copies share the optimizer; overlapped with the next forward pass."""
        if self.training.zero not in (1, 2):
            return 0.0
        return self._beside(self._collective(OpKind.ALL_GATHER, [p.bytes for p in self.parameters]), forward_s)

    def lone(self) -> tuple[float, float]:
        """Seconds of all reductions of gradients, and of gathering all weights, with nothing beside them."""
        return self._gradients_s(), self._collective(OpKind.ALL_GATHER, [p.bytes for p in self.parameters])

    def forward_extra(self, forward_s: float, share: float) -> float:
        """Seconds that gathering weights adds to a forward pass (zero 3)."""
        if self.training.zero < 3:
            return 0.0
        return self._beside(share * self._collective(OpKind.ALL_GATHER, [p.bytes for p in self.parameters]), forward_s)

    def backward_extra(self, backward_s: float, share: float) -> float:
        """Seconds that gathering weights again (zero 3) and reducing gradients (zero 2, 3) add to a backward pass."""
        if self.training.zero < 2:
            return 0.0
        spent = share * self._gradients_s()
        if self.training.zero == 3:
            spent += share * self._collective(OpKind.ALL_GATHER, [p.bytes for p in self.parameters])
        return self._beside(spent, backward_s)

    def _beside(self, spent: float, compute: float) -> float:
        left = spent * max(self.stack.exposed, 1.0 / self.layers)
        return max(spent - compute, left) if self.training.overlap else spent

    def _gradients_s(self) -> float:
        kind = OpKind.REDUCE_SCATTER if self.training.zero else OpKind.ALL_REDUCE
        return self._collective(kind, [p.elements * self.gradient for p in self.parameters])

    def _collective(self, kind: OpKind, amounts: Sequence[float]) -> float:
        """Seconds of one collective after another, over the copies of each kind of weight."""
        if kind in self._known:
            return self._known[kind]
        total = 0.0
        for parameters, amount in zip(self.parameters, amounts, strict=True):
            if parameters.copies > 1 and amount:
                total += self._seconds(kind, amount, parameters.copies)
        self._known[kind] = total
        return total

    def _seconds(self, kind: OpKind, amount: float, copies: int) -> float:
        shape = self.env.pricer.copies_shape(self.stage.devices, self.choice.replicas, self.stride, copies)
        return self.stack.gradients * float(self.env.pricer.collectives.time(kind.value, np.asarray(amount), shape))

    def weight_bytes(self) -> float:
        """Bytes of weights; sharded, but for the layers at work, with zero 3."""
        whole = sum(p.bytes for p in self.parameters)
        if self.training.zero < 3:
            return whole
        return sum(p.bytes / p.copies for p in self.parameters) + 2.0 * whole / self.layers

    def gradient_bytes(self) -> float:
        """Bytes of the gradient buffer."""
        shared = self.training.zero >= 2
        return sum(p.elements * self.gradient / (p.copies if shared else 1) for p in self.parameters)

    def optimizer_bytes(self) -> float:
        """Bytes of fp32 weights and moments."""
        shared = self.training.zero >= 1
        return sum(p.elements * self.state / (p.copies if shared else 1) for p in self.parameters)

    def optimizer_seconds(self) -> float:
        """One pass over gradients, states and weights: all are read, states and weights written, the buffer cleared."""
        shared = self.training.zero >= 1
        moved = sum(
            p.elements * (self.gradient + 2.0 * self.state) / (p.copies if shared else 1) + p.bytes + p.elements * self.gradient
            for p in self.parameters
        )
        kind = self.env.cluster.device_kinds[self.stage.devices[0]]
        return float(self.env.pricer.sources[kind].elementwise(moved))
