"""Machine: virtual GPUs that run an operator graph, each with a store of its own.

A buffer is named after the role and the tensor that it holds, so the next layer and the next micro-batch write over it, as
they do on a GPU: an order that the graph allows but the data does not bear shows as a read of what is not there.
"""

from __future__ import annotations

import heapq
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from planner.check.buffers import Buffer, Buffers
from planner.check.run import (
    attention,
    attention_gradients,
    context,
    ends_gradients,
    gradients,
    indexer,
    kernels,
    moe,
    moe_gradients,
    segments,
)
from planner.check.run.book import Book, exchanges, expected_stream, is_weight_gradient, moves_weights, names_in
from planner.check.run.collectives import COLLECTIVES, TRANSFERS
from planner.check.run.exchange import Name, backward_collective, exchange
from planner.check.run.expected import Expected, expected
from planner.check.run.site import Fault, Kernel, Site, Value, base_role
from planner.check.run.split import Split
from planner.check.run.world import StageTokens, World
from planner.graph.nodes import Graph, Node
from planner.graph.ops import Kind

Ints = NDArray[np.int64]

KERNELS: dict[tuple[str, str], Kernel] = {
    **kernels.KERNELS, **attention.KERNELS, **segments.KERNELS, **context.KERNELS, **indexer.KERNELS, **moe.KERNELS,
    **ends_gradients.FORWARD,
}  # fmt: skip
BACKWARD: dict[str, Kernel] = {
    **gradients.KERNELS, **attention_gradients.KERNELS, **moe_gradients.KERNELS, **ends_gradients.KERNELS,
}  # fmt: skip
LOOSE = frozenset({"permuted", "arrived", "returned", "expert_gate", "expert_up", "expert_active", "expert_partial"})
"""Tensors whose number of rows depends on the routing; the graph has the expected one."""


@dataclass(frozen=True)
class Departure:
    """A node that does not do what the unsplit model does: the message, and the error where numbers differ."""

    node: str
    message: str
    error: float = 0.0
    allowed: float = 0.0
    fault: bool = False


@dataclass
class Outcome:
    """What a run found: departures in the order of the graph, the worst error beside its tolerance, and who served whom."""

    departures: list[Departure] = field(default_factory=list)
    compared: int = 0
    worst: tuple[float, float] = (0.0, 0.0)
    finished: dict[tuple[int | None, int], set[int]] = field(default_factory=lambda: defaultdict(set))
    served: dict[tuple[int, int, int, int], int] = field(default_factory=lambda: defaultdict(int))


