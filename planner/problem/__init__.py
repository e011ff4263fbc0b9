"""Problems: a model, a cluster and a workload with the space of plans for them and the hand-designed plans to beat."""

from __future__ import annotations

from planner.problem.core import PROBLEM_SCHEMA, Problem, problem_to_dict
from planner.problem.library import library_names
from planner.problem.load import load_problem
from planner.problem.plans import load_plan
from planner.problem.sizes import sizes_of

__all__ = ["PROBLEM_SCHEMA", "Problem", "library_names", "load_plan", "load_problem", "problem_to_dict", "sizes_of"]
