"""What is minimized: latency, time per token in steady state, or cost, from a pipeline's chain and slowest time."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Name = Literal["latency", "throughput", "cost"]


@dataclass(frozen=True, slots=True)
class Objective:
    """An objective of one branch, never falling when the chain or the slowest time rises.

    latency: seconds (prefill: of the batch; decode: per output token). throughput: seconds of the slowest stage or send
    (prefill, steady state) or per output token (decode), both to be divided into the tokens of a step. cost: latency.
    Plans whose experts have GPUs of their own are always measured by a whole pass.
    """

    name: Name
    decode: bool
    micro_batches: int

    def value(self, chain: float, slowest: float) -> float:
        """Seconds to minimize."""
        if self.decode:
            return max(chain, self.micro_batches * slowest)
        if self.name == "throughput":
            return self.micro_batches * slowest
        return chain + (self.micro_batches - 1) * slowest

    def values(self, chain: NDArray[np.float64], slowest: NDArray[np.float64]) -> NDArray[np.float64]:
        """Seconds to minimize, elementwise."""
        if self.decode:
            return np.asarray(np.maximum(chain, self.micro_batches * slowest))
        if self.name == "throughput":
            return np.where(np.isfinite(chain), self.micro_batches * slowest, np.inf)
        return np.asarray(chain + (self.micro_batches - 1) * slowest)
