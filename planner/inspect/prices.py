"""Seconds of every operator on a cluster, by the prices that plans are made with; what cannot be priced says why."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from planner.cluster import Cluster
from planner.costs.groups import group_shape
from planner.costs.pricer import Pricer
from planner.evaluate.expanded import price_graph
from planner.graph.nodes import Graph, Node, Transfer
from planner.graph.ops import Kind
from planner.inspect.operators import Operator
from planner.inspect.walk import Arrows
from planner.inspect.words import BROADCAST, ELEMENTWISE, ENDS, MOVES
from planner.units import dtype_bytes

DTYPE = "bf16"
STATED, PRICED, NOTHING = "stated in the file", "priced", "takes no time"
NEIGHBOURS = "a collective that names fewer than two GPUs joins those of the nodes next to it"


@dataclass(frozen=True, slots=True)
class Price:
    """Seconds of a node (0 where not known) and where they come from; `missing` says why they are not known."""

    seconds: float
    source: str = ""
    missing: str = ""
    assumed: str = ""


@dataclass(frozen=True)
class _Site:
    """A cluster with its prices."""

    cluster: Cluster
    pricer: Pricer


def prices_of(operators: Sequence[Operator], arrows: Arrows, cluster: Cluster, stated: bool) -> tuple[Price, ...]:
    """The price of every operator; `stated` takes the seconds that our own files state instead of pricing anew."""
    site = _Site(cluster, Pricer(cluster))
    found: list[Price | None] = []
    rules: list[str] = []
    nodes: list[Node] = []
    for index, operator in enumerate(operators):
        rule, joined = "", operator
        if operator.kind in MOVES and len(operator.devices) < 2 and not operator.own:
            joined, rule = _joined(operator, [operators[other] for other in (*arrows.before[index], *arrows.after[index])])
        known = stated and operator.seconds is not None
        price, wanted = (Price(operator.seconds or 0.0, STATED), []) if known else _wanted(str(index), joined, site)
        found.append(price)
        rules.append("" if known else rule)
        nodes += wanted
    seconds: dict[str, float] = {}
    for name, each in price_graph(site, Graph(tuple(nodes), ())).items():
        key = name.split("@")[0]
        seconds[key] = max(seconds.get(key, 0.0), each)
    priced = (price or Price(seconds[str(index)], PRICED) for index, price in enumerate(found))
    return tuple(replace(price, assumed=rule) for price, rule in zip(priced, rules, strict=True))


def _joined(operator: Operator, near: Sequence[Operator]) -> tuple[Operator, str]:
    """A collective on the GPUs of its neighbours."""
    ranks = tuple(sorted({rank for other in near for rank in other.devices}))
    return (replace(operator, devices=ranks, groups=(ranks,)), NEIGHBOURS) if len(ranks) > 1 else (operator, "")


def _wanted(name: str, operator: Operator, site: _Site) -> tuple[Price | None, list[Node]]:
    """A price that is known at once, or the nodes to price: one for each kind of GPU that runs the operator."""
    if operator.kind in ENDS or operator.kind == Kind.BARRIER:
        return Price(0.0, NOTHING), []
    away = [rank for rank in operator.devices if rank >= site.cluster.size]
    if away:
        return Price(0.0, missing=f"a cluster with GPU {away[0]}"), []
    if operator.kind in MOVES:
        return _collective(name, operator, site)
    first = {site.cluster.device_kinds[rank]: rank for rank in reversed(operator.devices)}
    if not first and len(site.cluster.kinds) > 1:
        return Price(0.0, missing="its GPUs, which are of several kinds"), []
    places = list(first.values()) or [0]
    node = _compute(operator)
    if isinstance(node, Price):
        return node, []
    return None, [replace(node, id=f"{name}@{rank}", devices=(rank,)) for rank in places]


def _compute(operator: Operator) -> Node | Price:
    """The node of the one graph that an operator on a GPU is."""
    plain = Node("", operator.title, Kind.ELEMENTWISE, "", 0, None, 0, (), dtype=operator.dtype or DTYPE)
    if operator.product is not None:
        p = operator.product
        kind = Kind.GROUPED if operator.kind == Kind.GROUPED else Kind.MATMUL
        return replace(plain, kind=kind, m=p.m, k=p.k, n=p.n, batch=p.batch)
    if operator.attention is not None:
        return replace(plain, kind=Kind.ATTENTION, attention=operator.attention)
    if operator.kind in ELEMENTWISE:
        moved = moved_bytes(operator)
        return Price(0.0, missing="its bytes") if moved is None else replace(plain, bytes=moved)
    return Price(0.0, missing="its sizes" if operator.kind else "what it does")


def moved_bytes(operator: Operator) -> float | None:
    """Bytes that one pass over memory reads and writes; where only one side is stated, the other is as large."""
    if operator.bytes is not None:
        return operator.bytes
    read, written = operator.inputs or operator.outputs, operator.outputs or operator.inputs
    elements = sum(tensor.elements for tensor in (*read, *written))
    return elements * dtype_bytes(operator.dtype or DTYPE) if elements else None


def _collective(name: str, operator: Operator, site: _Site) -> tuple[Price | None, list[Node]]:
    moved, ranks = buffer_bytes(operator), operator.devices
    if len(ranks) < 2:
        return Price(0.0, missing="the GPUs that it joins"), []
    if moved is None:
        return Price(0.0, missing="its bytes"), []
    groups = operator.groups or (ranks,)
    if operator.kind == BROADCAST:
        seconds = site.pricer.collectives.time(BROADCAST, moved, group_shape(site.cluster, groups))
        return Price(float(seconds), PRICED), []
    node = Node(name, operator.title, Kind(operator.kind), "", 0, None, 0, ranks, bytes=moved, family=groups)
    if operator.transfer:
        node = replace(node, transfer=Transfer(groups[0], groups[1], moved, moved))
    return None, [node]


def buffer_bytes(operator: Operator) -> float | None:
    """A collective's full buffer, as `Op` counts it: of an all-gather what is gathered, of the others what a GPU brings."""
    if operator.bytes is not None:
        return operator.bytes
    ranks = max(map(len, operator.groups), default=len(operator.devices))
    first, second = operator.inputs, operator.outputs
    if operator.kind == Kind.ALL_GATHER:
        elements = second[0].elements if second else first[0].elements * ranks if first else 0
    elif operator.kind == Kind.REDUCE_SCATTER:
        elements = first[0].elements if first else second[0].elements * ranks if second else 0
    else:
        elements = (first or second)[0].elements if first or second else 0
    return elements * dtype_bytes(operator.dtype or DTYPE) if elements else None