class Machine:
    """Runs one graph in one world."""

    def __init__(self, graph: Graph, world: World, tolerance: float) -> None:
        self.graph, self.world, self.tolerance = graph, world, tolerance
        self.rank = {node.id: index for index, node in enumerate(graph.nodes)}
        self.book = Book(world)
        self._splits: dict[tuple[int, int, int, int | None, bool], Split] = {}
        self._tokens: dict[tuple[int, int, int], StageTokens] = {}

    def orders(self, rng: np.random.Generator, count: int) -> Iterator[list[Node]]:
        """Random orders in which the edges let the nodes run; a node in a circle is in none of them."""
        after: dict[str, list[str]] = defaultdict(list)
        waits = {node.id: 0 for node in self.graph.nodes}
        for edge in self.graph.edges:
            if edge.src in waits and edge.dst in waits:
                after[edge.src].append(edge.dst)
                waits[edge.dst] += 1
        for _ in range(count):
            left, keys = dict(waits), rng.permutation(len(waits))
            ready = [(int(keys[self.rank[name]]), name) for name, number in left.items() if number == 0]
            heapq.heapify(ready)
            order = []
            while ready:
                name = heapq.heappop(ready)[1]
                order.append(self.graph.by_id[name])
                for other in after[name]:
                    left[other] -= 1
                    if left[other] == 0:
                        heapq.heappush(ready, (int(keys[self.rank[other]]), other))
            yield order

    def run(self, order: Sequence[Node]) -> Outcome:
        """Execute the nodes in this order and compare what each writes; ends at the first node that cannot run."""
        outcome, stores = Outcome(), dict[Buffer, tuple[str, Value]]()
        for node in order:
            if _idle(node):
                continue
            try:
                written = self._execute(node, stores)
            except Fault as fault:
                outcome.departures.append(Departure(node.id, str(fault), fault=True))
                break
            for device, value in written.items():
                stores[self._buffer(node, device)] = (node.id, value)
            self._compare(node, written, outcome)
        if self.world.gradients is not None and not any(departure.fault for departure in outcome.departures):
            self._close(outcome)
        outcome.departures.sort(key=lambda departure: self.rank[departure.node])
        return outcome

    def hazards(self, order: Sequence[Node]) -> Departure | None:
        """The first node that would read what is not there in this order, without computing anything."""
        stores: dict[Buffer, str] = {}
        for node in order:
            if _idle(node):
                continue
            for device in self._readers(node):
                for _, source in self._delivered(node, device):
                    if stores.get(self._buffer(source, device)) != source.id:
                        return Departure(
                            node.id, _not_there(node, source, stores.get(self._buffer(source, device))), fault=True
                        )
            for device in self._writers(node):
                stores[self._buffer(node, device)] = node.id
        return None

    def _execute(self, node: Node, stores: dict[Buffer, tuple[str, Value]]) -> dict[int, Value]:
        """What each GPU holds after a node."""
        sites = [
            Site(node, self._split(node, device), node.layer, self._read(node, device, stores))
            for device in self._readers(node)
        ]
        if node.transfer is not None:
            targets = [self._target_split(node, device) for device in node.transfer.target]
            return dict(zip(node.transfer.target, TRANSFERS[node.name](sites, targets), strict=True))
        if exchanges(node):
            values = exchange(sites, [self._arrived(node, device, stores) for device in node.devices])
        elif node.communicates:
            _check_group(node)
            values = (backward_collective if node.role.endswith("_backward") else COLLECTIVES[node.kind])(sites)
        else:
            values = [kernel_of(node)(site) for site in sites]
        for index, value in enumerate(values):
            self._check_shape(node, index, value)
        return dict(zip(node.devices, values, strict=True))

    def _read(self, node: Node, device: int, stores: dict[Buffer, tuple[str, Value]]) -> dict[str, Value]:
        """What the incoming edges deliver to one GPU, by the names that the operator knows."""
        found = {}
        for formal, source in self._delivered(node, device):
            entry = stores.get(self._buffer(source, device))
            if entry is None or entry[0] != source.id:
                raise Fault(_not_there(node, source, entry[0] if entry else None))
            found[formal] = entry[1]
        return found

    def _arrived(self, node: Node, device: int, stores: dict[Buffer, tuple[str, Value]]) -> dict[Name, list[Value]]:
        """Gradients of weights that edges bring to one GPU of an exchange."""
        found: dict[Name, list[Value]] = defaultdict(list)
        for _, source in self._delivered(node, device):
            entry = stores.get(self._buffer(source, device))
            if entry is None or entry[0] != source.id:
                raise Fault(_not_there(node, source, entry[0] if entry else None))
            for name, value in names_in(source, entry[1]).items():
                found[name].append(value)
        return found

    def _delivered(self, node: Node, device: int) -> Iterator[tuple[str, Node]]:
        """Names and writers of the tensors that edges bring to one GPU; what no edge brings is no one's to read."""
        edges = [edge for edge in self.graph.into[node.id] if edge.kind == "data" and edge.tensor]
        brought = [(e.tensor, self.graph.by_id[e.src]) for e in edges if e.src in self.graph.by_id]
        own = [(tensor, source) for tensor, source in brought if device in self._writers(source)]
        if exchanges(node):  # layer by layer under the same names
            yield from own
            return
        known = self._formals(node)
        for formal, piece in known:
            sources = [source for tensor, source in own if tensor == piece]
            if not sources and len(own) == 1 and formal == known[0][0]:  # a member that holds it under another name
                sources = [own[0][1]]
            if sources:
                yield formal, sources[-1]

    def _formals(self, node: Node) -> list[tuple[str, str]]:
        """Names by which a node knows its inputs, and the names by which they were written."""
        if node.transfer is None:
            return [(formal, piece.name) for formal, piece in zip(node.formals, node.inputs, strict=True)]
        tensors = dict.fromkeys(edge.tensor for edge in self.graph.into[node.id] if edge.kind == "data" and edge.tensor)
        return [("x" if node.name in ("send", "send_back") else tensor, tensor) for tensor in tensors]

    def _readers(self, node: Node) -> tuple[int, ...]:
        return node.devices if node.transfer is None else node.transfer.source

    def _writers(self, node: Node) -> tuple[int, ...]:
        return node.devices if node.transfer is None else node.transfer.target

    def _split(self, node: Node, device: int) -> Split:
        if exchanges(node):
            return self._split_at(self._stage_of(node, device), node.micro_batch, device, node.layer, False)
        apart = node.role == "experts" or (node.transfer is not None and node.name == "combine")
        return self._split_at(node.stage, node.micro_batch, device, node.layer, apart)

    def _target_split(self, node: Node, device: int) -> Split:
        stage = self._stage_of(node, device) if node.name in ("send", "send_back") else node.stage
        return self._split_at(stage, node.micro_batch, device, node.layer, node.name == "dispatch")

    def _stage_of(self, node: Node, device: int) -> int:
        """The stage of a GPU; that of the node where the plan does not use it."""
        stages = enumerate(self.world.twin.choice.stages)
        return next((index for index, stage in stages if device in stage.attention_devices), node.stage)

    def _split_at(self, stage: int, micro_batch: int, device: int, layer: int | None, apart: bool) -> Split:
        key = (stage, micro_batch, device, layer, apart)
        if key not in self._splits:
            chosen = self.world.twin.choice.stages[stage]
            ranks = chosen.expert_devices if apart else chosen.attention_devices
            if device not in ranks:
                raise Fault(f"GPU {device} has no part in it")
            row = 0 if layer is None or not chosen.experts or not chosen.experts.by_layer else self.world.twin.rows[layer]
            tokens = StageTokens(self.world, chosen.at(row), micro_batch)
            at = self._tokens.setdefault((stage, micro_batch, row), tokens)
            spec = None if layer is None else self.world.twin.model.layers[layer]
            self._splits[key] = Split(self.world, at, ranks.index(device), spec, apart)
        return self._splits[key]

    @cached_property
    def _buffers(self) -> Buffers:
        return Buffers(self.graph, self.world.twin.choice)

    def _buffer(self, node: Node, device: int) -> Buffer:
        return self._buffers.of(node, device)

    def _check_shape(self, node: Node, index: int, value: Value) -> None:
        """The array has the shape that the graph says, where routing and the ends of sequences do not decide it."""
        piece = node.outputs[index]
        if node.role == "exchange" or value.parts:
            self._check_gradient(node, value)
            return
        loose = (
            piece.name in LOOSE
            or piece.name.endswith("_shard")
            or base_role(node.role) == "head"
            or piece.name in ("partials", "a", "squares")
        )
        wanted, found = (piece.shape[-1:], value.array.shape[-1:]) if loose else (piece.shape, value.array.shape)
        if piece.name in ("partials", "squares", "routes", "routes_all", "picked"):
            return
        if wanted != found:
            raise Fault(f"it writes {list(value.array.shape)} where the graph says {piece.text}")

    def _check_gradient(self, node: Node, value: Value) -> None:
        """The gradient of a product's input or weight has its shape; how many rows experts have is up to the routing."""
        piece = node.outputs[0]
        loose = base_role(node.role) == "moe" and not node.name.endswith("_wgrad")
        if node.role != "exchange" and not loose and len(value.parts) == 1 and value.array.shape != piece.shape:
            raise Fault(f"it writes {list(value.array.shape)} where the graph says {piece.text}")

    def _close(self, outcome: Outcome) -> None:
        """Hold the gradients of all weights against those of the unsplit model."""
        assert self.world.gradients is not None
        for wrong in self.book.wrong(self.world.gradients, self.tolerance):
            allowed = self.tolerance * wrong.scale
            outcome.compared += 1
            if wrong.error > outcome.worst[0]:
                outcome.worst = (wrong.error, allowed)
            if wrong.message:
                outcome.departures.append(Departure(wrong.node, wrong.message, wrong.error, allowed))

    def _gradients(self, node: Node, device: int, value: Value, outcome: Outcome) -> None:
        """Note the gradients of weights; compare those of the residual stream."""
        split = self._split(node, device)
        if node.weights:
            self.book.uses(node)
        if is_weight_gradient(node):
            self.book.wrote(node, device, split, value)
        if node.name == "accumulate" and self.world.gradients is not None:
            wanted = expected_stream(self.world.gradients, base_role(node.role), node.layer, split)
            if wanted is not None:
                outcome.compared += 1
                scale = float(np.max(np.abs(wanted), initial=0.0)) or 1.0
                self._judge(node, device, Expected(wanted, value.array, scale), outcome)

    def _compare(self, node: Node, written: dict[int, Value], outcome: Outcome) -> None:
        for device, value in written.items():
            if node.transfer is not None:
                continue
            split = self._split(node, device)
            if self.world.gradients is not None:
                self._gradients(node, device, value, outcome)
            if node.name == "permute" and not node.role.endswith("_again"):
                self._count(node, split, value, outcome)
            if node.role == "exchange" or value.parts:
                continue
            found = expected(node, node.outputs[0].name, node.layer, split, value)
            if found is not None:
                outcome.compared += 1
                self._judge(node, device, found, outcome)
            head = base_role(node.role) == "head" and node.name == "lm_head"
            if node.name == "ffn_residual" or head:
                tokens = split.at.gathered_head(split.place) if head else split.at.residual(split.place)
                outcome.finished[node.layer, node.micro_batch] |= set(tokens.tolist())

    def _judge(self, node: Node, device: int, found: Expected, outcome: Outcome) -> None:
        allowed = self.tolerance * found.scale
        error = found.error
        if error > outcome.worst[0] or outcome.worst[1] == 0.0:
            outcome.worst = (error, allowed)
        if not error <= allowed:
            shape = (
                ""
                if found.wanted.shape == found.found.shape
                else f" ({list(found.found.shape)} for {list(found.wanted.shape)})"
            )
            message = f"{node.outputs[0].name} on GPU {device} is off by {error:.3g}{shape}, where {allowed:.1g} is allowed"
            outcome.departures.append(Departure(node.id, message, error, allowed))

    def _count(self, node: Node, split: Split, value: Value, outcome: Outcome) -> None:
        """Count who serves which expert; of the GPUs that share an expert's columns the first one counts."""
        if split.expert_column or node.layer is None:
            return
        experts, counts = np.unique(np.asarray(value.beside["expert"], dtype=np.int64), return_counts=True)
        for expert, count in zip(experts, counts, strict=True):
            outcome.served[node.layer, node.micro_batch, int(expert), split.expert_group] += int(count)


