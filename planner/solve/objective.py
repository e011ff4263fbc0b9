"""What is minimized, and what a plan may not exceed, both from a pipeline's chain and slowest time."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

Name = Literal["latency", "throughput", "cost"]
NAMES: tuple[Name, ...] = get_args(Name)
Array = NDArray[np.float64]
INF = float("inf")
SAME = 1e-9
"""Values this close, relative to each other, are a tie; a cap is met up to this share of it."""
TIE_RULE = (
    "plans within 1e-9 of the best value are ties: fewer GPUs in use win, then fewer bytes sent by all GPUs (of the best plans "
    "of each number of replicas and micro-batches, experts on GPUs of their own or not), then fewer stages, micro-batches "
    "and replicas"
)
TRAINING_TIE_RULE = (
    "plans within 1e-9 of the best value are ties: fewer GPUs in use win, then fewer stages, micro-batches and replicas, then "
    "the first in the alphabet by schedule, chunks, recomputation and what copies share, then the one found first"
)


@dataclass(frozen=True, slots=True)
class Caps:
    """What a plan may not exceed, whatever is minimized; inf where nothing is asked.

    `latency_s`: of the batch, in decode of an output token. `steady_s`: what throughput divides the tokens by.
    `memory_bytes`: usable on each GPU. `gpus`: in use, over all replicas. `dollars`: the cost.
    """

    latency_s: float = INF
    memory_bytes: float = INF
    gpus: float = INF
    steady_s: float = INF
    dollars: float = INF

    @property
    def none(self) -> bool:
        """Whether nothing is asked."""
        return self == NO_CAPS

    def of(self, name: Name, most: float) -> Caps:
        """The same with an objective capped besides, in what is minimized for it."""
        field: Literal["latency_s", "steady_s", "dollars"] = FIELDS[name]
        return replace(self, **{field: min(most, getattr(self, field))})


NO_CAPS = Caps()
FIELDS: dict[Name, Literal["latency_s", "steady_s", "dollars"]] = {
    "latency": "latency_s",
    "throughput": "steady_s",
    "cost": "dollars",
}


@dataclass(frozen=True, slots=True)
class Objective:
    """An objective of one branch, never falling when the chain or the slowest time rises; inf above a cap.

    latency: seconds (prefill: of the batch; decode: per output token). throughput: seconds of the slowest stage or send
    (prefill, steady state) or per output token (decode), both to be divided into the tokens of a step. cost: latency.
    Plans whose experts have GPUs of their own are always measured by a whole pass. `latency_s` and `steady_s` are caps.
    """

    name: Name
    decode: bool
    micro_batches: int
    latency_s: float = INF
    steady_s: float = INF

    def latency(self, chain: Array, slowest: Array) -> Array:
        """Seconds of the batch, or per output token, elementwise."""
        if self.decode:
            return np.asarray(np.maximum(chain, self.micro_batches * slowest))
        return np.asarray(chain + (self.micro_batches - 1) * slowest)

    def value(self, chain: float, slowest: float) -> float:
        """Seconds to minimize."""
        return float(self.values(np.asarray(chain), np.asarray(slowest)))

    def values(self, chain: Array, slowest: Array) -> Array:
        """Seconds to minimize, elementwise."""
        latency = self.latency(chain, slowest)
        steady = latency if self.decode else self.micro_batches * slowest
        within = np.isfinite(chain) & (latency <= self.latency_s * (1 + SAME)) & (steady <= self.steady_s * (1 + SAME))
        return np.where(within, steady if self.name == "throughput" else latency, np.inf)
