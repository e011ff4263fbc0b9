"""Anytime: branches gone through until an interrupt or the time limit, and what no plan of those left goes below."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from planner.solve.branch import Branch
from planner.solve.objective import SAME
from planner.solve.ties import Found


@dataclass
class Through:
    """What was found, and of every branch that was left: (replicas, micro-batches) with a lower bound of its plans."""

    found: list[Found] = field(default_factory=list)
    left: dict[tuple[int, int], float] = field(default_factory=dict)
    interrupted: bool = False


def go_through(
    branches: Iterable[Branch],
    best: float,
    search: Callable[[Branch, float], Found | None],
    floor: Callable[[Branch], float],
    late: Callable[[], bool],
) -> Through:
    """Search one branch after another for plans below the best so far, until an interrupt or until it is late."""
    done = Through()
    for branch in branches:
        try:
            if not done.interrupted and not late():
                found = search(branch, best * (1 + SAME))
                if found is not None:
                    done.found.append(found)
                    best = min(best, found.least)
                continue
        except KeyboardInterrupt:
            done.interrupted = True
        bound = floor(branch)
        if bound <= best * (1 + SAME):
            done.left[branch.replicas, branch.micro_batches] = bound
    return done
