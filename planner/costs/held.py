"""Held: measured seconds as a function of sizes that never falls when a size grows, and equals what was measured."""

from __future__ import annotations

from functools import cached_property
from math import prod

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
MOST_NODES = 4_000_000  # of a grid over the measured sizes
BLOCK = 2_000_000  # comparisons of a size with a row at once


class Held:
    """Rows measured at `points` (rows, sizes) in `seconds` (rows,); `guess` (rows,) is a formula's time of each.

    A price is the formula's time, corrected by how much the rows are off, and held between two bounds: no less than any
    row that is no larger in every size, no more than any row that is no smaller. So a measured size gets its measured
    time. Rows that contradict each other (larger, yet faster) meet in the middle: each becomes the geometric mean of the
    slowest row that is no larger and the fastest that is no smaller, which never falls and is off in neither direction.
    """

    def __init__(self, points: Array, seconds: Array, guess: Array) -> None:
        _, first = np.unique(points, axis=1, return_index=True)  # sizes that are equal in every row are one axis
        self._alike = [np.flatnonzero(np.all(points.T[column] == points.T, axis=1)) for column in first]
        self.points, self.raw = points[:, first], seconds
        self.axes = [np.unique(column) for column in self.points.T]
        told = guess > 0  # a machine may do something in no time
        self.scale = float(np.median(self.seconds[told] / guess[told])) if np.any(told) else 1.0

    @cached_property
    def seconds(self) -> Array:
        """The rows' seconds, made non-decreasing."""
        if self._on_grid:
            return np.asarray(self._grids[0][self._nodes])
        rows = [(self.raw[np.all(self.points <= p, axis=1)].max(), self.raw[np.all(self.points >= p, axis=1)].min())
                for p in self.points]  # fmt: skip
        return _middle(*np.array(rows).T)

    def price(self, points: Array, guess: Array) -> Array:
        """Seconds at `points` (count, sizes) that the formula prices at `guess` (count,)."""
        low, high = self.bounds(points)
        return np.where(guess > 0, np.clip(guess * self.scale, low, high), 0.0)

    def inside(self, points: Array) -> NDArray[np.bool_]:
        """Whether rows bound a point from below and from above."""
        low, high = self.bounds(points)
        return np.asarray((low > 0) & np.isfinite(high))

    def bounds(self, points: Array) -> tuple[Array, Array]:
        """The slowest row below each point (0: none) and the fastest above it (infinite: none)."""
        floor = np.stack([points[:, alike].min(axis=1) for alike in self._alike], axis=1)
        ceiling = np.stack([points[:, alike].max(axis=1) for alike in self._alike], axis=1)
        if self._on_grid:
            return self._grid_bounds(floor, ceiling)
        low, high = np.empty(len(points)), np.empty(len(points))
        step = max(1, BLOCK // len(self.points))
        for at in range(0, len(points), step):
            here = slice(at, at + step)
            low[here] = np.where(np.all(self.points <= floor[here, None, :], axis=2), self.seconds, 0.0).max(axis=1)
            high[here] = np.where(np.all(self.points >= ceiling[here, None, :], axis=2), self.seconds, np.inf).min(axis=1)
        return low, high

    @property
    def _on_grid(self) -> bool:
        """Whether a grid over all measured sizes is small enough: a lookup there takes no pass over the rows."""
        return prod(len(axis) for axis in self.axes) <= MOST_NODES

    @cached_property
    def _nodes(self) -> tuple[NDArray[np.int64], ...]:
        """The grid's node of each row."""
        return tuple(np.searchsorted(axis, column) for axis, column in zip(self.axes, self.points.T, strict=True))

    @cached_property
    def _grids(self) -> tuple[Array, Array]:
        """The lower and the upper bound at every node of the grid."""
        shape = tuple(len(axis) for axis in self.axes)
        low, high = np.zeros(shape), np.full(shape, np.inf)
        low[self._nodes] = high[self._nodes] = self.raw
        _spread(low, high)
        middle = _middle(low[self._nodes], high[self._nodes])
        low[:], high[:] = 0.0, np.inf
        low[self._nodes] = high[self._nodes] = middle
        _spread(low, high)
        return low, high

    def _grid_bounds(self, floor: Array, ceiling: Array) -> tuple[Array, Array]:
        below = [np.searchsorted(axis, sizes, side="right") - 1 for axis, sizes in zip(self.axes, floor.T, strict=True)]
        above = [np.searchsorted(axis, sizes, side="left") for axis, sizes in zip(self.axes, ceiling.T, strict=True)]
        some = np.all([index >= 0 for index in below], axis=0)
        none = np.any([index == len(axis) for index, axis in zip(above, self.axes, strict=True)], axis=0)
        low = np.where(some, self._grids[0][tuple(np.maximum(index, 0) for index in below)], 0.0)
        last = tuple(np.minimum(index, len(axis) - 1) for index, axis in zip(above, self.axes, strict=True))
        return low, np.where(none, np.inf, self._grids[1][last])


def _spread(low: Array, high: Array) -> None:
    """Carry the lower bounds to all larger nodes of a grid, and the upper bounds to all smaller ones, in place."""
    for axis in range(low.ndim):
        np.maximum.accumulate(low, axis=axis, out=low)
        back = np.flip(high, axis)
        np.minimum.accumulate(back, axis=axis, out=back)


def _middle(low: Array, high: Array) -> Array:
    """The geometric mean; exactly the value where both are the same."""
    return np.where(low == high, low, np.sqrt(low * high))
