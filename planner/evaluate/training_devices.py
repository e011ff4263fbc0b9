"""What every GPU does in a training step, and what fills it: from the fullest GPU of its stage."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from planner.costs.training import CLASSES
from planner.evaluate.training import Step, StepPricing
from search_spaces.stages import replica_stride

COMMUNICATION = tuple(i for i, name in enumerate(CLASSES) if name in ("communication", "dispatch"))


@dataclass(frozen=True, slots=True)
class TrainedDevice:
    """One GPU: seconds of a step that it computes and that collectives hold it, and bytes by item."""

    rank: int
    busy_s: float
    communication_s: float
    weights: float
    gradients: float
    optimizer: float
    activation: float
    logits: float
    communication_bytes: float
    reserve: float


def trained_devices(pricing: StepPricing, step: Step) -> Iterator[TrainedDevice]:
    """Every GPU of every replica. All GPUs of a stage are told as its slowest and fullest."""
    choice = pricing.choice
    stride = replica_stride(pricing.sizes, choice.replicas) or 0
    for stage, priced, memory in zip(choice.stages, step.stages, step.memory, strict=True):
        whole = choice.micro_batches * sum(p.forward_s + p.inputs_s + p.weights_s for p in priced.chunks)
        moved = choice.micro_batches * sum(float(p.spent[:3, COMMUNICATION].sum()) for p in priced.chunks)
        busy, sent = max(whole - moved, 0.0) + step.optimizer_s, min(moved, whole) + step.exchange_s
        logits = min(memory.logits, memory.transient)
        passing = memory.activations + memory.transient - logits
        for rank in stage.devices:
            for copy in range(choice.replicas):
                yield TrainedDevice(
                    rank + copy * stride, busy, sent, memory.weights, memory.gradients, memory.optimizer,
                    passing, logits + memory.logits, memory.communication, memory.reserve,
                )  # fmt: skip
