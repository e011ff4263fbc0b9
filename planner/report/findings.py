"""Findings of the checks, worst first."""

from __future__ import annotations

from collections.abc import Sequence

from planner.check.findings import Finding
from planner.check.run import NOT_RUN, NumericRun
from planner.report.document import Block, Section, Text, table, to_text
from planner.report.show import count

ORDER = {"error": 0, "warning": 1, "info": 2}
NOTHING = "Nothing to report: no check found anything."


def findings_report(findings: Sequence[Finding], run: NumericRun = NOT_RUN) -> str:
    """Findings for the terminal, and what the run on small tensors showed."""
    errors = sum(finding.severity == "error" for finding in findings)
    line = f"{'invalid' if errors else 'valid'}: {count(errors, 'error')}, {count(len(findings) - errors, 'other finding')}"
    sections = [Section("Findings", findings_blocks(findings))]
    if run.executed:
        sections.append(Section("Numeric run", (Text(run_text(run)),)))
    return to_text(line, sections)


def run_text(run: NumericRun) -> str:
    """What was run, against what, and how it came out."""
    what = f"{count(run.nodes, 'operator')} of {count(run.layers, 'layer')} and {count(run.micro_batches, 'micro-batch')}"
    how = f"{what}, in float64 on small tensors with one store per GPU, in {run.orders} random orders"
    worst = f"largest error {run.max_abs_error or 0.0:.2g} where {run.tolerance or 0.0:.2g} is allowed"
    end = (
        "It computes the model"
        if run.matches_unsplit_model
        else f"It does not compute the model, from {run.first_departure} on"
    )
    return f"{how}: {run.compared} intermediates compared, {worst}. {end}. Reference: {run.reference}."


def findings_blocks(findings: Sequence[Finding]) -> tuple[Block, ...]:
    """A table of findings, errors first, equal ones once."""
    if not findings:
        return (Text(NOTHING),)
    rows = [
        (f.severity, f.code, f.where, f.message, _shown(f.measured), _shown(f.expected), f.fix or "-")
        for f in sorted(dict.fromkeys(findings), key=lambda f: ORDER.get(f.severity, len(ORDER)))
    ]
    return (table(("severity", "code", "where", "what", "measured", "expected", "fix"), rows, wide=40),)


def _shown(value: object) -> str:
    if value is None or value == "":
        return "-"
    return f"{value:.6g}" if isinstance(value, float) else str(value)
