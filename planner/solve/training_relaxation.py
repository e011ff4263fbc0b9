"""Where no training plan is left: which limit leaves none, and the smallest change with which one fits."""

from __future__ import annotations

import math
from dataclasses import replace

from planner.solve.answer import Optimum
from planner.solve.objective import INF, NO_CAPS
from planner.solve.relaxation import Relaxation
from planner.solve.training import TrainingSearch

GB = 1e9


def training_relaxation(asked: TrainingSearch, optimum: Optimum) -> Relaxation:
    """Why a completed search has found nothing: a limit of the search, the memory, or the rules of the space."""
    caps = asked.limits.caps
    if not caps.none:
        free = _anew(asked, without_caps=True)
        found = free.run()
        if found.choice is not None:
            limits = {
                "the latency limit": f"a latency of {found.value:.4g} s" if caps.latency_s < INF else "",
                "the GPU limit": "more GPUs" if caps.gpus < INF else "",
                "the memory limit": "the memory that the GPUs have" if caps.memory_bytes < INF else "",
            }
            named = {name: change for name, change in limits.items() if change}
            return Relaxation("; ".join(named), ", or ".join(named.values()), found.value)
        asked, optimum = free, found
    if optimum.excess_bytes == INF:
        return Relaxation("the rules of the space", "leave more decisions open", None)
    kinds = asked.env.cluster.kinds.values()
    most = max(kind.memory_bytes for kind in kinds)
    needed = math.ceil((most + optimum.excess_bytes) / GB)
    then = _anew(asked, without_caps=True, ignore_memory=True).run()
    over = f"{optimum.excess_bytes / GB:.2f} GB over the {most / GB:.0f} GB of its fullest GPU"
    return Relaxation(
        f"memory: the plan that comes nearest is {over}",
        f"GPUs of {needed} GB, more of them, or `zero` and `recompute` opened where the space pins them",
        then.value if then.choice is not None else None,
    )


def _anew(asked: TrainingSearch, *, without_caps: bool, ignore_memory: bool = False) -> TrainingSearch:
    limits = replace(asked.limits, caps=NO_CAPS) if without_caps else asked.limits
    return TrainingSearch(asked.env, asked.space, asked.objective, limits, ignore_memory=ignore_memory)
