"""Search: from a problem to the best plan with its proof, compared with the plans that people designed."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from importlib.metadata import PackageNotFoundError, version
from math import isfinite
from typing import Any, TypeVar

from planner.check.findings import Finding
from planner.check.validate import check_choice
from planner.errors import InputError
from planner.evaluate.evaluation import Evaluation, evaluate
from planner.evaluate.setting import Setting, setting
from planner.plan import choice_to_dict
from planner.problem import Problem, problem_to_dict
from planner.solve.answer import Limits, Optimum
from planner.solve.closings import Closing, closings
from planner.solve.decisions import Decision, DecisionValue, RunnerUp, decision_tables, runner_up
from planner.solve.experts.lighter import RULE as LIGHTER_RULE
from planner.solve.experts.lighter import lighter
from planner.solve.experts.options import RULE, open_to_search, with_found_placements, with_placements
from planner.solve.experts.searched import placed_optimum, under_all_loads
from planner.solve.experts.summary import PlacementSummary, summaries
from planner.solve.objective import NO_CAPS, Caps, Name
from planner.solve.optimum import SpaceSearch
from planner.solve.relaxation import relaxation
from planner.solve.searcher import Search, space_search, tie_rule
from planner.solve.training import TrainingSearch
from planner.solve.training_decisions import training_decisions
from planner.solve.training_relaxation import training_relaxation
from search_spaces.space import SearchSpace
from search_spaces.stages import Choice

SCHEMA = "planner.result/1"
MOST_GPUS = 16_384
Progress = Callable[[str], None]
Searched = TypeVar("Searched", bound=Search)
Priced = Callable[[Setting, SearchSpace, Name, Limits], Searched]


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


@dataclass(frozen=True)
class Infeasibility:
    """Why nothing fits, and the smallest change that would."""

    constraint: str
    relaxation: str
    then_latency_s: float | None


@dataclass(frozen=True)
class Alternative:
    """The best plan of another kind, in order."""

    choice: Choice
    evaluation: Evaluation


@dataclass(frozen=True)
class Result:
    """The answer of a search. `value` and `bound` are in the objective's own unit (see `in_unit`)."""

    problem: Problem
    objective: Name
    status: str
    value: float | None
    bound: float | None
    gap: float | None
    space_size: str
    optimum: Optimum
    choice: Choice | None
    evaluation: Evaluation | None
    alternatives: tuple[Alternative, ...]
    decisions: tuple[Decision, ...]
    hand_designed: tuple[HandDesigned, ...]
    unrestricted: tuple[float, Choice] | None
    infeasibility: Infeasibility | None
    seed: int
    interrupted: bool = False
    caps: Caps = NO_CAPS
    closings: tuple[Closing, ...] = ()
    experts: tuple[PlacementSummary, ...] = ()

    @property
    def runner_up(self) -> RunnerUp | None:
        """The best plan with another value of some decision; None where decisions were not enumerated."""
        if self.value is None or self.evaluation is None:
            return None
        return runner_up(self.decisions, self.value, self.evaluation.interval_s[1] / self.evaluation.latency_s)

    def to_dict(self) -> dict[str, Any]:
        """As JSON-ready data (`planner.result/1`), without times or host facts."""
        sizes, counts = self.problem.sizes, self.optimum.counts
        space = {
            "size": self.space_size, "priced": counts.priced, "branches": counts.branches, "iterations": counts.iterations,
            "cuts": counts.cuts, "dropped": dict(sorted(counts.dropped.items())), "rules": list(self.problem.restrictions),
            "ties": tie_rule(self.problem.space),
        }  # fmt: skip
        objective = {"name": self.objective, "value": self.value, "bound": self.bound, "gap": self.gap}
        return {
            "schema": SCHEMA, "status": self.status, "objective": objective,
            "constraints": constraints(self.caps), "space": space,
            "problem": problem_to_dict(self.problem),
            "plan": plan_dict(self.choice, self.problem), "evaluation": self.evaluation.to_dict() if self.evaluation else None,
            "alternatives": [
                {"plan": plan_dict(a.choice, self.problem), "evaluation": a.evaluation.to_dict()} for a in self.alternatives
            ],
            "decisions": [asdict(decision) for decision in self.decisions],
            "runner_up": asdict(self.runner_up) if self.runner_up else None,
            "experts": [asdict(summary) for summary in self.experts],
            "hand_designed": [hand_designed_dict(h, self.problem) for h in self.hand_designed],
            "unrestricted": None if self.unrestricted is None else {
                "objective": self.unrestricted[0], "plan": choice_to_dict(self.unrestricted[1], sizes),
            },
            "infeasibility": asdict(self.infeasibility) if self.infeasibility else None,
            "interrupted": self.interrupted, "versions": versions(), "seed": self.seed,
        }  # fmt: skip


