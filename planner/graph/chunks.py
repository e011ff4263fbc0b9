"""Which layers each chunk of a stage has, and the order of work where micro-batches do not fill whole groups of stages."""

from __future__ import annotations

from collections.abc import Sequence

from planner.graph.schedule import Work, stage_order
from search_spaces.training import TrainingChoice


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


def work_order(training: TrainingChoice, stage: int, stages: int, micro_batches: int) -> tuple[Work, ...]:
    """The work of a stage, also where only the first few micro-batches of an interleaved plan are shown: those run one chunk
    after another.
    """
    chunks = training.virtual_stages
    if training.schedule != "interleaved" or chunks == 1 or micro_batches % stages == 0:
        return stage_order(training.schedule, stage, stages, micro_batches, chunks)
    ahead = [Work("forward", m, c) for c in range(chunks) for m in range(micro_batches)]
    return (*ahead, *(Work("backward", m, c) for c in reversed(range(chunks)) for m in range(micro_batches)))
