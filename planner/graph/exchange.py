"""Exchange: lays what the copies of a stage's weights exchange, on a stream of its own, and the end of the step."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from planner.graph.exchanged import amounts, by_apart, finishing, optimizer_bytes
from planner.graph.nodes import Node, Piece, ranks_name
from planner.graph.ops import Kind
from planner.graph.training_roles import TrainingRoles, Unit
from planner.graph.weaver import Place, Source, Wait, Weaver
from planner.units import dtype_bytes
from planner.workload import Training
from search_spaces.sizes import Sizes
from search_spaces.stages import replica_stride

STREAM, ROLE = "exchange", "exchange"
Key = tuple[int | None, str]
"""A gradient: the layer of its weight and the name of its tensor."""


class Exchange:
    """The exchange of one stage. `found` has for every place the gradients that are there, each with who wrote it last."""

    def __init__(self, weaver: Weaver, sizes: Sizes, roles: TrainingRoles) -> None:
        self.weaver, self.roles, self.training = weaver, roles, roles.training
        self.devices, self.replicas = roles.stage.attention_devices, roles.choice.replicas
        stride = replica_stride(sizes, self.replicas) or 0
        self.offsets = [replica * stride for replica in range(self.replicas)]
        self.own = roles.ctx.training or Training()
        self.found: list[dict[Key, Source]] = [{} for _ in self.devices]
        self.reduced: list[dict[Key, Source]] = [{} for _ in self.devices]
        self.tails: dict[int, str] = {}
        self.units: list[Unit] = []

    @property
    def gradient(self) -> float:
        """Bytes of an element of the gradient buffer."""
        return dtype_bytes(self.own.gradient_dtype)

    @property
    def ends(self) -> list[Wait]:
        """What the stage has exchanged so far is done."""
        return [Wait(name) for name in dict.fromkeys(self.tails.values())]

    def gather(self, units: Sequence[Unit], at: Place, name: str, after: Sequence[Wait] = ()) -> list[Wait]:
        """Gather the weights of some units from the GPUs that share them out; gives what their readers wait for."""
        return self._shared(units, at, name, Kind.ALL_GATHER, after)

    def reduce(self, units: Sequence[Unit], at: Place, after: Sequence[Wait]) -> list[Wait]:
        """Add up the gradients of some units over all that hold the same weights."""
        return self._shared(units, at, "reduce", Kind.REDUCE_SCATTER if self.training.zero else Kind.ALL_REDUCE, after)

    def _shared(self, units: Sequence[Unit], at: Place, name: str, kind: Kind, after: Sequence[Wait]) -> list[Wait]:
        held = [(unit, own) for unit in units for own in self.roles.held(unit)]
        ends: list[Wait] = []
        for apart, (elements, stored) in by_apart(amounts(own for _, own in held)).items():
            copies = max(1, len(self.devices) // apart) * self.replicas
            if copies == 1 or not elements:
                continue
            gathers = kind == Kind.ALL_GATHER
            amount = stored if gathers else elements * self.gradient
            dtype = self.roles.ctx.dtype if gathers else self.own.gradient_dtype
            size = int(elements) if kind != Kind.REDUCE_SCATTER else -(-int(elements) // copies)
            piece = Piece(f"{_label(units)}{name}_{apart}", (size,), dtype)
            keys = [] if gathers else [
                (unit.layer, gradient_name(self.roles, own.op.name)) for unit, own in held if own.sharing.apart == apart
            ]  # fmt: skip
            groups = [tuple(range(place, len(self.devices), apart)) for place in range(min(apart, len(self.devices)))]
            family = tuple(tuple(self.devices[p] + o for o in self.offsets for p in group) for group in groups)
            for group in groups:
                ends += self._node(group, family, at, f"{_label(units)}{name}_{apart}", kind, amount, piece, keys, after)
        return ends

    def finish(self, at: Place, after: Sequence[Wait]) -> None:
        """Add up, once in a step, the gradients of which neighbours have parts."""
        units = self.units
        held = [(unit, own) for unit in units for own in self.roles.held(unit)]
        width, zero = len(self.devices), self.training.zero
        for size, elements in finishing(amounts(own for _, own in held), width, self.replicas, zero).items():
            keys = [(u.layer, gradient_name(self.roles, own.op.name)) for u, own in held if own.sharing.finish == size]
            groups = [tuple(range(first, first + size)) for first in range(0, width, size)]
            family = tuple(tuple(self.devices[p] for p in group) for group in groups)
            amount = elements * self.gradient
            piece = Piece(f"finish_{size}", (int(elements),), self.own.gradient_dtype)
            for group in groups:
                self._node(group, family, at, f"finish_{size}", Kind.ALL_REDUCE, amount, piece, keys, after)

    def _node(
        self, group: tuple[int, ...], family: tuple[tuple[int, ...], ...], at: Place, name: str, kind: Kind, amount: float,
        piece: Piece, keys: Sequence[Key], after: Sequence[Wait],
    ) -> list[Wait]:  # fmt: skip
        ranks = tuple(self.devices[place] for place in group)
        distinct = list(dict.fromkeys(keys))
        reads = [self.found[place][key] for place in group for key in distinct if key in self.found[place]]
        if self.training.zero >= 2 and kind == Kind.REDUCE_SCATTER:  # each micro-batch's are added to those before
            before = {s for p in group for key in distinct if (s := self.reduced[p].get(key)) is not None}
            reads += sorted(before, key=lambda source: source.node)
        node = exchange_node(self.weaver, at, name, kind, ranks, family, amount, piece)
        waits = [*after, *(Wait(self.tails[rank]) for rank in ranks if rank in self.tails)]
        self.weaver.add(node, list(dict.fromkeys(waits)), reads)
        source = Source(node.id, piece)
        for place, rank in zip(group, ranks, strict=True):
            self.tails[rank] = node.id
            for key in distinct:
                if key in self.found[place]:
                    self.found[place][key] = self.reduced[place][key] = source
        return [Wait(node.id)]


def exchange_node(
    weaver: Weaver, at: Place, name: str, kind: Kind, ranks: tuple[int, ...], family: tuple[tuple[int, ...], ...],
    amount: float, piece: Piece,
) -> Node:  # fmt: skip
    """A collective of the exchange among those ranks of its group that the graph shows."""
    ident = f"{at.prefix}{ROLE}.{name}@{ranks_name(ranks)}"
    if ident in weaver.nodes:
        ident = f"{at.prefix}{ROLE}.c{at.chunk}.{name}@{ranks_name(ranks)}"
    return Node(ident, name, kind, ROLE, at.stage, at.layer, at.micro_batch, ranks, STREAM, outputs=(piece,) * len(ranks),
                dtype=piece.dtype, bytes=amount, family=family, step=at.step)  # fmt: skip


def gradient_name(roles: TrainingRoles, op: str) -> str:
    """The tensor that the weight gradients of an operator are added to."""
    return "embedding.weight_grad" if op == "lm_head" and roles.tied_here else f"{op}.weight_grad"


def _label(units: Sequence[Unit]) -> str:
    """Names of ends; those of layers have their number in front of them already."""
    if len(units) > 1 or units[0].layer is not None:
        return ""
    return f"{units[0].roles[0].forward.name}_"


def step_end(weaver: Weaver, exchanges: Sequence[Exchange], ends: Iterable[Wait], at: Place) -> None:
    """All GPUs wait for each other, then each updates its weights."""
    devices = tuple(rank for own in exchanges for rank in own.devices)
    waits = [*ends, *(wait for own in exchanges for wait in own.ends)]
    barrier = Node(f"m{at.micro_batch}.step.end@{ranks_name(devices)}", "end", Kind.BARRIER, "step", 0, None, at.micro_batch,
                   devices, "")  # fmt: skip
    closed = Wait(weaver.add(barrier, list(dict.fromkeys(waits))))
    for own in exchanges:
        roles, width = own.roles, len(own.devices)
        held = amounts(held for unit in own.units for held in roles.held(unit))
        moved = optimizer_bytes(held, own.own, width, own.replicas, own.training.zero)
        for rank in own.devices if moved else ():
            ident = f"s{roles.index}.m{at.micro_batch}.optimizer@{rank}"
            weaver.add(Node(ident, "optimizer", Kind.ELEMENTWISE, "optimizer", roles.index, None, at.micro_batch, (rank,),
                            dtype="fp32", bytes=moved), [closed])  # fmt: skip


def tie(weaver: Weaver, first: Exchange, last: Exchange, at: Place, after: Sequence[Wait]) -> None:
    """Embedding and head are one weight on two stages: what both found of its gradient is added up, GPU by GPU."""
    own = next((h for u in first.units if u.layer is None for h in first.roles.held(u) if h.shard.name == "embedding"), None)
    if own is None:
        return
    parts = own.sharing.copies(len(first.devices)) * first.replicas if first.training.zero else 1
    elements = float(np.max(own.shard.elements)) / parts
    family = tuple(zip(first.devices, last.devices, strict=True))
    piece = Piece("tied", (int(elements),), first.own.gradient_dtype)
    sides = ((first, (None, "embedding.weight_grad")), (last, (None, "lm_head.weight_grad")))
    for place, pair in enumerate(family):
        reads = [side.found[place][key] for side, key in sides if key in side.found[place]]
        node = exchange_node(weaver, at, "tied", Kind.ALL_REDUCE, pair, family, elements * first.gradient, piece)
        waits = [*after, *(Wait(side.tails[rank]) for (side, _), rank in zip(sides, pair, strict=True) if rank in side.tails)]
        weaver.add(node, list(dict.fromkeys(waits)), reads)
        for (side, key), rank in zip(sides, pair, strict=True):
            side.tails[rank] = node.id
            side.found[place][key] = Source(node.id, piece)
