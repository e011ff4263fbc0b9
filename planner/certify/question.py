"""What a certificate answers: the objective and the limits, spelled out once more and apart from the search."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from planner.evaluate.measures import Measures
from planner.evaluate.setting import Setting

Array = NDArray[np.float64]
Ints = NDArray[np.int64]
INF = float("inf")
TOLERANCE = 1e-9
"""Relative distance within which two floats are the same, and by which a limit may be missed."""
OBJECTIVES = ("latency", "throughput", "cost")


@dataclass(frozen=True, slots=True)
class Most:
    """The most that a plan may take of each measure; inf where nothing is asked. `memory_bytes` is of one GPU."""

    latency_s: float = INF
    steady_s: float = INF
    dollars: float = INF
    memory_bytes: float = INF
    gpus: float = INF


@dataclass(frozen=True)
class Question:
    """What is minimized of the plans of a setting: seconds of a pass (latency), seconds that the tokens of a pass are divided
    by (throughput), or dollars (cost); plans beyond the limits do not count.
    """

    env: Setting
    objective: str
    most: Most = Most()

    @property
    def decode(self) -> bool:
        """Whether a pass makes one token per sequence."""
        return self.env.workload.phase == "decode"

    def of_plan(self, found: Measures) -> float:
        """The value of a measured plan, inf where it is beyond a limit (memory apart)."""
        most, near = self.most, 1 + TOLERANCE
        within = (
            found.latency_s <= most.latency_s * near
            and found.steady_s <= most.steady_s * near
            and found.dollars <= most.dollars * near
            and found.gpus <= most.gpus
        )
        return (
            {"latency": found.latency_s, "throughput": found.steady_s, "cost": found.dollars}[self.objective] if within else INF
        )

    def of_pipeline(self, replicas: int, micro_batches: int, ranks: object, chain: object, slowest: object) -> Array:
        """The value of pipelines on the first `ranks` of every replica, elementwise; never falls when an argument rises.

        `chain`: seconds of one micro-batch through every stage and send; `slowest`: of the slowest of them.
        """
        count = np.asarray(ranks, dtype=np.int64)
        return self._value(replicas, count, self.rate_of_first[count], *self._seconds(micro_batches, chain, slowest))

    def of_one(self, replicas: int, micro_batches: int, ranks: int, chain: float, slowest: float) -> float:
        """The value of one pipeline on the first `ranks` of every replica: as `of_pipeline`, without arrays."""
        most, near = self.most, 1 + TOLERANCE
        latency = max(chain, micro_batches * slowest) if self.decode else chain + (micro_batches - 1) * slowest
        steady = latency if self.decode else micro_batches * slowest
        if chain == INF or replicas * ranks > most.gpus or latency > most.latency_s * near or steady > most.steady_s * near:
            return INF
        if self.objective != "cost" and most.dollars == INF:
            return steady if self.objective == "throughput" else latency
        dollars = latency * replicas * float(self.rate_of_first[ranks])
        if dollars > most.dollars * near:
            return INF
        return {"latency": latency, "throughput": steady, "cost": dollars}[self.objective]

    def of_places(self, replicas: int, micro_batches: int, used: list[int], chain: float, slowest: float) -> float:
        """The value of one pipeline on the ranks `used` of every replica."""
        count, rate = np.asarray(len(used)), np.asarray(self.rate(used))
        return float(self._value(replicas, count, rate, *self._seconds(micro_batches, chain, slowest)))

    def of_pass(self, replicas: int, used: Ints, rate: Array, seconds: Array) -> Array:
        """The value of plans with experts on GPUs of their own, which every objective measures by a whole pass, elementwise;
        `used` GPUs of every replica cost `rate` dollars per second.
        """
        return self._value(replicas, used, rate, seconds, seconds)

    def _seconds(self, micro_batches: int, chain: object, slowest: object) -> tuple[Array, Array]:
        """(latency, steady) seconds of pipelines."""
        once, most = np.asarray(chain, dtype=np.float64), np.asarray(slowest, dtype=np.float64)
        if self.decode:
            latency = np.maximum(once, micro_batches * most)
            return latency, latency
        return (once + (micro_batches - 1) * most if micro_batches > 1 else once), micro_batches * most

    def _value(self, replicas: int, count: Ints, rate: Array, latency: Array, steady: Array) -> Array:
        most, near = self.most, 1 + TOLERANCE
        with np.errstate(invalid="ignore"):  # no plan at all, at no price
            dollars = latency * (replicas * rate)
        within = (
            (latency <= most.latency_s * near)
            & (steady <= most.steady_s * near)
            & ((dollars <= most.dollars * near) | (most.dollars == INF))
            & (replicas * count <= most.gpus)
            & np.isfinite(latency)
        )
        value = {"latency": latency, "throughput": steady, "cost": dollars}[self.objective]
        return np.asarray(np.where(within, value, np.inf))

    def rate(self, ranks: list[int]) -> float:
        """Dollars per second of some GPUs."""
        return sum(self.env.cluster.kind_of(rank).price_per_hour for rank in ranks) / 3600.0

    @cached_property
    def rate_of_first(self) -> Array:
        """Dollars per second of the first n ranks [ranks + 1]."""
        cluster = self.env.cluster
        each = [cluster.kind_of(rank).price_per_hour / 3600.0 for rank in range(cluster.size)]
        return np.concatenate(([0.0], np.cumsum(each)))
