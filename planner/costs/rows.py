"""Rows: measured times from a CSV: matrix products, fused attention and collectives, each by its sizes.

One file may hold all of them. The column `op` says what a row is (a product where there is none); a row needs the
columns of its operator, one of `seconds`, `time_ms`, `time_us`, and may leave the others empty. Columns that say where a
row comes from (`gpu`, `torch`, `kernel`, `source`, `note`) are not read.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from planner.costs.collectives import OPERATIONS
from planner.costs.get_time import known_dtype
from planner.costs.kernels import AttentionClass
from planner.errors import InputError, unknown_name

Array = NDArray[np.float64]
PRODUCT, ATTENTION = "gemm", "attention"
PRODUCT_SIZES = ("m", "k", "n", "batch")
ATTENTION_SIZES = ("batch", "heads", "kv_heads", "q_len", "kv_len", "qk_dim", "v_dim")
COLLECTIVE_SIZES = ("ranks", "nodes", "bytes")
SIZES: Mapping[str, tuple[str, ...]] = {
    PRODUCT: PRODUCT_SIZES, ATTENTION: ATTENTION_SIZES, **dict.fromkeys(OPERATIONS, COLLECTIVE_SIZES),
}  # fmt: skip
USUAL = {"batch": "1", "nodes": "1", "causal": "1", "shared_kv": "0"}
FLAGS = ("causal", "shared_kv")
TIMES = {"seconds": 1.0, "time_us": 1e-6, "time_ms": 1e-3}
NOTES = ("gpu", "torch", "kernel", "source", "note")
COLUMNS = tuple(dict.fromkeys(("op", *PRODUCT_SIZES, *ATTENTION_SIZES, *COLLECTIVE_SIZES, *FLAGS, "dtype", "kv_dtype", *TIMES)))
MOST_ROWS = 20_000


@dataclass(frozen=True, slots=True)
class Sample:
    """Rows of one kind: `points` (rows, sizes) in the order of `SIZES`, and their `seconds` (rows,); no point twice."""

    points: Array
    seconds: Array

    @classmethod
    def of(cls, points: Array, seconds: Array) -> Sample:
        """A sample of rows, the median where a size was measured more than once."""
        unique, owner = np.unique(points, axis=0, return_inverse=True)
        owner = owner.ravel()
        if len(unique) == len(points):
            return cls(unique, seconds[np.argsort(owner)])
        order = np.lexsort((seconds, owner))
        ends = np.searchsorted(owner[order], np.arange(len(unique) + 1))
        return cls(unique, np.array([np.median(seconds[order][a:b]) for a, b in pairwise(ends)]))


@dataclass(frozen=True, slots=True)
class Measurements:
    """What was measured: products by dtype, attention by class, collectives by operation."""

    products: Mapping[str, Sample] = field(default_factory=dict)
    attention: Mapping[AttentionClass, Sample] = field(default_factory=dict)
    collectives: Mapping[str, Sample] = field(default_factory=dict)


Line = tuple[str, object, tuple[int, ...]]
"""The operator of a row, what separates it from others of its kind (dtype, class, operation), and its sizes."""


@lru_cache(maxsize=8)
def read_measurements(text: str, name: str) -> Measurements:
    """The measurements in a CSV; `InputError` names the line of `name` and the column that are wrong."""
    header, lines = _lines(text, name)
    times = [column for column in header if column in TIMES]
    if len(times) != 1:
        raise InputError("header", ",".join(header), "one of the columns seconds,time_ms,time_us", f"{name}:1")
    found: dict[tuple[str, object], list[tuple[tuple[int, ...], float]]] = {}
    for source, row in lines:
        operator, key, sizes = _read_row(row, source)
        found.setdefault((operator, key), []).append((sizes, _seconds(row, times[0], source)))
    if not found:
        raise InputError("rows", 0, "at least one measured row", name)
    return _measurements(found)


def read_shapes(text: str, name: str) -> list[Line]:
    """What is to be measured: the rows of such a CSV, with or without their times."""
    found = [_read_row(row, source) for source, row in _lines(text, name)[1]]
    if not found:
        raise InputError("rows", 0, "at least one row", name)
    return found


def _lines(text: str, name: str) -> tuple[list[str], Iterator[tuple[str, dict[str, str]]]]:
    """The header, and the rows with their places; blank lines are left out."""
    lines = csv.reader(text.splitlines())
    header = [cell.strip().lower() for cell in next(_readable(lines, name), [])]
    _check_header(header, name)
    return header, _cells(lines, header, name)


def _cells(lines: Iterable[list[str]], header: Sequence[str], name: str) -> Iterator[tuple[str, dict[str, str]]]:
    for number, cells in enumerate(_readable(lines, name), start=2):
        if not any(cell.strip() for cell in cells):
            continue
        if len(cells) != len(header):
            raise InputError("row", ",".join(cells), f"{len(header)} cells", f"{name}:{number}")
        if number > MOST_ROWS + 1:
            raise InputError("rows", number, f"at most {MOST_ROWS:,} rows", name)
        yield f"{name}:{number}", {column: cell.strip() for column, cell in zip(header, cells, strict=True)}


def _readable(lines: Iterable[list[str]], name: str) -> Iterator[list[str]]:
    """The lines; `InputError` where the reader of CSV gives up, as at a cell of a hundred thousand characters."""
    try:
        yield from lines
    except csv.Error as error:
        raise InputError("text", str(error), "well-formed CSV", name) from None


def _check_header(header: Sequence[str], name: str) -> None:
    """Refuses a header that is no table's."""
    source = f"{name}:1"
    for column in header:
        if column not in (*COLUMNS, *NOTES):
            raise unknown_name("column", column, COLUMNS, source)
    given = {operator: set(sizes) - set(USUAL) <= set(header) for operator, sizes in SIZES.items()}
    known = any(given.values()) if "op" in header else given[PRODUCT] and "dtype" in header
    if not known or len(set(header)) != len(header):
        allowed = "m,k,n,dtype for products; with op: " + "; ".join((",".join(ATTENTION_SIZES), ",".join(COLLECTIVE_SIZES)))
        raise InputError("header", ",".join(header), f"every column once: {allowed}", source)


