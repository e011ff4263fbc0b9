"""TrainingChoice: how a training step runs the stages of a plan: schedule, recomputation, what replicas share, overlap."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Schedule = Literal["gpipe", "1f1b", "interleaved", "zb_h1"]
Recompute = Literal["none", "selective", "full"]

SCHEDULES: tuple[Schedule, ...] = ("gpipe", "1f1b", "interleaved", "zb_h1")
RECOMPUTES: tuple[Recompute, ...] = ("none", "selective", "full")
ZEROS: tuple[int, ...] = (0, 1, 2, 3)


@dataclass(frozen=True, slots=True)
class TrainingChoice:
    """What a training plan chooses besides its stages, replicas and micro-batches.

    `schedule`: gpipe (all forward passes, then all backward), 1f1b, interleaved (1f1b over `virtual_stages` chunks of
    layers on each stage), zb_h1 (1f1b with weight gradients put off into the bubble). `recompute`: what the backward pass
    computes again: nothing, the attention core (selective), or every layer from its input (full). `zero`: what the
    data-parallel copies of a weight share out: 0 nothing, 1 optimizer states (Megatron's distributed optimizer), 2 also
    gradients, 3 also the weights (FSDP). `overlap`: gradient reduction and weight gathering run beside compute.
    """

    schedule: Schedule = "1f1b"
    virtual_stages: int = 1
    recompute: Recompute = "none"
    zero: int = 0
    overlap: bool = True
