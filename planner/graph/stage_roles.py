"""The roles of one stage of a plan with one row per GPU: the exact share of each."""

from __future__ import annotations

from dataclasses import replace
from functools import cached_property, lru_cache

import numpy as np

from planner.graph.attention import attention_role
from planner.graph.context import RoleContext
from planner.graph.devices import attention_device_rows, ffn_device_rows, signature_of
from planner.graph.experts import Load, layer_loads, layer_rows, moe_device_rows
from planner.graph.head import embedding_role, head_role, receive_role
from planner.graph.mlp import mlp_role
from planner.graph.moe import dispatch_role, expert_role, local_role, return_role, returned_tokens, route_role, transfer_bytes
from planner.graph.nodes import Piece
from planner.graph.ops import Role
from planner.graph.rows import FfnRows, MoeRows
from planner.graph.templates import piece_at
from planner.model import Layer
from search_spaces.experts import ExpertPlacement
from search_spaces.sizes import Sizes
from search_spaces.space import residual_shards
from search_spaces.stages import Choice


class StageRoles:
    """Roles of stage `index` of a choice for one micro-batch; layers are named by their index in the model."""

    def __init__(self, ctx: RoleContext, sizes: Sizes, choice: Choice, index: int) -> None:
        self.ctx, self.stage = ctx, choice.stages[index]
        self.first, self.last = index == 0, index == len(choice.stages) - 1
        start = sum(stage.layers for stage in choice.stages[:index])
        self.layers = range(start, start + self.stage.layers)
        self.sequences = sizes.batch // choice.replicas // choice.micro_batches
        self.tokens = self.sequences * ctx.workload.query_length
        self.shards = residual_shards(sizes, self.stage.attention)
        self.placement = self.stage.experts or ExpertPlacement()
        self.attention_router = self.placement.router_side == "attention"
        self._loads = tuple(zip(layer_loads(ctx.model, ctx.workload), layer_rows(ctx.model, ctx.workload), strict=True))
        self._build = lru_cache(maxsize=None)(self._layer_role)

    @cached_property
    def _rows(self) -> FfnRows:
        return ffn_device_rows(self.stage, self.tokens, self.shards)

    def entry(self) -> Role | None:
        """How a micro-batch comes in: the embedding on the first stage (None without one), else the receipt."""
        if not self.first:
            return receive_role(self.ctx, self._rows)
        return embedding_role(self.ctx, self._rows) if self.ctx.model.vocab else None

    def head(self) -> Role | None:
        """The residual stream to logits; None where no logits are wanted. A tied head on the first stage owns no weight."""
        if not self.last or not self.ctx.model.vocab or self.ctx.workload.logits == "none":
            return None
        role = head_role(self.ctx, self._rows, np.full(self._rows.ways.shape, self.sequences, dtype=np.int64))
        if not (self.first and self.ctx.model.tied_embeddings):
            return role
        own = [replace(op, weights=op.weights[1:]) if op.name == "lm_head" else op for op in role.ops]
        return replace(role, ops=tuple(own))

    def moe(self, index: int) -> bool:
        """Whether a layer is a mixture of experts."""
        return self.ctx.model.layers[index].ffn.kind == "moe"

    def role(self, name: str, index: int) -> Role:
        """Role `name` (attention, ffn, route, experts, finish) of one layer."""
        return self._build(name, self.ctx.model.layers[index], *self._loads[index])

    def transfer(self, index: int) -> tuple[tuple[float, float], tuple[float, float]]:
        """Bytes (sent by the fullest attention GPU, received by the fullest expert GPU) of dispatch, then of combine."""
        rows = self._moe_rows(self.ctx.model.layers[index], *self._loads[index], True)
        near = self._moe_rows(self.ctx.model.layers[index], *self._loads[index], False)
        found = []
        for router in (self.attention_router, True):
            sent, received = transfer_bytes(self.ctx, near, router)[0], transfer_bytes(self.ctx, rows, router)[1]
            found.append((float(np.max(sent)), float(np.max(received))))
        return found[0], found[1]

    def returned(self, index: int) -> list[Piece]:
        """The tokens that come back to each attention GPU from the experts of a layer."""
        rows = self._moe_rows(self.ctx.model.layers[index], *self._loads[index], False)
        tensor = returned_tokens(self.ctx, rows)
        return [piece_at(tensor, place) for place in range(len(self.stage.attention_devices))]

    def _layer_role(self, name: str, layer: Layer, load: Load, row: int) -> Role:
        if name == "attention":
            decode = self.ctx.workload.phase == "decode"
            rows = attention_device_rows(self.stage, layer.attention, self.sequences, decode)
            return attention_role(self.ctx, layer, signature_of(self.stage.attention, self.ctx.workload.phase), rows)
        if layer.ffn.kind == "dense":
            return mlp_role(self.ctx, layer, self._rows)
        moe = self._moe_rows(layer, load, row, name == "experts")
        if name == "route":
            return route_role(self.ctx, layer, moe, self.attention_router)
        if name == "experts":
            return expert_role(self.ctx, layer, moe, self.attention_router)
        if name == "finish":
            return return_role(self.ctx, layer, moe)
        return (dispatch_role if self.placement.form == "dispatch" else local_role)(self.ctx, layer, moe)

    def _moe_rows(self, layer: Layer, load: Load, row: int, experts_apart: bool) -> MoeRows:
        return moe_device_rows(self.stage.at(row), layer.ffn, load, self.tokens, self.shards, experts_apart)
