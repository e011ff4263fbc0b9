"""Flow: every tensor that an operator reads comes by an edge from who wrote it, on every GPU that needs it, and is needed."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator

from planner.check.findings import Finding
from planner.check.index import Index, Part, part_of, readers, writers, written
from planner.graph.nodes import Edge, Node, Piece
from planner.graph.ops import Kind

State = dict[tuple[int, int, int], Node]
"""Who wrote the residual stream last, by decode step, micro-batch and GPU."""
STREAM = ("x", "x_in")
LEAVES = ("embedding", "receive")
"""Roles whose last operator leaves the residual stream; of the others it is the residual sum."""


def check_flow(index: Index) -> Iterator[Finding]:
    """Every input has a source, every edge a reader, every tensor a use; the residual stream passes from role to role."""
    reading = _Reading(index)
    for node in index.graph.operators():
        if node.name != "feedback":
            yield from _inputs(node, reading)
        if len(node.outputs) != len(writers(node)) and (node.outputs or node.transfer is None):
            yield _error("SHAPE006", node.id, "it does not say what each GPU holds", len(node.outputs), len(writers(node)))
    for edge in index.graph.edges:
        yield from _edge(edge, reading)
    yield from _latest(reading)
    yield from _unused(index)


class _Reading:
    """What every node reads on every GPU.

    A GPU without a share (no expert, no row) brings nothing to its collective. The graph has it bring what its share would
    have been made of; an edge for it says nothing of the GPUs that have a share.
    """

    def __init__(self, index: Index) -> None:
        self.index = index
        self._wrote: dict[tuple[Part, int], set[str]] = defaultdict(set)
        for node in index.graph.operators():
            for device, piece in zip(writers(node), node.outputs, strict=False):
                if piece.elements > 0:
                    self._wrote[part_of(node), device].add(piece.name)
        self.names = {node.id: self._names(node) for node in index.graph.nodes}

    def wrote(self, node: Node, device: int) -> set[str]:
        """Tensors that a node's role writes on a GPU."""
        return self._wrote[part_of(node), device]

    def brought(self, node: Node, device: int) -> list[tuple[Edge, Node]]:
        """What edges bring to one GPU of a node that has a share."""
        found = self.index.deliveries.get((node.id, device), [])
        spare = node.communicates and self.idle(node)
        return [(edge, source) for edge, source in found if not spare or edge.tensor in self.names[node.id]]

    def idle(self, node: Node) -> tuple[int, ...]:
        """GPUs of a collective or hand-over that have no share of what it moves."""
        if not node.communicates:
            return ()
        part, names = part_of(node), self.names[node.id]
        if node.transfer is not None:  # what it moves was written by the role before it
            part = (*part[:4], "experts" if node.name == "combine" else "route")
        return tuple(device for device in readers(node) if not names <= self._wrote[part, device] and self._lacks(node, device))

    def _lacks(self, node: Node, device: int) -> bool:
        found = {edge.tensor for edge, _ in self.index.deliveries.get((node.id, device), ())}
        return not self.names[node.id] <= found

    def _names(self, node: Node) -> set[str]:
        """Tensors that a node reads; where the first member of a collective has no share, its inputs are stand-ins."""
        if not node.communicates:
            return {piece.name for piece in node.inputs}
        tensors = {e.tensor for device in readers(node) for e, _ in self.index.deliveries.get((node.id, device), ())}
        if node.transfer is not None:
            return {"expert_partial"} & tensors or {piece.name for piece in node.inputs}
        pairs = zip(node.formals, node.inputs, strict=False)
        return {formal if formal in tensors else piece.name for formal, piece in pairs}


def _inputs(node: Node, reading: _Reading) -> Iterator[Finding]:
    """Each input comes from one writer to each GPU, as it was written there."""
    if node.transfer is None and (len(node.formals) != len(node.inputs) or len(set(node.formals)) < len(node.formals)):
        yield _error("SHAPE006", node.id, "its inputs have no names of their own", len(node.inputs), len(node.formals))
    for formal, piece in zip(node.formals, node.inputs, strict=False):
        if formal != piece.name and any(formal in reading.wrote(node, device) for device in node.devices):
            yield _error("SHAPE006", node.id, f"it takes {piece.name} for {formal}", piece.name, formal)
    names, idle = reading.names[node.id], reading.idle(node)
    brought = {device: reading.brought(node, device) for device in readers(node)}
    for device, found in brought.items():
        count = Counter(edge.tensor for edge, _ in found)
        for name in sorted(names - set(count)):
            if device not in idle:
                yield _error("SHAPE006", node.id, f"no edge brings {name} to GPU {device}", 0, 1)
        for name in sorted(set(count) - names):
            yield _error("SHAPE006", node.id, f"an edge brings {name} to GPU {device}, which does not read it", 1, 0)
        for name in sorted(name for name, times in count.items() if times > 1):
            yield _error("SHAPE006", node.id, f"{count[name]} writers bring {name} to GPU {device}", count[name], 1)
    yield from _pieces(node, brought)


