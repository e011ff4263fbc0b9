"""Plans whose experts have GPUs of their own, as columns: what their search weighs against each other, and what it finds."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from planner.evaluate.separate import SeparatePrice
from planner.solve.objective import SAME
from planner.solve.pin import Pin
from search_spaces.stages import StageChoice

Array = NDArray[np.float64]
Ints = NDArray[np.int64]


@dataclass(frozen=True)
class ApartFound:
    """The best plan with experts apart in one branch: its stage, micro-batches in flight, value, bytes sent and GPUs.

    `least` is the least value of any plan, of which that of this one is a tie.
    """

    stage: StageChoice
    in_flight: int
    value: float
    sent: float
    ranks: int
    least: float

    def or_better(self, other: ApartFound | None) -> ApartFound:
        """Whichever of the two is better; of ties the one on fewer GPUs, then the one that sends less."""
        if other is None:
            return self
        least = min(self.least, other.least)
        return replace(min((other, self), key=lambda found: found.rank(least)), least=least)

    def rank(self, least: float) -> tuple[float, int, float]:
        """Order of preference where `least` is the least value."""
        return 0.0 if self.value <= least * (1 + SAME) else self.value, self.ranks, self.sent


@dataclass(frozen=True)
class Rows:
    """What a branch asks of candidates [N]: bound of the value, its scale, seconds allowed, GPUs of a replica."""

    bound: Array
    scale: Array
    limit: Array
    ranks: Ints


@dataclass
class ApartAsked:
    """What is asked of a branch, and the best plan so far: only values below `cutoff` count. Arrays are per split of the GPUs:
    GPUs of a replica, what seconds are multiplied by, seconds allowed, whether a replica has room for it, and a lower bound
    of the value (inf where the seconds are too many).
    """

    replicas: int
    micro_batches: int
    pin: Pin | None
    ranks: Ints
    weights: Array
    limits: Array
    reachable: NDArray[np.bool_]
    floors: Array
    cutoff: float
    found: ApartFound | None = None


@dataclass(frozen=True)
class Candidates:
    """Candidates of one micro-batch size [N]: split of the GPUs, option indexes, price, and bounds of the makespan.

    `option` [3, N] numbers each candidate's partition, FFN option and placement in the lists of the space.
    """

    split: Ints
    partition: Ints
    mlp: Ints
    placement: Ints
    option: Ints
    price: SeparatePrice
    chain: Array
    load: Array
    spare: Array
    expert_spare: Array
