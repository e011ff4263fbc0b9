"""The critical path as rows: terms read back into sizes, equal operators added up, and what kind of work each is."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum

from planner.cluster import Cluster
from planner.evaluate.timeline import Item
from planner.report.show import ranges

CALL = re.compile(r"([A-Za-z_]+)\(([^()]*)\)")


class Work(StrEnum):
    """Kinds of work on the critical path, from what bounds them."""

    PRODUCTS = "matrix products"
    MEMORY = "memory traffic"
    INSIDE = "communication inside a node"
    BETWEEN = "communication between nodes"
    PASS = "whole passes of a training step"

    def words(self, cluster: Cluster) -> str:
        """The kind with the link that carries it."""
        if self is Work.MEMORY:
            return f"{self} (norms, activations, additions)"
        if self in (Work.PRODUCTS, Work.PASS):
            return str(self)
        return f"{self} ({cluster.network.name if self is Work.BETWEEN else cluster.domains[0].link.name})"


@dataclass(frozen=True, slots=True)
class Call:
    """A term: function, plain numbers, named arguments."""

    name: str
    plain: tuple[float, ...]
    named: dict[str, str]

    def number(self, name: str, default: float) -> float:
        """A named argument as a number."""
        return float(self.named.get(name, default))


@dataclass(frozen=True, slots=True)
class Product:
    """A matrix product of one GPU: `batch` products (m x k)@(k x n); `part` tells the two of a fused attention apart."""

    part: str
    m: float
    k: float
    n: float
    batch: float
    flops: float


@dataclass(frozen=True, slots=True)
class Row:
    """Equal operators of the critical path added up over layers and micro-batches."""

    op: str
    layers: str
    stage: int
    device: str
    term: str
    count: int
    seconds: float
    source: str

    @property
    def each_s(self) -> float:
        """Seconds of one of them."""
        return self.seconds / self.count


def parse_term(term: str) -> Call:
    """The call that a term is; an unknown form has the name `` and no arguments."""
    match = CALL.fullmatch(term.strip())
    if match is None:
        return Call("", (), {})
    parts = [part.strip() for part in match.group(2).split(",") if part.strip()]
    named = dict(part.split("=", 1) for part in parts if "=" in part)
    return Call(match.group(1), tuple(float(part) for part in parts if "=" not in part), named)


def merged_rows(items: Iterable[Item]) -> list[Row]:
    """Items that are equal but for their layer and count, added up in order of first appearance."""
    groups: dict[tuple[str, int, str, str, str], list[Item]] = {}
    for item in items:
        groups.setdefault((item.op, item.stage, item.device, item.term, item.source), []).append(item)
    return [
        Row(op, joined_layers(i.layer for i in group), stage, device, term,
            sum(i.count for i in group), sum(i.seconds for i in group), source)
        for (op, stage, device, term, source), group in groups.items()
    ]  # fmt: skip


def joined_layers(texts: Iterable[str]) -> str:
    """Layer numbers of several items as ranges; names such as `head` stay."""
    numbers: set[int] = set()
    names: dict[str, None] = {}
    for text in texts:
        for part in text.split(","):
            first, dash, last = part.partition("-")
            if first.isdigit() and (not dash or last.isdigit()):
                numbers.update(range(int(first), int(last if dash else first) + 1))
            elif part:
                names[part] = None
    return ", ".join([*([ranges(numbers)] if numbers else []), *names])


def products(term: str) -> list[Product]:
    """The matrix products that a term stands for; none for memory traffic and communication."""
    call = parse_term(term)
    if call.name == "Get_Time" and len(call.plain) == 3:
        m, k, n = call.plain
        batch = call.number("batch", 1) * call.number("groups", 1)
        return [Product("", m, k, n, batch, 2.0 * batch * m * k * n)]
    if call.name == "Attention" and len(call.plain) == 7:
        sequences, heads, _, q, kv, qk, v = call.plain
        kept = (q * kv + q) / 2 if call.number("causal", 0) else q * kv
        flops = 2.0 * sequences * heads * kept
        return [
            Product("scores Q x K^T", q, qk, kv, sequences * heads, flops * qk),
            Product("probabilities x V", q, kv, v, sequences * heads, flops * v),
        ]
    return []


def work_kind(term: str) -> Work:
    """What kind of work a term is; communication by the slowest tier that it crosses."""
    call = parse_term(term)
    if not call.name:
        return Work.PASS
    if call.name in ("Get_Time", "Attention"):
        return Work.PRODUCTS
    if call.name == "Memory":
        return Work.MEMORY
    crosses = call.number("domains", 1) > 1 or (call.name == "Transfer" and call.plain[-1] > 0)
    return Work.BETWEEN if crosses else Work.INSIDE