def _pieces(node: Node, brought: dict[int, list[tuple[Edge, Node]]]) -> Iterator[Finding]:
    """Inputs are what their writers wrote: those of the first GPU that brings any, of a hand-over those of all."""
    forms: dict[str, set[tuple[str, int]]] = defaultdict(set)
    held: set[Piece] = set()
    first = next((device for device, found in brought.items() if found), None)
    for device, found in brought.items():
        for edge, source in found:
            piece = written(source, device)
            if piece is not None:
                forms[edge.tensor].add((piece.dtype, len(piece.shape)))
                held |= {piece} if device == first or node.transfer is not None else set()
    for piece in node.inputs:
        if piece not in held and piece.name in {other.name for other in held}:
            other = next(p.text for p in held if p.name == piece.name)
            yield _error("SHAPE001", node.id, f"it reads {piece.text}, and its source wrote {other}", piece.text, other)
    for name, different in forms.items():
        if len(different) > 1:
            yield _error("SHAPE001", node.id, f"its GPUs bring {name} in {len(different)} forms", len(different), 1)


def _edge(edge: Edge, reading: _Reading) -> Iterator[Finding]:
    """A data edge carries what its source wrote to all GPUs that read it, in bytes; other edges carry nothing."""
    source, target = reading.index.graph.by_id[edge.src], reading.index.graph.by_id[edge.dst]
    where, bytes_, collective = f"{edge.src} -> {edge.dst}", 0.0, ""
    if edge.kind == "data" and edge.tensor:
        idle = reading.idle(target) if edge.tensor not in reading.names[target.id] else readers(target)
        shared = [device for device in idle if device in writers(source)]
        pieces = [piece for device in shared if (piece := written(source, device)) is not None]
        if not pieces or any(piece.name != edge.tensor for piece in pieces):
            yield _error("SHAPE006", where, f"its source leaves no {edge.tensor} where its reader is", len(pieces), len(shared))
            return
        bytes_ = sum(piece.bytes for piece in pieces)
        if target.transfer is not None and edge.tensor != "routes":
            bytes_ = len(shared) * target.transfer.sent_bytes
        collective = next((node.kind.value for node in (source, target) if node.communicates), "")
    if edge.bytes != bytes_ or edge.collective != collective:
        yield _error("SHAPE007", where, "it carries other bytes than its reader needs", round(edge.bytes), round(bytes_))


def _latest(reading: _Reading) -> Iterator[Finding]:
    """A tensor comes from its last writer: of its own layer and micro-batch, the residual stream from the role before."""
    streams = _Residual()
    now: dict[tuple[tuple[int, int, int | None], int, str], Node] = {}
    for node in reading.index.order:
        if node.kind == Kind.BARRIER or node.name == "feedback":
            continue
        own = node.step, node.micro_batch, node.layer
        formals = {piece.name: formal for piece, formal in zip(node.inputs, node.formals, strict=False)}
        for device in readers(node):
            for edge, source in reading.brought(node, device):
                formal = "x" if node.name == "send" else formals.get(edge.tensor, edge.tensor)
                stream = formal in STREAM and (node.transfer is None or node.name == "send")
                wanted = streams.before(node, device, formal) if stream else now.get((own, device, edge.tensor))
                if wanted is not source:
                    message = f"{edge.tensor} on GPU {device} was last written by {wanted.id if wanted else 'nobody'}"
                    yield _error("SHAPE008", node.id, message, source.id, wanted.id if wanted else "")
        for device, piece in zip(writers(node), node.outputs, strict=False):
            now[own, device, piece.name] = node
            streams.wrote(node, device)


class _Residual:
    """The residual stream on every GPU, role after role: what a role found, and what it leaves."""

    def __init__(self) -> None:
        self.role: dict[tuple[int, int, int], Part] = {}
        self.x: State = {}
        self.x_in: State = {}
        self.y: State = {}

    def _enter(self, node: Node, device: int) -> tuple[int, int, int]:
        key = node.step, node.micro_batch, device
        if self.role.get(key) != part_of(node):
            if key in self.role and key in self.x:
                self.x_in[key] = self.x[key]
            if key in self.y:
                self.x[key] = self.y.pop(key)
            self.role[key] = part_of(node)
        return key

    def before(self, node: Node, device: int, formal: str) -> Node | None:
        """Who wrote what a role finds as `x`, or found as `x` in the role before (`x_in`)."""
        key = self._enter(node, device)
        return (self.x_in if formal == "x_in" else self.x).get(key)

    def wrote(self, node: Node, device: int) -> None:
        """Note what a node leaves to the next role."""
        if node.name in ("dispatch", "combine") and node.transfer is not None:
            return
        key = self._enter(node, device)
        if node.name == "send" or node.role in LEAVES or node.name.endswith("_residual"):
            self.y[key] = node


def _unused(index: Index) -> Iterator[Finding]:
    """Somebody reads what an operator writes: caches stay, the last role's output leaves, routes need experts."""
    sorts = {(part_of(node), device) for node in index.graph.operators() if node.name == "permute" for device in node.devices}
    ends: dict[tuple[int, int, int], Node] = {}
    for node in index.order:
        for device in node.devices:
            if node.kind != Kind.BARRIER and node.transfer is None:
                ends[node.step, node.micro_batch, device] = node
    for node in index.graph.operators():
        for device, piece in zip(writers(node), node.outputs, strict=False):
            if (node.id, device) in index.read or piece.name == "cache" or node.role == "head" or not piece.elements:
                continue
            last = ends.get((node.step, node.micro_batch, device)) is node and node.name.endswith("_residual")
            if not last and (node.name != "top_k" or (part_of(node), device) in sorts):
                yield _error("SHAPE009", node.id, f"nobody reads {piece.text} on GPU {device}", piece.text, "")


def _error(code: str, where: str, message: str, measured: str | int, expected: str | int) -> Finding:
    return Finding(code, "error", where, message, measured, expected, "bring every tensor from its writer to its reader")
