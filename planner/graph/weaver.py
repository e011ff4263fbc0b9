"""Weaver: lays roles onto GPUs one after another, connecting tensors, streams and barriers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from planner.graph.nodes import Edge, EdgeKind, Graph, Node, Piece, Transfer, ranks_name
from planner.graph.ops import COLLECTIVES, Kind, Layout, Role
from planner.graph.templates import Cell, role_cells

REDISTRIBUTES = COLLECTIVES - {Kind.SEND}


@dataclass(frozen=True, slots=True)
class Source:
    """A tensor and the node that wrote it."""

    node: str
    piece: Piece


Tensors = list[dict[str, Source]]
"""What each GPU of a stage holds, by tensor name."""


@dataclass(frozen=True, slots=True)
class Wait:
    """Something that must end before a role begins."""

    node: str
    kind: EdgeKind = "stream"


@dataclass(frozen=True, slots=True)
class Place:
    """Where and when a role runs; `chunk` tells the ends of a stage's chunks of layers apart."""

    stage: int
    layer: int | None
    micro_batch: int
    step: int = 0
    chunk: int = 0

    @property
    def prefix(self) -> str:
        """The head of a node's id."""
        step = f"t{self.step}." if self.step else ""
        layer = (f"c{self.chunk}." if self.chunk else "") if self.layer is None else f"l{self.layer}."
        return f"{step}s{self.stage}.m{self.micro_batch}.{layer}"


