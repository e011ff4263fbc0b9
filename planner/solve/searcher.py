"""The search that a space asks for: linear pipelines and experts apart, or training steps."""

from __future__ import annotations

from planner.errors import InputError
from planner.evaluate.setting import Setting
from planner.solve.answer import Limits
from planner.solve.objective import TIE_RULE, TRAINING_TIE_RULE, Name
from planner.solve.optimum import SpaceSearch
from planner.solve.training import TrainingSearch
from search_spaces.space import SearchSpace
from search_spaces.training_space import TrainingSpace

Search = SpaceSearch | TrainingSearch


def space_search(
    env: Setting, space: SearchSpace, objective: Name = "latency", limits: Limits | None = None, *, ignore_memory: bool = False
) -> Search:
    """A search of a space, priced."""
    if isinstance(space, TrainingSpace):
        return TrainingSearch(env, space, objective, limits, ignore_memory=ignore_memory)
    return SpaceSearch(env, space, objective, limits or Limits(), ignore_memory=ignore_memory)


def tie_rule(space: SearchSpace) -> str:
    """Which of several equally good plans of a space is the answer, in words."""
    return TRAINING_TIE_RULE if isinstance(space, TrainingSpace) else TIE_RULE


def inference_only(space: SearchSpace, verb: str, instead: str) -> None:
    """Refuse a training problem where only inference is answered, and say what answers `instead`."""
    if isinstance(space, TrainingSpace):
        allowed = f"prefill or decode: {verb} does not answer for training plans yet; {instead}"
        raise InputError("workload.phase", "training", allowed)
