"""Walks over the arrows of a graph: an order in which its nodes could run, what an input reaches, the longest path."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from planner.check.cycles import find_circle
from planner.inspect.dot import DotGraph


@dataclass(frozen=True)
class Arrows:
    """The arrows between nodes 0 .. count - 1; equal arrows count once."""

    count: int
    pairs: tuple[tuple[int, int], ...]

    @classmethod
    def of(cls, dot: DotGraph) -> Arrows:
        """The arrows of a graph, its nodes numbered in the order of the file."""
        number = {node.id: index for index, node in enumerate(dot.nodes)}
        pairs = dict.fromkeys((number[edge.source], number[edge.target]) for edge in dot.edges)
        return cls(len(dot.nodes), tuple(pairs))

    @cached_property
    def after(self) -> tuple[tuple[int, ...], ...]:
        """For each node those that follow it."""
        return _lists(self.count, self.pairs)

    @cached_property
    def before(self) -> tuple[tuple[int, ...], ...]:
        """For each node those that it follows."""
        return _lists(self.count, [(target, source) for source, target in self.pairs])

    @cached_property
    def order(self) -> tuple[int, ...] | None:
        """An order in which every arrow leads forward, as near to the file's as it gets; None where there is a circle."""
        waiting = [len(sources) for sources in self.before]
        ready = deque(index for index, sources in enumerate(waiting) if not sources)
        found = []
        while ready:
            here = ready.popleft()
            found.append(here)
            for target in self.after[here]:
                waiting[target] -= 1
                if not waiting[target]:
                    ready.append(target)
        return tuple(found) if len(found) == self.count else None

    def circle(self) -> tuple[int, ...]:
        """Nodes along arrows back to the first, which stands at both ends; empty where there is none."""
        if self.order is not None:
            return ()
        found = find_circle({str(index): map(str, sources) for index, sources in enumerate(self.before)})
        return tuple(map(int, found))

    def reached(self, starts: Sequence[int]) -> frozenset[int]:
        """The nodes on any path from `starts`, these included."""
        seen, rest = set(starts), list(starts)
        while rest:
            for target in self.after[rest.pop()]:
                if target not in seen:
                    seen.add(target)
                    rest.append(target)
        return frozenset(seen)

    def longest(self, seconds: Sequence[float]) -> tuple[float, tuple[int, ...]]:
        """Seconds of the longest path, each node taking its own, and its nodes; among equal ones that with most nodes."""
        if not self.order:
            return 0.0, ()
        end, steps, source = [0.0] * self.count, [0] * self.count, [-1] * self.count
        for here in self.order:
            for earlier in self.before[here]:
                if source[here] < 0 or (end[earlier], steps[earlier]) > (end[source[here]], steps[source[here]]):
                    source[here] = earlier
            base = source[here]
            end[here] = seconds[here] + (end[base] if base >= 0 else 0.0)
            steps[here] = 1 + (steps[base] if base >= 0 else 0)
        last = max(self.order, key=lambda index: (end[index], steps[index]))
        path, here = [], last
        while here >= 0:
            path.append(here)
            here = source[here]
        return end[last], tuple(reversed(path))


def _lists(count: int, pairs: Sequence[tuple[int, int]]) -> tuple[tuple[int, ...], ...]:
    found: list[list[int]] = [[] for _ in range(count)]
    for source, target in pairs:
        found[source].append(target)
    return tuple(map(tuple, found))
