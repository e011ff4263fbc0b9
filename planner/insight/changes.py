"""What would help: better hardware, other values of single decisions, and single decisions of the plan set free."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

from planner.evaluate.linear import linear_path
from planner.evaluate.setting import Setting
from planner.evaluate.waves import waves_path
from planner.insight.held import best_held
from planner.insight.pinned import Freed, freed_spaces, pinned_space, value_of
from planner.insight.resources import Resource, better
from planner.solve.answer import Limits, Optimum
from planner.solve.decisions import FEW_STAGES, MANY_LAYERS, pins
from planner.solve.optimum import SpaceSearch
from planner.solve.pin import Pin
from search_spaces.sizes import Sizes
from search_spaces.space import SearchSpace
from search_spaces.stages import Choice

TWICE = 2.0
SAME = 1e-9
CHOOSING = "choosing"
Progress = Callable[[str], None]


@dataclass
class Clock:
    """The time that is left, and what was left out or cut short for want of it."""

    limits: Limits
    progress: Progress | None = None
    cut: list[str] = field(default_factory=list)
    end: float = 0.0

    def __post_init__(self) -> None:
        self.end = time.monotonic() + self.limits.seconds

    def left(self, what: str) -> Limits | None:
        """The limits of the next step; None, and a note of it, when the time is up."""
        seconds = self.end - time.monotonic()
        if seconds <= 0:
            self.cut.append(what)
            return None
        if self.progress:
            self.progress(what)
        return replace(self.limits, seconds=seconds)


@dataclass(frozen=True, slots=True)
class Sensitivity:
    """A resource twice as good: latency of the plan as it is, and of the best plan of its space on that hardware (None:
    none fits, or no time was left), with that plan.
    """

    resource: Resource
    latency_s: float
    best_latency_s: float | None
    best: Choice | None


@dataclass(frozen=True, slots=True)
class OtherValue:
    """A decision held at a value and the rest chosen anew: the best plan then (None: none fits); `own` marks the value that
    the explained plan has.
    """

    decision: str
    value: str
    own: bool
    latency_s: float | None
    choice: Choice | None


@dataclass(frozen=True, slots=True)
class Change:
    """One decision of the plan chosen anew, all others kept: from, to, and the latency then; `gain` is the old over the new."""

    decision: str
    now: str
    then: str
    latency_s: float
    gain: float
    choice: Choice


@dataclass(frozen=True, slots=True)
class Capacity:
    """Whether memory binds: best latency of the space within the memory and without its limit, and of the plan with its
    micro-batches alone chosen anew without the limit; None where no plan fits or no time was left.
    """

    best_latency_s: float | None
    unlimited_latency_s: float | None
    own_unlimited_latency_s: float | None
    own_unlimited_micro_batches: int | None

    @property
    def binds(self) -> bool | None:
        """Whether more memory would allow a faster plan of the space; None where that is unknown."""
        if self.unlimited_latency_s is None:
            return None
        return self.best_latency_s is None or self.unlimited_latency_s < self.best_latency_s * (1 - SAME)


def plan_latency(env: Setting, sizes: Sizes, choice: Choice) -> float:
    """Seconds of a plan by the evaluator's critical path."""
    return (waves_path if choice.stages[0].separate else linear_path)(env, sizes, choice).latency_s


def sensitivities(
    env: Setting, space: SearchSpace, choice: Choice, now: Optimum, memory_binds: bool | None, clock: Clock
) -> tuple[Sensitivity, ...]:
    """Every resource twice as good, for the plan as it is and for the best plan of the space (`now` on today's hardware).

    Where unlimited memory helps no plan, twice the memory does not either, and the answer is today's.
    """
    settings = {resource: better(env, {resource: TWICE}) for resource in Resource}
    own = {resource: plan_latency(setting, space.sizes, choice) for resource, setting in settings.items()}
    found = []
    for resource, setting in settings.items():
        label = f"re-optimizing with {resource.value} doubled"
        if resource is Resource.CAPACITY and memory_binds is False:
            found.append(Sensitivity(resource, own[resource], now.value, now.choice))
            continue
        limits = clock.left(label)
        optimum = None if limits is None else _optimum(setting, space, limits)
        if optimum is not None and not optimum.complete:
            clock.cut.append(label)
        plan = None if optimum is None else optimum.choice
        best = optimum.value if optimum is not None and plan is not None else None
        found.append(Sensitivity(resource, own[resource], best, plan))
    return tuple(found)


