"""Attention and experts on GPUs of their own: waves of micro-batches over attention GPUs, transfers and expert GPUs."""

from __future__ import annotations

from planner.graph.nodes import Transfer
from planner.graph.ops import Role
from planner.graph.stage_roles import StageRoles
from planner.graph.templates import piece_at
from planner.graph.weaver import Place, Source, Tensors, Wait, Weaver, arrive


class _Waves:
    """Four machines: attention GPUs, dispatch, expert GPUs, combine. Each takes position 0 of all micro-batches of a
    wave, then position 1, and so on; position p ends at the p-th mixture layer.
    """

    def __init__(self, weaver: Weaver, stage: StageRoles, kept: frozenset[int], ends: bool) -> None:
        self.weaver, self.stage, self.ends = weaver, stage, ends
        self.near, self.far = stage.stage.attention_devices, stage.stage.expert_devices
        self.free: dict[str, str] = {}  # what each machine did last
        self.tasks: list[list[int]] = [[]]
        for index in (i for i in stage.layers if i in kept):
            self.tasks[-1].append(index)
            if stage.moe(index):
                self.tasks.append([])

    def wave(self, micro_batches: range) -> None:
        """One wave."""
        held: dict[int, Tensors] = {micro: [{} for _ in self.near] for micro in micro_batches}
        arrived: dict[int, str] = {}
        for position in range(len(self.tasks)):
            for micro in micro_batches:
                self._attention(position, micro, arrived.get(micro), held)
                if position + 1 < len(self.tasks):
                    arrived[micro] = self._experts(self.tasks[position][-1], micro, held[micro])

    def _last(self, machine: str) -> list[Wait]:
        return [Wait(self.free[machine])] if machine in self.free else []

    def _attention(self, position: int, micro: int, arrived: str | None, held: dict[int, Tensors]) -> None:
        """One task of the attention GPUs: from the return of the tokens to the next routing, or to the end."""
        roles: list[tuple[Role | None, int | None]] = []
        if position == 0:
            roles.append((self.stage.entry() if self.ends else None, None))
        else:
            done = self.tasks[position - 1][-1]
            roles.append((self.stage.role("finish", done), done))
        for index in self.tasks[position]:
            roles.append((self.stage.role("attention", index), index))
            roles.append((self.stage.role("route" if self.stage.moe(index) else "ffn", index), index))
        if position + 1 == len(self.tasks):
            roles.append((self.stage.head() if self.ends else None, None))
        after = [*self._last("attention"), *([Wait(arrived, "data")] if arrived else [])]
        for role, layer in roles:
            if role is None:
                continue
            barrier, tensors = self.weaver.role(role, self.near, Place(0, layer, micro), after, held[micro])
            held[micro] = _kept(tensors)
            after, self.free["attention"] = [Wait(barrier)], barrier

    def _experts(self, layer: int, micro: int, held: Tensors) -> str:
        """Dispatch, experts and combine of one layer; `held` gets the returned tokens."""
        at, role = Place(0, layer, micro), self.stage.role("experts", layer)
        (sent, received), (back, gone) = self.stage.transfer(layer)
        out = Transfer(self.near, self.far, sent, received)
        reads = [own[name] for own in held for name in ("xn", "routes") if name in own]
        waits = [*self._last("attention"), *self._last("dispatch")]
        pieces = [] if role.x is None else [piece_at(role.x, place) for place in range(len(self.far))]
        dispatch = self.free["dispatch"] = self.weaver.send("dispatch", at, "dispatch", out, waits, reads, pieces)
        far = arrive(dispatch, pieces)
        if self.stage.attention_router:
            routes = [own["routes"].piece for own in held if "routes" in own][:1]
            far = [{**own, **{piece.name: Source(dispatch, piece) for piece in routes}} for own in far]
        after = [Wait(dispatch, "data"), *self._last("experts")]
        barrier, far = self.weaver.role(role, self.far, at, after, far)
        self.free["experts"] = barrier
        parts = [own["expert_partial"] for own in far if "expert_partial" in own]
        home = Transfer(self.far, self.near, gone, back)
        pieces = self.stage.returned(layer)
        name = self.free["combine"] = self.weaver.send(
            "combine", at, "combine", home, [Wait(barrier), *self._last("combine")], parts, pieces
        )
        for own, piece in zip(held, pieces, strict=True):
            own[piece.name] = Source(name, piece)
        return name


def _kept(tensors: Tensors) -> Tensors:
    """What stays between roles: the residual stream, and what was routed but has not come back."""
    found: Tensors = []
    for own in tensors:
        left: dict[str, Source] = {name: own[name] for name in ("xn", "routes") if name in own}
        left |= {name: source for name, source in (("x", own.get("y", own.get("x"))), ("x_in", own.get("x"))) if source}
        found.append(left)
    return found


def weave_waves(
    weaver: Weaver, stage: StageRoles, kept: frozenset[int], micro_batches: int, in_flight: int, ends: bool
) -> None:
    """Weave all micro-batches, `in_flight` of them in one wave."""
    waves = _Waves(weaver, stage, kept, ends)
    for first in range(0, micro_batches, in_flight):
        waves.wave(range(first, min(first + in_flight, micro_batches)))
