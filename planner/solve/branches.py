"""What every branch of a space is asked: its priced stages, objective, caps, and closed-form bound."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import replace
from functools import cached_property
from typing import Self

import numpy as np
from numpy.typing import NDArray

from planner.evaluate.setting import Setting
from planner.solve.answer import Limits
from planner.solve.blocks import PricedSpace
from planner.solve.branch import Branch, SpotArrays, StageArrays
from planner.solve.narrow import stages_within
from planner.solve.objective import SAME, Caps, Name, Objective
from planner.solve.pairs import ApartPairs
from planner.solve.pin import Pin
from planner.solve.runs import Asked, RunTable
from search_spaces.space import SearchSpace

MOST = float(np.finfo(np.float64).max)
"""A cutoff that every plan meets which is allowed at all: what is not allowed has the value inf."""

RISING = (1.03, 1.2, 1.6)
"""Limits over the bound of a branch that are tried before the cutoff."""
FEW_STAGES = 50_000
"""Rows of layer intervals x first ranks x widths of a branch that a pin is not sieved for."""
WORTHWHILE = 1.05
"""A limit is tried that is lower than the cutoff by more than this factor."""


class Branches:
    """A priced space and what is asked of its branches (replicas, micro-batches)."""

    def __init__(
        self,
        env: Setting,
        space: SearchSpace,
        objective: Name = "latency",
        limits: Limits | None = None,
        *,
        extra_memory: float = 0.0,
        ignore_memory: bool = False,
    ) -> None:
        self.env, self.space, self.objective = env, space, objective
        self.sizes = space.sizes
        self.limits = limits or Limits()
        self.caps = self.limits.caps
        granted = np.inf if ignore_memory else extra_memory
        self.priced = PricedSpace(env, space, granted, self.caps.memory_bytes)
        self.apart = ApartPairs(env, space, self.priced, granted, self.caps.memory_bytes)
        self._arrays: dict[tuple[int, int], StageArrays] = {}
        self._within: dict[tuple[int, int, int, Objective], tuple[float, StageArrays]] = {}
        self._runs: dict[tuple[int, int], RunTable] = {}
        self.floors: dict[tuple[int, int], float] = {}
        self.bounds: dict[tuple[int, int], float] = {}
        self.apart_left: dict[tuple[int, int], float] = {}

    def asking(self, objective: Name, caps: Caps, seconds: float = np.inf) -> Self:
        """The same priced space, asked for another objective under other caps; memory stays as it is."""
        if caps.memory_bytes != self.caps.memory_bytes:
            raise ValueError("another memory is another pricing")
        other = copy.copy(self)
        other.objective, other.caps, other.floors, other.bounds = objective, caps, {}, {}
        other.limits = replace(self.limits, caps=caps, seconds=min(seconds, self.limits.seconds))
        return other

    def _objective(self, branch: Branch, ranks: int) -> Objective:
        """The objective of a branch's pipelines that use `ranks` (or up to so many, where dollars are not capped)."""
        return Objective(
            self.objective, self.space.sizes.phase == "decode", branch.micro_batches,
            self._most_seconds(branch.replicas, ranks), self.caps.steady_s,
        )  # fmt: skip

    def _most_seconds(self, replicas: int, ranks: int) -> float:
        """Seconds of a whole pass that the caps on latency and cost leave for a plan on `ranks` of each replica."""
        rate = self.rate(replicas, ranks) if np.isfinite(self.caps.dollars) else 0.0
        return min(self.caps.latency_s, self.caps.dollars / rate) if rate else self.caps.latency_s

    def _most_ranks(self, branch: Branch) -> int:
        """Ranks of a replica that a plan may use."""
        return int(min(branch.stride, self.caps.gpus // branch.replicas))

    def branch(self, replicas: int, micro_batches: int) -> Branch:
        """One branch of the space."""
        return Branch(self.priced, replicas, micro_batches)

    def arrays(self, branch: Branch, pin: Pin | None = None) -> StageArrays:
        """Best stages of a branch; those of the whole space are kept for later questions."""
        if pin:
            return branch.least(pin)
        key = (branch.replicas, branch.micro_batches)
        if key not in self._arrays:
            self._arrays[key] = branch.arrays()
        return self._arrays[key]

    def arrays_within(self, branch: Branch, limit: float, pin: Pin | None = None) -> StageArrays:
        """Best stages of a branch, of those that a pipeline of at most `limit` may have; all where GPUs are paid for, or where
        a pin leaves so few that they are priced sooner than told apart.
        """
        stages = self.priced.spans[0].first.size * branch.stride * len(branch.widths)
        if self.pays or not np.isfinite(limit) or (pin and stages <= FEW_STAGES):
            return self.arrays(branch, pin)
        most = self._most_ranks(branch)
        objective = self._objective(branch, most)
        if pin:
            some = stages_within(branch, objective, limit, most, pin)
            return branch.some(some.columns, some.keep, pin)
        key = (branch.replicas, branch.micro_batches, most, objective)
        if key not in self._within or self._within[key][0] < limit:
            some = stages_within(branch, objective, limit, most)
            self._within[key] = limit, branch.some(some.columns, some.keep)
        return self._within[key][1]

    def limits_for(self, branch: Branch, cutoff: float) -> Iterator[float]:
        """Limits to search a branch under, one after another until a pipeline is found: little above its bound, where few
        stages need prices, and last the cutoff.
        """
        bound = self.floor(branch)
        if not self.pays and 0.0 < bound < np.inf:
            yield from (limit for factor in RISING if (limit := bound * factor) * WORTHWHILE < cutoff)
        yield cutoff

    def runs(self, branch: Branch, pin: Pin | None = None) -> RunTable:
        """The pipelines of a branch of a large cluster; those of the whole space are kept for later questions."""
        if pin:
            return RunTable(branch, branch.spots(pin))
        key = (branch.replicas, branch.micro_batches)
        if key not in self._runs:
            self._runs[key] = RunTable(branch, branch.spots())
        return self._runs[key]

    def promising(self, branch: Branch, asked: Asked, pin: Pin | None = None) -> RunTable:
        """The pipelines of a branch of a large cluster of those widths that some pipeline below the cutoff may have."""
        key = (branch.replicas, branch.micro_batches)
        free = asked.cutoff >= MOST and not np.isfinite(asked.most_seconds[1:]).any()
        if (key in self._runs and not pin) or free:
            return self.runs(branch, pin)
        floors = branch.floors(pin)[:, None, :].repeat(self.priced.spots.most, axis=1)
        plain = SpotArrays(floors, np.zeros(floors.shape, dtype=np.int64), np.zeros(floors.shape))
        return RunTable(branch, branch.spots(pin, RunTable(branch, plain).widths_below(asked)))

    def inside_nodes(self, branch: Branch) -> RunTable:
        """The pipelines of a branch of a large cluster whose stages are no wider than a node."""
        node = self.env.cluster.gpus_per_node
        return RunTable(branch, branch.spots(some=np.array([width <= node for width in branch.widths], dtype=bool)))

    def weight(self, replicas: int, gpus: int) -> float:
        """What seconds are multiplied by: one, or the price per second of the GPUs in use."""
        return self.rate(replicas, gpus) if self.objective == "cost" else 1.0

    def rate(self, replicas: int, gpus: int) -> float:
        """Dollars per second of the first GPUs of every replica, in the order in which fixed stages name them."""
        ranks = [rank for pin in self.space.layout for rank in pin.devices] or range(gpus)
        return replicas * sum(self.env.cluster.kind_of(rank).price_per_hour for rank in ranks[:gpus]) / 3600.0

    def question(self, branch: Branch, cutoff: float, most: int) -> Asked:
        """What is asked of a branch of a large cluster."""
        dear = np.concatenate(([0.0], branch.replicas * np.cumsum(self.prices[: branch.stride]) / 3600.0))
        weight = dear if self.objective == "cost" else np.ones(dear.size)
        with np.errstate(divide="ignore"):
            seconds = np.minimum(self.caps.latency_s, self.caps.dollars / dear)
        return Asked(
            replace(self._objective(branch, 0), latency_s=np.inf),
            weight,
            seconds,
            min(cutoff, MOST),
            branch.stride if self.space.use_all else 1,
            most,
        )

    @cached_property
    def prices(self) -> NDArray[np.float64]:
        """Dollars per hour of every GPU."""
        return np.array([self.env.cluster.kinds[kind].price_per_hour for kind in self.env.cluster.device_kinds])

    def bound(self, branch: Branch, pin: Pin | None = None) -> float:
        """Closed-form lower bound of a branch's linear pipelines (see `planner.solve.bounds`)."""
        key = (branch.replicas, branch.micro_batches)
        if pin:
            return self._closed_form(branch, pin)
        if key not in self.bounds:
            self.bounds[key] = self._closed_form(branch, None)
        return self.bounds[key]

    def _closed_form(self, branch: Branch, pin: Pin | None) -> float:
        """The bound, computed."""
        most = self._most_ranks(branch)
        floor = self.priced.layer_floor(branch.sequences, pin, most)
        if not self.pays:
            return float(floor.bound(self._objective(branch, most), np.array([most]))[0]) if most else np.inf
        ends, asked = np.arange(1, most + 1), self.question(branch, np.inf, most)
        seconds = floor.bound(asked.objective, ends)
        allowed = floor.bound(replace(asked.objective, name="latency"), ends) <= asked.most_seconds[ends] * (1 + SAME)
        with np.errstate(invalid="ignore"):
            return float(np.where(allowed, seconds * asked.weight[ends], np.inf).min(initial=np.inf))

    def tight(self, branch: Branch, enough: float) -> float:
        """The closed form with the memory of the GPUs, or as much of it as is above `enough` (see `planner.solve.shares`)."""
        most = self._most_ranks(branch)
        if self.pays or most < 1:
            return self.bound(branch)
        found = self.priced.shares(branch.sequences).bound(self._objective(branch, most), most, branch.replica_batch, enough)
        return max(found, self.bound(branch))

    def floor(self, branch: Branch, pin: Pin | None = None) -> float:
        """Lower bound of a branch's linear pipelines: the closed form, or what an earlier run of the branch has shown."""
        return max(self.bound(branch, pin), self.floors.get((branch.replicas, branch.micro_batches), 0.0))

    def _end_groups(self, branch: Branch) -> list[tuple[int, int]]:
        """Ranges of end ranks that share a weight and caps: all at once, or each alone when GPUs are paid for."""
        most = self._most_ranks(branch)
        if not self.pays:
            return [(1, most)] if most else []
        return [(g, g) for g in range(1, most + 1)]

    @property
    def pays(self) -> bool:
        """Whether the price of the GPUs in use matters."""
        return self.objective == "cost" or bool(np.isfinite(self.caps.dollars))
