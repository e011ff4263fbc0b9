"""Get_Time as terms: writes down every product it is asked for, and answers with another source's time."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from planner.costs.get_time import Array, GetTime
from planner.costs.relay import AttentionCall, Relay


@dataclass(frozen=True, slots=True)
class Term:
    """One call: the operator's name, its sizes in order, its dtype, and the seconds of the answer."""

    operator: str
    sizes: tuple[int | float, ...]
    dtype: str
    seconds: float

    def __str__(self) -> str:
        """The term as it is written in an expression, such as `Get_Time(8192, 8192, 1024)`."""
        return f"{self.operator}({', '.join(f'{size:g}' if isinstance(size, float) else str(size) for size in self.sizes)})"


class Symbolic(Relay):
    """Records one term for each element priced; meant for one plan, not for tables of options."""

    def __init__(self, fallback: GetTime) -> None:
        super().__init__(fallback)
        self.terms: list[Term] = []

    def get_time(self, m: ArrayLike, k: ArrayLike, n: ArrayLike, batch: ArrayLike = 1, dtype: str = "bf16") -> Array:
        """Seconds of `batch` products (m x k)@(k x n)."""
        return self._record("Get_Time", (m, k, n, batch), dtype, super().get_time(m, k, n, batch, dtype))

    def grouped(self, m: ArrayLike, k: ArrayLike, n: ArrayLike, groups: ArrayLike, dtype: str = "bf16") -> Array:
        """Seconds of `groups` products in one launch."""
        return self._record("Grouped", (m, k, n, groups), dtype, super().grouped(m, k, n, groups, dtype))

    def elementwise(self, moved_bytes: ArrayLike) -> Array:
        """Seconds of a kernel that only moves bytes."""
        return self._record("Move", (moved_bytes,), "", super().elementwise(moved_bytes))

    def _attention(self, call: AttentionCall) -> Array:
        return self._record("Attention", call.sizes, call.dtype, super()._attention(call))

    def _record(self, operator: str, sizes: tuple[ArrayLike, ...], dtype: str, seconds: Array) -> Array:
        columns = np.broadcast_arrays(*(np.asarray(size) for size in sizes), seconds)
        for *row, answer in zip(*(np.ravel(column).tolist() for column in columns), strict=True):
            whole = tuple(int(size) if float(size).is_integer() else float(size) for size in row)
            trimmed = whole[:-1] if operator == "Get_Time" and whole[-1] == 1 else whole
            self.terms.append(Term(operator, trimmed, dtype, float(answer)))
        return seconds
