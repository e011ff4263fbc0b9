"""The table: measured rows with their provenance, written whole or not at all."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path

from planner.costs.rows import COLUMNS, NOTES
from planner.files import write_text_atomic

Row = Mapping[str, object]


def table_text(rows: Sequence[Row]) -> str:
    """The rows as the CSV that `--gemm-table` and `--comm-table` read; columns that no row has are left out."""
    used = {name for row in rows for name in row}
    columns = [name for name in (*COLUMNS, *NOTES) if name in used]
    stream = io.StringIO()
    writer = csv.DictWriter(stream, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows([{name: _cell(row.get(name, "")) for name in columns} for row in rows])
    return stream.getvalue()


def write_table(path: Path, rows: Sequence[Row]) -> None:
    """Write the table; `InputError` if it cannot be written."""
    write_text_atomic(path, table_text(rows))


def _cell(value: object) -> object:
    return f"{value:.6g}" if isinstance(value, float) else value
