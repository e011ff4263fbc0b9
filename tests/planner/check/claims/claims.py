"""Claims for tests: written as in a file, judged against a plan."""

from __future__ import annotations

from functools import cache

from planner.api import Chosen, choose, judge_claims
from planner.check.claims import Claim, Judgement, Subject, claims_of


@cache
def chosen(ref: str) -> Chosen:
    """A library plan, completed."""
    return choose(ref)


@cache
def subject(ref: str) -> Subject:
    """A library plan as claims see it."""
    plan = chosen(ref)
    return Subject(plan.env, plan.problem.sizes, plan.choice, plan.name)


def read(**fields) -> Claim:
    """One claim, read from its fields."""
    (claim,) = claims_of([{"id": "it", "text": "as written", **fields}], "test")
    return claim


def verdict(ref: str, **fields) -> Judgement:
    """The verdict on one claim about a library plan."""
    (found,) = judge_claims(chosen(ref), [read(**fields)])
    return found
