"""Inspection: all that can be said about a DOT file: what it holds, whether it is sound, how long it takes on a cluster."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from planner.check.findings import Finding, errors
from planner.cluster import Cluster
from planner.clusters import load_cluster
from planner.inspect.checks import check_graph
from planner.inspect.dot import DotGraph
from planner.inspect.operators import Operator, operators_of
from planner.inspect.own import is_own
from planner.inspect.parse import parse_dot, read_dot
from planner.inspect.prices import DTYPE, PRICED, STATED, Price, prices_of
from planner.inspect.shapes import Product
from planner.inspect.walk import Arrows

INSPECTION_SCHEMA = "planner.inspection/1"
CLUSTER = "2x8-h100"
EACH_GPU = "sizes of an operator on several GPUs count for each of them"
AT_ONCE = "operators without a path between them run at once, on one GPU, too"
NO_DTYPE = f"numbers are {DTYPE} where no format is named"


@dataclass(frozen=True, slots=True)
class DeviceLoad:
    """What one GPU does: operators, FLOPs and seconds of those whose sizes are known."""

    rank: int
    operators: int
    flops: float
    seconds: float


@dataclass(frozen=True)
class Inspection:
    """What inspecting a graph found. `prices` belong to `operators`; `path` are indices of the longest path."""

    name: str
    dot: DotGraph
    operators: tuple[Operator, ...]
    prices: tuple[Price, ...]
    cluster: str
    acyclic: bool
    cycle: tuple[str, ...]
    path: tuple[int, ...]
    seconds: float
    findings: tuple[Finding, ...]

    @property
    def sound(self) -> bool:
        """Whether the graph has no circle and no dimensions that do not fit."""
        return not errors(self.findings)

    @property
    def own(self) -> str:
        """`graph` for a whole graph of ours, `drawing` for one of our pictures, empty for what somebody else wrote."""
        if is_own(self.dot):
            return "graph"
        return "drawing" if self.operators and all(operator.own for operator in self.operators) else ""

    @cached_property
    def kinds(self) -> dict[str, int]:
        """Number of operators of each kind, most frequent first; `unknown` are those whose kind is not known."""
        found: dict[str, int] = {}
        for operator in self.operators:
            found[operator.kind or "unknown"] = found.get(operator.kind or "unknown", 0) + 1
        return dict(sorted(found.items(), key=lambda item: (-item[1], item[0])))

    @cached_property
    def loads(self) -> tuple[DeviceLoad, ...]:
        """The load of every GPU that an operator names."""
        found: dict[int, list[float]] = {}
        for operator, price in zip(self.operators, self.prices, strict=True):
            for rank in operator.devices:
                own = found.setdefault(rank, [0, 0.0, 0.0])
                own[0] += 1
                own[1] += operator.flops or 0.0
                own[2] += price.seconds
        return tuple(DeviceLoad(rank, int(own[0]), own[1], own[2]) for rank, own in sorted(found.items()))

    @cached_property
    def products(self) -> tuple[tuple[Product, tuple[int, ...]], ...]:
        """The different matrix products with the indices of their operators, largest first."""
        found: dict[Product, list[int]] = {}
        for index, operator in enumerate(self.operators):
            if operator.product is not None:
                found.setdefault(operator.product, []).append(index)
        return tuple((p, tuple(where)) for p, where in sorted(found.items(), key=lambda item: -item[0].flops * len(item[1])))

    @property
    def unknown(self) -> tuple[int, ...]:
        """Indices of the operators whose time is not known, which count as 0."""
        return tuple(index for index, price in enumerate(self.prices) if not price.source)

    @property
    def unread(self) -> tuple[tuple[str, tuple[str, ...]], ...]:
        """What could not be read, node by node: what the node does not say, and why it has no price."""
        found = []
        for operator, price in zip(self.operators, self.prices, strict=True):
            missing = operator.missing or ((f"its time needs {price.missing}",) if price.missing else ())
            if missing:
                found.append((operator.id, missing))
        return tuple(found)

    @property
    def assumptions(self) -> tuple[str, ...]:
        """The rules that reading and pricing rested on, and for how many nodes."""
        used = [text for operator in self.operators for text in operator.assumed]
        used += [price.assumed for price in self.prices if price.assumed]
        priced = [(o, p) for o, p in zip(self.operators, self.prices, strict=True) if p.source == PRICED]
        used += [NO_DTYPE for operator, _ in priced if not operator.dtype]
        used += [EACH_GPU for o in self.operators if o.flops and len(o.devices) > 1 and not o.own]
        found = {text: used.count(text) for text in dict.fromkeys(used)}
        return (AT_ONCE, *(f"{text} ({number:,} {'node' if number == 1 else 'nodes'})" for text, number in found.items()))

    def to_dict(self) -> dict[str, Any]:
        """As JSON-ready data (`planner.inspection/1`)."""
        loads = [load.flops for load in self.loads]
        mean = sum(loads) / len(loads) if loads else 0.0
        by_source = {source: sum(p.source == source for p in self.prices) for source in (STATED, PRICED)}
        return {
            "schema": INSPECTION_SCHEMA,
            "name": self.name,
            "written_by": f"planner ({self.own})" if self.own else "unknown",
            "directed": self.dot.directed,
            "nodes": len(self.dot.nodes),
            "edges": len(self.dot.edges),
            "sound": self.sound,
            "acyclic": self.acyclic,
            "cycle": list(self.cycle),
            "kinds": self.kinds,
            "products": [
                {"m": p.m, "k": p.k, "n": p.n, "batch": p.batch, "count": len(where), "flops": p.flops,
                 "seconds": max(self.prices[index].seconds for index in where)}
                for p, where in self.products
            ],
            "devices": [{"rank": d.rank, "operators": d.operators, "flops": d.flops, "seconds": d.seconds} for d in self.loads],
            "flops_max_over_mean": max(loads) / mean if mean else None,
            "longest_path": {
                "seconds": self.seconds if self.acyclic else None,
                "cluster": self.cluster,
                "stated": by_source[STATED],
                "priced": by_source[PRICED],
                "unknown": len(self.unknown),
                "unknown_on_path": sum(not self.prices[index].source for index in self.path),
                "path": [{"node": self.operators[i].id, "seconds": self.prices[i].seconds, "source": self.prices[i].source}
                         for i in self.path],
                "assumptions": list(self.assumptions),
            },
            "findings": [finding.to_dict() for finding in self.findings],
            "unread": [{"node": name, "missing": list(missing)} for name, missing in self.unread],
            "operators": [_operator_dict(o, p) for o, p in zip(self.operators, self.prices, strict=True)],
        }  # fmt: skip


def _operator_dict(operator: Operator, price: Price) -> dict[str, Any]:
    p = operator.product
    return {
        "node": operator.id, "kind": operator.kind or None, "devices": list(operator.devices),
        "inputs": [tensor.text for tensor in operator.inputs], "outputs": [tensor.text for tensor in operator.outputs],
        "product": {"m": p.m, "k": p.k, "n": p.n, "batch": p.batch} if p else None,
        "flops": operator.flops, "bytes": operator.bytes, "seconds": price.seconds if price.source else None,
    }  # fmt: skip


def inspect_file(path: Path, cluster: str | Cluster = "") -> Inspection:
    """Inspect a DOT file; without a cluster, times that our own file states are taken, and else those of `CLUSTER`."""
    return inspect_graph(read_dot(path), cluster, str(path))


def inspect_text(text: str, cluster: str | Cluster = "", source: str = "") -> Inspection:
    """As `inspect_file`, of a DOT text."""
    return inspect_graph(parse_dot(text, source), cluster, source)


def inspect_graph(dot: DotGraph, cluster: str | Cluster = "", source: str = "") -> Inspection:
    """As `inspect_file`, of a graph that was read already."""
    machine = load_cluster(cluster or CLUSTER, "--cluster")
    operators, arrows = operators_of(dot, source), Arrows.of(dot)
    prices = prices_of(operators, arrows, machine, stated=not cluster)
    circle = tuple(dot.nodes[index].id for index in arrows.circle())
    seconds, path = arrows.longest([price.seconds for price in prices])
    findings = check_graph(dot, arrows, operators)
    return Inspection(
        source or dot.name, dot, operators, prices, machine.name, not circle, circle, path, seconds, _sorted(findings)
    )


def _sorted(findings: Sequence[Finding]) -> tuple[Finding, ...]:
    order = {"error": 0, "warning": 1, "info": 2}
    return tuple(sorted(findings, key=lambda finding: order[finding.severity]))
