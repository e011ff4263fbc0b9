"""Campaign: many mutants of many subjects, each judged; every mutant can be made again from the seed and its number."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from planner.check.findings import errors
from planner.check.structure import check_structure
from planner.graph.nodes import Graph
from tests.mutants import graphs, plans
from tests.mutants.judge import Judge, Verdict
from tests.mutants.subjects import Subject

PLAN, OTHER = 0.1, 0.2
"""Shares of mutants that are changed plans, and (above the first) graphs of changed plans that are said to be the plan's."""


@dataclass(frozen=True)
class Result:
    """What became of one mutant: its number, what broke it, of which subject, and the verdict."""

    number: int
    operator: str
    subject: str
    detail: str
    verdict: Verdict


def campaign(subjects: Sequence[Subject], count: int, seed: int) -> Iterator[Result]:
    """Make and judge `count` mutants: of sampled graphs, of the twins' whole graphs, and of plans."""
    judges = [(Judge(subject), Judge(subject.twin)) for subject in subjects]
    for number in range(count):
        rng = random.Random(f"{seed}:{number}")
        result = None
        while result is None:
            result = _one(rng, number, rng.choice(judges))
        yield result


def _one(rng: random.Random, number: int, judges: tuple[Judge, Judge]) -> Result | None:
    """A mutant of a subject, or None where the operator that was drawn has nothing to break."""
    sort = rng.random()
    judge = judges[0] if sort < PLAN else rng.choice(judges)
    subject = judge.subject
    if sort >= OTHER:
        mutant = graphs.mutate(rng, subject.graph, rng.choice(list(graphs.OPERATORS)))
        if mutant is None:
            return None
        return Result(number, mutant.operator, subject.name, mutant.detail, judge.graph(mutant.graph))
    operator = rng.choice(list(plans.OPERATORS))
    choice = plans.change_plan(rng, subject.sizes, subject.choice, operator)
    if choice is None:
        return None
    if sort < PLAN:
        return Result(number, f"plan: {operator}", subject.name, str(choice), judge.plan(choice))
    if errors(check_structure(subject.sizes, choice)):
        return None
    graph: Graph = subject.graph_of(choice)
    return Result(number, f"graph of another plan: {operator}", subject.name, str(choice), judge.graph(graph))


def scores(results: Sequence[Result]) -> dict[str, Counter[str]]:
    """For every mutation operator how many mutants were found, were equivalent (by criterion), or survived."""
    found: dict[str, Counter[str]] = {}
    for result in results:
        fate = "found" if result.verdict.found else result.verdict.equivalent or "survived"
        found.setdefault(result.operator, Counter())[fate] += 1
    return found
