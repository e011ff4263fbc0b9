"""The answer of a search in whose space placements were found: made faster for the best plan, and bounded for any placement."""

from __future__ import annotations

from dataclasses import replace

from planner.evaluate.setting import MixtureCase, Setting, setting
from planner.solve.answer import Optimum
from planner.solve.experts.least import least_cases
from planner.solve.experts.lighter import floor_workload
from planner.solve.experts.options import alone, refined
from planner.solve.optimum import SpaceSearch
from search_spaces.space import SearchSpace

ROUNDS = 4
"""Searches for a bound, at most: each knows the mixtures of the lowest plans before."""


def placed_optimum(asked: SpaceSearch, optimum: Optimum, plain: SearchSpace) -> Optimum:
    """The optimum of a space with found placements, improved and bounded for every placement; `plain` has none found."""
    if optimum.choice is None:
        return optimum
    better, interrupted = optimum, optimum.interrupted
    try:
        if not interrupted:
            better = with_better_placements(asked, optimum)
            bound = any_placement_bound(asked, plain)
            return replace(better, bound=min(optimum.bound, better.value, bound))
    except KeyboardInterrupt:
        interrupted = True
    bound = min(optimum.bound, better.value, any_placement_floor(asked, plain))
    return replace(better, bound=bound, complete=False, interrupted=interrupted)


def under_all_loads(env: Setting, asked: SpaceSearch, optimum: Optimum) -> tuple[SpaceSearch, Optimum]:
    """A search under all loads, of the plan alone that was found under a few of them, and its optimum; where that plan does not
    fit under all, of the whole space. What was proven under a few loads is not: the bound is still that of nothing.
    """
    if optimum.choice is None:
        return asked, optimum
    search = SpaceSearch(env, alone(asked.space, optimum.choice), asked.objective, asked.limits)
    own = search.run(prove=False)
    if own.choice is None:
        search = SpaceSearch(env, asked.space, asked.objective, asked.limits)
        return search, search.run()
    return search, replace(optimum, choice=own.choice, value=own.value, bound=own.value)


def with_better_placements(asked: SpaceSearch, optimum: Optimum) -> Optimum:
    """The optimum with placements made for its own stages and tokens, where they are better; its bound stays."""
    if optimum.choice is None:
        return optimum
    space = refined(asked.env, asked.space, optimum.choice)
    if space is None:
        return optimum
    found = SpaceSearch(asked.env, space, asked.objective, asked.limits).run(optimum.value)
    if found.choice is None or found.value >= optimum.value:
        return optimum
    return replace(optimum, choice=found.choice, value=found.value)


def any_placement_bound(asked: SpaceSearch, space: SearchSpace) -> float:
    """What no plan of a space goes below, wherever its experts are; `space` has no placements of its own.

    The mixtures of the plan that is lowest are bounded more exactly, by whole experts, until that changes nothing: but not
    where a few loads stand for many, which are hotter than any of them.
    """
    least: dict[MixtureCase, float] = {}
    exact = floor_workload(asked.env.workload) is asked.env.workload
    for left in reversed(range(ROUNDS if exact else 1)):
        search = _any_placement(asked, space, tuple(least.items()))
        optimum = search.run(prove=False)
        if optimum.interrupted:
            raise KeyboardInterrupt
        found = least_cases(search.env, space.sizes, optimum.choice, least) if left and optimum.choice is not None else {}
        if not found:
            break
        least |= found
    return optimum.bound


def any_placement_floor(asked: SpaceSearch, space: SearchSpace) -> float:
    """The same in closed form, weaker but at once."""
    search = _any_placement(asked, space)
    branches = [search.branch(r, m) for r, m in space.branches]
    floors = [search.apart_floor(branch) for branch in branches] if search.apart.splits else []
    return min([*(search.bound(branch) for branch in branches), *floors], default=0.0)


def _served_anyhow(space: SearchSpace) -> SearchSpace:
    """The space whoever copies serve: a bound prices no placement, and so none has copies."""
    layout = tuple(replace(pin, experts=replace(pin.experts, serve_within=None)) for pin in space.layout)
    return replace(space, layout=layout, experts=replace(space.experts, serve_within=None))


def _any_placement(asked: SpaceSearch, space: SearchSpace, least: tuple[tuple[MixtureCase, float], ...] = ()) -> SpaceSearch:
    own = asked.env
    space = _served_anyhow(space)
    env = setting(own.model, floor_workload(own.workload), own.cluster, own.pricer)
    return SpaceSearch(replace(env, any_placement=True, least=least, rooms=None), space, asked.objective, asked.limits)
