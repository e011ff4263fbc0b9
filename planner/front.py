"""The Pareto front of two objectives of a problem: plans of which none is better in one without being worse in the other."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from planner.errors import InputError
from planner.hand_designed import in_unit
from planner.plan import choice_to_dict
from planner.problem import Problem, load_problem, problem_to_dict
from planner.search import Infeasibility, constraints, infeasibility, placed, priced_space, search, versions
from planner.solve.answer import Limits
from planner.solve.experts.options import AMONG
from planner.solve.front import Corner, FrontSearch, Pair, Progress
from planner.solve.objective import NAMES, Caps, Name
from planner.solve.searcher import space_search, tie_rule
from search_spaces.orders import FRONT_RULE
from search_spaces.stages import Choice

SCHEMA = "planner.pareto/1"
POINTS = 24


@dataclass(frozen=True, slots=True)
class FrontPoint:
    """A plan that no other beats in one objective without losing in the other.

    `values` are in the objectives' own units (seconds, tokens per second, dollars), `bounds` what was proven of each while
    the other is no worse than here.
    """

    choice: Choice
    values: tuple[float, float]
    bounds: tuple[float, float]
    gpus: int
    status: str


@dataclass(frozen=True)
class Front:
    """The points from the best in the first objective to the best in the second.

    `complete` says that there are no others. `status` is `optimal` where every point is proven, `feasible` where the time ran
    out in between, `infeasible` or `timeout` where there is no point.
    """

    problem: Problem
    objectives: Pair
    status: str
    points: tuple[FrontPoint, ...]
    complete: bool
    searches: int
    caps: Caps
    infeasibility: Infeasibility | None
    seed: int
    interrupted: bool = False

    def to_dict(self) -> dict[str, Any]:
        """As JSON-ready data (`planner.pareto/1`), without times or host facts."""
        sizes = self.problem.sizes
        return {
            "schema": SCHEMA, "status": self.status, "objectives": list(self.objectives), "complete": self.complete,
            "constraints": constraints(self.caps),
            "points": [
                {
                    "plan": choice_to_dict(p.choice, sizes), "values": dict(zip(self.objectives, p.values, strict=True)),
                    "bounds": dict(zip(self.objectives, p.bounds, strict=True)), "gpus": p.gpus, "status": p.status,
                }
                for p in self.points
            ],
            "searches": self.searches, "rules": list(self.problem.restrictions), "ties": tie_rule(self.problem.space),
            "problem": problem_to_dict(self.problem),
            "infeasibility": asdict(self.infeasibility) if self.infeasibility else None,
            "interrupted": self.interrupted, "versions": versions(), "seed": self.seed,
        }  # fmt: skip


def pareto(
    problem: Problem | str | Path | Mapping[str, object],
    *,
    objectives: Sequence[str] = ("latency", "cost"),
    points: int = POINTS,
    sets: Sequence[str] = (),
    limits: Limits | None = None,
    progress: Progress | None = None,
) -> Front:
    """The front of two objectives with at most `points` points, both ends among them.

    Raises `InputError` for wrong input only: a problem that nothing fits has status `infeasible`.
    """
    pair = pair_of(objectives)
    check_points(points)
    found = problem if isinstance(problem, Problem) else load_problem(problem, sets=sets)
    start, limits = time.monotonic(), limits or Limits()
    found = placed(_best_order(found, pair[0], limits), AMONG)
    limits = replace(limits, seconds=start + limits.seconds - time.monotonic())
    asked = priced_space(found, pair, limits, space_search)
    search = FrontSearch(asked, pair, limits, progress)
    corners = search.run(points)
    told = tuple(_point(found, pair, corner) for corner in corners)
    reason = None
    if not told and not search.stopped and search.last is not None:
        reason = infeasibility(found, asked, search.last)
    status = "optimal" if told and all(p.status == "optimal" for p in told) else "feasible" if told else "infeasible"
    return Front(
        found, pair, "timeout" if search.stopped and not told else status, told, search.closed, search.searches, limits.caps,
        reason, limits.seed, search.interrupted,
    )  # fmt: skip


def _best_order(problem: Problem, objective: Name, limits: Limits) -> Problem:
    """The problem with its GPUs counted in the order of the best plan for an objective, where there are several orders."""
    if len(problem.orders.gpus) < 2:
        return problem
    best = search(problem, objective=objective, limits=limits, details=False)
    if best.interrupted:
        raise KeyboardInterrupt
    ordered = problem.in_order(best.problem.sizes.gpus)
    return replace(ordered, restrictions=(*ordered.restrictions, FRONT_RULE))


def check_points(points: int) -> None:
    """Refuse a number of points that does not hold both ends."""
    if isinstance(points, bool) or not isinstance(points, int) or points < 2:
        raise InputError("points", points, "a whole number of at least 2")


def pair_of(objectives: Sequence[str]) -> Pair:
    """Two different objectives by name."""
    names = [name for name in NAMES if name in objectives]
    if isinstance(objectives, str) or len(objectives) != 2 or len(names) != 2:
        shown = objectives if isinstance(objectives, str) else ",".join(map(str, objectives))
        raise InputError("objectives", shown, f"two different ones of {', '.join(NAMES)}")
    first = next(name for name in NAMES if name == objectives[0])
    return first, next(name for name in names if name != first)


def _point(problem: Problem, pair: Pair, corner: Corner) -> FrontPoint:
    """A point in the objectives' own units."""
    values = in_unit(problem, pair[0], corner.first), in_unit(problem, pair[1], corner.second)
    bounds = in_unit(problem, pair[0], corner.bounds[0]), in_unit(problem, pair[1], corner.bounds[1])
    return FrontPoint(corner.choice, values, bounds, corner.gpus, "optimal" if corner.proven else "feasible")
