"""The price sources of a cluster: the embedded formulas, with the measured tables that the cluster brings laid over them."""

from __future__ import annotations

import math
from pathlib import Path

from planner.cluster import Cluster, Measured
from planner.costs.collectives import Collectives
from planner.costs.comm_table import MeasuredCollectives
from planner.costs.get_time import GetTime, Roofline
from planner.costs.rows import Measurements, read_measurements
from planner.costs.silicon import STRAYS, silicon_measurements
from planner.costs.table import Table
from planner.errors import InputError
from planner.files import expanded, read_text


def load_table(path: str | Path) -> Measurements:
    """The measurements in a CSV file; `InputError` names the line and the column that are wrong."""
    return read_measurements(read_text(expanded(path)), str(path))


def price_sources(cluster: Cluster) -> dict[str, GetTime]:
    """GetTime of every GPU kind: the formulas, under the kind's table where the cluster brings one."""
    found: dict[str, GetTime] = {}
    for name, kind in cluster.kinds.items():
        found[name], table = Roofline(kind), cluster.gemm_tables.get(name)
        if table is not None:
            rows = _measurements(table, name)
            if not (rows.products or rows.attention):
                raise InputError("gemm_table", table.name, "a table with rows of products or attention")
            found[name] = Table(rows, found[name], math.inf if table.csv else STRAYS)
    return found


def collectives_of(cluster: Cluster) -> Collectives:
    """The collectives of a cluster: formulas, under its table where it brings one."""
    table = cluster.comm_table
    if table is None:
        return Collectives(cluster)
    rows = _measurements(table, next(iter(cluster.kinds)))
    if not rows.collectives:
        raise InputError("comm_table", table.name, "a table with rows of collectives")
    return MeasuredCollectives(cluster, rows.collectives)


def _measurements(table: Measured, kind: str) -> Measurements:
    return read_measurements(table.csv, table.name) if table.csv else silicon_measurements(table.name, kind)
