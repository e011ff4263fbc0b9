"""The score as text: groups of fitted and of unfitted models apart, the worst rows, and why rows were left out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tests.benchmarks.fidelity.report import Part, Report
from tests.benchmarks.fidelity.score import Numbers, Scored, coverage, group_scores, overall

COLUMNS = ("rows", "mape", "median", "p90", "bias", "regret_mean", "regret_max", "top3_regret", "kendall_tau", "exact_best",
           "rank_groups")  # fmt: skip
PERCENT = ("mape", "median", "p90", "regret_mean", "regret_max", "top3_regret", "exact_best")
WORST = 10


def cell(name: str, value: float | None) -> str:
    """A figure as text."""
    if value is None:
        return ""
    if name in PERCENT:
        return f"{value:.1%}"
    return f"{value:.2f}" if isinstance(value, float) else str(value)


def table(first: str, rows: Sequence[tuple[str, Numbers]], columns: Sequence[str] = COLUMNS) -> str:
    """A Markdown table of figures."""
    lines = [f"| {first} | {' | '.join(columns)} |", f"|---|{'---:|' * len(columns)}"]
    lines += [f"| {name} | {' | '.join(cell(c, numbers.get(c)) for c in columns)} |" for name, numbers in rows]
    return "\n".join(lines)


def part_tables(name: str, part: Part) -> str:
    """Groups of models that constants were fitted to, those of others, the worst rows, and why rows were left out."""
    blocks = []
    for title, rows in (
        ("fitted models", [r for r in part.rows if r.fitted]),
        ("other models", [r for r in part.rows if not r.fitted]),
    ):
        if rows:
            groups = group_scores(rows)
            blocks.append(
                f"**{name}, {title}**\n\n" + table("group", [*groups.items(), ("all groups, averaged", overall(groups))])
            )
    if part.rows:
        blocks.append(f"Worst rows of {name} (predicted over measured):\n\n" + "\n".join(worst(part.rows)))
    if part.unusable:
        reasons = sorted(part.unusable.items(), key=lambda item: (-item[1], item[0]))
        blocks.append(f"Not used for {name}:\n\n" + "\n".join(f"- {count}: {reason}" for reason, count in reasons))
    return "\n\n".join(blocks) or f"**{name}**: no rows"


def worst(rows: Sequence[Scored]) -> list[str]:
    """The rows that are furthest off, as a ratio either way."""
    far = sorted(rows, key=lambda row: (-max(row.ratio, 1.0 / row.ratio), row.row_id))[:WORST]
    return [f"- {row.row_id} {row.ratio:.2f}: {row.about} (measured {row.measured:.4g}, {row.group})" for row in far]


def operator_table(name: str, found: dict[str, Any]) -> str:
    """The errors of single operators."""
    total = {"median": found["median"], "p90": found["p90"]}
    rows = [*found["groups"].items(), ("large sizes, groups averaged", total)]
    return f"**{name}**\n\n" + table("operator", rows, ("rows", "median", "p90", "bias"))


def summary(report: Report) -> str:
    """One line for each part and baseline."""
    rows = [(name, overall(group_scores(part.rows))) for name, part in report.parts.items()]
    for baseline, parts in report.baselines.items():
        rows += [(f"{name}, {baseline}", overall(group_scores(part.rows))) for name, part in parts.items() if part.rows]
    memory, oom = report.json["memory"], report.json["memory"]["oom"]
    unfitted = coverage(one for part in report.parts.values() for one in part.rows)
    lines = [table("", rows), ""]
    lines.append(
        f"Memory: {memory['rows']} rows, mape {cell('mape', memory['mape']) or 'none'}; "
        + ", ".join(f"{k} {v}" for k, v in oom.items())
    )
    lines.append(f"80 % intervals hold {cell('mape', unfitted) or 'no rows'} of the rows of models that nothing was fitted to.")
    return "\n".join([*lines, *(f"Missing: {line}" for line in report.missing)])


def text(report: Report) -> str:
    """The whole report."""
    parts = [part_tables(name, part) for name, part in report.parts.items()]
    parts += [operator_table(name, report.json[name]) for name in ("gemm", "kernels", "comm")]
    return "\n\n".join([*parts, "**Summary** (groups averaged)\n\n" + summary(report)])
