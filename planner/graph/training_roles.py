"""The roles of one stage of a training plan with one row per GPU, forward and backward, and the weights that they train."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache

import numpy as np

from planner.errors import InputError
from planner.graph.backward import Backward
from planner.graph.chunks import chunk_layers
from planner.graph.context import RoleContext
from planner.graph.devices import attention_device_rows, ffn_device_rows, signature_of
from planner.graph.experts import Load, layer_loads, moe_device_rows
from planner.graph.layouts import shard_tokens
from planner.graph.ops import Op, Role, Shard, Tensor
from planner.graph.rows import FfnRows
from planner.graph.sharing import UNTRAINED, Sharing, even_keys, sharing, trainable
from planner.graph.trained import (
    Trained,
    trained_attention,
    trained_embedding,
    trained_head,
    trained_leave,
    trained_mlp,
    trained_moe,
    trained_receive,
)
from planner.model import Layer
from search_spaces.experts import ExpertPlacement
from search_spaces.sizes import Sizes
from search_spaces.space import residual_shards
from search_spaces.stages import Choice
from search_spaces.training import TrainingChoice

TIED = "embedding.weight_grad"


@dataclass(frozen=True, slots=True)
class Unit:
    """What weights are exchanged by: the roles of one layer, or one end of the model (layer None)."""

    layer: int | None
    roles: tuple[Trained, ...]


@dataclass(frozen=True, slots=True)
class Held:
    """A weight of a unit that is trained: the operator that its gradient is named after, and how its copies are found."""

    op: Op
    shard: Shard
    sharing: Sharing


class TrainingRoles:
    """Roles of stage `index` of a training choice for one micro-batch; layers are named by their index in the model."""

    def __init__(self, ctx: RoleContext, sizes: Sizes, choice: Choice, index: int) -> None:
        self.ctx, self.choice, self.index, self.stage = ctx, choice, index, choice.stages[index]
        trainable(self.stage, f"stages[{index}]")
        self.training = choice.training or TrainingChoice()
        self.first, self.last = index == 0, index == len(choice.stages) - 1
        self.chunks = chunk_layers([s.layers for s in choice.stages], self.training.virtual_stages)[index]
        self.sequences = sizes.batch // choice.replicas // choice.micro_batches
        self.tokens = self.sequences * ctx.workload.query_length
        self.shards = residual_shards(sizes, self.stage.attention)
        self.width = len(self.stage.attention_devices)
        self.tensor = self.stage.attention.head_groups
        self._loads = layer_loads(ctx.model, ctx.workload)
        self._layer = lru_cache(maxsize=None)(self._layer_roles)

    @cached_property
    def _rows(self) -> FfnRows:
        return ffn_device_rows(self.stage, self.tokens, self.shards)

    @cached_property
    def _vocab_rows(self) -> FfnRows:
        """The vocabulary is split over the GPUs that share the heads of the same tokens, once for each part of these."""
        parts = self.width // self.tensor
        numbers = (-(-self.tokens // parts), self.tensor, max(1, self.shards // parts), self.tensor)
        columns = [np.full(self.width, number, dtype=np.int64) for number in numbers]
        return FfnRows(columns[0], columns[1], columns[2], columns[3], np.arange(self.width) % self.tensor)

    @property
    def tied_here(self) -> bool:
        """Whether embedding and head are one weight on these GPUs."""
        return self.first and self.last and self.ctx.model.tied_embeddings

    def units(self, chunk: int, kept: frozenset[int], ends: bool) -> list[Unit]:
        """The units of a chunk in forward order; of its layers those `kept`."""
        found = [Unit(layer, self.layer(layer)) for layer in self.chunks[chunk] if layer in kept]
        if not ends:
            return found
        entry = self._entry if chunk == 0 and self.first else self._receive
        leave = self._head if self.last and chunk == len(self.chunks) - 1 else self._leave
        return [*_alone(entry), *found, *_alone(leave)]

    def slices(self, name: str) -> Tensor:
        """What arrives at each GPU of a micro-batch (x), or of its gradient (dy): an equal slice of its tokens."""
        own = shard_tokens(self._rows.tokens, self._rows.ways, self._rows.ways, self._rows.index)
        return self.ctx.tensor(name, own, self.ctx.model.hidden)

    def layer(self, index: int) -> tuple[Trained, ...]:
        """Attention and FFN of one layer."""
        return self._layer(self.ctx.model.layers[index], self._loads[index])

    def held(self, unit: Unit) -> Iterator[Held]:
        """The weights of a unit that this stage owns and trains. A head that is one weight with the embedding goes with it: the
        embedding's gradients come last.
        """
        layer = None if unit.layer is None else self.ctx.model.layers[unit.layer]
        tied = self._head if self.tied_here and unit.roles == (self._entry,) else None
        for trained in (*unit.roles, *([] if tied is None else [tied])):
            for op in trained.forward.ops:
                if self.tied_here and (op.name == "lm_head") != (trained is tied) and trained in (tied, self._head):
                    continue
                for shard in op.weights:
                    if shard.name not in UNTRAINED:
                        yield Held(op, shard, sharing(self.stage, layer, shard.name))

    @cached_property
    def _receive(self) -> Trained | None:
        alone = len(self.choice.stages) == 1  # the next chunk is on the same GPUs: nothing travels
        return None if alone else trained_receive(self.ctx, self._rows)

    @cached_property
    def _leave(self) -> Trained | None:
        return None if len(self.choice.stages) == 1 else trained_leave(self.ctx, self._rows)

    @cached_property
    def _entry(self) -> Trained | None:
        if not self.ctx.model.vocab:
            return None
        found = trained_embedding(self.ctx, self._vocab_rows)
        return found if not self.tied_here else replace(found, backward=_into(found.backward, "embedding", TIED))

    @cached_property
    def _head(self) -> Trained | None:
        if not self.ctx.model.vocab or self.ctx.workload.logits == "none":
            return None
        found = trained_head(self.ctx, self._vocab_rows)
        if not self.tied_here:
            return found
        forward = replace(found.forward, ops=_without_weight(found.forward.ops, "lm_head"))
        inputs = replace(found.backward.inputs, ops=_without_weight(found.backward.inputs.ops, "lm_head_dgrad"))
        return Trained(forward, _into(replace(found.backward, inputs=inputs), "lm_head", TIED))

    def _layer_roles(self, layer: Layer, load: Load) -> tuple[Trained, ...]:
        if layer.parallel_residual:
            raise InputError("model.parallel_residual", True, "false: training of parallel residuals is not planned yet")
        if self.training.zero and not even_keys(self.stage.attention, layer.attention):
            allowed = "0 where head groups share some of their keys and values, but not all: flat shards of these do not add up"
            raise InputError("training.zero", self.training.zero, allowed)
        rows = attention_device_rows(self.stage, layer.attention, self.sequences, False)
        attention = trained_attention(self.ctx, layer, signature_of(self.stage.attention, "prefill"), rows)
        if layer.ffn.kind == "dense":
            return attention, trained_mlp(self.ctx, layer, self._rows)
        moe = moe_device_rows(self.stage, layer.ffn, load, self.tokens, self.shards)
        dispatched = (self.stage.experts or ExpertPlacement()).form == "dispatch"
        return attention, trained_moe(self.ctx, layer, moe, dispatched)


def _alone(trained: Trained | None) -> list[Unit]:
    return [] if trained is None else [Unit(None, (trained,))]


def _without_weight(ops: Sequence[Op], name: str) -> tuple[Op, ...]:
    """Operators of which one multiplies with a weight that another owns; its bias stays."""
    return tuple(
        replace(op, weights=tuple(w for w in op.weights if w.name.endswith("_bias"))) if op.name == name else op for op in ops
    )


def _into(backward: Backward, op: str, gradient: str) -> Backward:
    """A backward pass whose weight gradient of an operator is added to another's."""
    own = f"{op}.weight_grad"
    ops = []
    for one in backward.weights.ops:
        if one.grad_of == op:
            inputs = tuple(gradient if name == own else name for name in one.inputs)
            shape = one.output.shape if op == "embedding" else tuple(reversed(one.output.shape))
            one = replace(one, inputs=inputs, output=replace(one.output, name=gradient, shape=shape))
        ops.append(one)
    return Backward(backward.inputs, replace(backward.weights, ops=tuple(ops)), backward.saved)


def again(role: Role) -> Role:
    """A forward role that is computed once more."""
    return replace(role, name=f"{role.name}_again")
