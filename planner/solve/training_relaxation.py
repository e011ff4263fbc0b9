"""Where no training plan is left: which limit leaves none, and the smallest change with which one fits."""

from __future__ import annotations

from dataclasses import replace

from planner.solve.answer import Optimum
from planner.solve.objective import INF, NO_CAPS, Caps, Name
from planner.solve.relaxation import Question, Relaxation, larger_gpus, largest_memory, relaxed_caps
from planner.solve.training import TrainingSearch


def training_relaxation(asked: TrainingSearch, optimum: Optimum) -> Relaxation:
    """Why a completed search has found nothing: a limit of the search, the memory, or the rules of the space."""
    if not asked.limits.caps.none:
        free = _anew(asked, NO_CAPS)
        found = free.run(any_plan=True)
        if found.choice is not None:
            return relaxed_caps(_question(asked, optimum))
        asked, optimum = free, found
    if optimum.excess_bytes == INF:
        return Relaxation("the rules of the space", "leave more decisions open", None)
    return larger_gpus(asked.env, optimum, lambda env: TrainingSearch(env, asked.space, asked.objective, asked.limits).run())


def _question(asked: TrainingSearch, optimum: Optimum) -> Question:
    """The search, to be asked again under other caps: priced anew where they are on memory or GPUs."""
    own = asked.limits.caps

    def ask(objective: Name, caps: Caps, any_plan: bool) -> Optimum:
        same = (caps.memory_bytes, caps.gpus) == (own.memory_bytes, own.gpus)
        again = asked.asking(objective, caps) if same else _anew(asked, caps, objective)
        return again.run(any_plan=any_plan)

    missing = 0.0 if optimum.excess_bytes == INF else optimum.excess_bytes
    return Question(asked.objective, own, asked.sizes.devices, largest_memory(asked.env), ask, missing)


def _anew(asked: TrainingSearch, caps: Caps, objective: Name | None = None) -> TrainingSearch:
    return TrainingSearch(asked.env, asked.space, objective or asked.objective, replace(asked.limits, caps=caps))
