"""For every open decision of a training problem the best objective with each of its values held."""

from __future__ import annotations

from collections.abc import Callable

from planner.solve.answer import Optimum
from planner.solve.decisions import Decision, DecisionValue
from planner.solve.training import TrainingSearch
from search_spaces.stages import Choice

MOST_FRAMES = 1500
"""Frames above which decisions are not enumerated: every value asks for a search of its own."""
Read = Callable[[Choice], object]

READS: dict[str, Read] = {
    "replicas": lambda c: c.replicas,
    "micro_batches": lambda c: c.micro_batches,
    "stages": lambda c: len(c.stages),
    "attention.head_groups": lambda c: c.stages[0].attention.head_groups,
    "attention.context_parts": lambda c: c.stages[0].attention.context_parts,
    "attention.batch_parts": lambda c: c.stages[0].attention.batch_parts,
    "attention.sequence_parallel": lambda c: c.stages[0].attention.sequence_parallel,
    "experts.form": lambda c: None if c.stages[0].experts is None else c.stages[0].experts.form,
    "schedule": lambda c: None if c.training is None else c.training.schedule,
    "virtual_stages": lambda c: None if c.training is None else c.training.virtual_stages,
    "recompute": lambda c: None if c.training is None else c.training.recompute,
    "zero": lambda c: None if c.training is None else c.training.zero,
}


def training_decisions(search: TrainingSearch, optimum: Optimum) -> tuple[Decision, ...]:
    """A table for every decision that has more than one value; none for large spaces, or where a layout is given."""
    if optimum.choice is None or search.space.layout or len(search.frames) > MOST_FRAMES:
        return ()
    found = []
    for name, read in READS.items():
        values = _values(search, read)
        if len(values) < 2:
            continue
        rows = []
        for value in values:
            held = optimum.value if read(optimum.choice) == value else search.best(_with(read, value))
            reason = "" if held < float("inf") else "no plan with this value fits the GPUs' memory and the rules of the space"
            rows.append(DecisionValue(str(value), held if held < float("inf") else None, reason))
        found.append(Decision(name, tuple(rows)))
    return tuple(found)


def _with(read: Read, value: object) -> Callable[[Choice], bool]:
    return lambda choice: read(choice) == value


def _values(search: TrainingSearch, read: Read) -> list[object]:
    """The values that some plan has, in order."""
    found = {read(choice) for choice in search.samples()}
    return sorted((value for value in found if value is not None), key=lambda v: (isinstance(v, str), v))
