"""Measured times on hardware that was not measured: changed by the factor by which the formula's time changes."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from planner.cluster import Cluster
from planner.costs.collectives import Collectives
from planner.costs.comm_table import MeasuredCollectives
from planner.costs.get_time import Array, GetTime
from planner.costs.groups import GroupShape
from planner.costs.kernels import AttentionClass
from planner.costs.relay import AttentionCall, Relay
from planner.costs.table import Table


def scaled(measured: Array, before: Array, after: Array) -> Array:
    """`measured` times after / before, elementwise; what took no time takes none."""
    known = np.asarray(before) > 0
    return np.where(known, measured * after / np.where(known, before, 1.0), after)


class Scaled(Relay):
    """A table on other hardware: the fallback is that hardware's formula, the table's own is the measured one's."""

    def __init__(self, table: Table, after: GetTime) -> None:
        super().__init__(after)
        self.table = table

    @property
    def source(self) -> str:
        """The tag of the table."""
        return self.table.source

    def source_of(
        self, family: str, dtype: str = "bf16", sizes: tuple[ArrayLike, ...] = (), kernel: AttentionClass | None = None
    ) -> str:
        """The tag of one call on the measured hardware."""
        return self.table.source_of(family, dtype, sizes, kernel)

    def get_time(self, m: ArrayLike, k: ArrayLike, n: ArrayLike, batch: ArrayLike = 1, dtype: str = "bf16") -> Array:
        """Seconds of `batch` products (m x k)@(k x n)."""
        return scaled(*(source.get_time(m, k, n, batch, dtype) for source in self._sources))

    def _attention(self, call: AttentionCall) -> Array:
        return scaled(*(call.of(source) for source in self._sources))

    @property
    def _sources(self) -> tuple[GetTime, GetTime, GetTime]:
        """Measured, and by the formula before and after."""
        return self.table, self.table.fallback, self.fallback


class ScaledCollectives(Collectives):
    """The measured collectives of a cluster on a better one, whose formulas have the constants in `data`."""

    def __init__(self, cluster: Cluster, data: dict[str, Any] | None, measured: MeasuredCollectives) -> None:
        super().__init__(cluster, data)
        self.measured, self._before = measured, Collectives(measured.cluster)

    def time(self, op: str, moved_bytes: ArrayLike, shape: GroupShape) -> Array:
        """Seconds of one collective (see `Collectives.time`)."""
        now, before = (source.time(op, moved_bytes, shape) for source in (self.measured, self._before))
        return scaled(now, before, super().time(op, moved_bytes, shape))
