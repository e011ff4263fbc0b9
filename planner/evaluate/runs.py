"""Runs: the roles of one plan's stage with the seconds of every operator, on its slowest GPU and as they follow each other."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from planner.costs.pricer import Sites
from planner.costs.tags import source_of
from planner.evaluate.rows import attention_rows, partition_table
from planner.evaluate.setting import LayerKind, Setting
from planner.evaluate.term import op_term, sum_terms
from planner.graph.attention import attention_role
from planner.graph.experts import moe_rows, moe_table
from planner.graph.head import embedding_role, head_role, receive_role
from planner.graph.mlp import mlp_role
from planner.graph.moe import dispatch_role, expert_role, local_role, return_role, route_role
from planner.graph.ops import Op, Role
from planner.graph.rows import FfnRows, Ints, MoeRows
from search_spaces.experts import ExpertPlacement
from search_spaces.sizes import Sizes
from search_spaces.space import residual_shards
from search_spaces.stages import StageChoice

Array = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Step:
    """One operator on the critical path of a role: name, kind, seconds, term, and where the number comes from."""

    op: str
    kind: str
    seconds: float
    term: str
    source: str


@dataclass(frozen=True, slots=True)
class RoleRun:
    """A role of a stage: seconds, and the operators of its longest path in order."""

    name: str
    devices: tuple[int, ...]
    seconds: float
    steps: tuple[Step, ...]
    flops: float

    @property
    def expression(self) -> str:
        """The sum of the path's terms."""
        return sum_terms(step.term for step in self.steps)


class StageRuns:
    """The roles of one stage of a plan for micro-batches of `sequences`."""

    def __init__(self, env: Setting, sizes: Sizes, stage: StageChoice, sequences: int) -> None:
        self.env, self.sizes, self.stage, self.sequences = env, sizes, stage, sequences
        self.near, self.far = stage.attention_devices, stage.expert_devices
        self.shards = residual_shards(sizes, stage.attention)

    def embedding(self) -> RoleRun:
        """Token ids to the residual stream."""
        return self._run(embedding_role(self.env.context, self._ffn_rows()), self.near)

    def receive(self) -> RoleRun:
        """The arrival of a micro-batch from the stage before."""
        return self._run(receive_role(self.env.context, self._ffn_rows()), self.near)

    def head(self) -> RoleRun:
        """The residual stream to logits."""
        return self._run(head_role(self.env.context, self._ffn_rows(), np.array([self.sequences])), self.near)

    def attention(self, layer: LayerKind) -> RoleRun:
        """Attention of one layer kind."""
        table = partition_table([self.stage.attention], layer.layer.attention, self.env.workload.phase)
        entry = np.arange(table.owner.size)
        rows = attention_rows(table, entry, np.full(entry.shape, self.sequences, dtype=np.int64))
        return self._run(attention_role(self.env.context, layer.layer, table.signatures[0], rows), self.near)

    def ffn(self, layer: LayerKind) -> RoleRun:
        """Dense FFN, or a mixture that shares the attention GPUs."""
        if not layer.moe:
            return self._run(mlp_role(self.env.context, layer.layer, self._ffn_rows()), self.near)
        build = dispatch_role if self._experts.form == "dispatch" else local_role
        return self._run(build(self.env.context, layer.layer, self.moe_rows(layer)), self.near)

    def route(self, layer: LayerKind) -> RoleRun:
        """Attention side of a mixture with experts apart, before the tokens leave."""
        return self._run(route_role(self.env.context, layer.layer, self.moe_rows(layer), self.attention_router), self.near)

    def experts(self, layer: LayerKind) -> RoleRun:
        """Expert side."""
        return self._run(expert_role(self.env.context, layer.layer, self.moe_rows(layer), self.attention_router), self.far)

    def finish(self, layer: LayerKind) -> RoleRun:
        """Attention side after the tokens are back."""
        return self._run(return_role(self.env.context, layer.layer, self.moe_rows(layer)), self.near)

    @property
    def attention_router(self) -> bool:
        """Whether the router sits on the attention side."""
        return self._experts.router_side == "attention"

    @property
    def _experts(self) -> ExpertPlacement:
        return self.stage.experts or ExpertPlacement()

    def moe_rows(self, layer: LayerKind) -> MoeRows:
        """Rows of a mixture: one per different group of experts."""
        table = moe_table(layer.layer.ffn, [(self._experts, len(self.far))], layer.load, layer.row)
        entry = np.arange(table.owner.size)
        tokens, ways, shards = (
            self._full(x, entry) for x in (self.sequences * self.env.query_length, len(self.near), self.shards)
        )
        return moe_rows(table, entry, tokens, ways, shards, layer.layer.ffn.top_k)

    def _full(self, value: int, like: Ints) -> Ints:
        return np.full(like.shape, value, dtype=np.int64)

    def _ffn_rows(self) -> FfnRows:
        numbers = (self.sequences * self.env.query_length, len(self.near), self.shards, self.stage.mlp_ways, 0)
        return FfnRows(*(np.array([x], dtype=np.int64) for x in numbers))

    def _run(self, role: Role, devices: tuple[int, ...]) -> RoleRun:
        """Price a role and walk its longest path back on the slowest row."""
        pricer = self.env.pricer
        rows = max((np.size(op.exists) for op in role.ops), default=1)
        rows = max([rows, *(np.size(size) for op in role.ops for size in (op.m, op.n, op.bytes, *op.output.shape))])
        kind = self.env.cluster.device_kinds[devices[0]]
        sites = Sites((devices,), np.zeros(rows, dtype=np.int64), kind)
        durations = [np.broadcast_to(pricer.seconds(op, sites), (rows,)) for op in role.ops]
        ends, chosen = _walk(role, durations)
        label = kind if len(self.env.cluster.kinds) > 1 else ""
        steps = []
        for op, duration in chosen:
            shape = None
            if op.group is not None:
                shape = pricer.op_shapes(op, op.group, sites).at(ends.row)
            source = source_of(pricer, op, ends.row, kind, shape)
            steps.append(Step(op.name, op.kind.value, duration, op_term(op, ends.row, label, shape), source))
        flops = sum(float(np.broadcast_to(op.flops, (rows,))[ends.row]) for op in role.ops)
        return RoleRun(role.name, devices, ends.seconds, tuple(steps), flops)


@dataclass(frozen=True, slots=True)
class _End:
    row: int
    seconds: float


def _walk(role: Role, durations: list[Array]) -> tuple[_End, list[tuple[Op, float]]]:
    """The slowest row, its seconds, and the operators of its longest path in order (absent ones left out)."""
    free: dict[str, int] = {}
    ready: dict[str, int] = {}
    finish: list[Array] = []
    before: list[list[int]] = []
    for at, op in enumerate(role.ops):
        sources = [free[op.stream]] if op.stream in free else []
        sources += [ready[name] for name in op.inputs if name in ready]
        start = np.max([finish[s] for s in sources], axis=0) if sources else np.zeros_like(durations[at])
        finish.append(start + durations[at])
        before.append(sources)
        free[op.stream] = ready[op.output.name] = at
    total = np.max([finish[at] for at in free.values()], axis=0)
    row = int(total.argmax())
    here = max(free.values(), key=lambda at: finish[at][row])
    path = [here]
    while before[here]:
        here = max(before[here], key=lambda s: (finish[s][row], s))
        path.append(here)
    steps = [(role.ops[at], float(durations[at][row])) for at in reversed(path) if durations[at][row] > 0]
    return _End(row, float(total[row])), steps
