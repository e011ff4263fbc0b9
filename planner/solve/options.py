"""The options of stages of one width and GPU kind, and which of them go together."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from planner.costs.pricer import Site
from planner.evaluate.tables import Block, FfnOption
from search_spaces.sizes import Sizes
from search_spaces.space import SearchSpace, StageOption, nested, token_split

Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]


@dataclass(frozen=True)
class Allowed:
    """Which options go together: partitions `rows` [A], and FFN options `pairs` [R, F] by the residual split `shard` [A]."""

    rows: Bools
    pairs: Bools
    shard: Ints

    def matrix(self) -> Bools:
        """Allowed pairs [A, F]."""
        return np.asarray(self.rows[:, None] & self.pairs[self.shard])

    def count(self) -> int:
        """Number of allowed pairs."""
        return int((self.rows * self.pairs.sum(axis=1)[self.shard]).sum())

    def narrowed(self, rows: Bools, columns: Bools) -> Allowed:
        """Those among some partitions [A] and FFN options [F]."""
        return Allowed(self.rows & rows, self.pairs & columns[None, :], self.shard)


@dataclass(frozen=True)
class OptionBlock:
    """Options of stages of one width and GPU kind: a block with the pairs of options that the space allows."""

    block: Block
    allowed: Allowed

    def option(self, index: int) -> StageOption:
        """The option at a flat index into [A, F]."""
        a, f = divmod(index, len(self.block.ffns))
        ffn = self.block.ffns[f]
        return StageOption(self.block.partitions[a], ffn.mlp_ways, ffn.experts)

    def fits(self, sizes: Sizes, sequences: int) -> Allowed:
        """Which of them a micro-batch of `sequences` can be split by (see `SearchSpace.fits_micro_batch`)."""
        ways = self.block.width
        parts = np.array([p.batch_parts for p in self.block.partitions], dtype=np.int64)
        residual = np.array(self.block.shards, dtype=np.int64)[:, None]
        spread = np.array([f.experts is not None and f.experts.form != "local" for f in self.block.ffns], dtype=bool)
        ffn = np.array([ways // f.mlp_ways for f in self.block.ffns], dtype=np.int64)
        shards = np.where(spread, ways, np.maximum(residual, ffn))
        pairs = self.allowed.pairs & (shards <= sequences * sizes.query_length)
        return Allowed(self.allowed.rows & (sequences % np.maximum(parts, 1) == 0), pairs, self.allowed.shard)


def option_block(
    space: SearchSpace, kind: str, places: tuple[Site, ...], sequences: tuple[int, ...], index: int | None
) -> OptionBlock:
    """The options of stages on `places` (one width, one kind)."""
    sizes, width = space.sizes, len(places[0])
    own = space.pinned(index)
    partitions = space.partitions(width, index)
    experts = tuple(own.experts.shared(sizes, width)) if sizes.moe else (None,)
    ffns = tuple(FfnOption(mlp, e) for mlp in own.mlp_choices(width) for e in experts)
    each = [token_split(sizes, p) for p in partitions]
    splits = tuple(dict.fromkeys(each))
    number = {split: i for i, split in enumerate(splits)}
    shard = np.array([number[split] for split in each], dtype=np.int64)
    pairs = np.array([[nested(split.shards, width // f.mlp_ways) for f in ffns] for split in splits], dtype=bool)
    block = Block(kind, places, sequences, partitions, ffns, splits)
    return OptionBlock(block, Allowed(np.ones(len(partitions), bool), pairs.reshape(len(splits), len(ffns)), shard))
