"""Prices: seconds of operators (Get_Time) and of collectives, each number tagged with where it comes from."""

from __future__ import annotations

from planner.costs.collectives import Collectives
from planner.costs.get_time import GetTime, Roofline
from planner.costs.groups import GroupShape, cluster_links, group_shape
from planner.costs.sources import load_table, price_sources
from planner.costs.symbolic import Symbolic, Term
from planner.costs.table import Table

__all__ = [
    "Collectives",
    "GetTime",
    "GroupShape",
    "Roofline",
    "Symbolic",
    "Table",
    "Term",
    "cluster_links",
    "group_shape",
    "load_table",
    "price_sources",
]  # fmt: skip
