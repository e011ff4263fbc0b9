"""CriticalPath: the longest path of a plan at the level of tasks (a stage or one side of it, for one micro-batch)."""

from __future__ import annotations

from dataclasses import dataclass

from planner.evaluate.runs import RoleRun


@dataclass(frozen=True, slots=True)
class Item:
    """Operators of the critical path that repeat: name, layers it stands for, stage, GPUs, term, seconds in all, source."""

    op: str
    layer: str
    stage: int
    device: str
    term: str
    count: int
    seconds: float
    source: str


@dataclass(frozen=True)
class CriticalPath:
    """Latency, the path's items in order, its expression, and slack per task."""

    latency_s: float
    items: tuple[Item, ...]
    expression: str
    slack: tuple[tuple[str, float], ...]


def ranks_text(ranks: tuple[int, ...]) -> str:
    """Ranks as ranges: 0-3,8."""
    parts: list[str] = []
    start = previous = None
    for rank in [*ranks, None]:
        if previous is not None and rank != previous + 1:
            parts.append(str(start) if start == previous else f"{start}-{previous}")
            start = rank
        start = rank if start is None else start
        previous = rank
    return ",".join(parts)


def items_of(run: RoleRun, stage: int, layers: str, count: int) -> list[Item]:
    """The steps of a role that runs `count` times on the path."""
    return [
        Item(step.op, layers, stage, ranks_text(run.devices), step.term, count, step.seconds * count, step.source)
        for step in run.steps
    ]


def transfer_item(name: str, stage: int, devices: tuple[int, ...], term: str, seconds: float, count: int, source: str) -> Item:
    """A hand-over between stages or sides that runs `count` times on the path."""
    return Item(name, "", stage, ranks_text(devices), term, count, seconds * count, source)
