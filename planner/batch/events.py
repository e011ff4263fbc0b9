"""What a batch tells while it runs: events, and where it stands."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from planner.batch.work import FAILURES

Event = dict[str, Any]
Listener = Callable[[Event], None]


@dataclass
class Tally:
    """Where a batch stands.

    `total` counts points; `done` those answered, `reused` the part of them that needed no work, `failed` those that did
    not get an answer, by status. `best` holds the best run of each objective so far.
    """

    total: int
    done: int = 0
    reused: int = 0
    infeasible: int = 0
    failed: dict[str, int] = field(default_factory=dict)
    best: dict[str, tuple[float, str]] = field(default_factory=dict)
    start: float = field(default_factory=time.monotonic)

    @property
    def failures(self) -> int:
        """Points without an answer."""
        return sum(self.failed.values())

    @property
    def left(self) -> int:
        """Points that nothing is known of yet."""
        return self.total - self.done - self.failures

    @property
    def rate(self) -> float:
        """Problems solved a second, without those that were known before."""
        worked = self.done + self.failures - self.reused
        return worked / max(time.monotonic() - self.start, 1e-3)

    @property
    def left_s(self) -> float | None:
        """Seconds that the rest will take at this rate; None while nothing is known of it."""
        return self.left / self.rate if self.left and self.rate else None if self.left else 0.0

    def count(self, label: str, row: Mapping[str, Any], reused: bool) -> None:
        """Take in what became of a point."""
        status, objective, value = row.get("status"), row.get("objective"), row.get("value")
        self.reused += reused
        if status in FAILURES:
            self.failed[str(status)] = self.failed.get(str(status), 0) + 1
            return
        self.done += 1
        self.infeasible += status == "infeasible"
        if isinstance(value, int | float) and isinstance(objective, str):
            known = self.best.get(objective)
            better = known is None or (value > known[0] if objective == "throughput" else value < known[0])
            if better:
                self.best[objective] = (float(value), label)

    def progress(self) -> Event:
        """Where the batch stands, for an event: counts, problems a second, seconds left, the best value of each objective."""
        left_s = self.left_s
        return {
            "done": self.done, "failed": self.failures, "left": self.left, "rate": round(self.rate, 3),
            "left_s": None if left_s is None else round(left_s, 1),
            "best": {name: value for name, (value, _) in sorted(self.best.items())},
        }  # fmt: skip

    def to_dict(self) -> Event:
        """As JSON-ready data, without rates and times."""
        return {
            "total": self.total, "done": self.done, "reused": self.reused, "infeasible": self.infeasible,
            "failed": self.failures, "failures": dict(sorted(self.failed.items())), "left": self.left,
            "best": {name: {"value": value, "label": label} for name, (value, label) in sorted(self.best.items())},
        }  # fmt: skip
