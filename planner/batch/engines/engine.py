"""What an engine is: it takes tasks as it has room for them, and gives outcomes as they come."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any, Protocol

from planner.batch.key import fingerprint
from planner.batch.work import Asked, Outcome, solve
from planner.errors import PlannerError
from planner.evaluate.shared import Shared

Task = list[Asked]
"""Problems that are solved one after another in one place, since they share prices."""
MOST_ATTEMPTS = 3
_WORKER = Shared()
"""What the tasks that come to one worker process of a cluster have in common."""


class OtherPlannerError(PlannerError):
    """A worker runs another planner than this one: its answers would be others."""


class Engine(Protocol):
    """Solves problems somewhere."""

    name: str

    def run(self, tasks: Iterator[Task]) -> Iterator[Outcome]:
        """The outcomes of all problems; tasks are taken only when there is room. Closing the iterator ends all work."""
        ...


def pack(task: Task) -> bytes:
    """A task as it travels."""
    return json.dumps({"planner": fingerprint(), "asked": [asked.to_dict() for asked in task]}).encode()


def unpack(data: bytes) -> Task:
    """A task that has travelled; `OtherPlannerError` where it was made by another planner."""
    found: Mapping[str, Any] = json.loads(data)
    if found["planner"] != fingerprint():
        raise OtherPlannerError(
            f"this worker's planner ({fingerprint()[:8]}) is not the one that asks ({found['planner'][:8]}): install the same "
            "version of the planner, of OR-Tools and of NumPy on all machines"
        )
    return [Asked(**asked) for asked in found["asked"]]


def solve_packed(data: bytes) -> bytes:
    """The outcomes of a packed task, packed."""
    return json.dumps([solve(asked, _WORKER).to_dict() for asked in unpack(data)]).encode()


def unpack_outcome(data: bytes) -> list[Outcome]:
    """Outcomes that have travelled."""
    return [Outcome(**found) for found in json.loads(data)]
