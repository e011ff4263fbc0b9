"""Questions to a store: which runs, in which order, and which of them is best for each model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from planner.batch.folders import UnwritableError
from planner.batch.index import COLUMNS, NAME, BrokenIndexError, Index
from planner.batch.where import parse_where
from planner.errors import InputError, unknown_name

OUTER = ("sweep", "position", "label")
TIMES = ("runtime_s", "finished", "host")
FIELDS = (*OUTER, *COLUMNS, *TIMES)
BEST_FIRST = "CASE WHEN r.objective = 'throughput' THEN -r.value ELSE r.value END"
"""Throughput is to be high, latency and cost low."""
POINTS = "points p JOIN runs r ON r.key = p.key"
ALONE = "(SELECT NULL AS sweep, NULL AS position, NULL AS label) p, runs r"
Row = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Question:
    """What is asked of a store; `sort` holds fields, with a `-` before those that fall."""

    where: str = ""
    sort: tuple[str, ...] = ()
    best_by: str = ""
    sweep: str = ""
    limit: int | None = None


def answer(root: Path, question: Question) -> tuple[list[Row], list[str]]:
    """The rows that answer a question, and what is wrong with the store.

    Where there is no sound index, one is made of the folders in memory: a store can be asked that may not be written.
    """
    if not root.is_dir():
        raise InputError("folder", str(root), "a folder that holds a batch")
    wrong: list[str] = []
    if (root / NAME).exists():
        try:
            with Index(root, read_only=True) as index:
                return rows_of(index, question), wrong
        except BrokenIndexError as error:
            wrong.append(f"the index cannot be used, the folders are read instead: {error}")
        except UnwritableError as error:  # another batch was killed while it wrote, and its undo needs to be written
            wrong.append(f"the index cannot be opened, the folders are read instead: {error}")
    with Index(root, memory=True) as index:
        wrong += index.rebuild()
        if not index.ask("SELECT 1 FROM runs LIMIT 1"):
            raise InputError("folder", str(root), "a folder that holds a batch")
        return rows_of(index, question), wrong


def rows_of(index: Index, question: Question) -> list[Row]:
    """The rows that answer a question: one for each point of a sweep, or for each run where no sweep is known."""
    sweeps = [row["sweep"] for row in index.ask("SELECT DISTINCT sweep FROM points ORDER BY sweep")]
    if question.sweep and question.sweep not in sweeps:
        raise unknown_name("--sweep", question.sweep, sweeps)
    where: list[str] = ["1"]
    values: list[object] = []
    if question.sweep:
        where.append("p.sweep = ?")
        values.append(question.sweep)
    varied = _varied(index)
    if question.where:
        sql, own = parse_where(question.where, lambda name: _column(name, varied, "--where"))
        where.append(sql)
        values += own
    if question.best_by:
        where.append("r.value IS NOT NULL")
    orders, sorted_values = _order(question, varied)
    limit = "" if question.limit is None or question.best_by else f" LIMIT {int(question.limit)}"
    shown = [f"r.{name}" for name in COLUMNS] + [f"t.{name}" for name in TIMES]
    group, group_values = _column(question.best_by, varied, "--best-by") if question.best_by else ("NULL", [])
    rows = index.ask(
        f"SELECT p.sweep, p.position, p.label, {', '.join(shown)}, {group} AS grouped FROM {POINTS if sweeps else ALONE} "
        f"LEFT JOIN times t ON t.key = r.key WHERE {' AND '.join(where)} ORDER BY {', '.join(orders)}{limit}",
        [*group_values, *values, *sorted_values],
    )
    found = [dict(row) for row in rows]
    return _best(found, question.limit) if question.best_by else [_without_group(row) for row in found]


def _best(rows: Sequence[Row], limit: int | None) -> list[Row]:
    """The first row of each group and objective."""
    best: dict[tuple[str, str], Row] = {}
    for row in rows:
        best.setdefault((str(row["grouped"]), str(row["objective"])), row)
    found = [_without_group(best[key]) for key in sorted(best)]
    return found if limit is None else found[:limit]


def _without_group(row: Row) -> Row:
    return {name: value for name, value in row.items() if name != "grouped"}


def _order(question: Question, varied: Sequence[str]) -> tuple[list[str], list[object]]:
    """What the rows are sorted by; the end of the list makes the order complete."""
    orders = [BEST_FIRST] if question.best_by else []
    values: list[object] = []
    for item in question.sort:
        name = item.lstrip("-+")
        sql, own = _column(name, varied, "--sort")
        orders.append(f"{sql} IS NULL, {sql}{' DESC' if item.startswith('-') else ''}")
        values += [*own, *own]
    return [*orders, "p.sweep", "p.position", "r.key"], values


def _column(name: str, varied: Sequence[str], option: str) -> tuple[str, list[object]]:
    """A field as SQL: a column of ours, or a value that a sweep varies."""
    if name in OUTER:
        return f"p.{name}", []
    if name in COLUMNS:
        return f"r.{name}", []
    if name in TIMES:
        return f"t.{name}", []
    if name in varied:
        return "json_extract(p.varied, ?)", [f'$."{name}"']
    raise unknown_name(option, name, {*FIELDS, *varied})


def _varied(index: Index) -> list[str]:
    """The paths that the sweeps vary, as far as they are no columns; a quote cannot stand in one."""
    rows = index.ask("SELECT DISTINCT j.key AS path FROM points p, json_each(p.varied) j")
    return sorted(row["path"] for row in rows if isinstance(row["path"], str) and '"' not in row["path"])
