"""Explain: what binds a plan, what would help, and how far it is from what no plan can beat."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from planner.api import Chosen, PlanRef, choose
from planner.evaluate.evaluation import DeviceReport, Evaluation, Memory, evaluate
from planner.insight.binding import BoundOp, BusyGpu, Parts, Seconds, busiest_gpu, path_binding
from planner.insight.bounds import Bound, lower_bounds
from planner.insight.changes import (
    CHOOSING,
    TWICE,
    Capacity,
    Change,
    Clock,
    OtherValue,
    Progress,
    Sensitivity,
    capacity,
    other_values,
    sensitivities,
    single_changes,
    uninterrupted,
)
from planner.insight.classes import operator_classes
from planner.insight.resources import ASSUMPTIONS, TIMED, measured
from planner.insight.waiting import Waiting, waiting
from planner.plan import choice_to_dict
from planner.problem import Problem
from planner.solve.answer import Limits, Optimum
from planner.solve.experts.options import AMONG, with_found_placements
from planner.solve.optimum import SpaceSearch
from planner.solve.searcher import inference_only
from search_spaces.space import SearchSpace
from search_spaces.stages import Choice

SCHEMA = "planner.explanation/1"
TOP = 12
BEST = "the best plan of the space"


@dataclass(frozen=True, slots=True)
class Best:
    """The best plan of the space that a plan belongs to, with its proven bound."""

    choice: Choice | None
    seconds: float | None
    bound: float
    complete: bool


@dataclass(frozen=True)
class Explanation:
    """What is known of a plan; seconds throughout, every part with its own docstring. `cut` names what a time limit cost."""

    chosen: Chosen
    evaluation: Evaluation
    path: Seconds
    operators: tuple[BoundOp, ...]
    busiest: BusyGpu
    waiting: Waiting
    fullest: DeviceReport
    capacity: Capacity
    best: Best
    bounds: tuple[Bound, ...]
    sensitivity: tuple[Sensitivity, ...]
    changes: tuple[Change, ...]
    others: tuple[OtherValue, ...]
    assumptions: tuple[str, ...]
    cut: tuple[str, ...]

    @property
    def latency_s(self) -> float:
        """Seconds of the plan."""
        return self.evaluation.latency_s

    @property
    def asked_every_change(self) -> bool:
        """Whether the time sufficed to choose every single decision anew."""
        return not any(label.startswith(CHOOSING) for label in self.cut)

    def to_dict(self) -> dict[str, Any]:
        """As JSON-ready data (`planner.explanation/1`)."""
        return {
            "schema": SCHEMA, "problem": self.chosen.problem.name, "name": self.chosen.name,
            "completed": self.chosen.completed, "plan": self._plan(self.chosen.choice), "latency_s": self.latency_s,
            "over_capacity_bytes": self.evaluation.over_capacity_bytes,
            "binding": self._binding(),
            "bounds": [
                {"name": b.name, "seconds": b.seconds, "ratio": self.latency_s / b.seconds if b.seconds else None,
                 "meaning": b.meaning, "proven": b.proven}
                for b in self.bounds
            ],
            "best": {"plan": self._plan(self.best.choice), "latency_s": self.best.seconds, "bound": self.best.bound,
                     "complete": self.best.complete,
                     "ratio": self.latency_s / self.best.seconds if self.best.seconds else None},
            "sensitivity": [self._sensitivity(s) for s in self.sensitivity],
            "changes": [
                {"decision": c.decision, "from": c.now, "to": c.then, "latency_s": c.latency_s, "gain": c.gain,
                 "plan": self._plan(c.choice)}
                for c in self.changes
            ],
            "other_values": [
                {"decision": o.decision, "value": o.value, "own": o.own, "latency_s": o.latency_s,
                 "ratio": o.latency_s / self.latency_s if o.latency_s else None, "plan": self._plan(o.choice)}
                for o in self.others
            ],
            "assumptions": list(self.assumptions), "cut": list(self.cut),
        }  # fmt: skip

    def _plan(self, choice: Choice | None) -> dict[str, object] | None:
        return None if choice is None else choice_to_dict(choice, self.chosen.problem.sizes)

    def _sensitivity(self, found: Sensitivity) -> dict[str, Any]:
        best, now = found.best_latency_s, self.best.seconds
        return {
            "resource": found.resource.value, "factor": TWICE, "latency_s": found.latency_s,
            "gain": self.latency_s / found.latency_s, "best_latency_s": best,
            "best_gain": now / best if now and best else None, "same_plan": found.best == self.best.choice,
            "plan": self._plan(found.best),
        }  # fmt: skip

    def _binding(self) -> dict[str, Any]:
        w, limit = self.waiting, self.capacity
        return {
            "critical_path": {r.value: self.path[r] for r in TIMED},
            "operators": [
                {"op": op.op, "class": op.kind.value, "resource": op.resource.value, "seconds": op.seconds, "count": op.count}
                for op in self.operators[:TOP]
            ],
            "busiest_gpu": {"rank": self.busiest.rank, **{r.value: self.busiest.seconds[r] for r in TIMED},
                            "waiting_s": self.busiest.waiting_s},
            "gpu_seconds": {"busy": w.busy, "communication": w.communication, "pipeline_bubble": w.bubble,
                            "waiting_for_slowest_stage": w.stages, "waiting_inside_stage": w.gpus},
            "slowest": w.slowest,
            "machines": [{"name": m.name, "seconds": m.seconds, "devices": list(m.devices)} for m in w.machines],
            "memory": {"rank": self.fullest.rank, "stage": stage_of(self.chosen.choice, self.fullest.rank),
                       "total_bytes": self.fullest.memory.total_bytes,
                       "capacity_bytes": self.fullest.memory.capacity_bytes, "share": filled(self.fullest.memory),
                       "binds": limit.binds, "best_latency_s": limit.best_latency_s,
                       "unlimited_latency_s": limit.unlimited_latency_s,
                       "own_unlimited_latency_s": limit.own_unlimited_latency_s,
                       "own_unlimited_micro_batches": limit.own_unlimited_micro_batches},
        }  # fmt: skip


def filled(memory: Memory) -> float:
    """How full a GPU is, 1 when its memory is used up."""
    return memory.total_bytes / memory.capacity_bytes


def stage_of(choice: Choice, rank: int) -> int | None:
    """The stage of the first replica that a rank belongs to."""
    return next((index for index, stage in enumerate(choice.stages) if rank in stage.devices), None)


def explain(
    plan: PlanRef | Chosen, *, sets: tuple[str, ...] | list[str] = (), limits: Limits | None = None,
    progress: Progress | None = None,
) -> Explanation:  # fmt: skip
    """What binds a plan, what would help it, how far it is from the bounds and from the best plan of its problem's space.

    Raises what `choose` raises. `limits.seconds` ends the re-optimizations early; `cut` then says what is missing.
    """
    chosen = choose(plan, sets=sets)
    inference_only(chosen.problem.space, "explain", "planner search tells the best plan of every other decision")
    clock = Clock(limits or Limits(), progress)
    env, problem, choice = chosen.env, chosen.problem, chosen.choice
    sizes, space = problem.sizes, with_found_placements(env, problem.space)
    evaluation = evaluate(env, sizes, choice)
    parts = Parts(env)
    path, operators = path_binding(parts, evaluation.critical_path, operator_classes(env, sizes, choice))
    clock.left(BEST)
    search = SpaceSearch(env, space, limits=clock.limits)
    optimum = uninterrupted(search.run(prove=False))
    if not optimum.complete:
        clock.cut.append(BEST)
    limit = capacity(env, space, choice, optimum, clock)
    changes = single_changes(env, space, choice, evaluation.latency_s, clock)
    sensitivity = sensitivities(env, space, choice, optimum, limit.binds, clock)
    others = other_values(search, choice, clock)
    bounds = lower_bounds(env, search, optimum, of_space=clock.left("the bounds of the space") is not None)
    kept = tuple(
        f"prices of {name} are measurements: better hardware changes them as it changes the formula's" for name in measured(env)
    )
    return Explanation(
        chosen, evaluation, path, operators, busiest_gpu(env, sizes, choice, parts, evaluation),
        waiting(env, sizes, choice, evaluation), fullest_gpu(evaluation), limit, _best(optimum),
        bounds, sensitivity, changes, others, (*ASSUMPTIONS, *_rules(problem, space), *kept),
        tuple(dict.fromkeys(clock.cut)),
    )  # fmt: skip


def _rules(problem: Problem, space: SearchSpace) -> tuple[str, ...]:
    """What the plans that it is compared with have in common, beyond the rules of the space."""
    orders = ("other plans count the GPUs of the cluster in the same order as this one",) if problem.orders.gpus[1:] else ()
    return (*orders, *((AMONG,) if space is not problem.space else ()))


def fullest_gpu(evaluation: Evaluation) -> DeviceReport:
    """The GPU whose memory is fullest, the first of equal ones."""
    return max(evaluation.devices, key=lambda report: (filled(report.memory), -report.rank))


def _best(optimum: Optimum) -> Best:
    seconds = optimum.value if optimum.choice is not None else None
    return Best(optimum.choice, seconds, optimum.bound, optimum.complete)