def constraints(caps: Caps) -> dict[str, float | None]:
    """What a plan may not exceed as JSON-ready data, None where nothing is asked."""
    asked = {
        "max_latency_ms": caps.latency_s * 1e3, "max_memory_gb": caps.memory_bytes / 1e9, "gpus_at_most": caps.gpus,
    }  # fmt: skip
    return {name: round(most, 9) if isfinite(most) else None for name, most in asked.items()}


def plan_dict(choice: Choice | None, problem: Problem) -> dict[str, Any] | None:
    """A choice as a plan mapping, or None."""
    return None if choice is None else choice_to_dict(choice, problem.sizes)


def hand_designed_dict(hand: HandDesigned, problem: Problem) -> dict[str, Any]:
    """A hand-designed plan's verdict as JSON-ready data."""

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


def versions() -> dict[str, str]:
    """Versions that the answer depends on."""
    found = {}
    for name in ("parallelism-planner", "ortools", "numpy"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "unknown"
    return found


def search(
    problem: Problem,
    *,
    objective: Name = "latency",
    limits: Limits | None = None,
    top: int = 1,
    details: bool = True,
    progress: Progress | None = None,
) -> Result:
    """The best plan of a problem, with its proof.

    `details` adds the decision tables, the hand-designed plans and the unrestricted optimum. Raises `InputError` for wrong
    input only: a problem that nothing fits has status `infeasible`.
    """
    limits = limits or Limits()
    start, plain_space = time.monotonic(), problem.space
    problem = placed(problem)
    env = setting(problem.model, problem.workload, problem.cluster)
    few = lighter(env, problem.space)
    asked = priced_space(problem if few is None else replace(problem, workload=few), (objective,), limits, space_search)
    if few is None:
        env = asked.env
    else:
        problem = replace(problem, restrictions=(*problem.restrictions, LIGHTER_RULE))
    asked.limits = replace(limits, seconds=start + limits.seconds - time.monotonic())  # pricing took its part
    optimum = asked.run(progress=progress)
    size = str(problem.space.size())
    closed = closings(asked, optimum) if isinstance(asked, SpaceSearch) else ()
    if isinstance(asked, SpaceSearch) and problem.space is not plain_space:
        exact, optimum = (asked, optimum) if few is None else under_all_loads(env, asked, optimum)
        optimum = placed_optimum(exact, optimum, plain_space)
    if optimum.choice is None:
        return _without_plan(problem, asked, optimum, size, closed)
    value, bound = in_unit(problem, objective, optimum.value), in_unit(problem, objective, optimum.bound)
    gap = abs(bound - value) / abs(value)
    status = "optimal" if optimum.complete and gap <= 1e-6 else "feasible"
    plain = Result(
        problem, objective, status, value, bound, gap, size, optimum, optimum.choice,
        evaluate(env, problem.sizes, optimum.choice), (), (), (), None, None, limits.seed, optimum.interrupted, limits.caps,
        closed, summaries(env, problem.sizes, optimum.choice) if isinstance(asked, SpaceSearch) else (),
    )  # fmt: skip
    if optimum.interrupted:
        return plain
    left = replace(limits, seconds=start + limits.seconds - time.monotonic())
    try:
        if not details or left.seconds <= 0:
            return replace(plain, alternatives=alternatives(env, asked, problem, optimum, top))
        return _detailed(plain, env, asked, top, left, progress)
    except KeyboardInterrupt:
        return replace(plain, interrupted=True)


def _without_plan(problem: Problem, asked: Search, optimum: Optimum, size: str, closed: tuple[Closing, ...]) -> Result:
    """No plan: nothing fits, and why, or the time ran out first."""
    status, reason, interrupted = "infeasible" if optimum.complete else "timeout", None, optimum.interrupted
    try:
        reason = infeasibility(problem, asked, optimum) if optimum.complete else None
    except KeyboardInterrupt:  # that nothing fits is known, the change that would help is not
        interrupted = True
    return Result(
        problem, asked.objective, status, None, None, None, size, optimum, None, None, (), (), (), None, reason,
        asked.limits.seed, interrupted, asked.limits.caps, closed,
    )  # fmt: skip


def placed(problem: Problem, rule: str = RULE) -> Problem:
    """The problem with expert placements found for its space, where its loads are unequal and its placements open."""
    env = setting(problem.model, problem.workload, problem.cluster)
    if problem.space.layout or not open_to_search(env, problem.space):
        return problem
    spaces = (with_placements(env, space) for space in (problem.space, problem.unrestricted))
    return replace(problem, space=next(spaces), unrestricted=next(spaces), restrictions=(*problem.restrictions, rule))


def priced_space(problem: Problem, objectives: Sequence[Name], limits: Limits, make: Priced[Searched]) -> Searched:
    """The space of a problem, priced by `make` (`space_search`, or the class of one kind of space), to be asked for the first
    objective; raises `InputError` where one has no meaning.
    """
    if problem.cluster.size > MOST_GPUS:
        raise InputError("cluster", f"{problem.cluster.size} GPUs", f"at most {MOST_GPUS} GPUs in a search, for now")
    free = [kind.name for kind in problem.cluster.kinds.values() if kind.price_per_hour <= 0]
    if "cost" in objectives and free:
        raise InputError(f"cluster: price_per_hour of {free[0]}", 0, "a price above 0 dollars, to search for the least cost")
    env = setting(problem.model, problem.workload, problem.cluster)
    return make(env, problem.space, objectives[0], limits)


def _detailed(plain: Result, env: Setting, asked: Search, top: int, limits: Limits, progress: Progress | None) -> Result:
    """The answer with what a reader asks next: other plans, every decision, the hand-designed plans, replicas open; the
    last of them are left out where the time limit comes first.
    """
    problem, optimum, objective = plain.problem, plain.optimum, plain.objective
    say = progress or (lambda text: None)
    end, found = time.monotonic() + limits.seconds, dict[str, Any]()
    if asked.env.workload == env.workload:
        say(f"optimum {optimum.value:.6g} found and proven; enumerating decisions")
        found["decisions"] = decisions(asked, problem, optimum)
    if time.monotonic() < end:
        say("comparing with the hand-designed plans")
        names = problem.plans
        found["hand_designed"] = tuple(hand_designed(problem, env, name, optimum.value, objective, limits) for name in names)
    if time.monotonic() < end:
        found["unrestricted"] = unrestricted(problem, env, objective, limits, optimum)
    if time.monotonic() < end:
        found["alternatives"] = alternatives(env, asked, problem, optimum, top)
    return replace(plain, **found)


def in_unit(problem: Problem, objective: Name, seconds: float) -> float:
    """An objective in its own unit: seconds, tokens per second, or dollars for the pass."""
    if objective != "throughput":
        return seconds
    return problem.workload.batch * problem.workload.query_length / seconds


def alternatives(env: Setting, asked: Search, problem: Problem, optimum: Optimum, top: int) -> tuple[Alternative, ...]:
    """The best plans of the next best branches (replicas, micro-batches), at most `top` - 1."""
    if top <= 1 or optimum.choice is None:
        return ()
    found = sorted(asked.branch_optima(skip=(optimum.choice.replicas, optimum.choice.micro_batches)), key=lambda pair: pair[0])
    return tuple(Alternative(choice, evaluate(env, problem.sizes, choice)) for _, choice in found[: top - 1])


def unrestricted(
    problem: Problem, env: Setting, objective: Name, limits: Limits, restricted: Optimum
) -> tuple[float, Choice] | None:
    """The proven best with replicas open, where the problem's space fixes them; its own best plan if replicas do not help."""
    if problem.unrestricted == problem.space:
        return None
    optimum = space_search(env, problem.unrestricted, objective, limits).run(restricted.value)
    chosen = optimum if optimum.choice is not None else restricted
    return None if chosen.choice is None else (in_unit(problem, objective, chosen.value), chosen.choice)


def hand_designed(problem: Problem, env: Setting, name: str, best: float, objective: Name, limits: Limits) -> HandDesigned:
    """The three readings of a hand-designed plan; what its author wrote is read without the caps."""
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


def decisions(asked: Search, problem: Problem, optimum: Optimum) -> tuple[Decision, ...]:
    """The decision tables in the objective's own unit."""

    def told(value: DecisionValue) -> DecisionValue:
        objective = None if value.objective is None else in_unit(problem, asked.objective, value.objective)
        return replace(value, objective=objective)

    tables = training_decisions(asked, optimum) if isinstance(asked, TrainingSearch) else decision_tables(asked, optimum)
    return tuple(replace(d, values=tuple(told(v) for v in d.values)) for d in tables)


def infeasibility(problem: Problem, asked: Search, optimum: Optimum) -> Infeasibility:
    """Which constraint leaves nothing, and the smallest change that would let a plan fit."""
    found = training_relaxation(asked, optimum) if isinstance(asked, TrainingSearch) else relaxation(asked, optimum)
    then = None if found.then is None else in_unit(problem, asked.objective, found.then)
    return Infeasibility(found.constraint, found.change, then)
