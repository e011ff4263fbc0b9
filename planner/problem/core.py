"""Problem: everything a search needs, and the mapping it can be written back as."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

from planner.cluster import Cluster
from planner.model import ModelSpec
from planner.problem.sizes import sizes_of
from planner.workload import Workload
from search_spaces.orders import Orders, orders_of
from search_spaces.sizes import Sizes
from search_spaces.space import SearchSpace

PROBLEM_SCHEMA = "planner.problem/1"


@dataclass(frozen=True, slots=True)
class Drawing:
    """A drawing of a hand-designed plan that the problem's source lists: which view, and of which layer (None: all)."""

    name: str
    plan: str
    view: str
    layer: int | None


@dataclass(frozen=True)
class Problem:
    """A model, a workload and a cluster with what may be chosen for them.

    Parameters
    ----------
    name: the problem's name, or one made of its parts
    source: the text that the problem was transcribed from, if any
    space: what a search may choose
    plans: the hand-designed plans in the order of their file; each is a space with less left open
    plan_notes: what a plan's author remarks, or why a plan is left out of `plans`
    assumptions: what the source does not say and the file assumes
    claims: what the source claims about its plans, as written in the file
    unrestricted: the space with the number of replicas open
    restrictions: what the space leaves out, in words
    drawings: drawings of its hand-designed plans that a stored run holds besides those of the best plan
    raw: the resolved mapping, for `problem_to_dict`

    """

    name: str
    source: str
    model: ModelSpec
    cluster: Cluster
    workload: Workload
    space: SearchSpace
    plans: dict[str, SearchSpace]
    plan_notes: dict[str, str]
    assumptions: tuple[str, ...]
    claims: tuple[dict[str, object], ...]
    unrestricted: SearchSpace
    restrictions: tuple[str, ...]
    drawings: tuple[Drawing, ...]
    raw: dict[str, object]

    @property
    def sizes(self) -> Sizes:
        """The integers that the space depends on."""
        return self.space.sizes

    @cached_property
    def orders(self) -> Orders:
        """The orders of the cluster's GPUs that a search goes through: one where its nodes are alike, or its stages fixed."""
        fixed = self.space.layout or not self.space.any_order
        return Orders() if fixed else orders_of(self.cluster.in_order(()).nodes)

    @property
    def listed(self) -> Problem:
        """The problem with the GPUs counted as its cluster lists them, which is how its hand-designed plans count them."""
        return self.in_order(())

    def in_order(self, gpus: Sequence[int]) -> Problem:
        """The problem with the cluster's GPUs counted in another order (empty: as listed). Its plans stay as they were written,
        with the GPUs as listed. `ValueError` for what is no order of the cluster.
        """
        if tuple(gpus) == self.cluster.gpus:
            return self
        cluster = self.cluster.in_order(gpus)
        sizes = sizes_of(self.model, self.workload, cluster)
        space, unrestricted = (replace(space, sizes=sizes) for space in (self.space, self.unrestricted))
        return replace(self, cluster=cluster, space=space, unrestricted=unrestricted)


def problem_to_dict(problem: Problem) -> dict[str, object]:
    """The mapping (`planner.problem/1`) that `load_problem` reads back into an equal problem.

    Plans that a change left out are not in it, nor are the notes that say so.
    """
    return copy.deepcopy(problem.raw)
