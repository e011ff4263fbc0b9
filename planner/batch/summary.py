"""The summary tables of a store, and rows as Parquet."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from planner.batch.query import Question, answer
from planner.errors import InputError
from planner.files import write_text_atomic
from planner.report.batch import SUMMARY, results_csv, summary_markdown

Row = dict[str, Any]


def write_summaries(root: Path, names: Sequence[str]) -> list[Path]:
    """Write `summary.md` and `summary.csv` over everything in a store, without times; returns their paths."""
    rows, _ = answer(root, Question())
    texts = {"md": lambda: summary_markdown(rows, "Results"), "csv": lambda: results_csv(rows, SUMMARY)}
    paths = []
    for name in names:
        paths.append(root / f"summary.{name}")
        write_text_atomic(paths[-1], texts[name]())
    return paths


def to_parquet(rows: Sequence[Row], columns: Sequence[str], types: dict[str, str]) -> bytes:
    """Rows as a Parquet file; `InputError` where pyarrow is not installed. `types` are SQLite's."""
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise InputError(
            "--format", "parquet", "table, csv or json: pyarrow is not installed (pip install 'parallelism-planner[parquet]')"
        ) from None
    kinds = {"REAL": pyarrow.float64(), "INTEGER": pyarrow.int64()}
    arrays = [
        pyarrow.array(
            [_typed(row.get(name), types.get(name, "TEXT")) for row in rows], kinds.get(types.get(name, ""), pyarrow.string())
        )
        for name in columns
    ]
    out = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.table(dict(zip(columns, arrays, strict=True))), out)
    return out.getvalue()


def _typed(value: object, kind: str) -> object:
    if value is None:
        return None
    if kind == "TEXT":
        return str(value)
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return float(value) if kind == "REAL" else int(value)
