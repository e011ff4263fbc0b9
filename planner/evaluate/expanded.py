"""The price of an expanded graph: seconds of every node, and its longest path, which is the makespan."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Protocol

from planner.cluster import Cluster
from planner.costs.attention import backward_attention
from planner.costs.groups import GroupShape, group_shape
from planner.costs.pricer import Pricer
from planner.evaluate.pipeline import crossing_fraction
from planner.graph.nodes import Graph, Node, Transfer
from planner.graph.ops import AttentionDims, Kind


@dataclass(frozen=True)
class LongestPath:
    """Seconds of the longest path, when each node starts, and the nodes of one longest path in order."""

    seconds: float
    start: dict[str, float]
    path: tuple[str, ...]


class Machine(Protocol):
    """All that a price depends on besides the node; a `Setting` has it."""

    @property
    def cluster(self) -> Cluster:
        """The GPUs and their links."""
        ...

    @property
    def pricer(self) -> Pricer:
        """The prices of operators on them."""
        ...


def price_graph(env: Machine, graph: Graph) -> dict[str, float]:
    """Seconds of every node by id. A price depends on the node alone: its sizes, its GPUs and its co-runners."""
    prices = _Prices(env)
    return {node.id: prices.seconds(node) for node in graph.nodes}


def longest_path(graph: Graph, seconds: dict[str, float]) -> LongestPath:
    """The longest path through a graph whose nodes stand in an order in which they could run."""
    start: dict[str, float] = {}
    before: dict[str, str] = {}
    end: dict[str, float] = {}
    for node in graph.nodes:
        first, source = 0.0, ""
        for edge in graph.into[node.id]:
            if end[edge.src] > first or not source:
                first, source = max(first, end[edge.src]), edge.src
        start[node.id], before[node.id], end[node.id] = first, source, first + seconds[node.id]
    if not end:
        return LongestPath(0.0, {}, ())
    last = max(end, key=lambda name: end[name])
    path, here = [], last
    while here:
        path.append(here)
        here = before[here]
    return LongestPath(end[last], start, tuple(reversed(path)))


class _Prices:
    """Prices by what a node is, each computed once."""

    def __init__(self, env: Machine) -> None:
        self.env = env
        self._compute = lru_cache(maxsize=None)(self._compute_seconds)
        self._shape = lru_cache(maxsize=None)(self._group_shape)
        self._transfer = lru_cache(maxsize=None)(self._transfer_seconds)

    def seconds(self, node: Node) -> float:
        """Seconds of one node."""
        if node.kind == Kind.BARRIER:
            return 0.0
        if node.transfer is not None:
            return self._transfer(node.transfer)
        if node.communicates:
            shape = self._shape(node.family, node.kind == Kind.SEND)
            if node.flow is not None and shape.domains > 1:
                parts = node.flow.parts(self.env.pricer.places.pattern(node.devices))
                outside, inside = (min(part * node.flow.own_bytes / node.bytes, 1.0) for part in parts)
                shape = replace(shape, outside=outside, inside=inside)
            return float(self.env.pricer.collectives.time(node.kind.value, node.bytes, shape))
        gpu = self.env.cluster.device_kinds[node.devices[0]]
        return self._compute(gpu, node.kind, node.m, node.k, node.n, node.batch, node.attention, node.bytes, node.dtype)

    def _compute_seconds(
        self, gpu: str, kind: Kind, m: int, k: int, n: int, batch: int, a: AttentionDims | None, moved: float, dtype: str
    ) -> float:
        source = self.env.pricer.sources[gpu]
        if kind in (Kind.MATMUL, Kind.GROUPED):
            price = source.get_time if kind == Kind.MATMUL else source.grouped
            return float(price(m, k, n, batch, dtype))
        if a is not None:
            found = source.attention(
                a.batch, a.heads, a.kv_heads, a.q_len, a.kv_len, a.qk_dim, a.v_dim, a.causal, dtype, a.kv_dtype, a.shared_kv
            )
            return float(backward_attention(found, a.qk_dim, a.v_dim) if kind == Kind.ATTENTION_BACKWARD else found)
        return float(source.elementwise(moved))

    def _group_shape(self, family: tuple[tuple[int, ...], ...], pairwise: bool) -> GroupShape:
        found = group_shape(self.env.cluster, family)
        if not pairwise:
            return found
        ranks, domains = min(2, int(found.ranks)), min(2, int(found.domains))
        return GroupShape(ranks, domains, 1, found.crossing, found.narrowest, found.link)

    def _transfer_seconds(self, transfer: Transfer) -> float:
        near, far = transfer.source, transfer.target
        crossing = crossing_fraction(self.env.cluster.domain_of, near, far)
        return float(
            self.env.pricer.collectives.m2n_time(transfer.sent_bytes, transfer.received_bytes, len(near), len(far), crossing)
        )
