"""expand_training: the operator graph of one optimizer step of the first replica, in the order of its schedule."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from planner.errors import InputError
from planner.graph.chunks import work_order
from planner.graph.context import RoleContext
from planner.graph.exchange import Exchange, step_end, tie
from planner.graph.handover import handover_bytes
from planner.graph.nodes import Graph, Transfer
from planner.graph.ops import Role
from planner.graph.schedule import Work, next_work
from planner.graph.templates import piece_at
from planner.graph.trained import Trained
from planner.graph.training_roles import TrainingRoles, Unit, again
from planner.graph.weaver import Place, Tensors, Wait, Weaver, arrive
from planner.model import ModelSpec
from planner.workload import Workload
from search_spaces.sizes import Sizes
from search_spaces.stages import Choice
from search_spaces.training import TrainingChoice


def expand_training(
    model: ModelSpec,
    workload: Workload,
    sizes: Sizes,
    choice: Choice,
    *,
    layers: Collection[int] | None = None,
    micro_batches: int | None = None,
    ends: bool = True,
) -> Graph:
    """The expanded graph of one step: all passes of all stages, the exchange of the replicas, the optimizer.

    `layers`, `micro_batches` and `ends` as in `expand`. A collective of the exchange names all ranks of its groups in its
    `family`, and as its GPUs those of the first replica.
    """
    ctx = RoleContext(model, workload.forward, workload.training)
    count = min(micro_batches or choice.micro_batches, choice.micro_batches)
    kept = frozenset(range(len(model.layers)) if layers is None else layers)
    stages = [TrainingRoles(ctx, sizes, choice, index) for index in range(len(choice.stages))]
    _tied_alike(stages)
    step = _Step(Weaver(), sizes, choice, stages, kept, ends)
    step.run(count)
    return step.weaver.graph()


def _tied_alike(stages: Sequence[TrainingRoles]) -> None:
    first, last = stages[0], stages[-1]
    if first.ctx.model.tied_embeddings and (first.width, first.tensor) != (last.width, last.tensor):
        allowed = "as many GPUs and head groups as the first stage: embedding and head are one weight"
        raise InputError(f"stages[{last.index}]", f"{last.width} GPUs, {last.tensor} head groups", allowed)


@dataclass
class _Kept:
    """What the forward pass of a role leaves to its backward pass, then what that leaves to its weight gradients."""

    trained: Trained
    tensors: Tensors


class _Step:
    """Lays the work of all stages as soon as what it needs is there."""

    def __init__(
        self, weaver: Weaver, sizes: Sizes, choice: Choice, stages: Sequence[TrainingRoles], kept: frozenset[int], ends: bool
    ) -> None:
        self.weaver, self.choice, self.stages, self.ends = weaver, choice, stages, ends
        self.training = choice.training or TrainingChoice()
        self.chunks = self.training.virtual_stages
        self.units = [[roles.units(c, kept, ends) for c in range(self.chunks)] for roles in stages]
        self.exchanges = [Exchange(weaver, sizes, roles) for roles in stages]
        for own, chunks in zip(self.exchanges, self.units, strict=True):
            own.units = [unit for units in chunks for unit in units]
        self.busy: list[list[Wait]] = [[] for _ in stages]
        self.sent: dict[tuple[int, str], str] = {}
        self.arrived: dict[tuple[int, Work], tuple[list[Wait], Tensors]] = {}
        self.kept: dict[tuple[int, int, int], list[list[_Kept]]] = {}
        self.gathered: dict[tuple[int, int, int], list[Wait]] = {}

    def run(self, micro_batches: int) -> None:
        """All work of the step and its end."""
        orders = [work_order(self.training, i, len(self.stages), micro_batches) for i in range(len(self.stages))]
        for stage in range(len(self.stages)):
            self._gather_first(stage)
        at, left = [0] * len(orders), sum(map(len, orders))
        while left:
            before = left
            for stage, order in enumerate(orders):
                while at[stage] < len(order) and self._ready(stage, order[at[stage]]):
                    self._work(stage, order[at[stage]], at[stage] + 1 == len(order))
                    at[stage] += 1
                    left -= 1
            if left == before:
                raise ValueError("the stages wait for each other: this order of work is a deadlock")
        self._close(micro_batches - 1)

    def _ready(self, stage: int, work: Work) -> bool:
        place = work.chunk * len(self.stages) + stage
        starts = work.kind == "forward" and place == 0
        turns = work.kind == "backward" and place == self.chunks * len(self.stages) - 1
        return starts or turns or work.kind == "weights" or (stage, work) in self.arrived

    def _work(self, stage: int, work: Work, last: bool) -> None:
        waits, held = self.arrived.pop((stage, work), ([], [{} for _ in self.stages[stage].stage.attention_devices]))
        pass_ = _Pass(self, stage, work, [*waits, *self.busy[stage]])
        held = pass_.forward(held) if work.kind == "forward" else pass_.backward(held, last)
        self.busy[stage] = pass_.after
        if work.kind != "weights":
            self._hand_over(stage, work, held, pass_.passed or pass_.after)

    def _hand_over(self, stage: int, work: Work, held: Tensors, after: list[Wait]) -> None:
        """Activations go to the next stage, gradients to the one before: in slices, one after another on their way."""
        target = next_work(stage, work, len(self.stages), self.chunks)
        if target is None:
            return
        forward, other = work.kind == "forward", self.stages[target[0]]
        name, into = ("x", "x") if forward else ("dx", "dy")
        if not self.ends or target[0] == stage:
            self.arrived[target] = ([], [{into: own[name]} if name in own else {} for own in held])
            return
        sender = self.stages[stage]
        source, goal = sender.stage.attention_devices, other.stage.attention_devices
        transfer = Transfer(source, goal, *handover_bytes(sender.ctx, len(source), len(goal), sender.tokens))
        stream = "send" if forward else "send_back"
        waits = [*after, *([Wait(self.sent[stage, stream])] if (stage, stream) in self.sent else [])]
        slices = other.slices(into)
        pieces = [piece_at(slices, place) for place in range(len(goal))]
        reads = [one[name] for one in held if name in one]
        at = Place(stage, None, work.micro_batch, chunk=work.chunk)
        sent = self.sent[stage, stream] = self.weaver.send(stream, at, stream, transfer, waits, reads, pieces)
        self.arrived[target] = ([Wait(sent, "data")], arrive(sent, pieces))

    def _gather_first(self, stage: int) -> None:
        """Where copies share the optimizer, the new weights come together before they are used, chunk by chunk."""
        if self.training.zero not in (1, 2):
            return
        exchange, chunks = self.exchanges[stage], self.units[stage]
        if not self.training.overlap:
            at = Place(stage, None, 0)
            self.busy[stage] = exchange.gather(exchange.units, at, "gather") if exchange.units else []
            return
        for c, units in enumerate(chunks):
            for number, unit in enumerate(units):
                at = Place(stage, unit.layer, 0, chunk=c)
                self.gathered[stage, c, number] = exchange.gather([unit], at, "gather")

    def _close(self, micro_batch: int) -> None:
        """Gradients that are parts of sums are added up, then every GPU updates its weights."""
        ends: list[Wait] = []
        for stage, exchange in enumerate(self.exchanges):
            exchange.finish(Place(stage, None, micro_batch), [*self.busy[stage], *exchange.ends])
            ends += self.busy[stage]
        if self.ends and len(self.stages) > 1 and self.stages[0].ctx.model.tied_embeddings:
            first, last = self.exchanges[0], self.exchanges[-1]
            waits = [*self.busy[0], *self.busy[-1], *first.ends, *last.ends]
            tie(self.weaver, first, last, Place(0, None, micro_batch), waits)
        step_end(self.weaver, self.exchanges, ends, Place(0, None, micro_batch))


class _Pass:
    """One work of a stage: its units one after another; `after` is what the next role waits for."""

    def __init__(self, step: _Step, stage: int, work: Work, after: list[Wait]) -> None:
        self.step, self.stage, self.work, self.after = step, stage, work, after
        self.roles, self.exchange, self.training = step.stages[stage], step.exchanges[stage], step.training
        self.units = step.units[stage][work.chunk]
        self.devices = self.roles.stage.attention_devices
        self.key = stage, work.micro_batch, work.chunk
        self.start = list(after)
        self.passed: list[Wait] = []  # what a hand-over waits for, where the pass is not over then
        self.done: list[list[Wait]] = []  # of every unit so far, in the order in which they run
        self.waits: list[list[Wait]] = []  # for gathered weights
        self.full = self.training.recompute == "full"

    def forward(self, held: Tensors) -> Tensors:
        """The forward pass; gives the residual stream."""
        kept: list[list[_Kept]] = []
        sharded = self.training.zero == 3
        order = list(range(len(self.units)))
        for turn, number in enumerate(order):
            unit = self.units[number]
            if sharded:
                self._gather(turn, order, "gather")
            elif self.work.micro_batch == 0:
                self.after = [*self.after, *self.step.gathered.pop((self.stage, self.work.chunk, number), [])]
            roles = []
            for place, trained in enumerate(unit.roles):
                left = self._role(unit, trained.forward, held)
                names = trained.backward.saved if not (self.full and unit.layer is not None) else ("x",) * (place == 0)
                roles.append(_Kept(trained, [{n: own[n] for n in names if n in own} for own in left]))
                held = _next(left)
            kept.append(roles)
            self.done.append(self.after)
        self.step.kept[self.key] = kept
        return held

    def backward(self, held: Tensors, last: bool) -> Tensors:
        """Gradients of inputs, of weights, or both; gives the gradient of the residual stream."""
        kept = self.step.kept[self.key]
        order = list(reversed(range(len(self.units))))
        apart = self.training.schedule == "zb_h1"
        gathers = self.training.zero == 3 and self.work.kind == "backward"
        reduces = (last or self.training.zero >= 2) and (self.work.kind == "weights") == apart
        if reduces and self.training.zero < 2 and self.training.overlap:
            self._reduce_others()
        for turn, number in enumerate(order):
            unit, roles = self.units[number], kept[number]
            if gathers:
                self._gather(turn, order, "gather_again")
            if self.work.kind == "backward":
                held = self._turn(unit, roles, held, with_weights=not apart)
            else:
                for one in reversed(roles):
                    self._weights(unit, one)
            self.done.append(self.after)
            if reduces and (self.training.overlap or self.training.zero == 3):
                ends = self.exchange.reduce([unit], self._place(unit), self.after)
                self.after = self.after if self.training.overlap else [*self.after, *ends]
        if self.training.zero < 2:  # the gradient goes on before the stage's own are reduced
            self.passed = self.after
        if reduces and not self.training.overlap and self.training.zero < 3:
            units = self.units if self.training.zero == 2 else self.exchange.units
            self.after = [*self.after, *self.exchange.reduce(units, self._place(None), self.after)] if units else self.after
        if self.training.zero >= 2:
            self.after = list(dict.fromkeys([*self.after, *self.exchange.ends]))
        if not apart or self.work.kind == "weights":
            del self.step.kept[self.key]
        return held

    def _gather(self, turn: int, order: Sequence[int], name: str) -> None:
        """Weights come in while the unit before computes: two units' are there at once. Without overlap, when they are used."""
        if not self.training.overlap:
            self.waits.append(self._gathered(order[turn], name, self.after))
        elif turn == 0:
            self.waits.append(self._gathered(order[0], name, self.start))
        if self.training.overlap and turn + 1 < len(order):
            self.waits.append(self._gathered(order[turn + 1], name, self.done[turn - 1] if turn else self.start))
        self.after = list(dict.fromkeys([*self.after, *self.waits[turn]]))

    def _gathered(self, number: int, name: str, after: Sequence[Wait]) -> list[Wait]:
        unit = self.units[number]
        return self.exchange.gather([unit], self._place(unit), name, after)

    def _reduce_others(self) -> None:
        """The gradients of the other chunks are complete when the last work of a step begins."""
        for c, units in enumerate(self.step.units[self.stage]):
            if c != self.work.chunk:
                for unit in reversed(units):
                    at = Place(self.stage, unit.layer, self.work.micro_batch, chunk=c)
                    self.exchange.reduce([unit], at, self.start)

    def _turn(self, unit: Unit, roles: list[_Kept], held: Tensors, with_weights: bool) -> Tensors:
        """The backward pass of a unit; with full recomputation its forward pass comes first, once more."""
        if self.full and unit.layer is not None:
            x = roles[0].tensors
            for one in roles:
                left = self._role(unit, again(one.trained.forward), x)
                one.tensors = [{n: own[n] for n in one.trained.backward.saved if n in own} for own in left]
                x = _next(left)
        for one in reversed(roles):
            given = [own | {n: g for n, g in dy.items() if n == "dy"} for own, dy in zip(one.tensors, held, strict=True)]
            one.tensors = self._role(unit, one.trained.backward.inputs, given)
            held = [{"dy": own["dx"], "dx": own["dx"]} if "dx" in own else {} for own in one.tensors]
            if with_weights:
                self._weights(unit, one)
        return held

    def _weights(self, unit: Unit, one: _Kept) -> None:
        """Weight gradients, added to those of the micro-batches before (unless these are reduced already)."""
        role, found = one.trained.backward.weights, self.exchange.found
        if not role.ops:
            return
        names = {op.output.name for op in role.ops if op.output.name.endswith("weight_grad")}
        given: Tensors = []
        for own, gradients in zip(one.tensors, found, strict=True):
            before = {name: gradients[unit.layer, name] for name in names if (unit.layer, name) in gradients}
            given.append({**own, **{name: source for name, source in before.items() if source.piece.name == name}})
        left = self._role(unit, role, given)
        for own, gradients in zip(left, found, strict=True):
            gradients |= {(unit.layer, name): own[name] for name in names if name in own}

    def _role(self, unit: Unit, role: Role, held: Tensors) -> Tensors:
        if not role.ops:
            return held
        barrier, left = self.step.weaver.role(role, self.devices, self._place(unit), self.after, held)
        self.after = [Wait(barrier)]
        return left

    def _place(self, unit: Unit | None) -> Place:
        return Place(self.stage, unit.layer if unit else None, self.work.micro_batch, chunk=self.work.chunk)


def _next(held: Tensors) -> Tensors:
    """What a role leaves to the next: its output is the input of that."""
    found: Tensors = []
    for own in held:
        x = own.get("y", own.get("x"))
        found.append({} if x is None else {"x": x})
    return found
