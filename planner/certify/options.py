"""The options of a stage as arrays: which partitions of attention go with which FFN options, and with which micro-batches."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from planner.evaluate.tables import FfnOption
from search_spaces.attention import AttentionPartition, TokenSplit
from search_spaces.experts import ExpertPlacement
from search_spaces.sizes import Sizes
from search_spaces.space import SearchSpace, token_split

Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]


@dataclass(frozen=True)
class Options:
    """Partitions [A] and FFN options [F] of stages of one width.

    `split` [A] is the index of each partition's token split in `splits`, `shards` [A] the parts of that split, `parts` [A] the
    batch parts; `least` [F] are the parts that an FFN option splits the tokens into. `pairs` [A, F] says what goes together.
    """

    partitions: tuple[AttentionPartition, ...]
    ffns: tuple[FfnOption, ...]
    splits: tuple[TokenSplit, ...]
    split: Ints
    shards: Ints
    parts: Ints
    least: Ints
    pairs: Bools

    def usable(self, sizes: Sizes, sequences: int) -> Bools:
        """The pairs [A, F] that a micro-batch of `sequences` can be split by: no part of it is empty."""
        whole, tokens = sequences % self.parts == 0, sequences * sizes.query_length
        return np.asarray(self.pairs & (whole & (self.shards <= tokens))[:, None] & (self.least <= tokens))


def stage_options(space: SearchSpace, ways: int, index: int | None) -> Options | None:
    """Those of a stage of `ways` GPUs that computes all of its layers (stage `index` where the space fixes the stages)."""
    own = space.pinned(index)
    experts = tuple(own.experts.shared(space.sizes, ways)) if space.sizes.moe else (None,)
    return _options(space, ways, index, experts, [ways if _dispatches(placement) else 1 for placement in experts])


def attention_options(space: SearchSpace, ways: int) -> Options | None:
    """Those of `ways` attention GPUs whose experts are apart: tokens leave for their experts from every GPU."""
    return _options(space, ways, 0, (None,), [ways])


def _dispatches(placement: ExpertPlacement | None) -> bool:
    return placement is not None and placement.form == "dispatch"


def _options(
    space: SearchSpace, ways: int, index: int | None, experts: tuple[ExpertPlacement | None, ...], spread: list[int]
) -> Options | None:
    """The options, None where there are none; `spread` are the parts that tokens are split into for the experts."""
    own = space.pinned(index)
    partitions, mlp = tuple(own.attention.partitions(space.sizes, ways)), tuple(own.mlp_choices(ways))
    every = [token_split(space.sizes, partition) for partition in partitions]
    number = {split: i for i, split in enumerate(dict.fromkeys(every))}
    shards, parts = np.array([s.shards for s in every], dtype=np.int64), np.array([p.batch_parts for p in partitions])
    tokens = np.array([ways // m for m in mlp], dtype=np.int64)  # parts of the micro-batch in a dense FFN
    nested = (shards[:, None] % tokens == 0) | (tokens % np.maximum(shards, 1)[:, None] == 0)
    some = np.nonzero(nested.any(axis=0))[0]
    if not some.size or not experts:
        return None
    ffns = tuple(FfnOption(mlp[m], placement) for m in some for placement in experts)
    least = np.maximum(np.repeat(tokens[some], len(experts)), np.tile(np.array(spread, dtype=np.int64), len(some)))
    pairs = np.repeat(nested[:, some], len(experts), axis=1)
    split = np.array([number[s] for s in every], dtype=np.int64)
    return Options(partitions, ffns, tuple(number), split, shards, parts.astype(np.int64), least, pairs)
