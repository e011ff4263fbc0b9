"""Cycles: a graph whose operators wait for each other in a circle can never run."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from graphlib import CycleError, TopologicalSorter

from planner.check.findings import Finding
from planner.graph.nodes import Graph

MOST_SHOWN = 6


def check_cycles(graph: Graph) -> tuple[Finding, ...]:
    """A finding for every edge that leads nowhere, and one for a circle if there is any."""
    known = graph.by_id.keys()
    lost = [edge for edge in graph.edges if edge.src not in known or edge.dst not in known]
    found = [
        Finding("CYCLE002", "error", f"{edge.src} -> {edge.dst}", "an edge leads to an operator that does not exist")
        for edge in lost
    ]
    waits: dict[str, set[str]] = {node.id: set() for node in graph.nodes}
    for edge in graph.edges:
        if edge.src in known and edge.dst in known:
            waits[edge.dst].add(edge.src)
    circle = find_circle(waits)
    if circle:
        shown = circle if len(circle) <= MOST_SHOWN else (*circle[:MOST_SHOWN], "...")
        message = f"{len(circle) - 1} operators wait for each other: {' -> '.join(shown)}"
        fix = "give the operators of a GPU one order that every collective shares"
        found.append(Finding("CYCLE001", "error", circle[0], message, len(circle) - 1, 0, fix))
    return tuple(found)


def find_circle(waits: Mapping[str, Iterable[str]]) -> tuple[str, ...]:
    """Names that wait for each other, each for the one before it, the first one again at the end; empty without a circle."""
    try:
        TopologicalSorter(waits).prepare()
    except CycleError as error:
        return tuple(error.args[1])
    return ()
