"""Order: the operators of a stream run one after another, wait for nothing else, and no tensor is overwritten in use."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from itertools import pairwise

from planner.check.buffers import races
from planner.check.findings import Finding
from planner.check.index import Index, Part, part_of
from planner.graph.expand import BOUNDARY_BUFFERS
from planner.graph.nodes import Edge, Node
from planner.graph.ops import Kind
from search_spaces.stages import Choice


def check_order(index: Index, choice: Choice) -> Iterator[Finding]:
    """Streams, barriers, waits and buffers of a graph without circles."""
    yield from _barriers(index)
    yield from _streams(index)
    yield from _alike(index)
    yield from _waits(index, choice)
    yield from (_error("CYCLE005", node.id, message) for node, message in races(index, choice))


def _barriers(index: Index) -> Iterator[Finding]:
    """Every role ends with one barrier over the GPUs that run it."""
    for part, nodes in index.parts.items():
        ends = [node for node in nodes if node.kind == Kind.BARRIER]
        if len(ends) != 1:
            yield _error("CYCLE006", _where(part, nodes), f"the role {part[4]} ends with {len(ends)} barriers", len(ends), 1)
            continue
        late = [node.id for node in nodes if node is not ends[0] and not index.precedes(node, ends[0])]
        if late:
            yield _error("CYCLE006", ends[0].id, f"it does not wait for {late[0]}", len(late), 0)


def _where(part: Part, nodes: list[Node]) -> str:
    return nodes[0].id if nodes else str(part)


def _streams(index: Index) -> Iterator[Finding]:
    """Of two neighbours on a stream the later one waits for the earlier one."""
    for number, ((stream, device), chain) in enumerate(index.chains.items()):
        owner = f"GPU {device}" if device >= 0 else f"stage {-1 - device}"
        for place, (first, second) in enumerate(pairwise(chain)):
            if not index.follows_directly(number, place, second):
                message = f"nothing orders it after {first.id}, and both run on the {stream} stream of {owner}"
                yield _error("CYCLE003", second.id, message)


def _alike(index: Index) -> Iterator[Finding]:
    """The GPUs that run the same operators of a role run them in the same order: that is how collectives meet."""
    orders: dict[Part, dict[int, list[str]]] = defaultdict(lambda: defaultdict(list))
    for node in index.order:
        if node.transfer is None and node.stream == "compute":
            for device in node.devices:
                orders[part_of(node)][device].append(node.name)
    for part, found in orders.items():
        first = max(found.values(), key=len)
        place = {name: number for number, name in enumerate(first)}
        for device, names in found.items():
            places = [place[name] for name in names if name in place]
            if places != sorted(places):
                message = f"GPU {device} runs the operators of the role {part[4]} in another order than other GPUs"
                yield Finding("CYCLE008", "warning", index.parts[part][0].id, message, str(names)[:80], str(first)[:80])


def _waits(index: Index, choice: Choice) -> Iterator[Finding]:
    """An operator waits for its stream, its barrier, its tensors, its arrival and its buffers, and for nothing else."""
    last = _closing(index)
    seen: set[Edge | tuple[str, str, str, str]] = set()
    for edge in index.graph.edges:
        key = (edge.src, edge.dst, edge.kind, edge.tensor)
        if key in seen:
            yield _warning("CYCLE004", edge, "the edge is there twice")
        seen.add(key)
        first, second = index.graph.by_id[edge.src], index.graph.by_id[edge.dst]
        if edge.kind == "buffer":
            good = not edge.tensor and _frees(first, second, choice, last)
        elif edge.kind == "stream":
            good = not edge.tensor and _same_stream(first, second)
        else:
            good = bool(edge.tensor) or _arrives(first, second)
        if not good:
            yield _warning("CYCLE004", edge, f"neither a stream, a tensor nor a buffer makes it wait ({edge.kind})")


def _same_stream(first: Node, second: Node) -> bool:
    """Whether two nodes queue for one stream of a GPU or one machine, or a hand-over closes what its senders did."""
    if first.transfer is not None and second.transfer is not None:
        return (first.stage, first.stream) == (second.stage, second.stream)
    if second.transfer is not None:
        turn = (first.step, first.stage, first.micro_batch) == (second.step, second.stage, second.micro_batch)
        return first.kind == Kind.BARRIER and turn and set(second.transfer.source) <= set(first.devices)
    if first.transfer is not None:
        return False
    barrier = Kind.BARRIER in (first.kind, second.kind)
    return bool(set(first.devices) & set(second.devices)) and (barrier or first.stream == second.stream)


def _arrives(first: Node, second: Node) -> bool:
    """Whether `first` hands over what the role of `second` begins with (or the token ids of a decode step before)."""
    if first.transfer is None or second.transfer is not None:
        return False
    if first.name == "feedback":
        return (first.step + 1, 0, first.micro_batch) == (second.step, second.stage, second.micro_batch)
    if not set(first.transfer.target) & set(second.devices):
        return False
    same = (first.step, first.micro_batch) == (second.step, second.micro_batch)
    return same and (first.name == "send" or first.layer == second.layer)


def _closing(index: Index) -> dict[tuple[int, int], list[Node]]:
    """The last barrier of every micro-batch (step by step) on a stage; one entry for each, in running order."""
    found: dict[tuple[int, int], dict[tuple[int, int], Node]] = defaultdict(dict)
    for node in index.order:
        if node.kind == Kind.BARRIER:
            found[node.stage, 0][node.step, node.micro_batch] = node
    return {key: list(turns.values()) for key, turns in found.items()}


def _frees(first: Node, second: Node, choice: Choice, last: dict[tuple[int, int], list[Node]]) -> bool:
    """Whether a hand-over waits until the receivers have finished the micro-batch whose buffer it writes over."""
    if second.transfer is None or second.stage + 1 >= len(choice.stages) or first.stage != second.stage + 1:
        return False
    turns = last.get((first.stage, 0), [])
    mine = [i for i, node in enumerate(turns) if (node.step, node.micro_batch) == (second.step, second.micro_batch)]
    return bool(mine) and mine[0] >= BOUNDARY_BUFFERS and turns[mine[0] - BOUNDARY_BUFFERS].id == first.id


def _error(code: str, where: str, message: str, measured: int | None = None, expected: int | None = None) -> Finding:
    return Finding(code, "error", where, message, measured, expected, "give the operators of a stream one order")


def _warning(code: str, edge: Edge, message: str) -> Finding:
    return Finding(code, "warning", f"{edge.src} -> {edge.dst}", message, fix="leave the edge out")
