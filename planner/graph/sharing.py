"""Who holds the same part of a weight, and whose gradients of it are parts of one sum."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

from planner.errors import InputError
from planner.model import Attention, Layer
from search_spaces.attention import AttentionPartition, kv_heads_of_groups
from search_spaces.stages import StageChoice

HALF_NORMS = ("attention_norm", "attention_post_norm", "ffn_norm", "ffn_post_norm", "final_norm")
"""Norms of the residual stream: a GPU norms the tokens that it holds."""
PER_HEAD = ("q_norm", "k_norm", "q_a", "q_a_norm", "kv_a", "kv_a_norm")
"""Weights held whole whose gradient comes from a GPU's own heads."""
KEYS = ("k", "v", "k_bias", "v_bias")
EXPERTS = ("expert_gate", "expert_up", "expert_down", "expert_gate_bias", "expert_up_bias", "expert_down_bias")
UNTRAINED = ("index_q", "index_k", "index_w", "index_norm")
"""The indexer of sparse attention: no gradient of the loss passes the choice of keys."""


@dataclass(frozen=True, slots=True)
class Sharing:
    """How the copies of a weight are found in a stage, by places in its grid.

    Places `apart` from each other hold the same part (`apart` the width of the stage: none in it does), as do the same
    places of all replicas: the mean gradient is the sum over these. Where `finish` > 1, so many neighbouring places have
    gradients of the same weight that are parts of one sum besides: of a weight held whole, each made them of its own heads or
    tokens; of keys and values that several head groups need, each of its own queries.
    """

    apart: int
    finish: int = 1

    def copies(self, width: int) -> int:
        """Places of the stage that hold the same part, `finish` apart."""
        return max(1, width // self.apart)


@lru_cache(maxsize=65536)
def sharing(stage: StageChoice, layer: Layer | None, name: str) -> Sharing:
    """How the copies of weight `name` of a layer (None: outside the layers) are found."""
    p, width = stage.attention, len(stage.attention_devices)
    tensor = p.head_groups * p.dimension_segments
    local = stage.experts is None or stage.experts.form == "local"
    if name in EXPERTS:
        return Sharing(width)
    if name in HALF_NORMS:
        own = p.sequence_parallel or (name == "ffn_norm" and layer is not None and layer.ffn.kind == "moe" and not local)
        return Sharing(tensor, tensor if own else 1)
    if name in PER_HEAD:
        return Sharing(tensor, tensor)
    if name in KEYS and layer is not None:
        return Sharing(tensor, key_sharers(p, layer.attention))
    if name == "shared_router":
        return Sharing(tensor, tensor)
    if name.startswith("router"):
        return Sharing(tensor, tensor if p.sequence_parallel or not local else 1)
    if name.startswith("shared_"):
        return Sharing(width if local else 1)
    if layer is not None and layer.ffn.kind == "dense" and name.removesuffix("_bias") in ("gate", "up", "down"):
        return Sharing(stage.mlp_ways)
    return Sharing(tensor)


@lru_cache(maxsize=4096)
def key_sharers(partition: AttentionPartition, spec: Attention) -> int:
    """Neighbouring head groups that need the same keys and values: all of them where groups overlap unevenly."""
    if spec.kind == "mla":
        return 1
    heads, tensor = partition.heads(spec.heads), partition.head_groups * partition.dimension_segments
    needed = kv_heads_of_groups(heads, spec.heads, spec.kv_heads)
    if sum(needed) == spec.kv_heads:
        return 1
    sharers, rest = divmod(tensor, spec.kv_heads)
    return sharers if sharers > 1 and not rest and len(set(heads)) == 1 and not spec.heads % tensor else tensor


def even_keys(partition: AttentionPartition, spec: Attention) -> bool:
    """Whether GPUs that need the same keys and values need all the same: then flat parts of their gradients fit together."""
    sharers = key_sharers(partition, spec)
    return sharers == 1 or sharers * spec.kv_heads == partition.head_groups * partition.dimension_segments


def trainable(stage: StageChoice, where: str) -> None:
    """Refuse a stage whose gradients have no exchange here; `where` names it."""
    p, experts = stage.attention, stage.experts
    if p.dimension_segments > 1:
        raise InputError(f"{where}.attention.dimension_segments", p.dimension_segments, "1: segments are not trained")
    if p.output_projection != "row":
        raise InputError(f"{where}.attention.output_projection", p.output_projection, "row, in training")
    if experts is not None and (experts.form == "separate" or experts.placement):
        raise InputError(f"{where}.experts", experts.form, "local or dispatch with every expert once, in order, in training")