class Weaver:
    """Collects nodes and edges; nodes are added in an order in which they could run."""

    def __init__(self) -> None:
        self.nodes: dict[str, Node] = {}
        self.edges: dict[tuple[str, str, str, str], Edge] = {}
        self._read_by: dict[str, set[Source]] = {}
        self._cells: dict[tuple[int, tuple[int, ...], int], tuple[Role, tuple[Cell, ...]]] = {}

    def graph(self) -> Graph:
        """Everything woven so far."""
        return Graph(tuple(self.nodes.values()), tuple(self.edges.values()))

    def role(
        self, role: Role, devices: tuple[int, ...], at: Place, after: Sequence[Wait], held: Tensors
    ) -> tuple[str, Tensors]:
        """Lay a role behind `after` on the GPUs that hold `held`; gives its closing barrier and what they hold then."""
        key = (id(role), devices, at.stage)
        if key not in self._cells:
            self._cells[key] = (role, role_cells(role, devices, at.stage))  # keeps the role alive, so that its id stays its own
        tensors: Tensors = [dict(own) for own in held]
        written: list[set[str]] = [set() for _ in devices]
        tails: list[dict[str, tuple[Wait, ...]]] = [{} for _ in devices]
        start = tuple(after)
        for cell in self._cells[key][1]:
            if cell.present:
                self._lay(cell, at, start, tensors, written, tails)
            else:
                _pass_on(cell, tensors, written)
        prefix = f"{at.prefix}{role.name}"
        ends = dict.fromkeys(wait for tail in tails for waits in tail.values() for wait in waits)
        barrier = Node(f"{prefix}.end@{ranks_name(devices)}", "end", Kind.BARRIER, role.name, at.stage, at.layer,
                       at.micro_batch, devices, "", step=at.step)  # fmt: skip
        return self.add(barrier, tuple(ends) or start), tensors

    def _lay(
        self, cell: Cell, at: Place, start: tuple[Wait, ...], tensors: Tensors, written: list[set[str]],
        tails: list[dict[str, tuple[Wait, ...]]],
    ) -> None:  # fmt: skip
        proto, stream = cell.proto, cell.op.stream
        name = f"{at.prefix}{proto.role}.{proto.id}"
        reads: list[Source] = []
        named: dict[str, Source] = {}
        for member in cell.members:
            found = self._reads(cell.op.inputs, tensors[member])
            named = found if _own(found) > _own(named) else named or found
            reads += found.values()
        node = replace(proto, id=name, layer=at.layer, micro_batch=at.micro_batch, step=at.step,
                       inputs=tuple(source.piece for source in named.values()), formals=tuple(named))  # fmt: skip
        waits = dict.fromkeys(wait for member in cell.members for wait in tails[member].get(stream, start))
        self.add(node, tuple(waits), reads)
        for member, piece in zip(cell.members, cell.outputs, strict=True):
            tails[member][stream] = (Wait(name),)
            tensors[member][piece.name] = Source(name, piece)
            written[member].add(piece.name)

    def add(self, node: Node, waits: Sequence[Wait], reads: Sequence[Source] = ()) -> str:
        """Add a node with what it waits for and what it reads."""
        if node.id in self.nodes:
            raise ValueError(f"two nodes are called {node.id}")
        self.nodes[node.id] = node
        self._read_by[node.id] = set(reads)
        for wait in waits:
            self.edges[wait.node, node.id, wait.kind, ""] = Edge(wait.node, node.id, wait.kind)
        for source in reads:
            kinds = [n.kind for n in (self.nodes[source.node], node) if n.communicates]
            key = (source.node, node.id, "data", source.piece.name)
            own = source.piece.bytes if node.transfer is None or source.piece.name == "routes" else node.transfer.sent_bytes
            amount = own + (self.edges[key].bytes if key in self.edges else 0.0)
            collective = kinds[0].value if kinds else ""
            self.edges[key] = Edge(source.node, node.id, "data", source.piece.name, amount, collective)
        return node.id

    def send(
        self, name: str, at: Place, stream: str, transfer: Transfer, waits: Sequence[Wait], reads: Sequence[Source],
        arrives: Sequence[Piece] = (),
    ) -> str:  # fmt: skip
        """Add a hand-over between two sets of GPUs; `arrives` is what each receiver holds afterwards."""
        devices = (*transfer.source, *transfer.target)
        amount = max(transfer.sent_bytes, transfer.received_bytes)
        inputs = tuple(dict.fromkeys(source.piece for source in reads[:4]))
        ranks = f"{ranks_name(transfer.source)}>{ranks_name(transfer.target)}"
        node = Node(f"{at.prefix}{name}@{ranks}", name, Kind.SEND, "send", at.stage, at.layer, at.micro_batch, devices, stream,
                    inputs, tuple(arrives), bytes=amount, transfer=transfer, step=at.step)  # fmt: skip
        return self.add(node, waits, reads)

    def _reads(self, names: tuple[str, ...], own: dict[str, Source]) -> dict[str, Source]:
        """Sources of the named tensors, each once, by the first name that means it. Where a tensor and its redistribution by
        a collective are both named, the latter is read: the former stands for the case that the collective is absent.
        """
        found: dict[Source, str] = {}
        for name in names:
            if name in own:
                found.setdefault(own[name], name)
        spare: set[Source] = set()
        for source in found:
            if self.nodes[source.node].kind in REDISTRIBUTES and source.piece.layout != Layout.PARTIAL:
                spare |= self._read_by.get(source.node, set())
        return {name: source for source, name in found.items() if source not in spare}


def _own(reads: dict[str, Source]) -> int:
    """How many reads are of the very tensor that is meant: a GPU without a share of a collective brings stand-ins."""
    return sum(name == source.piece.name for name, source in reads.items())


def _pass_on(cell: Cell, tensors: Tensors, written: list[set[str]]) -> None:
    """Whoever reads what an absent operator would have written reads its first input instead."""
    name = cell.op.output.name
    for member in cell.members:
        if name in written[member]:
            continue
        source = next((tensors[member][i] for i in cell.op.inputs if i in tensors[member]), None)
        if source is not None:
            tensors[member][name] = source


def arrive(transfer: str, pieces: Sequence[Piece]) -> Tensors:
    """What the GPUs hold after a transfer: one tensor each."""
    return [{piece.name: Source(transfer, piece)} for piece in pieces]
