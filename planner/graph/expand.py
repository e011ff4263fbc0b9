"""expand: the operator graph of one replica of a plan, from the same roles that pricing reads."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from planner.graph.context import RoleContext
from planner.graph.expand_training import expand_training
from planner.graph.handover import handover_bytes
from planner.graph.nodes import Graph, Transfer
from planner.graph.ops import Role
from planner.graph.stage_roles import StageRoles
from planner.graph.templates import piece_at
from planner.graph.waves import weave_waves
from planner.graph.weaver import Place, Tensors, Wait, Weaver, arrive
from planner.model import ModelSpec
from planner.workload import Workload
from search_spaces.sizes import Sizes
from search_spaces.stages import Choice

BOUNDARY_BUFFERS = 2
TOKEN_ID_BYTES = 4


def expand(
    model: ModelSpec,
    workload: Workload,
    sizes: Sizes,
    choice: Choice,
    *,
    layers: Collection[int] | None = None,
    micro_batches: int | None = None,
    ends: bool = True,
    steps: int = 1,
) -> Graph:
    """The expanded graph of the first replica.

    `layers` keeps only those layers (by index in the model), `micro_batches` only the first few; without `ends` there
    is neither embedding, head nor hand-over between stages. `steps` decode steps follow each other. Of a training plan: the
    graph of an optimizer step (`expand_training`).
    """
    if choice.training is not None:
        return expand_training(model, workload, sizes, choice, layers=layers, micro_batches=micro_batches, ends=ends)
    ctx, weaver = RoleContext(model, workload), Weaver()
    count = min(micro_batches or choice.micro_batches, choice.micro_batches)
    stages = [StageRoles(ctx, sizes, choice, index) for index in range(len(choice.stages))]
    kept = frozenset(range(len(model.layers)) if layers is None else layers)
    if choice.stages[0].separate:
        weave_waves(weaver, stages[0], kept, count, min(choice.in_flight, count), ends)
    else:
        _Pipeline(weaver, stages, kept, ends).run(count, steps if workload.phase == "decode" else 1)
    return weaver.graph()


class _Pipeline:
    """Linear stages: a stage takes one micro-batch after another, sends queue as a machine of their own."""

    def __init__(self, weaver: Weaver, stages: Sequence[StageRoles], kept: frozenset[int], ends: bool) -> None:
        self.weaver, self.stages, self.kept, self.ends = weaver, stages, kept, ends
        self.busy: list[list[str]] = [[] for _ in stages]  # closing barriers of a stage, one per micro-batch
        self.sent: list[list[str]] = [[] for _ in stages]  # hand-overs of a stage; the last stage's are token ids

    def run(self, micro_batches: int, steps: int) -> None:
        """Weave all micro-batches of all steps."""
        for step in range(steps):
            for micro in range(micro_batches):
                self._micro_batch(step, micro, step * micro_batches + micro, micro_batches)

    def _micro_batch(self, step: int, micro: int, turn: int, micro_batches: int) -> None:
        held: Tensors = [{} for _ in self.stages[0].stage.attention_devices]
        waits: list[Wait] = []
        back = turn - micro_batches
        if step:
            waits.append(Wait(self.sent[-1][back], "data") if self.sent[-1] else Wait(self.busy[-1][back]))
        for index, stage in enumerate(self.stages):
            at = Place(index, None, micro, step)
            barrier, held = self._stage(stage, at, waits, held)
            if not self.ends:
                waits, held = [], [{} for _ in (self.stages[index + 1].stage.devices if index + 1 < len(self.stages) else ())]
                continue
            if index + 1 < len(self.stages):
                waits, held = self._hand_over(index, at, barrier, held)
        if self.ends and len(self.stages) > 1 and self.stages[0].ctx.workload.phase == "decode":
            self._feed_back(Place(len(self.stages) - 1, None, micro, step), held)

    def _stage(self, stage: StageRoles, at: Place, waits: list[Wait], held: Tensors) -> tuple[str, Tensors]:
        """All roles of a stage for one micro-batch, behind its arrival and the micro-batch before."""
        index, barrier = at.stage, ""
        after = [*waits, *(Wait(name) for name in self.busy[index][-1:])]
        for role, layer in self._roles(stage):
            place = Place(index, layer, at.micro_batch, at.step)
            barrier, held = self.weaver.role(role, stage.stage.attention_devices, place, after, held)
            after = [Wait(barrier)]
            held = next_input(held)
        if barrier:
            self.busy[index].append(barrier)
        return barrier, held

    def _roles(self, stage: StageRoles) -> list[tuple[Role, int | None]]:
        found: list[tuple[Role | None, int | None]] = [(stage.entry() if self.ends else None, None)]
        for index in (i for i in stage.layers if i in self.kept):
            found += [(stage.role("attention", index), index), (stage.role("ffn", index), index)]
        found.append((stage.head() if self.ends else None, None))
        return [(role, layer) for role, layer in found if role is not None]

    def _hand_over(self, index: int, at: Place, barrier: str, held: Tensors) -> tuple[list[Wait], Tensors]:
        sender, receiver = self.stages[index], self.stages[index + 1]
        source, target = sender.stage.attention_devices, receiver.stage.attention_devices
        transfer = Transfer(source, target, *handover_bytes(sender.ctx, len(source), len(target), sender.tokens))
        waits = [Wait(barrier)] if barrier else []
        waits += [Wait(name) for name in self.sent[index][-1:]]
        done = self.busy[index + 1]
        if len(done) >= BOUNDARY_BUFFERS:
            waits.append(Wait(done[-BOUNDARY_BUFFERS], "buffer"))
        reads = [own["x"] for own in held if "x" in own]
        entry = receiver.entry()
        pieces = [] if entry is None or entry.x is None else [piece_at(entry.x, place) for place in range(len(target))]
        name = self.weaver.send("send", at, "send", transfer, waits, reads, pieces)
        self.sent[index].append(name)
        return [Wait(name, "data")], arrive(name, pieces)

    def _feed_back(self, at: Place, held: Tensors) -> None:
        """The sampled token ids go from the last GPU of the last stage to the first GPU of the first."""
        source, target = self.stages[-1].stage.attention_devices[-1:], self.stages[0].stage.attention_devices[:1]
        amount = float(self.stages[0].sequences * TOKEN_ID_BYTES)
        waits = [Wait(self.busy[-1][-1]), *(Wait(name) for name in self.sent[-1][-1:])]
        reads = [own["x"] for own in held[-1:] if "x" in own]
        transfer = Transfer(source, target, amount, amount)
        self.sent[-1].append(self.weaver.send("feedback", at, "send", transfer, waits, reads))


def next_input(held: Tensors) -> Tensors:
    """What a role leaves to the next: its output `y` becomes the input `x`, its own input stays as `x_in`."""
    found: Tensors = []
    for own in held:
        left = {"x": own.get("y", own.get("x")), "x_in": own.get("x")}
        found.append({name: source for name, source in left.items() if source is not None})
    return found
