"""AttentionPartition: how the GPUs of a stage share attention, and which partitions a stage of a given width may use."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple, overload

from search_spaces.sizes import LARGE_CLUSTER, Sizes, divisors, share

Order = Literal["segments_inner", "heads_inner", "context_inner", "batch_inner"]
Softmax = Literal["replicated", "scattered"]
Projection = Literal["row", "gather"]

ORDERS: tuple[Order, ...] = ("segments_inner", "heads_inner", "context_inner", "batch_inner")
SOFTMAXES: tuple[Softmax, ...] = ("replicated", "scattered")
PROJECTIONS: tuple[Projection, ...] = ("row", "gather")


class TokenSplit(NamedTuple):
    """How tokens lie over the ranks of a stage: in `shards` parts, each held by neighbours in the grid.

    Neighbours in the grid are neighbouring ranks, unless `inner` > 1: then each run of `inner` ranks holds what in the grid
    is `block` places apart.
    """

    shards: int
    inner: int = 1
    block: int = 1

    @overload
    def laid(self, ranks: tuple[int, ...]) -> tuple[int, ...]: ...
    @overload
    def laid(self, ranks: tuple[int, ...] | range) -> tuple[int, ...] | range: ...
    def laid(self, ranks: tuple[int, ...] | range) -> tuple[int, ...] | range:
        """The ranks of a stage in the order of its grid. The first and the last one keep their places."""
        if self.inner == 1:
            return ranks
        size = self.inner * self.block
        outer = range(0, len(ranks), size)
        return tuple(x for at in outer for a in range(self.inner) for x in ranks[at + a : at + size : self.inner])


@dataclass(frozen=True, slots=True)
class AttentionPartition:
    """A grid of batch_parts x context_parts x head_groups x dimension_segments GPUs.

    Place ((a * context_parts + c) * head_groups + i) * dimension_segments + j of the grid holds head group i and segment j
    for batch part a and context part c; with `order` heads_inner, i and j change places. Places are ranks in their order,
    unless `order` names an axis that splits tokens: context_inner and batch_inner give the parts of that axis to
    neighbouring ranks and let the other axes stand apart, for the whole stage (its FFN's token parts follow).
    `heads_per_group` empty means as even as can be, larger groups first. `score_reduce` false leaves the partial
    scores of the segments unsummed: it can be written and priced, but it does not compute attention.
    `sequence_parallel` keeps the residual stream split by tokens over all GPUs of the stage.
    """

    head_groups: int = 1
    dimension_segments: int = 1
    batch_parts: int = 1
    context_parts: int = 1
    heads_per_group: tuple[int, ...] = ()
    order: Order = "segments_inner"
    score_reduce: bool = True
    softmax: Softmax = "replicated"
    output_projection: Projection = "row"
    sequence_parallel: bool = False

    @property
    def ways(self) -> int:
        """GPUs in the grid."""
        return self.head_groups * self.dimension_segments * self.batch_parts * self.context_parts

    def heads(self, total: int) -> tuple[int, ...]:
        """Heads of each group."""
        return self.heads_per_group or tuple(share(total, self.head_groups, i) for i in range(self.head_groups))

    def laid(self, ranks: tuple[int, ...]) -> tuple[int, ...]:
        """The ranks of a stage in the order of its grid."""
        return TokenSplit(1, *self.spread).laid(ranks)

    def changed_by(self, order: Order) -> bool:
        """Whether an order lays this grid out otherwise than the first of them."""
        if order in ORDERS[2:]:
            return replace(self, order=order).spread != (1, 1)
        return order != ORDERS[0] and self.head_groups > 1 and self.dimension_segments > 1

    @property
    def spread(self) -> tuple[int, int]:
        """(`inner`, `block`) of the stage's token split: which axis lies on neighbouring ranks, (1, 1) where none does."""
        tensor = self.head_groups * self.dimension_segments
        if self.order == "batch_inner":
            return _spread(self.batch_parts, self.context_parts * tensor)
        return _spread(self.context_parts, tensor) if self.order == "context_inner" else (1, 1)


def _spread(parts: int, block: int) -> tuple[int, int]:
    return (parts, block) if parts > 1 and block > 1 else (1, 1)


def kv_heads_of_groups(heads_per_group: tuple[int, ...], heads: int, kv_heads: int) -> tuple[int, ...]:
    """KV heads that each head group needs: those whose query heads it holds any of (a cut KV group is copied)."""
    per_kv, first, found = heads // kv_heads, 0, []
    for count in heads_per_group:
        found.append((first + count - 1) // per_kv - first // per_kv + 1)
        first += count
    return tuple(found)


@dataclass(frozen=True, slots=True)
class AttentionDomain:
    """The values that stay open for each field of an attention partition; None means every legal value.

    There are too many ways to split heads to list: None means the even split and the one that leaves KV groups whole, the
    empty tuple the even one.
    """

    head_groups: tuple[int, ...] | None = None
    dimension_segments: tuple[int, ...] | None = None
    batch_parts: tuple[int, ...] | None = None
    context_parts: tuple[int, ...] | None = None
    heads_per_group: tuple[tuple[int, ...], ...] | None = None
    order: tuple[Order, ...] | None = None
    score_reduce: tuple[bool, ...] = (True,)
    softmax: tuple[Softmax, ...] | None = None
    output_projection: tuple[Projection, ...] | None = None
    sequence_parallel: tuple[bool, ...] | None = None

    def partitions(self, sizes: Sizes, ways: int) -> Iterator[AttentionPartition]:
        """Every canonical partition of a stage of `ways` GPUs, in a fixed order.

        Canonical: a field that changes nothing (the order of a grid with one row, say) has its default value. When
        such a field is pinned to another value, the pin is taken to be met.
        """
        for batch_parts, context_parts, groups, segments in self._grids(sizes, ways):
            tensor = groups * segments
            splits = _splits(self.heads_per_group, sizes, groups)
            orders = self._orders(sizes, ways, AttentionPartition(groups, segments, batch_parts, context_parts))
            reduces = self.score_reduce if segments > 1 else (True,)
            projections = _open(self.output_projection, PROJECTIONS, tensor > 1)
            sequence = _open(self.sequence_parallel, (False, True), _tokens_ways(sizes, context_parts, tensor) > 1)
            for split in splits:
                for order in orders:
                    for reduce in reduces:
                        for softmax in _open(self.softmax, SOFTMAXES, segments > 1 and reduce):
                            for projection in projections:
                                for parallel in sequence:
                                    yield AttentionPartition(
                                        groups, segments, batch_parts, context_parts, split, order, reduce, softmax,
                                        projection, parallel,
                                    )  # fmt: skip

    def _orders(self, sizes: Sizes, ways: int, grid: AttentionPartition) -> tuple[Order, ...]:
        """The orders that lay a grid out differently, each once; one that changes nothing stands for the first.

        Where all are open, a token axis comes to neighbouring ranks only where that may matter (`tiers_matter`).
        """
        some = ORDERS if self.order is not None or tiers_matter(sizes, ways) else ORDERS[:2]
        named = (order for order in some if self.order is None or order in self.order)
        return tuple(dict.fromkeys(order if grid.changed_by(order) else ORDERS[0] for order in named))

    def _grids(self, sizes: Sizes, ways: int) -> Iterator[tuple[int, int, int, int]]:
        for batch_parts in divisors(ways):
            for context_parts in divisors(ways // batch_parts):
                rest = ways // batch_parts // context_parts
                for groups in divisors(rest):
                    grid = (batch_parts, context_parts, groups, rest // groups)
                    if self._allows(*grid) and legal_grid(sizes, *grid):
                        yield grid

    def _allows(self, batch_parts: int, context_parts: int, groups: int, segments: int) -> bool:
        pairs = (
            (self.batch_parts, batch_parts),
            (self.context_parts, context_parts),
            (self.head_groups, groups),
            (self.dimension_segments, segments),
        )
        return all(allowed is None or value in allowed for allowed, value in pairs)


def tiers_matter(sizes: Sizes, ways: int) -> bool:
    """Whether a stage of `ways` GPUs has more than one tier inside, and a cluster small enough to look at all orders.

    Inside one domain every order costs the same: all its GPUs reach each other alike.
    """
    return sizes.devices <= LARGE_CLUSTER and ways > sizes.least_domain


def legal_grid(sizes: Sizes, batch_parts: int, context_parts: int, groups: int, segments: int) -> bool:
    """Whether a grid can hold the model: a head in every group, a RoPE pair in every segment, equal token parts.

    Context parts and segments exclude each other; absorbed latent attention (decode) has no segments.
    """
    if groups > sizes.heads or segments > max(1, min(sizes.head_dim // 2, sizes.v_head_dim)):
        return False
    if segments > 1 and (context_parts > 1 or (sizes.latent and sizes.phase == "decode")):
        return False
    if sizes.batch % batch_parts:
        return False
    if sizes.phase == "prefill":
        return sizes.query_length % context_parts == 0 and (context_parts == 1 or sizes.context_prefill)
    return context_parts <= sizes.kv_length and context_parts * groups <= sizes.heads


def _tokens_ways(sizes: Sizes, context_parts: int, tensor: int) -> int:
    """GPUs that hold the same tokens: in decode the context parts do, too."""
    return tensor * context_parts if sizes.phase == "decode" else tensor


def kv_aligned_heads(heads: int, kv_heads: int, groups: int) -> tuple[int, ...]:
    """Heads of each group, KV groups whole: as many KV heads for each as can be, or, with more groups than KV heads, groups
    that each read one. Of all splits it has the fewest KV heads in a group, where the even one has the fewest heads.
    """
    each = heads // kv_heads
    if groups <= kv_heads:
        return tuple(share(kv_heads, groups, i) * each for i in range(groups))
    parts = (share(groups, kv_heads, kv) for kv in range(kv_heads))
    return tuple(share(each, count, i) for count in parts for i in range(count))


def _splits(splits: tuple[tuple[int, ...], ...] | None, sizes: Sizes, groups: int) -> list[tuple[int, ...]]:
    """The splits of all heads into `groups` groups, the even one as the empty tuple, each once.

    Where every split is open: the even one, and the one that leaves KV groups whole.
    """
    even = AttentionPartition(groups).heads(sizes.heads)
    named = ((), kv_aligned_heads(sizes.heads, sizes.kv_heads, groups)) if splits is None else splits
    fitting = (s for s in named if not s or (len(s) == groups and sum(s) == sizes.heads and min(s) > 0))
    return list(dict.fromkeys(() if s == even else s for s in fitting))


def _open(allowed: tuple[object, ...] | None, values: tuple[object, ...], matters: bool) -> tuple:  # type: ignore[type-arg]
    """The values a field may take: the allowed ones, or its default alone where the field changes nothing."""
    if not matters:
        return values[:1]
    return values if allowed is None else tuple(v for v in values if v in allowed)


def token_split(sizes: Sizes, partition: AttentionPartition) -> TokenSplit:
    """How the residual stream's tokens lie over the ranks of a stage."""
    return TokenSplit(residual_shards(sizes, partition), *partition.spread)


def residual_shards(sizes: Sizes, partition: AttentionPartition) -> int:
    """Parts that the residual stream's tokens are split into over the GPUs of a stage."""
    if partition.sequence_parallel:
        return partition.ways
    return partition.batch_parts * (partition.context_parts if sizes.phase == "prefill" else 1)


def nested(first: int, second: int) -> bool:
    """Whether one number of token shards divides the other."""
    return first % second == 0 or second % first == 0