def kernel_of(node: Node) -> Kernel:
    """What a node computes."""
    if node.role.endswith(("_backward", "_weights")):
        ring = node.name.removeprefix("attention_").removesuffix("_backward")
        own = attention_gradients.ring_step(int(ring)) if ring.isdigit() and ring != "0" else BACKWARD.get(node.name)
        if own is None:
            raise Fault(f"a backward operator called {node.name} has no definition")
        return own
    if node.name.startswith("attention_") and node.name[10:].isdigit() and node.name != "attention_0":
        return context.ring_step(int(node.name[10:]))
    if node.name == "attention_0":
        return KERNELS["attention", "attention"]
    kernel = KERNELS.get((base_role(node.role), node.name)) or KERNELS.get(("", node.name))
    if kernel is None:
        raise Fault(f"an operator called {node.name} has no definition")
    return kernel


def _idle(node: Node) -> bool:
    """Whether a node has no numbers: a barrier, token ids on their way, weights that are there anyway, their update."""
    return node.kind == Kind.BARRIER or node.name in ("feedback", "optimizer") or moves_weights(node)


def _not_there(node: Node, source: Node, found: str | None) -> str:
    name = source.outputs[0].name if source.outputs else source.name
    if found is None:
        return f"it may run before {name} of {source.id} is there"
    return f"it reads {name} of {source.id}, which {found} may have written over"


def _check_group(node: Node) -> None:
    """A collective's group is one of the family that runs it, in that order."""
    if node.family and node.devices not in node.family:
        raise Fault(f"its GPUs {list(node.devices)} are none of the groups that run it")
