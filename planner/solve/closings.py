"""How every branch of a finished search was closed, for its certificate: read off the search afterwards."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

import numpy as np

from planner.solve.answer import Optimum
from planner.solve.branch import Branch

if TYPE_CHECKING:
    from planner.solve.optimum import SpaceSearch

How = Literal["closed form", "exact program", "fixed stages", "no option", "table", "open"]


@dataclass(frozen=True, slots=True)
class Closing:
    """A branch: its linear pipelines and its plans with experts apart, each with how it was closed and a lower bound.

    Bounds are in what is minimized (seconds or dollars), inf where there is no plan. `chain_s` and `work_s` are the terms of
    the closed form: seconds of one micro-batch through the fastest layers, GPU-seconds of the thriftiest (inf: no option).
    `apart` is None where the space has no such plans.
    """

    replicas: int
    micro_batches: int
    how: How
    bound: float
    chain_s: float
    work_s: float
    apart: How | None
    apart_bound: float

    @property
    def least(self) -> float:
        """Lower bound of all plans of the branch."""
        return min(self.bound, self.apart_bound)


def closings(asked: SpaceSearch, optimum: Optimum) -> tuple[Closing, ...]:
    """Every branch of the space in order."""
    return tuple(_closing(asked, optimum, r, m) for r, m in asked.space.branches)


def _closing(asked: SpaceSearch, optimum: Optimum, replicas: int, micro_batches: int) -> Closing:
    branch, known = asked.branch(replicas, micro_batches), asked.floors.get((replicas, micro_batches))
    least = asked.priced.least_layer(branch.sequences)
    value = optimum.value if optimum.choice is not None else np.inf
    bound, how = _chain_and_work(asked, branch, least), "closed form"
    if asked.space.layout:
        bound, how = value, "fixed stages"
    elif known is not None:
        bound, how = (min(known, value) if np.isfinite(known) else np.inf), "exact program"
    elif least is None:
        how = "no option"
    elif bound <= value and not optimum.complete and asked.bound(branch) <= value:
        how = "open"
    elif bound <= value < np.inf:  # a stronger form has closed it: a claim that the program can go through, too
        bound, how = value, "exact program"
    facts = optimum.counts.model
    if facts is not None and (facts.replicas, facts.micro_batches) == (replicas, micro_batches):
        bound = min(bound, facts.bound * facts.weight)
    apart: How | None = None
    apart_bound = np.inf
    if asked.apart.splits:
        left = asked.apart_left.get((replicas, micro_batches))
        apart, apart_bound = ("table", value) if left is None else ("open", left)
    terms = (np.inf, np.inf) if least is None else least
    return Closing(replicas, micro_batches, how, float(bound), *terms, apart, float(apart_bound))  # type: ignore[arg-type]


def _chain_and_work(asked: SpaceSearch, branch: Branch, least: tuple[float, float] | None) -> float:
    """The closed form that a certificate states: chain of the fastest layers, work of the thriftiest shared by all ranks."""
    most = int(min(branch.stride, asked.caps.gpus // branch.replicas))
    if least is None or most < 1:
        return np.inf
    ends = np.arange(1 if asked.pays else most, most + 1)
    question = replace(asked.question(branch, np.inf, most), first_end=1)
    return float(question.values(np.full(ends.size, least[0]), least[1] / ends, ends).min())
