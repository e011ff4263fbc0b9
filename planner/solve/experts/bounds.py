"""Lower bounds of the load of the fullest GPU, whatever the copies and the packing."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from planner.solve.experts.copies import even_copies

Array = NDArray[np.float64]


def load_bounds(loads: Array, groups: int, slots: int) -> Array:
    """Lower bound [L] of the largest load of `groups` GPUs with `slots` slots each, loads [L, E].

    The largest of: the mean; the largest copy where the copies are chosen to make it smallest; and, where there is no spare
    slot, what the k hottest experts come to with the coldest ones beside them (`companion_bounds`).
    """
    spare = groups * slots - loads.shape[1]
    largest = (loads / even_copies(loads, spare, groups)).max(axis=1)
    found = np.maximum(loads.sum(axis=1) / groups, largest)
    return np.asarray(np.maximum(found, companion_bounds(loads, groups, slots)) if spare == 0 else found)


def companion_bounds(loads: Array, groups: int, slots: int) -> Array:
    """Lower bound [L] where every slot is taken, so that nothing has a copy and every GPU holds `slots` experts.

    Of the k hottest experts two share a GPU, or they are on k GPUs whose other slots hold at least the coldest experts.
    """
    falling = np.sort(loads, axis=1)[:, ::-1]
    zero = np.zeros((loads.shape[0], 1))
    coldest = np.concatenate([zero, np.cumsum(falling[:, ::-1], axis=1)], axis=1)
    hottest = np.concatenate([zero, np.cumsum(falling, axis=1)], axis=1)
    best = np.zeros(loads.shape[0])
    for k in range(1, groups + 1):
        apart = (hottest[:, k] + coldest[:, k * (slots - 1)]) / k
        if k > 1 and slots > 1:
            together = falling[:, k - 1] + falling[:, k - 2] + coldest[:, slots - 2]
            apart = np.minimum(apart, together)
        best = np.maximum(best, apart)
    return best
