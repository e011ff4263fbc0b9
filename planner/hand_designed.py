"""The plans that people designed for a problem, each read three ways and compared with the best plan."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from planner.check.findings import Finding
from planner.check.validate import check_choice
from planner.evaluate.evaluation import evaluate
from planner.evaluate.setting import Setting, setting
from planner.plan import choice_to_dict
from planner.problem import Problem
from planner.solve.answer import Limits, Optimum
from planner.solve.experts.options import with_found_placements
from planner.solve.objective import NO_CAPS, Name
from planner.solve.searcher import space_search
from search_spaces.space import SearchSpace
from search_spaces.stages import Choice


@dataclass(frozen=True)
class PlanReading:
    """A reading of a hand-designed plan: the plan, its latency and its objective (in the objective's unit), and bytes over
    the fullest GPU's memory (0: it fits).
    """

    choice: Choice | None
    latency_s: float | None
    objective: float | None
    over_capacity_bytes: int
    where: str = ""


@dataclass(frozen=True)
class HandDesigned:
    """A hand-designed plan: as written (one micro-batch unless it says otherwise), with the fewest micro-batches that fit,
    and completed as well as its pins allow; `ratio_to_best` is the latter over the best plan (1 or more).
    """

    name: str
    note: str
    findings: tuple[Finding, ...]
    as_written: PlanReading
    fewest_micro_batches: PlanReading
    best_completion: PlanReading
    ratio_to_best: float | None

    @property
    def valid(self) -> bool:
        """Whether the completed plan is free of errors."""
        return self.best_completion.choice is not None and not any(f.severity == "error" for f in self.findings)


def in_unit(problem: Problem, objective: Name, seconds: float) -> float:
    """An objective in its own unit: seconds, tokens per second, or dollars for the pass."""
    if objective != "throughput":
        return seconds
    return problem.workload.batch * problem.workload.query_length / seconds


def plan_dict(choice: Choice | None, problem: Problem) -> dict[str, Any] | None:
    """A choice as a plan mapping, or None."""
    return None if choice is None else choice_to_dict(choice, problem.sizes)


def hand_designed(problem: Problem, name: str, best: float, objective: Name, limits: Limits) -> HandDesigned:
    """The three readings of a hand-designed plan; what its author wrote is read without the caps.

    Its GPUs are those of the cluster's list, whatever order the best plan counts them in.
    """
    problem = problem.listed
    env = setting(problem.model, problem.workload, problem.cluster)
    space = with_found_placements(env, problem.plans[name])
    written = space if space.micro_batches is not None else replace(space, micro_batches=(1,))
    completion = space_search(env, space, objective, limits).run()
    fewest = completion
    for _, micro in space.branches:
        found = space_search(env, replace(space, micro_batches=(micro,)), objective, limits).run()
        if found.choice is not None:
            fewest = found
            break
    findings = () if completion.choice is None else check_choice(env, problem.sizes, completion.choice)
    ratio = None if completion.choice is None else completion.value / best
    return HandDesigned(
        name, problem.plan_notes.get(name, ""), findings,
        _as_written(problem, env, written, objective, replace(limits, caps=NO_CAPS)),
        _reading(problem, env, objective, fewest), _reading(problem, env, objective, completion), ratio,
    )  # fmt: skip


def _reading(problem: Problem, env: Setting, objective: Name, optimum: Optimum) -> PlanReading:
    """A reading of a plan that fits, or how much it lacks."""
    if optimum.choice is None:
        return PlanReading(None, None, None, round(optimum.excess_bytes) if optimum.excess_bytes < float("inf") else 0)
    return _priced(problem, env, objective, optimum, 0, "")


def _priced(problem: Problem, env: Setting, objective: Name, optimum: Optimum, over: int, where: str) -> PlanReading:
    choice = optimum.choice
    if choice is None:
        raise ValueError("a priced reading has a plan")
    latency = optimum.value if objective == "latency" else evaluate(env, problem.sizes, choice).latency_s
    return PlanReading(choice, latency, in_unit(problem, objective, optimum.value), over, where)


def _as_written(problem: Problem, env: Setting, space: SearchSpace, objective: Name, limits: Limits) -> PlanReading:
    """The plan as its author left it: where it does not fit, by how much and on which GPU."""
    optimum = space_search(env, space, objective, limits).run()
    if optimum.choice is not None:
        return _reading(problem, env, objective, optimum)
    lenient = space_search(env, space, objective, limits, ignore_memory=True).run()
    if lenient.choice is None:
        return PlanReading(None, None, None, 0, "no micro-batch of that size can be split as the plan says")
    found = evaluate(env, problem.sizes, lenient.choice)
    worst = max(found.devices, key=lambda d: d.memory.total_bytes - d.memory.capacity_bytes)
    return _priced(problem, env, objective, lenient, round(optimum.excess_bytes), f"GPU {worst.rank}")


def hand_designed_dict(hand: HandDesigned, problem: Problem) -> dict[str, Any]:
    """A hand-designed plan's verdict as JSON-ready data."""
    problem = problem.listed

    def reading(r: PlanReading) -> dict[str, Any]:
        fits = r.choice is not None and r.over_capacity_bytes == 0
        return {
            "plan": plan_dict(r.choice, problem), "latency_s": r.latency_s, "objective": r.objective,
            "over_capacity_bytes": r.over_capacity_bytes,
            "fits": fits, "where": r.where, "micro_batches": r.choice.micro_batches if r.choice else None,
        }  # fmt: skip

    return {
        "name": hand.name, "note": hand.note, "valid": hand.valid, "findings": [f.code for f in hand.findings],
        "as_written": reading(hand.as_written), "fewest_micro_batches": reading(hand.fewest_micro_batches),
        "best_completion": reading(hand.best_completion), "latency_s": hand.best_completion.latency_s,
        "ratio_to_best": hand.ratio_to_best,
    }  # fmt: skip
