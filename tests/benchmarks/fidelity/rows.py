"""Reading truth files: rows as text by column, numbers where there are some, and what is missing said."""

from __future__ import annotations

import csv
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

Row = Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Table:
    """The rows of a file, and the columns or the file that it lacks, in words."""

    rows: tuple[Row, ...]
    missing: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Unusable:
    """A row that no plan can be priced for, and why; equal reasons are counted together."""

    reason: str


def read_table(folder: Path, name: str, needed: Iterable[str]) -> Table:
    """The rows of `folder/name`; a missing file or column is reported, and its cells read as empty."""
    path = folder / name
    if not path.is_file():
        return Table((), (f"{name}: no such file",))
    with path.open(encoding="utf-8", errors="replace", newline="") as stream:
        reader = csv.DictReader(stream, restval="")
        rows = tuple({key: (value or "").strip() for key, value in row.items() if isinstance(key, str)} for row in reader)
        lacking = [column for column in needed if column not in (reader.fieldnames or ())]
    return Table(rows, tuple(f"{name}: no column {column}" for column in lacking))


def text(row: Row, name: str) -> str:
    """A cell; empty where the column is missing."""
    return row.get(name, "")


def number(row: Row, name: str) -> float | None:
    """A finite number, None for anything else."""
    try:
        value = float(row.get(name, ""))
    except ValueError:
        return None
    return value if math.isfinite(value) else None


def positive(row: Row, name: str) -> float | None:
    """A number above zero, None for anything else."""
    value = number(row, name)
    return value if value is not None and value > 0 else None


def whole(row: Row, name: str, default: int = 0) -> int:
    """A whole number; `default` where there is none or it is below one."""
    value = positive(row, name)
    return int(value) if value is not None and value >= 1 and value < 1e15 else default


def group_of(row: Row) -> str:
    """The group whose errors are averaged together."""
    return text(row, "group") or text(row, "source") or "unnamed"
