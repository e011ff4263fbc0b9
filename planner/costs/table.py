"""Get_Time from measured rows: a CSV of products, interpolated without ever falling when a size grows."""

from __future__ import annotations

import csv
import math
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike

from planner.costs.get_time import Array, GetTime, floats, known_dtype
from planner.errors import InputError, unknown_name
from planner.files import read_text

COLUMNS = ("m", "k", "n", "batch", "dtype")
TIMES = {"seconds": 1.0, "time_us": 1e-6, "time_ms": 1e-3}
NOTES = {"gpu", "kernel", "source", "note"}
MOST_ROWS = 20_000
BLOCK = 2_000_000  # comparisons of a size with a row at once


class Table:
    """Products from a CSV with columns m, k, n, dtype, one of seconds, time_ms, time_us, and optionally batch.

    A product is priced by the fallback's time, corrected by how much the measured rows around it are off: never less than
    the highest lower bound (a measured row that is no larger in any size), never more than the lowest upper bound (a row
    that is no smaller in any size), so a measured size gets its measured time. Rows that contradict each other (larger,
    yet faster) are lifted to the slower time of the smaller one. The result is non-decreasing in every size. Other
    operators, and products of a dtype that the table lacks, are the fallback's.
    """

    source = "table"

    def __init__(self, path: str | Path, fallback: GetTime) -> None:
        self.path, self.fallback = Path(path), fallback
        self._rows = {dtype: _Rows(found, fallback, dtype) for dtype, found in _read(self.path).items()}

    def source_of(self, family: str, dtype: str = "bf16") -> str:
        """`table` for products of a dtype in the table, else the fallback's tag."""
        return "table" if family == "gemm" and dtype in self._rows else self.fallback.source

    def get_time(self, m: ArrayLike, k: ArrayLike, n: ArrayLike, batch: ArrayLike = 1, dtype: str = "bf16") -> Array:
        """Seconds of `batch` products (m x k)@(k x n)."""
        guess = self.fallback.get_time(m, k, n, batch, known_dtype(dtype))
        rows = self._rows.get(dtype)
        if rows is None:
            return guess
        sizes = np.broadcast_arrays(*floats(m, k, n, batch))
        points = np.stack([np.ravel(size) for size in sizes], axis=1)
        return rows.price(points, np.ravel(guess)).reshape(sizes[0].shape)

    def grouped(self, m: ArrayLike, k: ArrayLike, n: ArrayLike, groups: ArrayLike, dtype: str = "bf16") -> Array:
        """Seconds of grouped products, from the fallback."""
        return self.fallback.grouped(m, k, n, groups, dtype)

    def elementwise(self, moved_bytes: ArrayLike) -> Array:
        """Seconds of a kernel that only moves bytes, from the fallback."""
        return self.fallback.elementwise(moved_bytes)

    def attention(
        self,
        batch: ArrayLike,
        heads: ArrayLike,
        kv_heads: ArrayLike,
        q_len: ArrayLike,
        kv_len: ArrayLike,
        qk_dim: ArrayLike,
        v_dim: ArrayLike,
        causal: bool = True,
        dtype: str = "bf16",
        kv_dtype: str | None = None,
        shared_kv: bool = False,
    ) -> Array:
        """Seconds of fused attention, from the fallback."""
        price = self.fallback.attention
        return price(batch, heads, kv_heads, q_len, kv_len, qk_dim, v_dim, causal, dtype, kv_dtype, shared_kv)


class _Rows:
    """The measured rows of one dtype: `points` (rows, 4) of m, k, n, batch and their `seconds`, made non-decreasing."""

    def __init__(self, rows: dict[tuple[int, ...], float], fallback: GetTime, dtype: str) -> None:
        self.points = np.array(sorted(rows), dtype=np.float64)
        raw = np.array([rows[key] for key in sorted(rows)])
        self.seconds = raw.copy()
        for at in range(len(raw)):  # lift a row to the slowest row that is no larger in any size
            self.seconds[at] = raw[np.all(self.points <= self.points[at], axis=1)].max()
        m, k, n, batch = self.points.T
        guess = fallback.get_time(m, k, n, batch, dtype)
        self.scale = float(np.median(self.seconds / guess))

    def price(self, points: Array, guess: Array) -> Array:
        """Seconds of products at `points` (count, 4): the scaled guess, held between the measured bounds."""
        out = np.empty(len(points))
        step = max(1, BLOCK // len(self.points))
        for at in range(0, len(points), step):
            part = points[at : at + step, None, :]
            low = np.where(np.all(self.points <= part, axis=2), self.seconds, 0.0).max(axis=1)
            high = np.where(np.all(self.points >= part, axis=2), self.seconds, np.inf).min(axis=1)
            out[at : at + step] = np.clip(guess[at : at + step] * self.scale, low, high)
        return np.where(guess > 0, out, 0.0)


def _read(path: Path) -> dict[str, dict[tuple[int, ...], float]]:
    """Seconds by dtype and (m, k, n, batch), the median where a size was measured more than once."""
    lines = csv.reader(read_text(path).splitlines())
    header = [name.strip().lower() for name in next(lines, [])]
    source = f"{path}:1"
    for name in header:
        if name not in (*COLUMNS, *TIMES, *NOTES):
            raise unknown_name("column", name, (*COLUMNS, *TIMES), source)
    times = [name for name in header if name in TIMES]
    missing = [name for name in ("m", "k", "n", "dtype") if name not in header]
    if missing or len(times) != 1 or len(set(header)) != len(header):
        raise InputError("header", ",".join(header), "each of m,k,n,dtype and one of seconds,time_ms,time_us, once", source)
    found: dict[str, dict[tuple[int, ...], list[float]]] = {}
    for number, cells in enumerate(lines, start=2):
        if not any(cell.strip() for cell in cells):
            continue
        if len(cells) != len(header):
            raise InputError("row", ",".join(cells), f"{len(header)} cells", f"{path}:{number}")
        if number > MOST_ROWS + 1:
            raise InputError("rows", number, f"at most {MOST_ROWS:,} rows", str(path))
        dtype, key, seconds = _row(dict(zip(header, cells, strict=True)), times[0], f"{path}:{number}")
        found.setdefault(dtype, {}).setdefault(key, []).append(seconds)
    if not found:
        raise InputError("rows", 0, "at least one measured row", str(path))
    return {dtype: {key: float(np.median(values)) for key, values in rows.items()} for dtype, rows in found.items()}


def _row(row: dict[str, str], time: str, source: str) -> tuple[str, tuple[int, ...], float]:
    """dtype, (m, k, n, batch) and seconds of one line."""
    sizes = []
    for name in ("m", "k", "n", "batch"):
        cell = row.get(name, "1").strip()
        if not (cell.isascii() and cell.isdigit() and 1 <= int(cell[:20]) <= 2**40):
            raise InputError(name, cell, "a whole number from 1 to 2^40", source)
        sizes.append(int(cell))
    try:
        dtype = known_dtype(row["dtype"].strip().lower())
    except InputError as error:
        raise error.within(source) from None
    try:
        seconds = float(row[time]) * TIMES[time]
    except ValueError:
        seconds = math.nan
    if not 0.0 < seconds < 1e9:
        raise InputError(time, row[time], "a number above 0", source)
    return dtype, tuple(sizes), seconds
