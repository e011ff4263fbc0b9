"""Tables of problems: CSV with one problem a row."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterator
from pathlib import Path

from planner.errors import InputError
from planner.files import parse_yaml, read_text

MOST_BYTES = 100_000_000
MOST_COLUMNS = 1000
_WHOLE = re.compile(r"[-+]?(?:0|[1-9][0-9]{0,17})", re.ASCII)
_NUMBER = re.compile(r"[-+]?(?:[0-9]+\.[0-9]*|\.[0-9]+|[0-9]+)(?:[eE][-+]?[0-9]{1,3})?", re.ASCII)
_WORDS = {"true": True, "false": False}


def read_rows(path: Path) -> Iterator[tuple[int, dict[str, object]]]:
    """Number (the first below the header is 1) and cells by column of every row; an empty cell is left out.

    Whole numbers, numbers, true and false are read as such, a cell that begins with `[`, `{` or `"` as YAML, everything
    else as text. `InputError` for a table that is no CSV, and for a row with more cells than the header.
    """
    source = str(path)
    lines = csv.reader(io.StringIO(read_text(path, MOST_BYTES), newline=""), strict=True)
    try:
        header = [cell.strip() for cell in next(lines, [])]
        if not header or len(set(header)) != len(header) or "" in header or len(header) > MOST_COLUMNS:
            raise InputError("header", header, "different names of fields, such as model,cluster,workload.batch", source)
        for number, row in enumerate(lines, start=1):
            if not any(cell.strip() for cell in row):
                continue
            if len(row) > len(header):
                raise InputError(f"row {number}", f"{len(row)} cells", f"at most {len(header)}, as the header has", source)
            cells = zip(header, row, strict=False)
            yield number, {name: _value(name, cell.strip(), source, number) for name, cell in cells if cell.strip()}
    except csv.Error as error:
        raise InputError(f"line {lines.line_num}", str(error), "well-formed CSV", source) from None


def _value(name: str, cell: str, source: str, number: int) -> object:
    if name == "name":
        return cell
    if cell in _WORDS:
        return _WORDS[cell]
    if _WHOLE.fullmatch(cell):
        return int(cell)
    if _NUMBER.fullmatch(cell):
        return float(cell)
    if cell[0] in '[{"':
        return parse_yaml(f"value: {' '.join(cell.splitlines())}", f"{source} row {number}, {name}")["value"]
    return cell
