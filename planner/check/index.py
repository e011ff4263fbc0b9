"""Index: what several checks ask of a graph, answered once: who writes and reads what where, and who comes before whom."""

from __future__ import annotations

import heapq
from collections import defaultdict
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from planner.graph.nodes import Edge, Graph, Node, Piece
from planner.graph.ops import Kind

Part = tuple[int, int, int, int | None, str]
"""One role for one micro-batch: decode step, stage, micro-batch, layer, role."""
Chain = tuple[str, int]
"""A stream of a GPU, or a hand-over machine of a stage; its operators run one after another."""


def part_of(node: Node) -> Part:
    """The role, layer and micro-batch that an operator belongs to."""
    return node.step, node.stage, node.micro_batch, node.layer, node.role


def writers(node: Node) -> tuple[int, ...]:
    """GPUs that hold what a node writes; `outputs` has one tensor for each."""
    return node.devices if node.transfer is None else node.transfer.target


def readers(node: Node) -> tuple[int, ...]:
    """GPUs that need what a node reads."""
    return node.devices if node.transfer is None else node.transfer.source


def written(node: Node, device: int) -> Piece | None:
    """What a node leaves on one GPU."""
    places = writers(node)
    index = places.index(device) if device in places else len(node.outputs)
    return node.outputs[index] if index < len(node.outputs) else None


@dataclass(frozen=True)
class Index:
    """A graph without duplicate ids and without edges to nowhere."""

    graph: Graph

    @cached_property
    def parts(self) -> dict[Part, list[Node]]:
        """Nodes of every role, barriers among them, hand-overs apart."""
        found: dict[Part, list[Node]] = defaultdict(list)
        for node in self.graph.nodes:
            if node.transfer is None:
                found[part_of(node)].append(node)
        return found

    @cached_property
    def deliveries(self) -> dict[tuple[str, int], list[tuple[Edge, Node]]]:
        """Tensors that edges bring to a GPU of a node, by node and GPU, with who wrote them."""
        found: dict[tuple[str, int], list[tuple[Edge, Node]]] = defaultdict(list)
        for edge in self.graph.edges:
            if edge.kind == "data" and edge.tensor:
                source, target = self.graph.by_id[edge.src], self.graph.by_id[edge.dst]
                there = set(writers(source))
                for device in readers(target):
                    if device in there:
                        found[edge.dst, device].append((edge, source))
        return found

    @cached_property
    def read(self) -> set[tuple[str, int]]:
        """Nodes and GPUs whose output somebody reads."""
        return {(source.id, device) for (_, device), brought in self.deliveries.items() for _, source in brought}

    @cached_property
    def order(self) -> tuple[Node, ...]:
        """Nodes in an order in which they can run, close to the graph's own; shorter than the graph where it has a circle."""
        rank = {node.id: place for place, node in enumerate(self.graph.nodes)}
        after: dict[str, list[str]] = defaultdict(list)
        waits = dict.fromkeys(rank, 0)
        for edge in self.graph.edges:
            after[edge.src].append(edge.dst)
            waits[edge.dst] += 1
        ready = [place for name, place in rank.items() if not waits[name]]
        heapq.heapify(ready)
        found: list[Node] = []
        while ready:
            node = self.graph.nodes[heapq.heappop(ready)]
            found.append(node)
            for name in after[node.id]:
                waits[name] -= 1
                if not waits[name]:
                    heapq.heappush(ready, rank[name])
        return tuple(found)

    @cached_property
    def chains(self) -> dict[Chain, list[Node]]:
        """Every stream of every GPU with its barriers, and every hand-over machine of a stage, in running order."""
        found: dict[Chain, list[Node]] = defaultdict(list)
        streams: dict[int, set[str]] = defaultdict(set)
        for node in self.graph.operators():
            if node.transfer is None:
                for device in node.devices:
                    streams[device].add(node.stream)
        for node in self.order:
            if node.transfer is not None:
                found[node.stream, -1 - node.stage].append(node)
                continue
            for device in node.devices:
                for stream in streams[device] if node.kind == Kind.BARRIER else (node.stream,):
                    found[stream, device].append(node)
        return found

    @cached_property
    def _places(self) -> dict[str, list[tuple[int, int]]]:
        """For every node its chains, by number, and its places in them."""
        found: dict[str, list[tuple[int, int]]] = defaultdict(list)
        for number, chain in enumerate(self.chains.values()):
            for place, node in enumerate(chain):
                found[node.id].append((number, place))
        return found

    @cached_property
    def _before(self) -> dict[str, NDArray[np.int32]]:
        """For every node and chain the last place of the chain that comes before the node; -1 where none does."""
        into = self.graph.into
        found: dict[str, NDArray[np.int32]] = {}
        upto: dict[str, NDArray[np.int32]] = {}
        for node in self.order:
            row = np.full(len(self.chains), -1, dtype=np.int32)
            for name in {edge.src for edge in into[node.id]}:
                np.maximum(row, upto[name], out=row)
            found[node.id] = row
            own = row.copy()
            for number, place in self._places[node.id]:
                own[number] = max(own[number], place)
            upto[node.id] = own
        return found

    def precedes(self, first: Node, second: Node) -> bool:
        """Whether edges make `first` end before `second` starts; exact where the chains are ordered."""
        row = self._before[second.id]
        return any(row[number] >= place for number, place in self._places[first.id])

    def follows_directly(self, number: int, place: int, node: Node) -> bool:
        """Whether the operator at `place` of chain `number` comes before `node`, which is next in that chain."""
        return bool(self._before[node.id][number] >= place)
