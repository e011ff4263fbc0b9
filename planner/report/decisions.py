"""The enumeration of a search: for every open decision what each of its values would cost."""

from __future__ import annotations

from collections.abc import Sequence

from planner.report.document import Block, Text, table
from planner.report.show import difference, objective_value
from planner.search import Result
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
WORDS = {
    "True": "yes",
    "False": "no",
    "row": "row (partial outputs summed)",
    "gather": "gather (split by columns)",
    "replicated": "replicated (repeated on each)",
    "scattered": "scattered (split by rows)",
    "segments_inner": "segments_inner (segments adjacent)",
    "heads_inner": "heads_inner (head groups adjacent)",
    "context_inner": "context_inner (context parts adjacent)",
    "batch_inner": "batch_inner (batch parts adjacent)",
    "local": "local (outputs summed)",
    "dispatch": "dispatch (all-to-all)",
    "separate": "separate (GPUs of their own)",
}
WIDE = 100


def decision_blocks(result: Result) -> tuple[Block, ...]:
    """One row per decision that was enumerated: its values from best to worst, then those that no plan can have."""
    told = [d for d in result.decisions if any(v.objective is not None for v in d.values)]
    rows = [(TITLES.get(d.name, d.name), _values(d, result), _impossible(d)) for d in told]
    return Text(NOTE), table(("decision", "value: objective (against the best)", "no plan"), rows, wide=WIDE), *reasons(told)


def _values(decision: Decision, result: Result) -> str:
    reached = [(v.value, v.objective) for v in decision.values if v.objective is not None]
    cells = []
    for value, found in sorted(reached, key=lambda pair: pair[1], reverse=result.objective == "throughput"):
        apart = difference(found, result.value) if result.value is not None else "-"
        cells.append(f"{WORDS.get(value, value)}: {objective_value(result.objective, found)} ({apart})")
    lines = [""]
    for cell in cells:
        if lines[-1] and len(lines[-1]) + len(cell) + 2 > WIDE:
            lines.append("")
        lines[-1] += f"; {cell}" if lines[-1] else cell
    return "\n".join(lines)


def _impossible(decision: Decision) -> str:
    return ", ".join(WORDS.get(v.value, v.value) for v in decision.values if v.objective is None) or "-"


def reasons(decisions: Sequence[Decision]) -> tuple[Block, ...]:
    """Why the values of the last column have no plan."""
    found = dict.fromkeys(v.reason for d in decisions for v in d.values if v.objective is None and v.reason)
    return (Text(f"No plan: {'; '.join(found)}."),) if found else ()
