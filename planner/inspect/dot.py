"""DotGraph: what a DOT file says, as plain data: nodes, edges and subgraphs with their attributes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

ROOT = -1
"""The `home` of what lies in no subgraph."""


@dataclass(frozen=True, slots=True)
class DotNode:
    """A node. `declared` says that a statement of its own names it (an edge alone makes a node, too); `home` is the index
    of the subgraph where it is declared, or first named; `attributes` hold the defaults that applied there.
    """

    id: str
    attributes: Mapping[str, str]
    line: int
    declared: bool
    home: int = ROOT


@dataclass(frozen=True, slots=True)
class DotEdge:
    """An edge, in the direction in which it is written; ports are left out."""

    source: str
    target: str
    attributes: Mapping[str, str]
    line: int


@dataclass(frozen=True, slots=True)
class DotSubgraph:
    """A subgraph with the attributes that it sets itself (`label`, `rank`); `parent` is the index of the one around it."""

    name: str
    attributes: Mapping[str, str]
    parent: int
    line: int

    @property
    def cluster(self) -> bool:
        """Whether Graphviz draws a frame around it."""
        return self.name.startswith("cluster")


@dataclass(frozen=True)
class DotGraph:
    """A graph as its file has it. `notes` are places that were read as Graphviz reads them, with a warning."""

    name: str
    directed: bool
    strict: bool
    attributes: Mapping[str, str]
    nodes: tuple[DotNode, ...]
    edges: tuple[DotEdge, ...]
    subgraphs: tuple[DotSubgraph, ...] = ()
    notes: tuple[str, ...] = ()

    @cached_property
    def by_id(self) -> dict[str, DotNode]:
        """Nodes by id."""
        return {node.id: node for node in self.nodes}

    def frames(self, node: DotNode) -> tuple[DotSubgraph, ...]:
        """The subgraphs around a node, the innermost first."""
        found, at = [], node.home
        while at != ROOT:
            found.append(self.subgraphs[at])
            at = self.subgraphs[at].parent
        return tuple(found)
