"""Views: which operators of a graph a drawing shows, which of them it merges, and what it says about each."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Literal, get_args

from planner.errors import unknown_name
from planner.graph.nodes import Edge, Graph, Node, ranks_name
from planner.graph.ops import Kind
from planner.units import show_bytes, show_seconds

View = Literal["model", "layer", "mha", "mlp", "moe", "communication"]
VIEWS: tuple[View, ...] = get_args(View)
ROLES: dict[View, tuple[str, ...]] = {
    "mha": ("attention",),
    "mlp": ("mlp",),
    "moe": ("moe", "route", "experts", "return", "send"),
}
MOST_GPUS, MOST_BOXES = 64, 700  # beyond these, GPUs that do the same are drawn as one
MOST_LAYERS = 16  # beyond these, a stage is one box

Style = Literal["compute", "attention", "memory", "collective", "role", "stage"]


@dataclass(frozen=True, slots=True)
class Box:
    """A node of a drawing: lines of text, the nodes of the graph that it stands for, and the GPUs that they run on."""

    id: str
    lines: tuple[str, ...]
    style: Style
    devices: tuple[int, ...]
    members: tuple[Node, ...]
    seconds: float
    critical: bool = False


@dataclass(frozen=True, slots=True)
class Link:
    """An arrow of a drawing."""

    source: str
    target: str
    text: str
    bytes: float = 0.0
    critical: bool = False
    dashed: bool = False


@dataclass(frozen=True, slots=True)
class Picture:
    """What is drawn. `by_gpu` draws a frame around the boxes of every GPU."""

    boxes: tuple[Box, ...]
    links: tuple[Link, ...]
    by_gpu: bool = False
    stages: bool = False


def picture(graph: Graph, seconds: dict[str, float], path: Sequence[str], view: View) -> Picture:
    """One view of a graph. Raises `InputError` for a view that does not exist."""
    if view not in VIEWS:
        raise unknown_name("view", view, VIEWS)
    if view == "model":
        whole = len({(node.stage, node.layer) for node in graph.nodes}) > MOST_LAYERS and not _apart(graph)
        key, lines = (_by_stage, _stage_lines) if whole else (_by_role, _role_lines)
        return _merged(_bare(graph), seconds, path, key, lines, stages=True)
    if view == "communication":
        return _reduced(_merged(_communication(graph), seconds, path, _by_family, _collective_lines))
    wanted = _bare(graph) if view == "layer" else _only(_bare(graph), ROLES[view])
    gpus = {rank for node in wanted.nodes for rank in node.devices}
    if view == "layer" or len(gpus) > MOST_GPUS or len(wanted.nodes) > MOST_BOXES:
        return _merged(wanted, seconds, path, _by_work(seconds), _operator_lines)
    boxes = [_box(node.id, (node,), _operator_lines, seconds, path) for node in wanted.nodes]
    steps = _steps(path, {node.id: node.id for node in wanted.nodes})
    links = [_link(edge.src, edge.dst, (edge,), wanted, steps) for edge in wanted.edges]
    return Picture(tuple(boxes), (*links, *_turns(steps, links)), by_gpu=True)


def _apart(graph: Graph) -> bool:
    """Whether layers are handed to and fro between attention and expert GPUs, so that a stage is no single box."""
    return any(node.name == "dispatch" and node.transfer is not None for node in graph.nodes)


def _bare(graph: Graph) -> Graph:
    """Operators and their tensors; barriers and the order of streams are left out."""
    nodes = tuple(graph.operators())
    shown = {node.id for node in nodes}
    edges = tuple(e for e in graph.edges if e.kind == "data" and e.tensor and e.src in shown and e.dst in shown)
    return Graph(nodes, edges)


def _only(graph: Graph, roles: Iterable[str]) -> Graph:
    """The operators of some roles, and hand-overs where the roles name them."""
    wanted = set(roles)
    nodes = tuple(n for n in graph.nodes if n.role in wanted and (n.role != "send" or n.name in ("dispatch", "combine")))
    shown = {node.id for node in nodes}
    return Graph(nodes, tuple(e for e in graph.edges if e.src in shown and e.dst in shown))


def _communication(graph: Graph) -> Graph:
    """Collectives and hand-overs alone; one follows another when nothing but computation lies between them."""
    last: dict[str, frozenset[str]] = {}
    edges: dict[tuple[str, str], Edge] = {}
    known = graph.by_id
    for node in graph.nodes:
        before: set[str] = set()
        for edge in graph.into[node.id]:
            before |= {edge.src} if known[edge.src].communicates else last[edge.src]
        last[node.id] = frozenset(before)
        if node.communicates:
            edges.update({(b, node.id): Edge(b, node.id, "data", "", 0.0) for b in sorted(before)})
    return Graph(tuple(n for n in graph.nodes if n.communicates), tuple(edges.values()))


Key = Callable[[Node], Hashable]
Lines = Callable[[tuple[Node, ...], float], tuple[str, ...]]


def _merged(
    graph: Graph, seconds: dict[str, float], path: Sequence[str], key: Key, lines: Lines, stages: bool = False
) -> Picture:
    """Nodes with equal keys become one box, arrows between the same boxes one arrow."""
    groups: dict[Hashable, list[Node]] = {}
    for node in graph.nodes:
        groups.setdefault(key(node), []).append(node)
    owner: dict[str, str] = {}
    boxes = []
    for members in groups.values():
        name = members[0].id if len(members) == 1 else f"{members[0].id} +{len(members) - 1}"
        owner.update({node.id: name for node in members})
        boxes.append(_box(name, tuple(members), lines, seconds, path))
    bundles: dict[tuple[str, str], list[Edge]] = {}
    for edge in graph.edges:
        pair = owner[edge.src], owner[edge.dst]
        if pair[0] != pair[1]:
            bundles.setdefault(pair, []).append(edge)
    steps = _steps(path, owner)
    links = [_link(*pair, tuple(edges), graph, steps) for pair, edges in bundles.items()]
    return Picture(tuple(boxes), (*links, *_turns(steps, links)), stages=stages)


def _steps(path: Sequence[str], owner: dict[str, str]) -> tuple[tuple[str, str], ...]:
    """Neighbours on the longest path, by the boxes that are drawn."""
    shown = [owner[name] for name in path if name in owner]
    return tuple(dict.fromkeys((a, b) for a, b in pairwise(shown) if a != b))


def _turns(steps: tuple[tuple[str, str], ...], links: list[Link]) -> list[Link]:
    """Steps of the longest path that hand over no tensor: the second waits for its turn."""
    drawn = {(link.source, link.target) for link in links}
    return [Link(a, b, "", 0.0, critical=True, dashed=True) for a, b in steps if (a, b) not in drawn]


def _reduced(shown: Picture) -> Picture:
    """Without the arrows that follow from others."""
    after: dict[str, set[str]] = {box.id: set() for box in shown.boxes}
    for link in shown.links:
        after[link.source].add(link.target)
    reach: dict[str, set[str]] = {}
    for box in reversed(shown.boxes):
        reach[box.id] = after[box.id].union(*(reach.get(name, set()) for name in after[box.id]))
    links = (a for a in shown.links if not any(a.target in reach.get(other, ()) for other in after[a.source] - {a.target}))
    return replace(shown, links=tuple(links))


def _box(name: str, members: tuple[Node, ...], lines: Lines, seconds: dict[str, float], path: Sequence[str]) -> Box:
    first, on = members[0], set(path)
    devices = tuple(sorted({rank for node in members for rank in node.devices}))
    longest = max(seconds.get(node.id, 0.0) for node in members)
    style: Style = "memory"
    if lines in (_role_lines, _stage_lines) and first.role != "send":
        style = "role"
    elif first.communicates:
        style = "collective"
    elif first.kind in (Kind.MATMUL, Kind.GROUPED):
        style = "compute"
    elif first.kind == Kind.ATTENTION:
        style = "attention"
    shown = replace(first, devices=devices) if lines is not _collective_lines else first
    text = lines((shown, *members[1:]), longest if style != "role" else _busiest(members, seconds))
    return Box(name, text, style, devices, members, longest, any(node.id in on for node in members))


def _busiest(members: tuple[Node, ...], seconds: dict[str, float]) -> float:
    """Seconds of the GPU that is busiest with some operators."""
    busy: dict[int, float] = {}
    for node in members:
        for rank in node.devices:
            busy[rank] = busy.get(rank, 0.0) + seconds.get(node.id, 0.0)
    return max(busy.values())


def _link(source: str, target: str, edges: tuple[Edge, ...], graph: Graph, steps: tuple[tuple[str, str], ...]) -> Link:
    """One arrow with its tensors and the bytes that each GPU behind it reads, the fullest one."""
    tensors = list(dict.fromkeys(edge.tensor for edge in edges if edge.tensor))
    each, readers = 0.0, set[int]()
    for edge in edges:
        ends = set(graph.by_id[edge.src].devices), set(graph.by_id[edge.dst].devices)
        shared = ends[0] & ends[1] or ends[1]
        each, readers = max(each, edge.bytes / len(shared)), readers | shared
    amount = show_bytes(each) + (" each" if len(readers) > 1 else "") if each else ""
    text = " ".join([*tensors[:3], *([amount] if amount else [])])
    collective = next((edge.collective for edge in edges if edge.collective), "")
    label = f"{collective}: {text}" if collective and text else text
    return Link(source, target, label, sum(edge.bytes for edge in edges), (source, target) in steps)


def _by_role(node: Node) -> Hashable:
    return (node.stage, node.layer, node.role, node.name if node.role == "send" else "", node.micro_batch, node.step)


def _by_stage(node: Node) -> Hashable:
    return (node.stage, node.role == "send", node.name if node.role == "send" else "", node.micro_batch, node.step)


def _by_family(node: Node) -> Hashable:
    return (node.stage, node.layer, node.role, node.name, node.micro_batch, node.step)


def _by_work(seconds: dict[str, float]) -> Key:
    def key(node: Node) -> Hashable:
        shapes = (node.inputs, node.output, node.m, node.k, node.n, node.batch, node.bytes)
        return (_by_family(node), shapes if not node.communicates else node.bytes, seconds.get(node.id))

    return key


def _gpus(devices: Sequence[int]) -> str:
    return f"GPU {ranks_name(tuple(devices))}"


def _operator_lines(members: tuple[Node, ...], seconds: float) -> tuple[str, ...]:
    """Name, GPUs, dimensions in and out, sizes and seconds of one operator or of several equal ones."""
    node = members[0]
    if node.communicates:
        return _collective_lines(members, seconds)
    found = [node.name, _gpus(node.devices)]
    found += [f"in {piece.text}" for piece in node.inputs[:4]]
    if node.kind in (Kind.MATMUL, Kind.GROUPED, Kind.ATTENTION):
        found.append(node.sizes)
    found += [f"weight {piece.text}" for piece in node.weights[:2] if len(piece.shape) > 1]
    if node.output is not None:
        found.append(f"out {node.output.text}")
    return (*found, show_seconds(seconds))


def _collective_lines(members: tuple[Node, ...], seconds: float) -> tuple[str, ...]:
    """Name, groups, bytes and seconds of a collective, or of all that run at once."""
    node = members[0]
    if node.transfer is not None:
        way = f"{_gpus(node.transfer.source)} to {_gpus(node.transfer.target)}"
        amount = (
            f"{show_bytes(node.transfer.sent_bytes)} sent, {show_bytes(node.transfer.received_bytes)} received by the fullest"
        )
        return (node.name, way, amount, show_seconds(seconds))
    groups = [ranks_name(other.devices) for other in members] if len(members) > 1 else [ranks_name(node.devices)]
    if len(members) > 1:
        groups[0] = ranks_name(next((group for group in node.family if group[0] in node.devices), node.devices))
    listed = " | ".join(groups[:8]) + (f" | {len(groups) - 8} more" if len(groups) > 8 else "")
    found = [f"{node.name} ({node.kind.value})", f"GPU {listed}", f"{show_bytes(node.bytes)} each"]
    if node.output is not None:
        found.append(f"out {node.output.text}")
    return (*found, show_seconds(seconds))


def _role_lines(members: tuple[Node, ...], seconds: float) -> tuple[str, ...]:
    """A whole role on its GPUs: how many operators, FLOPs and bytes it moves."""
    node = members[0]
    if node.role == "send":
        return _collective_lines(members, seconds)
    layer = "" if node.layer is None else f" of layer {node.layer}"
    flops = sum(other.flops for other in members)
    moved = sum(other.bytes * len(other.devices) for other in members if other.communicates)
    found = [f"{node.role}{layer}", _gpus(node.devices), f"{len({other.name for other in members})} operators"]
    if flops:
        found.append(f"{flops:.4g} FLOPs in all")
    if moved:
        found.append(f"{show_bytes(moved)} in collectives")
    return (*found, f"{show_seconds(seconds)} on the busiest GPU")


def _stage_lines(members: tuple[Node, ...], seconds: float) -> tuple[str, ...]:
    """A whole stage: its layers, and how often each role runs on how many operators."""
    node = members[0]
    if node.role == "send":
        return _collective_lines(members, seconds)
    layers = sorted({other.layer for other in members if other.layer is not None})
    found = [_gpus(node.devices), f"layers {ranks_name(tuple(layers))}" if layers else "no layer"]
    for role in dict.fromkeys(other.role for other in members):
        own = [other for other in members if other.role == role]
        times, names = len({other.layer for other in own}), len({other.name for other in own})
        found.append(f"{times} x {role}, {names} operators, {sum(other.flops for other in own):.4g} FLOPs")
    return (*found, f"{show_seconds(seconds)} on the busiest GPU")
