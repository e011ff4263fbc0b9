"""Search: from a problem to the best plan with its proof, compared with the plans that people designed."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, replace
from importlib.metadata import PackageNotFoundError, version
from math import isfinite
from typing import Any, TypeVar

from planner.errors import InputError
from planner.evaluate.evaluation import Evaluation, evaluate
from planner.evaluate.setting import Setting, setting
from planner.evaluate.shared import sharing_sites
from planner.hand_designed import HandDesigned, hand_designed, hand_designed_dict, in_unit, plan_dict
from planner.plan import choice_to_dict
from planner.problem import Problem, problem_to_dict
from planner.solve.answer import Counts, Limits, Optimum
from planner.solve.closings import Closing, closings
from planner.solve.decisions import Decision, DecisionValue, RunnerUp, decision_tables, runner_up
from planner.solve.experts.lighter import RULE as LIGHTER_RULE
from planner.solve.experts.lighter import lighter
from planner.solve.experts.options import RULE, open_to_search, with_placements
from planner.solve.experts.searched import placed_optimum, under_all_loads
from planner.solve.experts.summary import PlacementSummary, summaries
from planner.solve.objective import NO_CAPS, SAME, Caps, Name
from planner.solve.optimum import SpaceSearch
from planner.solve.relaxation import relaxation
from planner.solve.searcher import Search, space_search, tie_rule
from planner.solve.training import TrainingSearch
from planner.solve.training_decisions import training_decisions
from planner.solve.training_relaxation import training_relaxation
from search_spaces.orders import in_ranges, order_rule
from search_spaces.space import SearchSpace
from search_spaces.stages import Choice

SCHEMA = "planner.result/1"
MOST_GPUS = 16_384
Progress = Callable[[str], None]
Searched = TypeVar("Searched", bound=Search)
Priced = Callable[[Setting, SearchSpace, Name, Limits], Searched]


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


@dataclass(frozen=True, slots=True)
class OrderFound:
    """What the plans of one order of the cluster's GPUs (empty: as listed) come to: how many there are, the least value in the
    objective's own unit (None where none fits, or none is better than in the orders before), and how their branches were
    closed.
    """

    gpus: tuple[int, ...]
    size: int
    value: float | None
    closings: tuple[Closing, ...]


@dataclass(frozen=True)
class _Answer:
    """The answer within one order of the GPUs, with the search that found it."""

    problem: Problem
    env: Setting
    asked: Search
    optimum: Optimum
    order: OrderFound

    def better(self, other: _Answer | None) -> bool:
        """Whether its plan is better than that of an order before (of ties the first counts), or nearer to the memory."""
        if other is None:
            return True
        own, its = self.optimum, other.optimum
        return own.value < its.value * (1 - SAME) or (own.value == its.value and own.excess_bytes < its.excess_bytes)


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
    orders: tuple[OrderFound, ...] = ()

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
        if len(self.orders) > 1:
            space["orders"] = [{"gpus": in_ranges(o.gpus) or "as listed", "objective": o.value} for o in self.orders]
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
    start = time.monotonic()
    with sharing_sites() if len(problem.orders.gpus) > 1 else nullcontext():
        best, orders, interrupted = _over_orders(problem, objective, limits, progress)
    problem, env, asked, optimum = best.problem, best.env, best.asked, best.optimum
    size = str(sum(order.size for order in orders))
    if optimum.choice is None:
        return _without_plan(best, size, orders)
    value, bound = in_unit(problem, objective, optimum.value), in_unit(problem, objective, optimum.bound)
    gap = abs(bound - value) / abs(value)
    status = "optimal" if optimum.complete and gap <= 1e-6 else "feasible"
    plain = Result(
        problem, objective, status, value, bound, gap, size, optimum, optimum.choice,
        evaluate(env, problem.sizes, optimum.choice), (), (), (), None, None, limits.seed, interrupted, limits.caps,
        best.order.closings, summaries(env, problem.sizes, optimum.choice) if isinstance(asked, SpaceSearch) else (), orders,
    )  # fmt: skip
    if interrupted:
        return plain
    left = replace(limits, seconds=start + limits.seconds - time.monotonic())
    try:
        if not details or left.seconds <= 0:
            return replace(plain, alternatives=alternatives(env, asked, problem, optimum, top))
        return _detailed(plain, env, asked, top, left, progress)
    except KeyboardInterrupt:
        return replace(plain, interrupted=True)


def _over_orders(
    problem: Problem, objective: Name, limits: Limits, progress: Progress | None
) -> tuple[_Answer, tuple[OrderFound, ...], bool]:
    """The best answer over the orders of the GPUs, what each of them came to, and whether an interrupt ended it; an order after
    the first is searched for better plans alone. The bound is that of all orders that were searched, as the rules then say.
    """
    every, end, interrupted = problem.orders, time.monotonic() + limits.seconds, False
    best: _Answer | None = None
    found, bound, complete, counts = list[OrderFound](), float("inf"), True, Counts()
    for number, gpus in enumerate(every.gpus):
        left = replace(limits, seconds=end - time.monotonic())
        if best is not None and (interrupted or left.seconds <= 0):
            break
        try:
            if progress and number:
                progress(f"order {number + 1} of {len(every.gpus)}: GPUs {in_ranges(gpus)}")
            answer = _answer(problem.in_order(gpus), objective, left, best, progress)
        except KeyboardInterrupt:
            if best is None:
                raise
            interrupted = True
            break
        optimum, interrupted = answer.optimum, answer.optimum.interrupted
        found.append(answer.order)
        bound, complete, counts = min(bound, optimum.bound), complete and optimum.complete, counts.plus(optimum.counts)
        best = answer if answer.better(best) else best
    if best is None:
        raise ValueError("a cluster has an order of its GPUs")
    counts.model = best.optimum.counts.model
    complete = complete and len(found) == len(every.gpus)
    whole = replace(best.optimum, bound=min(bound, best.optimum.value), complete=complete, counts=counts)
    rule = order_rule(every, len(found))
    told = replace(best.problem, restrictions=(*best.problem.restrictions, *rule))
    return replace(best, problem=told, optimum=whole), tuple(found), interrupted


def _answer(problem: Problem, objective: Name, limits: Limits, best: _Answer | None, progress: Progress | None) -> _Answer:
    """The answer within the order of the GPUs that a problem has; with the answer of another order only what is better."""
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
    opened = isinstance(asked, SpaceSearch) and problem.space is not plain_space  # then a plan gets better after its search
    cutoff = float("inf") if best is None or opened else best.optimum.value * (1 - 4 * SAME)  # of ties the first counts
    optimum = asked.run(cutoff, progress=progress)
    if optimum.choice is None:
        optimum = replace(optimum, bound=min(optimum.bound, cutoff))
    shown = optimum if optimum.choice is not None or best is None else replace(
        best.optimum, complete=optimum.complete, counts=optimum.counts
    )  # fmt: skip
    closed = closings(asked, shown) if isinstance(asked, SpaceSearch) else ()
    if isinstance(asked, SpaceSearch) and opened:
        exact, optimum = (asked, optimum) if few is None else under_all_loads(env, asked, optimum)
        optimum = placed_optimum(exact, optimum, plain_space)
    value = None if optimum.choice is None else in_unit(problem, objective, optimum.value)
    size, late = _counted(problem.space)
    optimum = replace(optimum, interrupted=True) if late else optimum
    return _Answer(problem, env, asked, optimum, OrderFound(problem.sizes.gpus, size, value, closed))


def _counted(space: SearchSpace) -> tuple[int, bool]:
    """The plans of a space, and whether an interrupt came while they were counted: the answer is there, and told first."""
    try:
        return space.size(), False
    except KeyboardInterrupt:
        return space.size(), True


def _without_plan(answer: _Answer, size: str, orders: tuple[OrderFound, ...]) -> Result:
    """No plan: nothing fits, and why, or the time ran out first."""
    problem, asked, optimum = answer.problem, answer.asked, answer.optimum
    status, reason, interrupted = "infeasible" if optimum.complete else "timeout", None, optimum.interrupted
    try:
        reason = infeasibility(problem, asked, optimum) if optimum.complete else None
    except KeyboardInterrupt:  # that nothing fits is known, the change that would help is not
        interrupted = True
    return Result(
        problem, asked.objective, status, None, None, None, size, optimum, None, None, (), (), (), None, reason,
        asked.limits.seed, interrupted, asked.limits.caps, answer.order.closings, (), orders,
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
        names = problem.plans
        say("comparing with the hand-designed plans" if names else "decisions enumerated")
        found["hand_designed"] = tuple(hand_designed(problem, name, optimum.value, objective, limits) for name in names)
    if time.monotonic() < end:
        found["unrestricted"] = unrestricted(problem, env, objective, limits, optimum)
    if time.monotonic() < end:
        found["alternatives"] = alternatives(env, asked, problem, optimum, top)
    return replace(plain, **found)


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
