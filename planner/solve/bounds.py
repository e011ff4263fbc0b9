"""Closed-form lower bounds of a branch, from the least seconds that a layer takes on stages of each width.

A pipeline on G GPUs gives each layer a width. Its chain is at least the sum of its layers' seconds; every stage is at most as
slow as the slowest, so G times the slowest is at least the sum of its layers' GPU-seconds. For any weights a and b, then,
a x chain + b x slowest is at least the sum over the layers of the least seconds x (a + b x width / G) of any width.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from planner.solve.objective import SAME, Objective

Array = NDArray[np.float64]
Ints = NDArray[np.int64]
SHARES = np.linspace(0.0, 1.0, 9)
"""Weights of the chain that are tried where the larger of chain and slowest time counts."""


@dataclass(frozen=True)
class LayerFloor:
    """Least seconds of one layer of each kind [W, K] on stages of each width [W], and the layers of each kind [K].

    The last two kinds are the ends of the model, embedding and head, one of each.
    """

    widths: Ints
    seconds: Array
    layers: Ints

    def weighed(self, chain: Array, slowest: Array, ranks: Ints) -> Array:
        """Lower bound [N] of chain[N] x the chain + slowest[N] x the slowest time of pipelines on `ranks` [N] GPUs."""
        scale = chain[:, None] + slowest[:, None] * self.widths / ranks[:, None]
        scale = np.where(self.widths <= ranks[:, None], scale, np.inf)
        total = np.zeros(ranks.size)
        for kind, count in enumerate(self.layers.tolist()):
            with np.errstate(invalid="ignore"):
                product = scale * self.seconds[:, kind]
            total += count * np.where(np.isnan(product), np.inf, product).min(axis=1, initial=np.inf) if count else 0.0
        return total

    def bound(self, objective: Objective, ranks: Ints) -> Array:
        """Lower bound [N] of the objective of pipelines on `ranks` [N] GPUs; inf where a cap cannot be met."""
        count, one = float(objective.micro_batches), np.ones(ranks.size)
        steady = self.weighed(0.0 * one, count * one, ranks)
        if objective.decode:
            latency = steady = np.max([self.weighed(a * one, (1.0 - a) * count * one, ranks) for a in SHARES], axis=0)
        else:
            latency = self.weighed(one, (count - 1.0) * one, ranks)
        value = steady if objective.name == "throughput" else latency
        within = (latency <= objective.latency_s * (1 + SAME)) & (steady <= objective.steady_s * (1 + SAME))
        return np.where(within, value, np.inf)
