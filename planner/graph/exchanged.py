"""What the copies of a stage's weights exchange in a training step, in elements and bytes of its fullest GPU."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from planner.graph.sharing import Sharing
from planner.graph.training_roles import Held
from planner.units import dtype_bytes
from planner.workload import Training

OPTIMIZER_BYTES = {"adam": 12.0, "sgd": 4.0}
"""Bytes of optimizer state for each parameter: fp32 weights, and with adam two fp32 moments."""


@dataclass(frozen=True, slots=True)
class Amount:
    """Elements and stored bytes of weights that are shared alike."""

    sharing: Sharing
    elements: float
    bytes: float


def amounts(held: Iterable[Held]) -> tuple[Amount, ...]:
    """Weights by how they are shared, each counted on the GPU that has most of it: buffers are of one size."""
    found: dict[Sharing, list[float]] = {}
    for own in held:
        sums = found.setdefault(own.sharing, [0.0, 0.0])
        sums[0] += float(np.max(own.shard.elements))
        sums[1] += float(np.max(own.shard.bytes))
    return tuple(Amount(sharing, elements, stored) for sharing, (elements, stored) in found.items())


def by_apart(found: Iterable[Amount]) -> dict[int, tuple[float, float]]:
    """Elements and stored bytes by the distance of copies: what one collective moves."""
    sums: dict[int, tuple[float, float]] = {}
    for own in found:
        elements, stored = sums.get(own.sharing.apart, (0.0, 0.0))
        sums[own.sharing.apart] = elements + own.elements, stored + own.bytes
    return sums


def finishing(found: Iterable[Amount], width: int, replicas: int, zero: int) -> dict[int, float]:
    """Elements of gradients that neighbours add up once the copies have been added, by the number of neighbours."""
    sums: dict[int, float] = {}
    for own in found:
        if own.sharing.finish > 1:
            parts = own.sharing.copies(width) * replicas if zero else 1
            sums[own.sharing.finish] = sums.get(own.sharing.finish, 0.0) + own.elements / parts
    return sums


def optimizer_bytes(found: Iterable[Amount], training: Training, width: int, replicas: int, zero: int) -> float:
    """Bytes through memory of an optimizer step: gradients, states and weights are read, states and weights written, the
    gradient buffer is cleared.
    """
    gradient, state = dtype_bytes(training.gradient_dtype), OPTIMIZER_BYTES[training.optimizer]
    moved = 0.0
    for own in found:
        parts = own.sharing.copies(width) * replicas if zero else 1
        moved += own.elements * (gradient + 2.0 * state) / parts + own.bytes + own.elements * gradient
    return moved
