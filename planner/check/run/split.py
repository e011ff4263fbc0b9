"""Split: which heads, dims, columns and experts one GPU of a stage holds, as indices into the unsplit tensors."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from planner.check.run.world import StageTokens, World, cut
from planner.graph.devices import families
from planner.model import Attention, Layer
from search_spaces.attention import AttentionPartition
from search_spaces.experts import ExpertPlacement

Ints = NDArray[np.int64]


@dataclass(frozen=True)
class Split:
    """The part of place `place` of a stage in one layer (`layer` None: the ends of the model).

    `apart`: the place is one of the GPUs that hold experts alone.
    """

    world: World
    at: StageTokens
    place: int
    layer: Layer | None
    apart: bool = False

    @property
    def partition(self) -> AttentionPartition:
        """The attention grid of the stage."""
        return self.at.stage.attention

    @property
    def placement(self) -> ExpertPlacement:
        """Where the experts of the stage are."""
        return self.at.stage.experts or ExpertPlacement()

    @property
    def attention(self) -> Attention:
        """Attention of the layer."""
        if self.layer is None:
            raise ValueError("the ends of the model have no attention")
        return self.layer.attention

    @property
    def holders(self) -> int:
        """GPUs that hold the same tokens during attention."""
        p = self.partition
        return p.head_groups * p.dimension_segments * (p.context_parts if self.at.decode else 1)

    @property
    def context(self) -> int:
        """Context part of the GPU."""
        p = self.partition
        return self.place // (p.head_groups * p.dimension_segments) % p.context_parts

    @property
    def group(self) -> int:
        """Head group of the GPU."""
        p, inner = self.partition, self.place % (self.partition.head_groups * self.partition.dimension_segments)
        return inner % p.head_groups if p.order == "heads_inner" else inner // p.dimension_segments

    @property
    def segment(self) -> int:
        """Dimension segment of the GPU."""
        p, inner = self.partition, self.place % (self.partition.head_groups * self.partition.dimension_segments)
        return inner // p.head_groups if p.order == "heads_inner" else inner % p.dimension_segments

    @cached_property
    def heads(self) -> Ints:
        """Query heads of the GPU's group."""
        sizes = self.partition.heads(self.attention.heads)
        first = sum(sizes[: self.group])
        return np.arange(first, first + sizes[self.group])

    @cached_property
    def kv_heads(self) -> Ints:
        """KV heads that these query heads read."""
        per_kv = self.attention.heads // self.attention.kv_heads
        return np.unique(self.heads // per_kv)

    @cached_property
    def kv_of_head(self) -> Ints:
        """Place of the KV head of every query head among those the GPU holds."""
        per_kv = self.attention.heads // self.attention.kv_heads
        return np.searchsorted(self.kv_heads, self.heads // per_kv)

    @cached_property
    def own_heads(self) -> Ints:
        """Heads whose output the GPU finishes: in decode the context parts share those of the group."""
        if not self.at.decode:
            return self.heads
        return self.heads[cut(len(self.heads), self.partition.context_parts, self.context)]

    @cached_property
    def pairs(self) -> Ints:
        """Rotary pairs of the GPU's segment, as pair numbers; of latent attention those of its rotary part."""
        spec = self.attention
        if spec.kind == "mla":
            return cut(spec.rope_dim // 2, self.partition.dimension_segments, self.segment)
        own = cut(spec.head_dim // 2, self.partition.dimension_segments, self.segment)
        return own[own < spec.rotary_dim // 2] if spec.rope != "none" else own[:0]

    @cached_property
    def qk(self) -> Ints:
        """Dims of a query or key, those of the first halves of rotary pairs before those of the second (`half`)."""
        spec = self.attention
        if spec.kind == "mla":
            return np.concatenate([self.nope, spec.nope_dim + self.rope])
        if self.partition.dimension_segments == 1:
            return np.arange(spec.head_dim)
        own = cut(spec.head_dim // 2, self.partition.dimension_segments, self.segment)
        rest = own[len(self.pairs) :]
        return np.concatenate(
            [_pair_dims(self.pairs, spec.rotary_dim, spec.rope), np.stack([2 * rest, 2 * rest + 1], 1).ravel()]
        )

    @cached_property
    def nope(self) -> Ints:
        """Dims without rotation of latent attention."""
        spec, parts = self.attention, self.partition.dimension_segments
        if parts == 1:
            return np.arange(spec.nope_dim)
        own = cut(spec.nope_dim // 2, parts, self.segment)
        return np.stack([2 * own, 2 * own + 1], 1).ravel()

    @cached_property
    def rope(self) -> Ints:
        """Rotated dims of latent attention, counted from the first rotated one."""
        spec = self.attention
        return (
            np.arange(spec.rope_dim)
            if self.partition.dimension_segments == 1
            else _pair_dims(self.pairs, spec.rope_dim, spec.rope)
        )

    @cached_property
    def v(self) -> Ints:
        """Dims of a value."""
        return cut(self.attention.v_head_dim, self.partition.dimension_segments, self.segment)

    @cached_property
    def experts(self) -> Ints:
        """Experts that the GPU holds (a part of)."""
        return np.array([e for e, groups in enumerate(self.expert_groups) if self.expert_group in groups], dtype=np.int64)

    @cached_property
    def expert_groups(self) -> tuple[tuple[int, ...], ...]:
        """The groups of GPUs that hold each expert."""
        if self.layer is None:
            return ()
        return self.placement.groups(self.layer.ffn.experts, len(self.at.stage.expert_devices))

    @property
    def expert_group(self) -> int:
        """The group of GPUs that share the GPU's experts."""
        return self.place // self.placement.tensor_ways

    @property
    def expert_column(self) -> int:
        """The GPU's place in that group."""
        return self.place % self.placement.tensor_ways

    def index(self, axis: str) -> Ints:
        """The GPU's part of an axis of an unsplit tensor (see `AXES` of the weights)."""
        return _AXES[axis](self)

    def member(self, place: int) -> Split:
        """The same for another place of the stage."""
        return Split(self.world, self.at, place, self.layer, self.apart)

    def holding_places(self) -> tuple[int, ...]:
        """Places that hold the same tokens during attention, in order."""
        return next(f for f in families(tuple(range(self.at.ways)), 1, self.holders) if self.place in f)


def _pair_dims(pairs: Ints, rotary_dim: int, style: str) -> Ints:
    if style == "half":
        return np.concatenate([pairs, pairs + rotary_dim // 2])
    return np.stack([2 * pairs, 2 * pairs + 1], 1).ravel()


def _columns(heads: Ints, dims: Ints, width: int) -> Ints:
    """Columns of some dims of some heads, head by head."""
    return (heads[:, None] * width + dims[None, :]).ravel()


def _latent_columns(split: Split) -> Ints:
    """Columns of the latent up-projection: unrotated key dims and value dims of every head."""
    spec = split.attention
    dims = np.concatenate([split.nope, spec.nope_dim + split.v])
    return _columns(split.heads, dims, spec.nope_dim + spec.v_head_dim)


def _output_rows(split: Split) -> Ints:
    """Rows of the output projection in the order in which the attention output comes."""
    dims = split.attention.v_head_dim
    if split.partition.output_projection == "gather" and split.holders > 1:
        members = [split.member(place) for place in split.holding_places()]
        return np.concatenate([_columns(m.own_heads, m.v, dims) for m in members])
    return _columns(split.own_heads, split.v, dims)


def _output_columns(split: Split) -> Ints:
    hidden = split.world.twin.model.hidden
    if split.partition.output_projection == "gather" and split.holders > 1:
        return cut(hidden, split.holders, split.place % split.holders)
    return np.arange(hidden)


def _network_columns(split: Split) -> Ints:
    ways = split.at.stage.mlp_ways
    return cut(split.layer.ffn.hidden if split.layer else 0, ways, split.place % ways)


def _shared_columns(split: Split) -> Ints:
    width = split.layer.ffn.shared_hidden if split.layer else 0
    return cut(width, split.at.ways, split.place) if split.placement.form == "local" else np.arange(width)


def _expert_columns(split: Split) -> Ints:
    return cut(split.layer.ffn.hidden if split.layer else 0, split.placement.tensor_ways, split.expert_column)


_AXES: dict[str, Callable[[Split], Ints]] = {
    "q": lambda s: _columns(s.heads, s.qk, s.attention.head_dim),
    "k": lambda s: _columns(s.kv_heads, s.qk, s.attention.head_dim),
    "v": lambda s: _columns(s.kv_heads, s.v, s.attention.v_head_dim),
    "qk": lambda s: s.qk,
    "heads": lambda s: s.heads,
    "latent": _latent_columns,
    "attended": lambda s: _columns(s.heads, s.v, s.attention.v_head_dim),
    "finished": lambda s: _columns(s.own_heads, s.v, s.attention.v_head_dim),
    "output_rows": _output_rows,
    "output_columns": _output_columns,
    "ffn": _network_columns,
    "shared": _shared_columns,
    "experts": lambda s: s.experts,
    "expert": _expert_columns,
    "vocab": lambda s: cut(s.world.twin.model.vocab, s.at.vocab_ways, s.place % s.at.vocab_ways),
}
