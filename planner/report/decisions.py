"""The enumeration of a search: for every open decision what each of its values would cost."""

from __future__ import annotations

from planner.report.document import Block, Text, table
from planner.report.show import difference, objective_value
from planner.search import Result, in_unit
from planner.solve.decisions import Decision

NOTE = (
    "Each value is held on every stage while all other decisions are chosen optimally, then compared with the best plan. "
    "A best plan whose stages differ in a decision appears with none of its values."
)
TITLES = {
    "replicas": "replicas (copies of the model)",
    "micro_batches": "micro-batches (parts of the batch)",
    "stages": "pipeline stages",
    "attention.head_groups x attention.dimension_segments": "head groups x dimension segments",
    "attention.batch_parts": "batch parts in attention",
    "attention.context_parts": "context parts in attention",
    "attention.sequence_parallel": "sequence parallel",
    "attention.output_projection": "output projection",
    "attention.softmax": "softmax over segments",
    "attention.order": "order of the GPUs of a stage",
    "mlp.ways": "ways the MLP weights are split",
    "experts.form": "where the experts are",
    "experts.tensor_ways": "GPUs an expert is split over",
    "experts.router_side": "router side, experts apart",
    "experts.devices": "GPUs of the experts, experts apart",
}
WORDS = {"True": "yes", "False": "no"}
PER_LINE = 4


def decision_blocks(result: Result) -> tuple[Block, ...]:
    """One row per decision: its values from best to worst, then those that no plan can have."""
    rows = [(TITLES.get(d.name, d.name), _values(d, result), _impossible(d)) for d in result.decisions]
    return Text(NOTE), table(("decision", "value: objective (against the best)", "no plan"), rows, wide=100), *reasons(result)


def _values(decision: Decision, result: Result) -> str:
    reached = [(v.value, v.objective) for v in decision.values if v.objective is not None]
    cells = []
    for value, found in sorted(reached, key=lambda pair: pair[1]):
        unit = in_unit(result.problem, result.objective, found)
        apart = difference(unit, result.value) if result.value is not None else "-"
        cells.append(f"{WORDS.get(value, value)}: {objective_value(result.objective, unit)} ({apart})")
    return "\n".join("; ".join(cells[at : at + PER_LINE]) for at in range(0, len(cells), PER_LINE))


def _impossible(decision: Decision) -> str:
    return ", ".join(WORDS.get(v.value, v.value) for v in decision.values if v.objective is None) or "-"


def reasons(result: Result) -> tuple[Block, ...]:
    """Why the values of the last column have no plan."""
    found = dict.fromkeys(v.reason for d in result.decisions for v in d.values if v.objective is None and v.reason)
    return (Text(f"No plan: {'; '.join(found)}."),) if found else ()
