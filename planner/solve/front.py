"""The Pareto front of two objectives of a priced space: every point is the least of one under a cap on the other.

The front is explored box by box. A box lies between two neighbouring points; one search asks for the least first objective
with the second capped inside the box, another for the least second objective at that value. Its answer is the next point,
or shows that the box holds none.
"""

from __future__ import annotations

import heapq
import itertools
import time
from collections.abc import Callable
from dataclasses import dataclass

from planner.evaluate.measures import Measures, measures
from planner.solve.answer import Limits, Optimum
from planner.solve.objective import FIELDS, INF, Caps, Name
from planner.solve.searcher import Search
from search_spaces.stages import Choice

STEP = 1e-7
"""Points closer than this in an objective, relative to it, count as one."""
PROVEN = 1e-6
Pair = tuple[Name, Name]
Progress = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Corner:
    """A point in what is minimized: the two values, their lower bounds, the plan, and whether both searches ended."""

    first: float
    second: float
    bounds: tuple[float, float]
    choice: Choice
    gpus: int
    complete: bool

    @property
    def proven(self) -> bool:
        """Whether no bound leaves room."""
        pairs = zip((self.first, self.second), self.bounds, strict=True)
        return self.complete and all(abs(value - bound) <= PROVEN * value for value, bound in pairs)


@dataclass(frozen=True, slots=True)
class Box:
    """What lies between two neighbouring points and is still open: second objectives from `low` to that of the left point.

    `step` asks for the left point's own neighbour instead of halving.
    """

    left: Corner
    right: Corner
    low: float
    step: bool

    @property
    def most(self) -> float:
        """The cap on the second objective that splits the box."""
        below = self.left.second * (1 - STEP)
        return below if self.step else min(below, (self.left.second + self.low) / 2)

    def area(self, width: float, height: float) -> float:
        """Size as a share of the whole front's."""
        return (self.right.first - self.left.first) / width * (self.left.second - self.low) / height


class FrontSearch:
    """One priced space, asked again and again for one objective under a cap on the other.

    `closed` says that there are no points but those found, `stopped` that the time ran out or an interrupt came, `last` is
    the answer of the latest search.
    """

    def __init__(self, asked: Search, pair: Pair, limits: Limits, progress: Progress | None = None) -> None:
        self.asked, self.pair, self.limits = asked, pair, limits
        self.say = progress or (lambda text: None)
        self.end = time.monotonic() + limits.seconds
        self.searches, self.stopped, self.interrupted, self.closed = 0, False, False, False
        self.last: Optimum | None = None

    def run(self, most: int) -> list[Corner]:
        """Points of the front, at most so many, by the first objective."""
        left = self._corner(self.pair)
        if left is None or self.stopped:
            return [left] if left is not None else []
        right = self._corner((self.pair[1], self.pair[0]))
        if right is None or self.stopped:
            return [left]
        if left.second <= right.second * (1 + STEP) or right.first <= left.first * (1 + STEP):
            self.closed = True
            return [left]
        return sorted([left, right, *self._between(left, right, most - 2)], key=lambda corner: corner.first)

    def _between(self, left: Corner, right: Corner, most: int) -> list[Corner]:
        """Points between two ends; the largest open box is split first."""
        width, height = right.first - left.first, left.second - right.second
        found: list[Corner] = []
        open_boxes: list[tuple[float, int, Box]] = []
        order = itertools.count()

        def leave_open(box: Box) -> None:
            if box.left.second > box.low * (1 + STEP) and box.right.first > box.left.first * (1 + STEP):
                heapq.heappush(open_boxes, (-box.area(width, height), next(order), box))

        leave_open(Box(left, right, right.second, step=False))
        while open_boxes and len(found) < most:
            box = heapq.heappop(open_boxes)[2]
            gaps = len(open_boxes) + 1
            self.say(f"{len(found) + 2} points, {gaps} gap{'s' if gaps > 1 else ''} between them not settled")
            point = self._corner(self.pair, box.most, box.right.first * (1 - STEP))
            if self.stopped:
                return found
            if point is not None:
                found.append(point)
                leave_open(Box(point, box.right, box.low, step=False))
            if not box.step:
                leave_open(Box(box.left, point or box.right, box.most, step=point is None))
        self.closed = not open_boxes
        return found

    def _corner(self, pair: Pair, most: float = INF, cutoff: float = INF) -> Corner | None:
        """The least of one objective with the other at most `most`, then the least of the other at that value.

        Coordinates are those of the front's pair, whichever is asked for first.
        """
        one, other = pair
        best = self._ask(one, self.limits.caps.of(other, most), cutoff)
        if best.choice is None:
            return None
        at = self._values(best.choice)
        settled = self._ask(other, self.limits.caps.of(one, best.value), getattr(at, FIELDS[other]) * (1 + STEP))
        choice = settled.choice or best.choice
        found, bounds = self._values(choice), {one: best.bound, other: settled.bound}
        values = {name: getattr(found, FIELDS[name]) for name in pair}
        first, second = self.pair
        complete = best.complete and settled.complete and settled.choice is not None
        return Corner(values[first], values[second], (bounds[first], bounds[second]), choice, found.gpus, complete)

    def _values(self, choice: Choice) -> Measures:
        return measures(self.asked.env, self.asked.sizes, choice)

    def _ask(self, objective: Name, caps: Caps, cutoff: float) -> Optimum:
        """One search within the time that is left; none is begun after an interrupt."""
        self.searches += 1
        seconds = 0.0 if self.interrupted else max(0.0, self.end - time.monotonic())
        found = self.asked.asking(objective, caps, seconds).run(cutoff)
        self.stopped |= not found.complete
        self.interrupted |= found.interrupted
        self.last = found
        return found
