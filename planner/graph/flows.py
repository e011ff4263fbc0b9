"""Flows: to which GPUs the tokens of an all-to-all go where some experts get more than others."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Flow:
    """Chances that a token goes to each group of `tensor_ways` consecutive GPUs.

    `hits` [blocks, groups] has one row for all senders, or where `within` is not 0 one for every `within` consecutive senders.
    """

    hits: tuple[tuple[float, ...], ...]
    tensor_ways: int = 1
    within: int = 0

    def parts(self, domains: Sequence[int]) -> tuple[float, float]:
        """Bytes that leave the scale-up domain of the GPU with most of them, and bytes that stay in the domain of the GPU with
        most of those, both as parts of the bytes of the busiest GPU; `domains` are those of the GPUs in turn.

        A GPU has as many tokens as the others. It sends each to the groups that the token needs, and gets what others send.
        """
        return _parts(self, tuple(domains))


@dataclass(frozen=True, slots=True)
class Flows:
    """The flow of every row: `of` [rows] says which of `kinds`; None where all GPUs send as much to all others."""

    kinds: tuple[Flow | None, ...]
    of: Ints

    def at(self, row: int) -> Flow | None:
        """The flow of one row."""
        return self.kinds[int(self.of[row])]


@lru_cache(maxsize=65536)
def _parts(flow: Flow, domains: tuple[int, ...]) -> tuple[float, float]:
    hits = np.repeat(np.array(flow.hits), flow.tensor_ways, axis=1)  # [blocks, GPUs]
    place, block = np.asarray(domains), np.arange(len(domains)) // (flow.within or len(domains))
    senders, count = np.unique(np.stack([block, place], axis=1), axis=0, return_counts=True)
    sent = hits[senders[:, 0]]  # of one sender of each kind [kinds, GPUs]
    away = senders[:, 1, None] != place[None, :]
    every, left = (max(_most_sent(x), _most_received(x, count)) for x in (sent, np.where(away, sent, 0.0)))
    kept = np.where(away, 0.0, sent)
    return left / every, max(_most_sent(kept), _most_received(kept, count)) / every


def _most_sent(sent: NDArray[np.float64]) -> float:
    return float(sent.sum(axis=1).max())


def _most_received(sent: NDArray[np.float64], senders: Ints) -> float:
    return float((sent * senders[:, None]).sum(axis=0).max())
