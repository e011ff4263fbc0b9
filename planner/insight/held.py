"""The best plan of a priced space with a decision held at a value: as its optimum is found, but the plan is told as well."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from planner.solve.branch import Branch
from planner.solve.candidates import ApartFound
from planner.solve.dp import Path, PipelineTable
from planner.solve.exact import branch_optimum
from planner.solve.objective import Objective
from planner.solve.optimum import SpaceSearch
from planner.solve.pin import Pin
from search_spaces.stages import Choice, StageChoice


@dataclass(frozen=True, slots=True)
class Held:
    """A plan and its seconds."""

    choice: Choice
    seconds: float


def best_held(
    search: SpaceSearch, pin: Pin, branches: Sequence[tuple[int, int]] | None = None, stages: tuple[int, ...] | None = None
) -> Held | None:
    """The plan of least latency that agrees with a pin, among some (replicas, micro-batches) and stage counts (None: all)."""
    some = [search.branch(*branch) for branch in branches or search.space.branches]
    best, found = np.inf, None
    counts = search.space.stages if stages is None else stages
    if pin.get("form") != "separate":
        for bound, _, branch in sorted((search.floor(b, pin), i, b) for i, b in enumerate(some)):
            if bound >= best:
                break
            path = _pipeline(search, branch, pin, counts, best)
            if path is not None:
                objective = _objective(search, branch)
                best, found = objective.value(path.chain, path.slowest), (branch, path)
    choice = None if found is None else _choice(search, *found, pin)
    for branch in some if search.apart.splits and (counts is None or 1 in counts) else ():
        apart: ApartFound | None = search.apart.best(branch.replicas, branch.micro_batches, best, pin)
        if apart is not None:
            best = apart.value
            choice = Choice(branch.replicas, branch.micro_batches, (apart.stage,), apart.in_flight)
    return None if choice is None else Held(choice, float(best))


def _objective(search: SpaceSearch, branch: Branch) -> Objective:
    return Objective("latency", search.sizes.phase == "decode", branch.micro_batches)


def _pipeline(search: SpaceSearch, branch: Branch, pin: Pin, counts: tuple[int, ...] | None, cutoff: float) -> Path | None:
    """The best linear pipeline of a branch below the cutoff."""
    table = PipelineTable(branch, search.arrays(branch, pin or None), counts)
    return branch_optimum(table, _objective(search, branch), cutoff).path


def _choice(search: SpaceSearch, branch: Branch, path: Path, pin: Pin) -> Choice:
    """The plan of a found pipeline: each leg with its best option that agrees with the pin."""
    stages, rows = [], branch.priced.spans[1]
    for leg in path.legs:
        slot = branch.slot(leg.first, leg.width)
        if slot is None:
            raise ValueError("a found stage has a slot")
        option = branch.option_at(slot, int(branch.best(slot, pin or None)[1][rows[leg.start, leg.stop]]))
        devices = tuple(slot.devices)
        stages.append(StageChoice(leg.stop - leg.start, devices, option.attention, option.mlp_ways, option.experts))
    return Choice(branch.replicas, branch.micro_batches, tuple(stages))