def _read_row(row: Mapping[str, str], source: str) -> Line:
    """One line."""
    operator = row.get("op", "").lower() or PRODUCT
    if operator not in SIZES:
        raise unknown_name("op", operator, SIZES, source)
    sizes = tuple(_whole(row, column, source) for column in SIZES[operator])
    if operator not in (PRODUCT, ATTENTION):
        return operator, operator, sizes
    dtype = _dtype(row.get("dtype", ""), "dtype", source)
    if operator == PRODUCT:
        return operator, dtype, sizes
    cache = _dtype(row.get("kv_dtype") or dtype, "kv_dtype", source)
    causal, shared = (_flag(row, column, source) for column in FLAGS)
    return operator, AttentionClass.of(sizes[3], causal, shared, dtype, cache), sizes


def _whole(row: Mapping[str, str], column: str, source: str) -> int:
    cell = row.get(column, "") or USUAL.get(column, "")
    if not (cell.isascii() and cell.isdigit() and 1 <= int(cell[:20]) <= 2**40):
        raise InputError(column, cell, "a whole number from 1 to 2^40", source)
    return int(cell)


def _flag(row: Mapping[str, str], column: str, source: str) -> bool:
    cell = row.get(column, "") or USUAL[column]
    if cell not in ("0", "1"):
        raise InputError(column, cell, "0 or 1", source)
    return cell == "1"


def _dtype(cell: str, column: str, source: str) -> str:
    try:
        return known_dtype(cell.lower())
    except InputError as error:
        raise InputError(column, cell, error.allowed, source) from None


def _seconds(row: Mapping[str, str], time: str, source: str) -> float:
    try:
        seconds = float(row[time]) * TIMES[time]
    except ValueError:
        seconds = math.nan
    if not 0.0 < seconds < 1e9:
        raise InputError(time, row[time], "a number above 0", source)
    return seconds


def _measurements(found: Mapping[tuple[str, object], Sequence[tuple[tuple[int, ...], float]]]) -> Measurements:
    products: dict[str, Sample] = {}
    attention: dict[AttentionClass, Sample] = {}
    collectives: dict[str, Sample] = {}
    for (operator, key), rows in found.items():
        sizes, seconds = zip(*rows, strict=True)
        sample = Sample.of(np.array(sizes, dtype=np.float64), np.array(seconds))
        if isinstance(key, AttentionClass):
            attention[key] = sample
        elif operator == PRODUCT:
            products[str(key)] = sample
        else:
            collectives[operator] = sample
    return Measurements(products, attention, collectives)
