"""Buffers: where tensors lie on a GPU, and who may write over them before they have been read."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator

from planner.check.index import Index, part_of, writers
from planner.graph.expand import BOUNDARY_BUFFERS
from planner.graph.nodes import Graph, Node
from planner.graph.ops import Kind
from search_spaces.stages import Choice

Buffer = tuple[int, str, int]
"""A GPU, the name of a buffer on it, and which of several."""


class Buffers:
    """A GPU has one buffer for each tensor of a role, so the next layer and the next micro-batch write over it.

    Waves of micro-batches have one each, arrivals of a stage take turns in `BOUNDARY_BUFFERS`, and what waits to be sent
    keeps a place of its own. In training so do what the backward pass reads of each layer and micro-batch, and the gradients of
    each layer's weights.
    """

    def __init__(self, graph: Graph, choice: Choice) -> None:
        self.waves = choice.in_flight if choice.stages[0].separate else 1
        sends = {node.id for node in graph.nodes if node.name in ("send", "feedback", "send_back")}
        self.kept = _kept(graph) if choice.training is not None else frozenset()
        self.sent = frozenset(edge.src for edge in graph.edges if edge.kind == "data" and edge.dst in sends)

    def of(self, node: Node, device: int) -> Buffer:
        """The buffer that a node writes on one GPU."""
        name = f"{node.role}.{node.outputs[0].name if node.outputs else node.name}"
        if name.endswith(".weight_grad"):
            return device, f"l{node.layer}.{name}", 0
        if node.id in self.kept:
            return device, node.id, 0
        if node.id in self.sent:
            return device, f"to send: {name}", node.micro_batch
        return device, name, node.micro_batch % (BOUNDARY_BUFFERS if node.name == "send" else self.waves)


def _kept(graph: Graph) -> frozenset[str]:
    """Operators of which other roles read, and the exchange of gradients."""
    found = {node.id for node in graph.nodes if node.role == "exchange"}
    for edge in graph.edges:
        source, target = graph.by_id.get(edge.src), graph.by_id.get(edge.dst)
        if source is not None and target is not None and edge.kind == "data" and part_of(source) != part_of(target):
            found.add(edge.src)
    return frozenset(found)


def races(index: Index, choice: Choice) -> Iterator[tuple[Node, str]]:
    """Operators that may write over a tensor before all who read it have done so, each with a message.

    Exact for a graph whose streams are ordered: no order in which it could run is left out.
    """
    buffers = Buffers(index.graph, choice)
    using: dict[tuple[str, int], list[Node]] = defaultdict(list)
    for (name, device), brought in index.deliveries.items():
        for _, source in brought:
            using[source.id, device].append(index.graph.by_id[name])
    holds: dict[Buffer, Node] = {}
    for node in index.order:
        if node.kind == Kind.BARRIER or not node.outputs:
            continue
        for device in writers(node):
            key = buffers.of(node, device)
            before = holds.get(key)
            late = [r for r in using[before.id, device] if r is not node and not index.precedes(r, node)] if before else []
            if before and late:
                yield node, f"it may write over {before.outputs[0].name} of {before.id} before {late[0].id} has read it"
            holds[key] = node
