"""Tables of a batch: rows of runs for the terminal, as CSV, and as the Markdown summary of a store."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from tabulate import tabulate

from planner.report.show import count, escape_cell, objective_value, plain

Row = Mapping[str, Any]
MOST_ROWS = 1000
"""Rows that the Markdown summary shows; the CSV has all of them."""
MOST_CELL = 70
SHOWN = ("label", "model", "cluster", "phase", "batch", "length", "objective", "status", "value", "gap", "plan or error")
SUMMARY = (
    "sweep", "position", "label", "key", "name", "model", "cluster", "phase", "batch", "length", "gpus", "objective", "status",
    "value", "bound", "gap", "latency_s", "tokens_per_s", "gpus_used", "replicas", "stages", "micro_batches", "plan", "error",
    "folder",
)  # fmt: skip
FORMULA = ("=", "+", "-", "@", "\t", "\r")


def cells(row: Row) -> list[str]:
    """A run in a few short words: what was asked, and what came of it."""
    value, gap = row.get("value"), row.get("gap")
    told = {
        **{name: "" if row.get(name) is None else str(row.get(name)) for name in SHOWN},
        "label": str(row.get("label") or row.get("name") or ""),
        "value": objective_value(str(row["objective"]), value) if isinstance(value, int | float) else "-",
        "gap": f"{gap:.1e}" if isinstance(gap, int | float) else "-",
        "plan or error": str(row.get("plan") or row.get("error") or "-"),
    }
    return [plain(told[name]) for name in SHOWN]


def results_table(rows: Sequence[Row]) -> str:
    """Rows as aligned text; long cells are cut."""
    cut = [[cell if len(cell) <= MOST_CELL else cell[: MOST_CELL - 3] + "..." for cell in cells(row)] for row in rows]
    return str(tabulate(cut, SHOWN, "simple", disable_numparse=True))


def results_csv(rows: Iterable[Row], columns: Sequence[str]) -> str:
    """Rows as CSV. A text that a spreadsheet would take for a formula gets an apostrophe before it."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(columns)
    for row in rows:
        writer.writerow([_cell(row.get(name)) for name in columns])
    return out.getvalue()


def summary_markdown(rows: Sequence[Row], title: str) -> str:
    """The summary of a store: how many of each status, the best of each model, and every run."""
    statuses: dict[str, int] = {}
    for row in rows:
        statuses[str(row["status"])] = statuses.get(str(row["status"]), 0) + 1
    counted = ", ".join(f"{number:,} {status.replace('_', ' ')}" for status, number in sorted(statuses.items()))
    lines = [f"# {escape_cell(title)}", "", f"{count(len(rows), 'problem')}: {counted or 'none'}.", ""]
    best = best_rows(rows)
    if best:
        lines += ["## Best of each model", "", *_table(best), ""]
    lines += ["## Every problem", "", *_table(rows[:MOST_ROWS])]
    if len(rows) > MOST_ROWS:
        lines += ["", f"{len(rows) - MOST_ROWS:,} more are in `summary.csv`."]
    return "\n".join(lines) + "\n"


def best_rows(rows: Iterable[Row]) -> list[Row]:
    """The best run of each model and objective, the first of equal ones."""
    best: dict[tuple[str, str], Row] = {}
    for row in rows:
        value = row.get("value")
        if not isinstance(value, int | float):
            continue
        key = (str(row.get("model")), str(row["objective"]))
        sign = -1 if row["objective"] == "throughput" else 1
        if key not in best or sign * value < sign * best[key]["value"]:
            best[key] = row
    return [best[key] for key in sorted(best)]


def _table(rows: Iterable[Row]) -> list[str]:
    body = ["| " + " | ".join(escape_cell(cell) for cell in cells(row)) + " |" for row in rows]
    return ["| " + " | ".join(SHOWN) + " |", "|" + "---|" * len(SHOWN), *body]


def _cell(value: object) -> object:
    if isinstance(value, str):
        text = plain(value)
        return "'" + text if text.startswith(FORMULA) else text
    return "" if value is None else value
