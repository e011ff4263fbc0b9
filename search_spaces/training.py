"""TrainingChoice: how a training step runs the stages of a plan: schedule, recomputation, what replicas share, overlap."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, TypeVar

from search_spaces.sizes import divisors

Value = TypeVar("Value")
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


@dataclass(frozen=True, slots=True)
class TrainingDomain:
    """The values that stay open for each field of a training choice; None means every legal value worth having.

    Selective recomputation and exchange without overlap must be asked for: attention kernels that keep no scores have no
    core to compute again, and nothing is faster for waiting.
    """

    schedule: tuple[Schedule, ...] | None = None
    virtual_stages: tuple[int, ...] | None = None
    recompute: tuple[Recompute, ...] | None = None
    zero: tuple[int, ...] | None = None
    overlap: tuple[bool, ...] | None = None

    def choices(self, layers: int, stages: int, micro_batches: int, copies: int) -> Iterator[TrainingChoice]:
        """Every choice for a pipeline of `stages`, each once, in a fixed order; `copies` GPUs hold the same weights.

        One stage knows one schedule. Chunks take turns only where micro-batches fill whole groups of stages, and divide the
        layers of a stage. Nothing is sharded where nothing is held twice.
        """
        for schedule, virtual in self._schedules(layers, stages, micro_batches):
            for recompute in _allowed(self.recompute, RECOMPUTES, ("none", "full")):
                for zero in _allowed(self.zero, ZEROS, ZEROS) if copies > 1 else (0,):
                    for overlap in _allowed(self.overlap, (True, False), (True,)) if copies > 1 else (True,):
                        yield TrainingChoice(schedule, virtual, recompute, zero, overlap)

    def _schedules(self, layers: int, stages: int, micro_batches: int) -> Iterator[tuple[Schedule, int]]:
        if stages == 1:
            yield "1f1b", 1
            return
        each = -(-layers // stages)
        for schedule in _allowed(self.schedule, SCHEDULES, SCHEDULES):
            if schedule != "interleaved":
                if self.virtual_stages is None or 1 in self.virtual_stages:
                    yield schedule, 1
            elif micro_batches % stages == 0:
                for virtual in divisors(each)[1:]:
                    if virtual * stages <= layers and (self.virtual_stages is None or virtual in self.virtual_stages):
                        yield schedule, virtual


def _allowed(asked: tuple[Value, ...] | None, known: tuple[Value, ...], usual: tuple[Value, ...]) -> tuple[Value, ...]:
    """What is asked for, in the known order, or what is usual."""
    return usual if asked is None else tuple(value for value in known if value in asked)
