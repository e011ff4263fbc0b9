"""Places: operators run on the GPUs, layers and micro-batches that the plan gives to their stage, in its order, all of them."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator
from itertools import pairwise

from planner.check.findings import Finding
from planner.check.index import Index, part_of
from planner.graph.nodes import Graph, Node
from planner.graph.ops import COLLECTIVES, Kind
from planner.model import ModelSpec
from search_spaces.stages import Choice, StageChoice

UNEVEN = ("kv_write", "permute")
"""Operators with work for some of the GPUs that hold their inputs: context parts share new cache entries, experts tokens."""
FAR = ("experts",)  # roles of the GPUs that hold experts alone
STREAMS = {Kind.BARRIER: "", Kind.SEND: "transfer"}


def check_identity(graph: Graph) -> Iterator[Finding]:
    """No two operators have one id."""
    for name, count in Counter(node.id for node in graph.nodes).items():
        if count > 1:
            yield _error("STRUCT017", name, f"{count} operators have this id", count, 1)


def check_places(model: ModelSpec, choice: Choice, index: Index, complete: bool) -> Iterator[Finding]:
    """Stage, GPUs, groups, layer and micro-batch of every operator; every GPU's share in every role; the schedule.

    `complete`: the graph has every layer and micro-batch of the plan, otherwise it may have some of them.
    """
    known = [node for node in index.graph.nodes if 0 <= node.stage < len(choice.stages)]
    for node in index.graph.nodes:
        yield from _place(model, choice, node)
    yield from _groups(choice, known)
    yield from _shares(choice, index)
    yield from _schedule(model, choice, index)
    yield from _everything(model, choice, known, complete)


def _place(model: ModelSpec, choice: Choice, node: Node) -> Iterator[Finding]:
    if not 0 <= node.stage < len(choice.stages):
        yield _error("STRUCT018", node.id, "its stage is not in the plan", node.stage, len(choice.stages) - 1)
        return
    first = sum(stage.layers for stage in choice.stages[: node.stage])
    if node.layer is not None and not first <= node.layer < first + choice.stages[node.stage].layers:
        yield _error("STRUCT018", node.id, "its layer belongs to another stage", node.layer)
    if not 0 <= node.micro_batch < choice.micro_batches:
        yield _error("STRUCT018", node.id, "its micro-batch is not in the plan", node.micro_batch, choice.micro_batches - 1)
    if node.transfer is not None:
        yield from _hand_over(choice, node)
        return
    side = _side(choice.stages[node.stage], node)
    strange = [device for device in node.devices if device not in side]
    if strange or len(set(node.devices)) < len(node.devices):
        message = f"GPUs {strange or list(node.devices)} are no places of its stage"
        yield _error("STRUCT019", node.id, message, str(node.devices), str(side))
    if node.kind == Kind.BARRIER and set(node.devices) != set(side):
        yield _error("STRUCT019", node.id, "it does not close the role on every GPU", str(node.devices), str(side))
    if node.kind not in COLLECTIVES and node.kind != Kind.BARRIER and len(node.devices) != 1:
        yield _error("STRUCT019", node.id, f"an operator runs on {len(node.devices)} GPUs at once", len(node.devices), 1)
    if node.stream != STREAMS.get(node.kind, "compute"):
        yield _error("STRUCT019", node.id, f"{node.kind} runs on stream {node.stream!r}", node.stream, "compute")


def _side(stage: StageChoice, node: Node) -> tuple[int, ...]:
    return stage.expert_devices if node.role in FAR and stage.separate else stage.attention_devices


def _hand_over(choice: Choice, node: Node) -> Iterator[Finding]:
    """A hand-over leads from all GPUs of one side to all of the next."""
    stage, later = choice.stages[node.stage], choice.stages[node.stage + 1 : node.stage + 2]
    ends = {
        "send": (stage.attention_devices, later[0].attention_devices if later else ()),
        "dispatch": (stage.attention_devices, stage.expert_devices),
        "combine": (stage.expert_devices, stage.attention_devices),
        "feedback": (stage.attention_devices[-1:], choice.stages[0].attention_devices[:1]),
    }.get(node.name, ((), ()))
    found = (node.transfer.source, node.transfer.target) if node.transfer is not None else ((), ())
    stream = "send" if node.name == "feedback" else node.name
    if found != ends or node.devices != (*ends[0], *ends[1]) or node.kind != Kind.SEND or node.stream != stream:
        message = f"it hands over from {list(found[0])} to {list(found[1])}"
        yield _error("STRUCT019", node.id, message, str(found), str(ends))


def _groups(choice: Choice, nodes: list[Node]) -> Iterator[Finding]:
    """The groups of a collective share out the GPUs of the stage, in its order, and every group runs it."""
    families: dict[tuple[object, ...], list[Node]] = defaultdict(list)
    for node in nodes:
        if node.family:
            families[(*part_of(node), node.name)].append(node)
            if node.kind not in COLLECTIVES:
                yield _error("STRUCT020", node.id, f"{node.kind} has groups", len(node.family), 0)
        elif node.kind in COLLECTIVES and node.transfer is None:
            yield _error("STRUCT020", node.id, "a collective without groups", 0, 1)
    for members in families.values():
        side = _side(choice.stages[members[0].stage], members[0])
        place = {device: number for number, device in enumerate(side)}
        for node in members:
            everyone = [device for group in node.family for device in group]
            even = len({len(group) for group in node.family}) == 1 and len(node.devices) > 1
            in_order = all(list(g) == sorted(g, key=lambda d: place.get(d, -1)) for g in node.family)
            if not even or not in_order or sorted(everyone) != sorted(side) or node.devices not in node.family:
                message = f"its groups {str(node.family)[:80]} do not share out GPUs {str(side)[:60]}"
                yield _error("STRUCT020", node.id, message, str(node.devices), str(side))
        if sorted(node.devices for node in members) != sorted(members[0].family):
            message = f"{len(members)} of its {len(members[0].family)} groups run it"
            yield _error("STRUCT020", members[0].id, message, len(members), len(members[0].family))


def _shares(choice: Choice, index: Index) -> Iterator[Finding]:
    """An operator runs once on each GPU of its side that holds what it reads."""
    for nodes in index.parts.values():
        if not 0 <= nodes[0].stage < len(choice.stages):
            continue
        runs: dict[str, dict[int, Node]] = defaultdict(dict)
        holds: dict[int, dict[str, float]] = defaultdict(dict)
        for node in nodes:
            for device, piece in zip(node.devices, node.outputs, strict=False):
                if device in runs[node.name]:
                    yield _error("STRUCT021", node.id, f"GPU {device} runs {node.name} twice", 2, 1)
                runs[node.name][device] = node
                holds[device][piece.name] = piece.elements
        side = _side(choice.stages[nodes[0].stage], nodes[0])
        for name, where in runs.items():
            sample = next(iter(where.values()))
            forms = {(piece.name, piece.dtype, piece.layout) for node in where.values() for piece in node.outputs}
            if len(forms) > 1:
                yield _error("STRUCT021", sample.id, f"its GPUs leave {len(forms)} kinds of tensors", len(forms), 1)
            reads = {piece.name for piece in sample.inputs}
            for device in side:
                if name in UNEVEN or device in where or not reads:
                    continue
                if all(holds[device].get(piece, 0.0) > 0 for piece in reads):
                    message = f"GPU {device} holds what {name} reads and does not run it"
                    yield _error("STRUCT021", sample.id, message, len(where), len(side))


def _schedule(model: ModelSpec, choice: Choice, index: Index) -> Iterator[Finding]:
    """Every GPU takes micro-batches, layers and roles in the order of the schedule."""
    for (stream, device), chain in index.chains.items():
        keys = [(_turn(model, choice, node), node) for node in chain if 0 <= node.stage < len(choice.stages)]
        for (key, _), (later, node) in pairwise(keys):
            if later < key:
                message = f"the schedule puts it before what GPU {device} did last on its {stream} stream"
                yield _error("CYCLE007", node.id, message, str(later), str(key))
                break


def _turn(model: ModelSpec, choice: Choice, node: Node) -> tuple[int, ...]:
    """When a node's turn comes: micro-batch by micro-batch; in waves, position by position between mixture layers."""
    last = len(model.layers)
    ends = -1 if node.role in ("embedding", "receive") else last
    layer = ends if node.layer is None else node.layer
    inside = layer, ROLES.get(node.role, 0)
    if not choice.stages[0].separate:
        return (node.step, node.micro_batch, *inside)
    position = 0
    if node.role in ("return", "head") or layer >= 0:
        position = sum(one.ffn.kind == "moe" for one in model.layers[: layer + (node.role == "return")])
    if node.role in FAR or node.transfer is not None:
        return (node.micro_batch // choice.in_flight, position, node.micro_batch)
    return (node.micro_batch // choice.in_flight, position, node.micro_batch, *inside)


ROLES = {"attention": 1, "mlp": 2, "moe": 2, "route": 2, "return": 3}


def _everything(model: ModelSpec, choice: Choice, nodes: list[Node], complete: bool) -> Iterator[Finding]:
    """All micro-batches run the same roles of the same layers; a complete graph has every layer and micro-batch."""
    roles: dict[tuple[int, int, int], set[tuple[int | None, str]]] = defaultdict(set)
    for node in nodes:
        role = node.name if node.transfer is not None else node.role
        if node.name != "feedback":
            roles[node.stage, node.step, node.micro_batch].add((node.layer, role))
    micro_batches = {micro for _, _, micro in roles}
    layers = {node.layer for node in nodes if node.layer is not None}
    yield from _kinds(model, choice, layers)
    if complete and micro_batches != set(range(choice.micro_batches)):
        message = f"{len(micro_batches)} of {choice.micro_batches} micro-batches run"
        yield _error("STRUCT022", "micro_batches", message, len(micro_batches), choice.micro_batches)
    if complete and layers != set(range(len(model.layers))):
        yield _error("STRUCT022", "layers", f"{len(layers)} of {len(model.layers)} layers run", len(layers), len(model.layers))
    for stage in range(len(choice.stages)):
        sets = {key: found for key, found in roles.items() if key[0] == stage}
        whole: set[tuple[int | None, str]] = set().union(*sets.values())
        for (_, _, micro), found in sets.items():
            if found != whole:
                lost = sorted(map(str, whole - found))[:3]
                yield _error("STRUCT022", f"stages[{stage}]", f"micro-batch {micro} lacks {lost}", len(found), len(whole))
        halves = {layer: {role for other, role in whole if other == layer} for layer, _ in whole if layer is not None}
        for layer, half in halves.items():
            if not {"attention"} < half:
                yield _error("STRUCT022", f"stages[{stage}].layer {layer}", f"it has {sorted(half)} alone", len(half), 2)
        if {micro for _, _, micro in sets} != micro_batches:
            yield _error("STRUCT022", f"stages[{stage}]", "it does not run every micro-batch", len(sets), len(micro_batches))


def _kinds(model: ModelSpec, choice: Choice, layers: set[int]) -> Iterator[Finding]:
    """Of every stage at least one layer of each kind is there: equal layers repeat what it shows."""
    first = 0
    for number, stage in enumerate(choice.stages):
        own = range(first, first + stage.layers)
        shown = {model.layers[index] for index in own if index in layers}
        lost = [index for index in own if model.layers[index] not in shown]
        if lost:
            yield _error("STRUCT022", f"stages[{number}]", f"no layer like layer {lost[0]} runs", len(lost), 0)
        first += stage.layers


def _error(
    code: str, where: str, message: str, measured: str | int | None = None, expected: str | int | None = None
) -> Finding:
    return Finding(code, "error", where, message, measured, expected, "build the graph from the plan")
