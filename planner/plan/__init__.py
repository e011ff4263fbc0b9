"""Plans: a plan in a file is a search space with less left open, and a choice is written as a plan with nothing open."""

from __future__ import annotations

from planner.plan.domains import attention_domain, expert_domain, integers
from planner.plan.order import read_gpus
from planner.plan.read import PLAN_SCHEMA, merge_plans, plan_space
from planner.plan.write import choice_to_dict

__all__ = [
    "PLAN_SCHEMA", "attention_domain", "choice_to_dict", "expert_domain", "integers", "merge_plans", "plan_space", "read_gpus",
]  # fmt: skip
