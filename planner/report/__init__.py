"""What a person reads: the answer of a search, the price of a plan, findings; for the terminal and as Markdown."""

from __future__ import annotations

from planner.report.claims import JudgedProblem, claims_markdown, claims_report, claims_summary
from planner.report.evaluation import evaluation_report
from planner.report.findings import findings_report
from planner.report.result import draw_command, markdown_report, search_report
from planner.report.show import safe_name
from planner.report.words import plan_words

__all__ = [
    "JudgedProblem", "claims_markdown", "claims_report", "claims_summary", "draw_command",
    "evaluation_report", "findings_report", "markdown_report", "plan_words", "safe_name", "search_report",
]  # fmt: skip
