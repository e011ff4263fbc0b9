"""A Pareto front for a person: its points as a table and a sketch, and as an SVG."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from planner.front import Front, FrontPoint
from planner.report.document import Bullets, Figure, Section, Text, table, to_text
from planner.report.plot import Axis, Mark, axis, sketch, svg
from planner.report.result import RULES, limits_text, workload_text
from planner.report.show import count, objective_value, plain
from planner.report.words import order_words, plan_words
from planner.solve.objective import Name
from planner.solve.searcher import tie_rule

SCALES: dict[Name, tuple[tuple[float, str], ...]] = {
    "latency": ((1.0, "s"), (1e-3, "ms"), (1e-6, "us"), (1e-9, "ns")),
    "throughput": ((1e6, "million tokens/s"), (1e3, "thousand tokens/s"), (1.0, "tokens/s")),
    "cost": ((1.0, "US dollars"), (1e-3, "thousandths of a US dollar"), (1e-6, "millionths of a US dollar")),
}
PROVEN = "Every point is proven: no plan of the space is better in one objective without being worse in the other."
UNPROVEN = "The search stopped early: points marked feasible may be beaten, within the bounds that the JSON output gives."
COMPLETE = "The front is complete: there are no other points (those closer than 1e-7, relatively, count as one)."
PARTIAL = "There may be points in between: ask for more with --points."


def front_report(front: Front) -> str:
    """The answer for the terminal."""
    return to_text(front_headline(front), _sections(front))


def front_headline(front: Front) -> str:
    """Problem, number of points and what is known of them in one line."""
    name, (first, second) = plain(front.problem.name), front.objectives
    if not front.points:
        why = f": {front.infeasibility.constraint}" if front.infeasibility else ""
        nothing = "interrupted before a plan was found" if front.interrupted else "no plan found before the time limit"
        return f"{name}: {nothing if front.status == 'timeout' else 'infeasible' + why}"
    known = "all proven" if front.status == "optimal" else "not all proven"
    whole = "complete" if front.complete else "not all points shown"
    text = f"{name}: {count(len(front.points), 'point')} of {first} against {second}, {known}, {whole}"
    return text + (", interrupted" if front.interrupted else "")


def front_svg(front: Front) -> str:
    """The front as a drawing."""
    return svg(front_headline(front), *_drawn(front), more=front.objectives[0] == "throughput")


def _sections(front: Front) -> Iterator[Section]:
    caps = () if front.caps.none else (Text(limits_text(front.caps)),)
    yield Section("Question", (Text(f"{workload_text(front.problem)} Objectives: {' and '.join(front.objectives)}."), *caps))
    if front.infeasibility is not None:
        why = front.infeasibility
        lines = f"What rules every plan out: {why.constraint}.", f"Smallest change that would let a plan fit: {why.relaxation}."
        yield Section("Why there is no plan", (Bullets(lines),))
    if front.points:
        proven = Text(f"{PROVEN if front.status == 'optimal' else UNPROVEN} {order_words(front.problem.sizes)}".strip())
        headers = ("point", *front.objectives, "GPUs", "status", "plan")
        rows = [_row(front, at, point) for at, point in enumerate(front.points, 1)]
        told = table(headers, rows, ("point", *front.objectives, "GPUs"), wide=70)
        yield Section("Front", (proven, Text(COMPLETE if front.complete else PARTIAL), told, Figure(sketch(*_drawn(front)))))
    rules = Text(RULES), Bullets(front.problem.restrictions), Text(f"Ties: {tie_rule(front.problem.space)}.")
    yield Section("Search space", (Text(f"{count(front.searches, 'search')} of one priced space."), *rules))


def _row(front: Front, at: int, point: FrontPoint) -> tuple[object, ...]:
    shown = (objective_value(name, value) for name, value in zip(front.objectives, point.values, strict=True))
    return at, *shown, point.gpus, point.status, plan_words(point.choice, front.problem.sizes)


def _drawn(front: Front) -> tuple[Axis, Axis, list[Mark]]:
    """Both axes in readable units, and the points on them."""
    first, second = front.objectives
    across, x = _scaled(first, [point.values[0] for point in front.points])
    up, y = _scaled(second, [point.values[1] for point in front.points])
    marks = []
    for point, a, b in zip(front.points, x, y, strict=True):
        shown = ", ".join(objective_value(name, value) for name, value in zip(front.objectives, point.values, strict=True))
        label = f"{shown}, {count(point.gpus, 'GPU')}, {point.status}: {plan_words(point.choice, front.problem.sizes)}"
        marks.append(Mark(a, b, label, point.status == "optimal"))
    return across, up, marks


def _scaled(name: Name, values: Sequence[float]) -> tuple[Axis, list[float]]:
    """An axis in the unit that suits the largest value, and the values in it."""
    scale, unit = next((pair for pair in SCALES[name] if max(values) >= pair[0]), SCALES[name][-1])
    scaled = [value / scale for value in values]
    return axis(f"{name} ({unit})", scaled), scaled
