"""Findings of the checks, worst first."""

from __future__ import annotations

from collections.abc import Sequence

from planner.check.findings import Finding
from planner.report.document import Block, Section, Text, table, to_text
from planner.report.show import count

ORDER = {"error": 0, "warning": 1, "info": 2}
NOTHING = "Nothing to report: no check found anything."


def findings_report(findings: Sequence[Finding]) -> str:
    """Findings for the terminal."""
    errors = sum(finding.severity == "error" for finding in findings)
    line = f"{'invalid' if errors else 'valid'}: {count(errors, 'error')}, {count(len(findings) - errors, 'other finding')}"
    return to_text(line, [Section("Findings", findings_blocks(findings))])


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
