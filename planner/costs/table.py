"""Get_Time from measurements: products and attention interpolated without ever falling when a size grows."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike

from planner.costs.get_time import Array, GetTime, floats, known_dtype
from planner.costs.held import Held
from planner.costs.kernels import AttentionClass
from planner.costs.relay import AttentionCall, Relay
from planner.costs.rows import Measurements

MEASURED, EXTRAPOLATED = "measured", "extrapolated"
Q_LEN = 3  # its place among the sizes of attention


class Table(Relay):
    """Products and attention from measured rows (see `Held`); other operators, and dtypes without rows, are the fallback's.

    A price between measured rows is tagged `measured`, one beyond all of them `extrapolated`. Rows whose time over the
    fallback's is more than `strays` times off the median of their kind are left out: with tens of thousands of rows some
    were disturbed, and one that is a hundredfold off would bend all that are larger.
    """

    source = MEASURED

    def __init__(self, rows: Measurements, fallback: GetTime, strays: float = math.inf) -> None:
        super().__init__(fallback)
        self._rows, self._strays = rows, strays
        self._held: dict[str | AttentionClass, Held] = {}

    def source_of(
        self, family: str, dtype: str = "bf16", sizes: tuple[ArrayLike, ...] = (), kernel: AttentionClass | None = None
    ) -> str:
        """The tag of one call by its sizes (without them: of any in the range) and, for attention, its class."""
        held = self._of(kernel or dtype) if kernel or family == "gemm" else None
        if held is None:
            return super().source_of(family, dtype, sizes, kernel)
        return MEASURED if not sizes or bool(held.inside(np.array([floats(*sizes)]))[0]) else EXTRAPOLATED

    def get_time(self, m: ArrayLike, k: ArrayLike, n: ArrayLike, batch: ArrayLike = 1, dtype: str = "bf16") -> Array:
        """Seconds of `batch` products (m x k)@(k x n)."""
        guess = self.fallback.get_time(m, k, n, batch, known_dtype(dtype))
        return self._price(dtype, guess, (m, k, n, batch))

    def _attention(self, call: AttentionCall) -> Array:
        guess = call.of(self.fallback)
        one, many = (AttentionClass.of(q, call.causal, call.shared_kv, call.dtype, call.kv_dtype) for q in (1, 2))
        queries = np.asarray(call.sizes[Q_LEN])
        if np.all(queries == 1) or np.all(queries > 1):
            return self._price(one if np.all(queries == 1) else many, guess, call.sizes)
        return np.where(queries == 1, self._price(one, guess, call.sizes), self._price(many, guess, call.sizes))

    def _price(self, key: str | AttentionClass, guess: Array, sizes: tuple[ArrayLike, ...]) -> Array:
        """The fallback's `guess`, corrected by the rows of `key` where there are any."""
        held = self._of(key)
        if held is None:
            return guess
        columns = np.broadcast_arrays(*floats(*sizes))
        points = np.stack([np.ravel(column) for column in columns], axis=1)
        return held.price(points, np.ravel(np.broadcast_to(guess, columns[0].shape))).reshape(columns[0].shape)

    def _of(self, key: str | AttentionClass) -> Held | None:
        """The rows of one dtype, or of one class of attention kernels."""
        if key not in self._held:
            sample = self._rows.attention.get(key) if isinstance(key, AttentionClass) else self._rows.products.get(key)
            if sample is None:
                return None
            guess = self._guess(key, sample.points)
            ratio = sample.seconds / guess
            good = np.maximum(ratio / np.median(ratio), np.median(ratio) / ratio) <= self._strays
            self._held[key] = Held(sample.points[good], sample.seconds[good], guess[good])
        return self._held[key]

    def _guess(self, key: str | AttentionClass, points: Array) -> Array:
        """The fallback's time of measured points (rows, sizes)."""
        if isinstance(key, AttentionClass):
            b, h, kv, q, length, qk, v = points.T
            return self.fallback.attention(b, h, kv, q, length, qk, v, key.causal, key.dtype, key.kv_dtype, key.shared_kv)
        m, k, n, batch = points.T
        return self.fallback.get_time(m, k, n, batch, key)
