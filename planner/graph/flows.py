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

    `kept` [experts + 1] are the parts of all pairs that so many experts get at most; a token has `top_k` pairs. Beside one of
    each expert there are `spare` copies at most, which serve `within` GPUs around them first (0: there may be any number, and
    they take turns). Groups have `tensor_ways` GPUs. The busiest GPU sends or gets `busiest` tokens for each that a GPU has.
    """

    kept: tuple[float, ...]
    top_k: int
    spare: int
    within: int
    tensor_ways: int
    busiest: float

    def parts(self, domains: Sequence[int]) -> tuple[float, float]:
        """As of a `Flow`, no more than those of any placement: the GPU with most has the mean of all GPUs or more.

        With all copies in turn, a GPU's mean part leaves its domain. With neighbours first, a copy keeps no more inside than
        its expert's pairs of the domain with most GPUs, once for each domain with a copy. What is left, X of all pairs, goes to
        G groups: one gets X / G or more, which is fewest tokens where few senders have it; and the fewer groups, the more each.
        """
        place = np.asarray(domains)
        count = np.unique(place, return_counts=True)[1] / place.size
        largest = float(count.max())
        if not self.within:
            return self.busiest * (1.0 - largest), self.busiest * float(count.min())
        others, times = count.size - 1, self._times(place)
        inside = largest * (1.0 + others * self._kept(self.spare / others)) if others else 1.0
        each = max(0.0, 1.0 - inside) * self.tensor_ways / place.size
        return place.size * float(chance(np.array(each * times), self.top_k)) / times, 0.0

    def _kept(self, experts: float) -> float:
        """The largest part of the pairs that so many experts get, between whole ones along a line."""
        return float(np.interp(experts, np.arange(len(self.kept)), self.kept))

    def _times(self, place: Ints) -> float:
        """How many times larger than its part of all pairs a group's part of those of a few senders may be: GPUs of one block
        in one domain are served alike, and so no fewer have it than are in the smallest such part.
        """
        blocks = np.arange(place.size) // self.within
        count = np.unique(np.stack([blocks, place]), axis=1, return_counts=True)[1]
        return place.size / float(count.min())


def smallest_block(ways: Ints, within: Ints) -> Ints:
    """GPUs in the smallest of the blocks of `within` consecutive ones (`within` > 0 where it counts)."""
    rest = ways % np.maximum(within, 1)
    return np.asarray(np.where(rest > 0, rest, within))


def chance(part: NDArray[np.float64], top_k: int) -> NDArray[np.float64]:
    """Chance that a token goes to a group with this part of its pairs, of which it has `top_k`, drawn one by one."""
    return np.asarray(1.0 - (1.0 - np.minimum(part, 1.0)) ** top_k)


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
