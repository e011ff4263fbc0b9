"""What a partition says that it repeats: on how many GPUs each weight stands, and how often each product is computed."""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import ceil

from planner.model import Attention, Ffn, Layer, ModelSpec
from planner.workload import Workload
from search_spaces.attention import AttentionPartition, kv_heads_of_groups
from search_spaces.experts import ExpertPlacement
from search_spaces.sizes import Sizes
from search_spaces.space import residual_shards
from search_spaces.stages import StageChoice

LATENT = ("q_a", "kv_a", "q_a_norm", "kv_a_norm", "index_q", "index_k", "index_w", "index_norm", "index_norm_bias")
NORMS = ("attention_norm", "attention_post_norm", "ffn_norm", "ffn_post_norm", "final_norm", "input_norm")


@dataclass(frozen=True)
class Declared:
    """Copies of weights and repetitions of work that one stage declares."""

    model: ModelSpec
    workload: Workload
    sizes: Sizes
    stage: StageChoice

    def at(self, row: int) -> Declared:
        """The same in a layer whose entry of a placement by layer is `row`."""
        return self if not self.placement.by_layer else replace(self, stage=self.stage.at(row))

    @property
    def near(self) -> int:
        """GPUs that compute attention."""
        return len(self.stage.attention_devices)

    @property
    def far(self) -> int:
        """GPUs that hold experts."""
        return len(self.stage.expert_devices)

    @property
    def placement(self) -> ExpertPlacement:
        """Where the experts are."""
        return self.stage.experts or ExpertPlacement()

    @property
    def repeats_tokens(self) -> int:
        """GPUs that project the same tokens with the same weights: the context parts in decode."""
        return self.stage.attention.context_parts if self.workload.phase == "decode" else 1

    def key_copies(self, spec: Attention) -> float:
        """Copies of each KV head, because head groups cut its queries apart."""
        heads = self.stage.attention.heads(spec.heads)
        return sum(kv_heads_of_groups(heads, spec.heads, spec.kv_heads)) / spec.kv_heads

    def attention_copies(self, spec: Attention, name: str) -> float:
        """How often the elements of an attention weight are stored in the stage."""
        p = self.stage.attention
        spread = float(p.batch_parts * p.context_parts)
        if name in ("q_norm", "k_norm"):
            return spread * p.head_groups
        if name in NORMS or name in LATENT or name.removesuffix("_bias") in NORMS:
            return float(self.near)
        if name in ("k", "v", "k_bias", "v_bias"):
            return spread * self.key_copies(spec)
        if name == "o":  # in decode the context parts share the rows of the output projection
            return spread / self.repeats_tokens
        if name == "o_bias":
            return spread / self.repeats_tokens if p.output_projection == "gather" else float(self.near)
        if name == "sinks":
            return spread * p.dimension_segments
        return spread

    def attention_work(self, spec: Attention, name: str) -> float:
        """How often a projection of attention is computed for each token."""
        p = self.stage.attention
        if name in LATENT:
            return float(self.repeats_tokens * p.head_groups * p.dimension_segments)
        if name in ("k", "v"):
            return self.repeats_tokens * self.key_copies(spec)
        if name == "kv_b" and self.workload.phase == "decode":  # absorbed: queries on every context part, outputs once
            return (self.repeats_tokens * spec.nope_dim + spec.v_head_dim) / (spec.nope_dim + spec.v_head_dim)
        return 1.0 if name == "o" else float(self.repeats_tokens)

    def cached_copies(self, spec: Attention) -> float:
        """How often the entries of a new token are cached; context parts share the tokens. Every head group keeps latent
        attention's entries, each segment all of the latent and its part of the rotated key.
        """
        p = self.stage.attention
        if spec.kind != "mla":
            return self.key_copies(spec)
        repeated = p.dimension_segments * spec.kv_lora_rank + spec.rope_dim
        return p.head_groups * repeated / spec.kv_elements_per_token

    def ffn_copies(self, ffn: Ffn, name: str) -> float:
        """How often the elements of an FFN weight are stored in the stage."""
        shared = name.startswith("shared_")
        if name.startswith("router"):
            return float(self.far if self.stage.separate and self.placement.router_side == "expert" else self.near)
        if name.startswith("expert_"):
            held = sum(len(groups) for groups in self.placement.groups(ffn.experts, self.far)) / ffn.experts
            return held * (self.placement.tensor_ways if name == "expert_down_bias" else 1)
        if shared:
            return float(self.near) if self.placement.form != "local" or name == "shared_router" else 1.0
        return float(self.near if name == "down_bias" else self.near // self.stage.mlp_ways)

    def ffn_work(self, name: str) -> float:
        """How often a product of the FFN is computed for each token (of a routed expert: for each token it gets)."""
        local = self.placement.form == "local"
        if name == "router":
            if self.stage.separate and self.placement.router_side == "expert":
                return float(self.far)
            return self.near / residual_shards(self.sizes, self.stage.attention) if local else 1.0
        return float(self.near) if name == "shared_router" and local else 1.0

    def outer_copies(self, name: str) -> float:
        """How often the elements of a tensor outside the layers are stored in the stage."""
        return 1.0 if name in ("embedding", "head", "head_bias") else float(self.near)


def kept_pairs(spec: Attention, workload: Workload) -> float:
    """(query, key) pairs of one sequence and head that the mask keeps."""
    q, keys, limit = workload.query_length, workload.kv_length, _reach(spec, workload)
    if workload.phase == "decode" or not spec.causal:
        return float(q * limit)
    if limit == spec.chunk and limit < keys:
        full, rest = divmod(q, limit)
        return full * limit * (limit + 1) / 2 + rest * (rest + 1) / 2
    return limit * (limit + 1) / 2 + (q - limit) * limit


def computed_pairs(spec: Attention, workload: Workload, partition: AttentionPartition) -> float:
    """(query, key) pairs of one sequence and head that the kernels of a partition compute, over all context parts.

    Segments compute the full square, because their scores exist before the mask. A fused kernel computes the causal
    triangle, whole chunks, or of a window the full band; a ring the triangle of each part and half of every other block. Parts
    of the keys are rounded up.
    """
    q, keys, limit, parts = workload.query_length, workload.kv_length, _reach(spec, workload), partition.context_parts
    if partition.dimension_segments > 1:
        return float(q * keys)
    if workload.phase == "decode":
        return float(parts * ceil(limit / parts))
    own, block = ceil(q / parts), ceil(limit / parts)
    if spec.causal and limit == keys:
        return parts * ((own * block + own) / 2.0 + (parts - 1) * own * ceil(block / 2))
    if spec.causal and limit == spec.chunk:
        return ceil(keys / limit) * limit * (limit + 1) / 2.0
    return float(parts * own * parts * block)


def _reach(spec: Attention, workload: Workload) -> int:
    """Keys that a query may see at most."""
    limits = (workload.kv_length, spec.window, spec.chunk, spec.indexer.top_k if spec.indexer else None)
    return min(x for x in limits if x is not None)


def layer_weights(layer: Layer, hidden: int) -> dict[str, tuple[int, str]]:
    """Elements and module of every tensor of a layer, by name."""
    return {weight.name: (weight.parameters, weight.module) for weight in layer.weights(hidden)}
