"""Exact placements of few experts: copies and GPUs chosen together by CP-SAT."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Placement = tuple[tuple[int, ...], ...]

SMALL = 48
"""Slots up to which the exact model is worth its time."""
RESOLUTION = 10**9
"""Ticks of the load of a placement that is known."""
EFFORT = 10.0
ORDERED = 4
"""Hottest experts by which the model orders GPUs that are alike."""


@dataclass(frozen=True, slots=True)
class Exact:
    """What CP-SAT found: a placement (None where it found none), and what no placement goes below."""

    placement: Placement | None
    bound: float


def least_load(loads: Array, groups: int, slots: int, start: Placement, effort: float = EFFORT, seed: int = 0) -> Exact:
    """The least load of the fullest GPU for loads [E], from a known placement; `effort` in deterministic seconds.

    Shares are rounded down to ticks, so a bound on the ticks is one on the load. GPUs are alike: the model takes them in
    the order of which of the hottest experts they hold.
    """
    from ortools.sat.python import cp_model

    held = np.zeros(groups)
    for expert, places in enumerate(start):
        held[list(places)] += loads[expert] / len(places)
    tick = float(held.max()) / RESOLUTION
    if tick <= 0:
        return Exact(start, 0.0)
    model: Any = cp_model.CpModel()
    on, part = _variables(model, loads / tick, groups, slots, float(held.max()) / tick)
    fullest = model.new_int_var(0, RESOLUTION, "fullest")
    sums = []
    for group in range(groups):
        model.add(sum(row[group] for row in on) <= slots)
        sums.append(sum(row[group] for row in part))
        model.add(fullest >= sums[-1])
    model.add(groups * fullest >= sum(sums))
    hottest = np.argsort(-loads, kind="stable").tolist()
    _in_order(model, [on[e] for e in hottest[:ORDERED]])
    model.minimize(fullest)
    order = sorted(range(groups), key=lambda g: [g not in start[e] for e in hottest])
    for expert, places in enumerate(start):
        for group in range(groups):
            model.add_hint(on[expert][group], order[group] in places)
    solver: Any = cp_model.CpSolver()
    solver.parameters.random_seed, solver.parameters.num_workers = seed, 2
    solver.parameters.interleave_search, solver.parameters.max_deterministic_time = True, effort
    status = solver.solve(model)
    if status == cp_model.INFEASIBLE:  # the start itself is a solution unless ticks rounded it away
        return Exact(None, 0.0)
    bound = solver.best_objective_bound * tick
    if status not in (cp_model.OPTIMAL, cp_model.FEASIBLE):
        return Exact(None, bound)
    placed = tuple(tuple(g for g in range(groups) if solver.boolean_value(row[g])) for row in on)
    return Exact(placed, bound)


def _variables(model: Any, ticks: Array, groups: int, slots: int, limit: float) -> tuple[list[list[Any]], list[list[Any]]]:
    """For every expert: whether it is on each GPU, and its part of each GPU's load."""
    spare = groups * slots - ticks.size
    on, part = [], []
    for e, load in enumerate(ticks.tolist()):
        least = max(1, int(np.ceil(load / limit * (1.0 - 1e-9))))
        most = min(groups, 1 + spare)
        here = [model.new_bool_var(f"on_{e}_{g}") for g in range(groups)]
        chosen = {c: model.new_bool_var(f"copies_{e}_{c}") for c in range(least, most + 1)}
        model.add_exactly_one(chosen.values())
        model.add(sum(here) == sum(c * used for c, used in chosen.items()))
        amounts = []
        for g in range(groups):
            amount = model.new_int_var(0, int(load // least), f"part_{e}_{g}")
            model.add(amount == 0).only_enforce_if(here[g].negated())
            for c, used in chosen.items():
                model.add(amount == int(load // c)).only_enforce_if(here[g], used)
            amounts.append(amount)
        for c, used in chosen.items():  # the parts add up: the relaxation sees the whole load
            model.add(sum(amounts) == c * int(load // c)).only_enforce_if(used)
        on.append(here)
        part.append(amounts)
    return on, part


def _in_order(model: Any, rows: list[list[Any]]) -> None:
    """Neighbouring GPUs in falling order of which experts of `rows` they hold, the first row first."""
    groups = len(rows[0])
    for group in range(groups - 1):
        alike: list[Any] = []
        for row in rows:
            model.add(row[group] >= row[group + 1]).only_enforce_if(alike)
            same = model.new_bool_var("")
            model.add(row[group] == row[group + 1]).only_enforce_if(same)
            model.add(row[group] + row[group + 1] == 1).only_enforce_if(same.negated())
            alike.append(same)
