"""The serial engine: this process, one problem after another."""

from __future__ import annotations

from collections.abc import Iterator

from planner.batch.engines.engine import Task
from planner.batch.work import Outcome, solve
from planner.evaluate.shared import Shared


class SerialEngine:
    """Solves problems in this process."""

    name = "serial"

    def run(self, tasks: Iterator[Task]) -> Iterator[Outcome]:
        """See `Engine`."""
        shared = Shared()
        for task in tasks:
            for asked in task:
                yield solve(asked, shared)
