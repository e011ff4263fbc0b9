"""Plans side by side: a column each, and where their seconds differ."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from planner.insight.classes import Class, Tier
from planner.insight.compare import Comparison, Missing, Side, shown_classes
from planner.insight.explain import filled
from planner.report.document import Block, Bullets, Section, Text, table, to_text
from planner.report.evaluation import ITEMS
from planner.report.show import count, gigabytes, percent, seconds
from planner.report.words import plan_words

CLASSES: dict[Class, str] = {
    Class.CORE: "attention core", Class.PROJECTIONS: "attention projections", Class.FFN: "dense FFN",
    Class.EXPERTS: "experts", Class.ROUTER: "router", Class.ELEMENTWISE: "norms and elementwise",
    Class.ENDS: "embedding and head", Class.ALL_REDUCE: "all-reduce", Class.ALL_GATHER: "all-gather",
    Class.REDUCE_SCATTER: "reduce-scatter", Class.ALL_TO_ALL: "all-to-all", Class.SEND: "send and receive (ring)",
    Class.TRANSFER: "transfers between stages or sides",
}  # fmt: skip
TIERS: dict[Tier, str] = {Tier.INSIDE: "inside a scale-up domain", Tier.BETWEEN: "between domains, over the network"}
CLASS_NOTE = "Seconds of the longest path by what its operators are for; each column adds up to its latency."
WAIT_NOTE = "Shares of the GPU-seconds: latency x GPUs in use. The five add up to 100 %."
OTHER_PROBLEMS = "These plans belong to problems that differ, so their latencies answer different questions."
NO_PLAN = "no plan, see below"
SAME_PROBLEM = "All plans are priced on the same model, workload and cluster."


def comparison_report(comparison: Comparison) -> str:
    """A comparison for the terminal."""
    sections = [
        Section("Plans", _plans(comparison)),
        Section("Where the time goes", _classes(comparison)),
        Section("Communication by tier", (_rows(comparison, [(TIERS[t], _tier(t)) for t in Tier]),)),
        Section("Where the GPU-seconds go", (Text(WAIT_NOTE), _rows(comparison, _WAITING))),
        Section("Memory of the fullest GPU (GB)", (_rows(comparison, _memory(comparison)),)),
        Section("Findings", _findings(comparison)),
        Section("What differs between the problems", _differences(comparison)),
    ]
    if not comparison.sides:
        sections = sections[:1]
    return to_text(_headline(comparison), sections)


def _headline(comparison: Comparison) -> str:
    best = comparison.fastest
    if best is None:
        return "none of these plans has a price"
    slower = [side for side in comparison.sides if side is not best]
    ratios = ", ".join(f"{side.label} takes {_ratio(side, best)} times as long" for side in slower)
    return f"{best.label} is the fastest: {seconds(best.evaluation.latency_s)}{f'; {ratios}' if ratios else ''}"


def _ratio(side: Side, best: Side) -> str:
    return f"{side.evaluation.latency_s / best.evaluation.latency_s:.3f}"


Cell = Callable[[Side], str]


def _rows(comparison: Comparison, rows: Sequence[tuple[str, Cell]]) -> Block:
    """A row per fact, a column per plan that has a price."""
    labels = _labels(comparison)
    cells = [(name, *(cell(side) for side in comparison.sides)) for name, cell in rows]
    return table(("", *labels), cells, labels)


def _with_missing(comparison: Comparison, rows: Sequence[tuple[str, Cell]]) -> Block:
    """The same with a column of its own for every plan that has no price."""
    labels = _numbered([column.label for column in comparison.columns])
    cells = [
        (name, *(cell(c) if isinstance(c, Side) else NO_PLAN if at == 0 else "-" for c in comparison.columns))
        for at, (name, cell) in enumerate(rows)
    ]
    return table(("", *labels), cells, labels)


def _labels(comparison: Comparison) -> list[str]:
    """Titles of the columns that have a price."""
    return _numbered([side.label for side in comparison.sides])


def _numbered(labels: list[str]) -> list[str]:
    """Titles; the same plan twice is numbered."""
    return [f"{label} ({at})" if labels.count(label) > 1 else label for at, label in enumerate(labels, start=1)]


def _plans(comparison: Comparison) -> tuple[Block, ...]:
    best = comparison.fastest
    blocks: list[Block] = []
    if best is not None:
        rows: list[tuple[str, Cell]] = [
            ("latency", lambda s: seconds(s.evaluation.latency_s)),
            ("ratio to the fastest", lambda s: _ratio(s, best)),
            ("tokens/s", lambda s: f"{s.evaluation.throughput_tokens_per_s:,.0f}"),
            ("US dollars for a pass", lambda s: "-" if s.cost is None else f"{s.cost:.4g}"),
            ("model FLOPs utilization", lambda s: f"{100 * s.evaluation.mfu:.1f} %"),
            ("GPUs in use", lambda s: f"{s.gpus} of {s.chosen.problem.cluster.size}"),
            ("fits in memory", lambda s: _fits(s)),
        ]
        blocks.append(_with_missing(comparison, rows))
    words = [f"{s.label}{_open(s)}: {plan_words(s.chosen.choice, s.chosen.problem.sizes)}" for s in comparison.sides]
    missing = [f"{c.label}: {c.reason}" for c in comparison.columns if isinstance(c, Missing)]
    return (*blocks, Bullets((*words, *missing)))


def _open(side: Side) -> str:
    return " (what it leaves open was chosen by a search)" if side.chosen.completed else ""


def _fits(side: Side) -> str:
    over = side.evaluation.over_capacity_bytes
    return f"no: {gigabytes(over)} GB over" if over else "yes"


def _classes(comparison: Comparison) -> tuple[Block, ...]:
    rows = [(CLASSES[name], _class(name, comparison)) for name in shown_classes(comparison)]
    rows.append(("all", lambda s: seconds(s.evaluation.latency_s)))
    return Text(CLASS_NOTE), _rows(comparison, rows)


def _class(name: Class, comparison: Comparison) -> Cell:
    best = comparison.fastest

    def cell(side: Side) -> str:
        own = side.split.classes[name]
        text = f"{seconds(own)} ({percent(own, side.evaluation.latency_s)})"
        if best is None or side is best:
            return text
        apart = own - best.split.classes[name]
        if not apart:
            return text
        return f"{text}\n{'+' if apart >= 0 else '-'}{seconds(abs(apart))}"

    return cell


def _tier(tier: Tier) -> Cell:
    return lambda s: f"{seconds(s.split.tiers[tier])} ({percent(s.split.tiers[tier], s.evaluation.latency_s)})"


_WAITING: list[tuple[str, Cell]] = [
    ("computing", lambda s: percent(s.waiting.busy, 1)),
    ("in collectives", lambda s: percent(s.waiting.communication, 1)),
    ("pipeline bubble", lambda s: percent(s.waiting.bubble, 1)),
    ("waiting for the slowest stage", lambda s: percent(s.waiting.stages, 1)),
    ("waiting inside a stage", lambda s: percent(s.waiting.gpus, 1)),
]


def _memory(comparison: Comparison) -> list[tuple[str, Cell]]:
    """The items of the fullest GPU that some plan has."""
    rows: list[tuple[str, Cell]] = [("GPU", lambda s: str(s.fullest.rank))]
    for title, name in ITEMS:
        if any(getattr(side.fullest.memory, name) for side in comparison.sides):
            rows.append((title, lambda s, name=name: gigabytes(getattr(s.fullest.memory, name))))  # type: ignore[misc]
    return [*rows, ("full", lambda s: percent(filled(s.fullest.memory), 1))]


def _findings(comparison: Comparison) -> tuple[Block, ...]:
    lines = []
    for side in comparison.sides:
        codes = dict.fromkeys((f.code, f.severity) for f in side.findings if f.severity != "info")
        told = ", ".join(f"{code} ({severity})" for code, severity in codes) or "no error and no warning"
        lines.append(f"{side.label}: {told}")
    return (Bullets(tuple(lines)),)


def _differences(comparison: Comparison) -> tuple[Block, ...]:
    if not comparison.differences:
        return (Text(SAME_PROBLEM),)
    labels = _labels(comparison)
    rows = [(d.fact, *d.values) for d in comparison.differences]
    return Text(f"{OTHER_PROBLEMS} {count(len(rows), 'fact')} differ:"), table(("", *labels), rows)
