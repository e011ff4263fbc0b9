"""The mixtures of a plan bounded by whole experts, for whatever placement."""

from __future__ import annotations

from collections.abc import Container
from dataclasses import replace

import numpy as np

from planner.evaluate.setting import MixtureCase, Setting
from planner.solve.experts.costs import Mixture
from planner.solve.experts.load import balance
from planner.solve.experts.options import mixture_of
from planner.solve.experts.time_bounds import time_bounds
from search_spaces.experts import most_held, serves
from search_spaces.sizes import Sizes
from search_spaces.stages import Choice


def least_cases(env: Setting, sizes: Sizes, choice: Choice, known: Container[MixtureCase]) -> dict[MixtureCase, float]:
    """Lower bounds, in seconds, of the mixtures of a choice that are not known, under unequal loads."""
    found: dict[MixtureCase, float] = {}
    for stage in choice.stages:
        for kind in env.kinds:
            mixture = mixture_of(env, sizes, choice, stage, kind.load) if len(set(kind.load)) > 1 else None
            if mixture is None or mixture.groups < 2:
                continue
            own = replace(mixture, layer=kind)
            if own.case not in known and own.case not in found:
                found[own.case] = _least(own, kind.load)
    return found


def _least(mixture: Mixture, load: tuple[float, ...]) -> float:
    """What no placement goes below that has no more experts on a group than are searched, however its copies serve."""
    row, slots = np.array([load]), most_held(len(load), mixture.groups)
    shares, near = row / row.sum(), mixture.env.cluster.neighbours
    (balanced,) = balance(row, mixture.groups, slots, exact=False)
    reached = mixture.placed_seconds([balanced.placement], [load])
    dispatched = mixture.form == "dispatch" and serves(near, mixture.tensor_ways, len(mixture.devices))
    cases = (mixture, replace(mixture, within=near)) if dispatched else (mixture,)
    return min(float(time_bounds(case, shares, slots, reached)[0]) for case in cases)
