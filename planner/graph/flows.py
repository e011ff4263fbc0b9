"""Flows: to which GPUs the tokens of an all-to-all go where some experts get more than others."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Flow:
    """Chances that a token goes to each group of `tensor_ways` consecutive GPUs.

    `hits` [blocks, groups] has one row for all senders, or where `within` is not 0 one for every `within` consecutive senders.
    `own_bytes` are those of the tokens that one GPU has (0: not said).
    """

    hits: tuple[tuple[float, ...], ...]
    tensor_ways: int = 1
    within: int = 0
    own_bytes: float = 0.0

    def parts(self, domains: Sequence[int]) -> tuple[float, float]:
        """What leaves the scale-up domain of a GPU, or comes from another, and what stays inside, each of the GPU with most of
        it, in tokens for each token that a GPU has; `domains` are those of the GPUs in turn.

        All GPUs have as many tokens. One sends each to the groups that the token needs, and gets what others send.
        """
        return _parts(self.hits, self.tensor_ways, self.within, tuple(domains))


@lru_cache(maxsize=65536)
def _parts(
    chances: tuple[tuple[float, ...], ...], tensor_ways: int, within: int, domains: tuple[int, ...]
) -> tuple[float, float]:
    hits = np.repeat(np.array(chances), tensor_ways, axis=1)  # [blocks, GPUs]
    place, block = np.asarray(domains), np.arange(len(domains)) // (within or len(domains))
    senders, count = np.unique(np.stack([block, place], axis=1), axis=0, return_counts=True)
    sent = hits[senders[:, 0]]  # of one sender of each kind [kinds, GPUs]
    away = senders[:, 1, None] != place[None, :]
    left, kept = np.where(away, sent, 0.0), np.where(away, 0.0, sent)
    most = [max(float(x.sum(axis=1).max()), float((x * count[:, None]).sum(axis=0).max())) for x in (left, kept)]
    return most[0], most[1]


@dataclass(frozen=True, slots=True)
class Floor:
    """What the flows of any placement have at least.

    `kept` [experts + 1] are the parts of all pairs that so many experts get at most. A group holds `held` experts at most and
    may serve its neighbours first (0: it may not, and holds any number). A token goes to `spread` groups of `tensor_ways` GPUs
    or more.
    """

    kept: tuple[float, ...]
    held: int
    tensor_ways: int
    spread: float

    def parts(self, domains: Sequence[int]) -> tuple[float, float]:
        """As of a `Flow`, no more than those of any placement.

        With all copies in turn, some GPU sends its mean part out of its domain, and some keeps its mean part. With neighbours
        first, what leaves are the pairs of the experts that have no copy in the domain.
        """
        place, every = np.asarray(domains), self.tensor_ways * self.spread
        count = np.bincount(place)
        if not self.held:
            return every * (1.0 - float(count.max()) / place.size), every * float(count[count > 0].min()) / place.size
        group = np.arange(place.size) // self.tensor_ways
        near = np.bincount(np.unique(np.stack([place, group]), axis=1)[0])
        pairs = max(1.0 - self.kept[min(int(groups) * self.held, len(self.kept) - 1)] for groups in near[near > 0])
        return every * max(0.0, pairs), 0.0


@dataclass(frozen=True, slots=True)
class Flows:
    """The flow of every row: `of` [rows] says which of `kinds` (None where all GPUs send as much to all others), `own_bytes`
    [rows] are those of the tokens that the row's GPU has (an operator's; empty where there is none yet).
    """

    kinds: tuple[Flow | Floor | None, ...]
    of: Ints
    own_bytes: NDArray[np.float64] = field(default_factory=lambda: np.zeros(0))

    def at(self, row: int) -> Flow | None:
        """The flow of one row of a graph."""
        found = self.kinds[int(self.of[row])]
        if isinstance(found, Floor):
            raise TypeError("a bound is no graph")
        return None if found is None else replace(found, own_bytes=float(self.own_bytes[row]))
