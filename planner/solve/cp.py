"""The CP model of a branch: which stages form the pipeline, over the legs that no bound has excluded.

A leg is a stage on given layers and ranks with its best option. The exact dynamic program gives, for every leg, a bound
on any pipeline through it; legs whose bound reaches the cutoff are left out, the rest are the model's variables.
"""

from __future__ import annotations

from dataclasses import dataclass
from threading import Thread
from typing import Any

import numpy as np
from numpy.typing import NDArray

from planner.solve.dp import Leg, Path, PipelineTable
from planner.solve.objective import SAME, Objective

Array = NDArray[np.float64]
RESOLUTION = 1e-9
"""Size of a tick relative to the cutoff, divided by the sum of the objective's multipliers."""
MAX_LEGS = 20_000
MOST_TICKS = 2**60


@dataclass(frozen=True)
class CpAnswer:
    """What CP-SAT found: status name, its pipeline, proven bound in seconds (inf: none beats the cutoff), legs, cuts."""

    status: str
    path: tuple[Leg, ...]
    bound: float
    legs: int


def surviving_legs(table: PipelineTable, objective: Objective, slowest: float, cutoff: float) -> list[tuple[Leg, float]]:
    """Legs with their seconds that may belong to a pipeline of at most `cutoff`; `slowest` is the least slowest time."""
    before, after = table.sweep_open(), _after(table)
    alive, found = table.within(np.inf)[1], list[tuple[Leg, float]]()
    for stop in range(1, table.layers + 1):
        tail = np.full((table.ranks, len(table.widths)), np.inf)
        for w, width in enumerate(table.widths):
            tail[: table.ranks + 1 - width, w] = after[stop, width:, w]
        some = np.nonzero(alive[table.rows[:stop, stop]])[0]
        times = table.seconds[table.rows[some, stop]]
        at = np.nonzero(np.isfinite(times) & np.isfinite(before[some] + tail))
        own = times[at]
        value = objective.values((before[some] + tail)[at] + own, np.maximum(own, slowest))
        for n in np.nonzero(value <= cutoff)[0].tolist():
            leg = Leg(int(some[at[0][n]]), stop, int(at[1][n]), table.widths[int(at[2][n])])
            found.append((leg, float(own[n])))
    return found


def _after(table: PipelineTable) -> Array:
    """Least chain that follows a stage of width index w ending at a layer and rank [layers + 1, ranks + 1, D]."""
    layers, ranks, widths = table.layers, table.ranks, table.widths
    found, alive = np.full((layers + 1, ranks + 1, len(widths)), np.inf), table.within(np.inf)[1]
    tail = np.full((layers + 1, ranks, len(widths)), np.inf)  # the same by the rank where that stage begins
    found[layers] = table.feedback
    for stop in range(layers, 0, -1):
        if stop < layers:
            some = stop + 1 + np.nonzero(alive[table.rows[stop, stop + 1 :]])[0]
            if some.size:
                best = (table.seconds[table.rows[stop, some]] + tail[some]).min(axis=0)
                found[stop, :ranks] = (table.send + best[:, None, :]).min(axis=2)
        for w, width in enumerate(widths):
            tail[stop, : ranks + 1 - width, w] = found[stop, width:, w]
    return found


