"""How many copies of each expert: the counts that keep the largest copy small."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Ints = NDArray[np.int64]


def even_copies(loads: Array, spare: int, groups: int) -> Ints:
    """Copies [L, E] with at most `spare` beyond one each that make the largest copy of each layer as small as can be.

    One more copy for the expert with the largest copy, again and again: every other choice leaves that copy as it is, so no
    counts with as many copies have a smaller largest one. An expert has at most `groups` copies, and none at 0 load.
    """
    layers, experts = loads.shape
    copies, row = np.ones((layers, experts), dtype=np.int64), np.arange(layers)
    for _ in range(spare if groups > 1 else 0):
        size = np.where(copies < groups, loads / copies, 0.0)
        expert = size.argmax(axis=1)
        largest = (loads / copies).max(axis=1)
        useful = (size[row, expert] > 0) & (size[row, expert] >= largest)
        copies[row, expert] += useful
    return copies


def needed_copies(loads: Array, limit: Array) -> Ints:
    """Fewest copies [L, E] of which none is larger than `limit` [L]."""
    return np.maximum(1, np.ceil(loads / limit[:, None] * (1.0 - 1e-12)).astype(np.int64))