def _optimum(env: Setting, space: SearchSpace, limits: Limits, *, ignore_memory: bool = False) -> Optimum:
    """The best plan of a space; the proof by CP-SAT is left out, the exact program's answer is the same."""
    return uninterrupted(SpaceSearch(env, space, limits=limits, ignore_memory=ignore_memory).run(prove=False))


def uninterrupted(optimum: Optimum) -> Optimum:
    """The optimum, unless an interrupt ended its search: here that ends the whole."""
    if optimum.interrupted:
        raise KeyboardInterrupt
    return optimum


def capacity(env: Setting, space: SearchSpace, choice: Choice, optimum: Optimum, clock: Clock) -> Capacity:
    """Compare with the plans that would be possible if memory had no limit."""
    best = optimum.value if optimum.choice is not None else None
    limits = clock.left("the best plan with unlimited memory")
    free = None if limits is None else _optimum(env, space, limits, ignore_memory=True)
    if free is not None and not free.complete:
        clock.cut.append("the best plan with unlimited memory")
    alike = replace(pinned_space(space, choice), micro_batches=space.micro_batches)
    own = _optimum(env, alike, clock.limits, ignore_memory=True)
    return Capacity(
        best, None if free is None or free.choice is None else free.value,
        None if own.choice is None else own.value, None if own.choice is None else own.choice.micro_batches,
    )  # fmt: skip


def other_values(search: SpaceSearch, choice: Choice, clock: Clock) -> tuple[OtherValue, ...]:
    """Every value of every open decision with the rest chosen anew; the search has run before, its floors are used."""
    if search.space.layout:
        return ()
    found: list[OtherValue] = []
    for name, values in _questions(search):
        if len(values) < 2:
            continue
        for label, pin, branches, stages, own in values:
            if clock.left(f"other values of {name}") is None:
                break
            held = best_held(search, pin, branches, stages)
            seconds, plan = (None, None) if held is None else (held.seconds, held.choice)
            found.append(OtherValue(name, label, own(choice), seconds, plan))
    return tuple(found)


Own = Callable[[Choice], bool]
Question = tuple[str, Pin, Sequence[tuple[int, int]] | None, tuple[int, ...] | None, Own]


def _questions(search: SpaceSearch) -> Iterator[tuple[str, list[Question]]]:
    """Decisions with their values: label, pin, branches, stage counts, and whether a plan has the value."""
    branches = search.space.branches
    for at, name in enumerate(("replicas", "micro_batches")):
        yield (
            name,
            [
                (str(n), {}, [b for b in branches if b[at] == n], None, _counts(name, n))
                for n in sorted({b[at] for b in branches})
            ],
        )
    widest = max((search.space.stride(r) for r, _ in branches), default=0)
    counts = search.space.stage_counts(widest)
    if search.sizes.layers > MANY_LAYERS:
        counts = tuple(count for count in counts if count <= FEW_STAGES)
    yield "stages", [(str(n), {}, None, (n,), _counts("stages", n)) for n in counts]
    for name, values in pins(search):
        yield name, [(label, pin, None, None, partial(_has, pin)) for label, pin in values]


def _counts(name: str, number: int) -> Own:
    """Whether a plan has so many replicas, micro-batches or stages."""

    def own(choice: Choice) -> bool:
        return bool((len(choice.stages) if name == "stages" else getattr(choice, name)) == number)

    return own


def _has(pin: Pin, choice: Choice) -> bool:
    """Whether every stage of a plan agrees with a pin."""
    for stage in choice.stages:
        for name, value in pin.items():
            held = stage.mlp_ways if name == "mlp_ways" else getattr(stage.attention, name, None)
            if held is None:
                held = getattr(stage.experts, name, None)
            if held != value:
                return False
    return True


def single_changes(env: Setting, space: SearchSpace, choice: Choice, latency_s: float, clock: Clock) -> tuple[Change, ...]:
    """Every decision of the plan chosen anew by itself, the largest gain first; only what makes the plan faster."""
    found = []
    for freed in freed_spaces(space, choice):
        label = f"{CHOOSING} {freed.name} anew"
        limits = clock.left(label)
        if limits is None:
            continue
        change = _change(env, freed, latency_s, limits)
        if change is not None:
            found.append(change)
    return tuple(sorted(found, key=lambda change: -change.gain))


def _change(env: Setting, freed: Freed, latency_s: float, limits: Limits) -> Change | None:
    optimum = _optimum(env, freed.space, limits)
    if optimum.choice is None or optimum.value >= latency_s * (1 - SAME):
        return None
    then = value_of(freed.name, optimum.choice)
    return Change(freed.name, freed.now, then, optimum.value, latency_s / optimum.value, optimum.choice)
