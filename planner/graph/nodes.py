"""The expanded graph of a plan: one node per operator and GPU, one per collective and its group, plain numbers only."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

from planner.graph.flows import Flow
from planner.graph.ops import COLLECTIVES, AttentionDims, Kind, Layout
from planner.units import dtype_bytes

EdgeKind = Literal["data", "stream", "buffer"]


@dataclass(frozen=True, slots=True)
class Piece:
    """A tensor as one GPU holds it."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    layout: Layout = Layout.REPLICATED

    @property
    def elements(self) -> float:
        """Number of elements."""
        total = 1.0
        for size in self.shape:
            total *= size
        return total

    @property
    def bytes(self) -> float:
        """Bytes on the GPU."""
        return self.elements * dtype_bytes(self.dtype)

    @property
    def text(self) -> str:
        """Name, shape and dtype, such as `xn [2048, 8192] bf16`."""
        return f"{self.name} [{', '.join(map(str, self.shape))}] {self.dtype}"


@dataclass(frozen=True, slots=True)
class Transfer:
    """A hand-over between two disjoint sets of GPUs: bytes of the fullest sender and of the fullest receiver."""

    source: tuple[int, ...]
    target: tuple[int, ...]
    sent_bytes: float
    received_bytes: float


@dataclass(frozen=True, slots=True)
class Node:
    """One operator on one GPU, one collective or transfer over `devices`, or the barrier at the end of a role.

    `inputs` are the tensors read, as their producers wrote them, `formals` the names by which the operator knows them; one
    that nothing in the graph writes (the model's input) is not listed. `outputs` are what each of `devices` holds
    afterwards (of a transfer: what each target holds). `family` are the groups that run the same collective at once, its
    own among them, and `flow` where its bytes go (None: as many to all): with the sizes they make the price a constant of the
    node. `layer` is None at the ends of the model;
    `step` counts decode steps.
    """

    id: str
    name: str
    kind: Kind
    role: str
    stage: int
    layer: int | None
    micro_batch: int
    devices: tuple[int, ...]
    stream: str = "compute"
    inputs: tuple[Piece, ...] = ()
    outputs: tuple[Piece, ...] = ()
    dtype: str = ""
    m: int = 0
    k: int = 0
    n: int = 0
    batch: int = 1
    attention: AttentionDims | None = None
    bytes: float = 0.0
    flops: float = 0.0
    weights: tuple[Piece, ...] = ()
    family: tuple[tuple[int, ...], ...] = ()
    transfer: Transfer | None = None
    step: int = 0
    formals: tuple[str, ...] = ()
    flow: Flow | None = None

    @property
    def output(self) -> Piece | None:
        """What the first GPU holds afterwards; None where nothing is written."""
        return self.outputs[0] if self.outputs else None

    @property
    def communicates(self) -> bool:
        """Whether the node moves bytes between GPUs."""
        return self.kind in COLLECTIVES

    @property
    def sizes(self) -> str:
        """The operator's own sizes as text."""
        if self.kind in (Kind.MATMUL, Kind.GROUPED):
            return f"{self.batch} x ({self.m} x {self.k}) @ ({self.k} x {self.n})"
        if self.attention is not None:
            a = self.attention
            mask = ", causal" if a.causal else ""
            return f"{a.batch} x {a.heads} heads ({a.kv_heads} KV), {a.q_len} x {a.kv_len}, dims {a.qk_dim}/{a.v_dim}{mask}"
        return f"{self.bytes:.0f} bytes" if self.bytes else ""


@dataclass(frozen=True, slots=True)
class Edge:
    """`dst` waits for `src`: for a tensor (data), for its turn on a stream or behind a barrier, or for a free buffer.

    `bytes` are those that all GPUs of `dst` read of the tensor, `collective` is the kind of a collective at either end.
    """

    src: str
    dst: str
    kind: EdgeKind
    tensor: str = ""
    bytes: float = 0.0
    collective: str = ""


@dataclass(frozen=True)
class Graph:
    """Nodes in an order in which they could run, and edges."""

    nodes: tuple[Node, ...]
    edges: tuple[Edge, ...]

    @cached_property
    def by_id(self) -> dict[str, Node]:
        """Nodes by id."""
        return {node.id: node for node in self.nodes}

    @cached_property
    def into(self) -> dict[str, tuple[Edge, ...]]:
        """Edges by the node they lead to."""
        found: dict[str, list[Edge]] = {node.id: [] for node in self.nodes}
        for edge in self.edges:
            found[edge.dst].append(edge)
        return {name: tuple(edges) for name, edges in found.items()}

    def operators(self) -> Iterator[Node]:
        """Every node but the barriers."""
        return (node for node in self.nodes if node.kind != Kind.BARRIER)


def ranks_name(ranks: tuple[int, ...]) -> str:
    """Ranks as ranges, such as 0-3,8."""
    parts: list[list[int]] = []
    for rank in ranks:
        if parts and rank == parts[-1][-1] + 1:
            parts[-1].append(rank)
        else:
            parts.append([rank])
    return ",".join(str(p[0]) if len(p) == 1 else f"{p[0]}-{p[-1]}" for p in parts)