class PipelineModel:
    """CP-SAT model over legs: one path of layers and ranks, hand-overs between neighbours, and the slowest time."""

    def __init__(
        self, table: PipelineTable, objective: Objective, legs: list[tuple[Leg, float]], cutoff: float, slowest: float = 0.0
    ) -> None:
        """`slowest` is a time that the slowest stage or send of every pipeline reaches."""
        from ortools.sat.python import cp_model

        self._cp: Any = cp_model
        self.model: Any = cp_model.CpModel()
        self.table, self.objective, self.legs = table, objective, legs
        multipliers = 2 * table.layers + 1 + objective.micro_batches
        self.tick = cutoff * RESOLUTION / multipliers
        self.used = [self.model.new_bool_var(f"leg_{i}") for i in range(len(legs))]
        self._least_slowest = self._ticks(slowest)
        self.slowest = self.model.new_int_var(self._least_slowest, self._ticks(cutoff) + 1, "slowest")
        self._chain: tuple[list[Any], list[int]] = [], []
        self._connect()
        self._minimize(cutoff)

    def _ticks(self, seconds: float) -> int:
        return int(seconds / self.tick)

    def _connect(self) -> None:
        """Every reached (layer, rank) is left by exactly one hand-over, the end by none."""
        into: dict[tuple[int, int, int], list[Any]] = {}
        out: dict[tuple[int, int, int], list[Any]] = {}
        widths = {width: i for i, width in enumerate(self.table.widths)}
        starts, ends = [], []
        for (leg, seconds), used in zip(self.legs, self.used, strict=True):
            self._takes(used, seconds)
            w, end = widths[leg.width], leg.first + leg.width
            starts.append(used) if leg.start == 0 else out.setdefault((leg.start, leg.first, w), []).append(used)
            if leg.stop == self.table.layers:
                ends.append(used)
                self._counts(used, float(self.table.feedback[end, w]))
            else:
                into.setdefault((leg.stop, end, w), []).append(used)
        self.model.add_exactly_one(starts)
        self.model.add_exactly_one(ends)
        self._hand_over(into, out)
        if self.table.counts is not None:
            domain = self._cp.Domain.from_values(list(self.table.counts))
            self.model.add_linear_expression_in_domain(sum(self.used), domain)

    def _counts(self, used: Any, seconds: float) -> None:
        """What is used takes a part of the chain."""
        self._chain[0].append(used)
        self._chain[1].append(self._ticks(seconds))

    def _takes(self, used: Any, seconds: float) -> None:
        """The same, and the slowest time is no less; what every pipeline's slowest reaches needs no saying."""
        self._counts(used, seconds)
        if self._ticks(seconds) > self._least_slowest:
            self.model.add(self.slowest >= self._ticks(seconds)).only_enforce_if(used)

    def _hand_over(self, into: dict[tuple[int, int, int], list[Any]], out: dict[tuple[int, int, int], list[Any]]) -> None:
        left: dict[tuple[int, int, int], list[Any]] = {key: [] for key in into}
        right: dict[tuple[int, int, int], list[Any]] = {key: [] for key in out}
        leaving: dict[tuple[int, int], list[int]] = {}
        for layer, at, w in out:
            leaving.setdefault((layer, at), []).append(w)
        for layer, at, w1 in into:
            for w2 in leaving.get((layer, at), []):
                seconds = float(self.table.send[at, w1, w2])
                if np.isfinite(seconds):
                    sent = self.model.new_bool_var(f"send_{layer}_{at}_{w1}_{w2}")
                    left[layer, at, w1].append(sent)
                    right[layer, at, w2].append(sent)
                    self._takes(sent, seconds)
        for legs, sends in ((into, left), (out, right)):
            for key, some in legs.items():
                signs = [1] * len(some) + [-1] * len(sends[key])
                self.model.add(self._cp.LinearExpr.weighted_sum([*some, *sends[key]], signs) == 0)

    def _minimize(self, cutoff: float) -> None:
        chain, count = self._cp.LinearExpr.weighted_sum(*self._chain), self.objective.micro_batches
        limit = self._ticks(cutoff) + 1
        if self.objective.decode:
            latency = steady = self.model.new_int_var(0, limit, "token")
            self.model.add(latency >= chain)
            self.model.add(latency >= count * self.slowest)
        else:
            latency, steady = chain + (count - 1) * self.slowest, count * self.slowest
        value = steady if self.objective.name == "throughput" else latency
        self.model.add(value <= limit)
        for spent, most in ((latency, self.objective.latency_s), (steady, self.objective.steady_s)):
            if most < MOST_TICKS * self.tick:  # ticks are rounded down, so no plan within the cap is lost
                self.model.add(spent <= self._ticks(most * (1 + SAME)) + 1)
        self.model.minimize(value)

    def hint(self, path: Path) -> None:
        """Start from a known pipeline."""
        known = set(path.legs)
        for (leg, _), used in zip(self.legs, self.used, strict=True):
            self.model.add_hint(used, leg in known)

    def _run(self, solver: Any) -> Any:
        """Solve beside the main thread, so that an interrupt ends it at once; the interrupt goes on."""
        status: list[Any] = []
        solving = Thread(target=lambda: status.append(solver.solve(self.model)))
        solving.start()
        try:
            solving.join()
        except KeyboardInterrupt:
            solver.stop_search()
            solving.join()
            raise
        if not status:
            raise RuntimeError("CP-SAT ended without a status")
        return status[0]

    def solve(self, seed: int, workers: int, effort: float) -> CpAnswer:
        """Solve to optimality or until the deterministic `effort` is spent."""
        solver = self._cp.CpSolver()
        solver.parameters.random_seed = seed
        solver.parameters.num_workers = workers
        solver.parameters.interleave_search = True
        solver.parameters.max_deterministic_time = effort
        solver.parameters.linearization_level = 2
        solver.parameters.catch_sigint_signal = False  # else an interrupt is lost, and the next one ends the process at once
        status = self._run(solver)
        if status in (self._cp.OPTIMAL, self._cp.FEASIBLE):
            path = tuple(
                sorted(
                    (leg for (leg, _), u in zip(self.legs, self.used, strict=True) if solver.boolean_value(u)),
                    key=lambda x: x.start,
                )
            )
            return CpAnswer(solver.status_name(status), path, solver.best_objective_bound * self.tick, len(self.legs))
        bound = np.inf if status == self._cp.INFEASIBLE else 0.0
        return CpAnswer(solver.status_name(status), (), bound, len(self.legs))
