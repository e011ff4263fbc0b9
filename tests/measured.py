"""Brute force for several objectives: every plan of a small space with what each objective and each cap looks at.

`python -m tests.measured --problems 1000` compares searches under random caps, and fronts, with it on that many problems.
"""

from __future__ import annotations

import argparse
import math
import random
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

from planner.evaluate.capacity import over_capacity, stage_total
from planner.evaluate.pipeline import feedback_seconds, send_seconds
from planner.evaluate.setting import Setting
from planner.solve.answer import Limits
from planner.solve.front import STEP, FrontSearch, Pair
from planner.solve.objective import FIELDS, NAMES, SAME, Caps, Name
from planner.solve.optimum import SpaceSearch
from search_spaces.space import SearchSpace
from search_spaces.stages import Choice
from tests.oracle import Known, latency, random_problem

MOST_PLANS = 3000
EVERYTHING = 10_000


@dataclass(frozen=True)
class Measured:
    """A plan that fits: its objectives in what is minimized, GPUs in use, and bytes of its fullest GPU."""

    choice: Choice
    latency_s: float
    steady_s: float
    dollars: float
    gpus: int
    memory_bytes: float

    def within(self, caps: Caps) -> bool:
        """Whether the plan exceeds no cap."""
        seconds = self.latency_s <= caps.latency_s and self.steady_s <= caps.steady_s and self.dollars <= caps.dollars
        return seconds and self.gpus <= caps.gpus and self.memory_bytes <= caps.memory_bytes


def every_plan(env: Setting, space: SearchSpace) -> list[Measured]:
    """Every plan of a small space that fits the memory."""
    known: Known = {}
    stages: dict[tuple[object, ...], tuple[float, float]] = {}
    return [m for choice in space.choices() for m in _measured(env, space, choice, known, stages)]


def _measured(
    env: Setting, space: SearchSpace, choice: Choice, known: Known, stages: dict[tuple[object, ...], tuple[float, float]]
) -> Iterator[Measured]:
    whole = latency(env, space, choice, known)
    if math.isinf(whole):
        return
    ranks = [rank for stage in choice.stages for rank in stage.devices]
    used = [rank + copy * space.stride(choice.replicas) for rank in ranks for copy in range(choice.replicas)]
    dollars = whole * sum(env.cluster.kind_of(rank).price_per_hour for rank in used) / 3600
    if choice.stages[0].separate:
        memory = over_capacity(env, space.sizes, choice) + max(k.memory_bytes for k in env.cluster.kinds.values())
        yield Measured(choice, whole, whole, dollars, len(used), memory)
        return
    start, totals, sequences = 0, [], space.sequences(choice.replicas, choice.micro_batches)
    for index, stage in enumerate(choice.stages):
        key = (stage, start, choice.replicas, choice.micro_batches)
        if key not in stages:
            stages[key] = stage_total(env, space.sizes, choice, index)
        totals.append(stages[key])
        start += stage.layers
    places = [stage.devices for stage in choice.stages]
    sends = [send_seconds(env, a, b, sequences) for a, b in pairwise(places)]
    if space.sizes.phase == "decode" and len(places) > 1:
        sends.append(feedback_seconds(env, places[-1], places[0], sequences))
    slowest = max([seconds for seconds, _ in totals] + sends)
    steady = whole if space.sizes.phase == "decode" else choice.micro_batches * slowest
    yield Measured(choice, whole, steady, dollars, len(used), max(memory for _, memory in totals))


def small_problem(seed: int) -> tuple[Setting, SearchSpace, list[Measured]] | None:
    """A random problem with all its plans, where there are not too many to list; GPUs of one memory size."""
    env, space = random_problem(seed)
    if space.size() > MOST_PLANS or len({kind.memory_bytes for kind in env.cluster.kinds.values()}) > 1:
        return None
    return env, space, every_plan(env, space)


def random_caps(rng: random.Random, plans: Sequence[Measured]) -> Caps:
    """Caps of which some bind: each at a value between those that plans have, or not asked."""

    def between(values: list[float]) -> float:
        ordered = sorted(set(values))
        at = rng.randrange(len(ordered))
        return (ordered[at] + ordered[max(at - 1, 0)]) / 2 * (1.0 if rng.random() < 0.9 else 0.5)

    asked: dict[str, float] = {}
    for name in ("latency_s", "steady_s", "dollars", "memory_bytes"):
        if rng.random() < 0.35:
            asked[name] = between([getattr(plan, name) for plan in plans])
    if rng.random() < 0.35:
        asked["gpus"] = rng.randint(1, 4)
    return Caps(**asked)


def check_caps(seed: int, objective: Name, env: Setting, space: SearchSpace, plans: Sequence[Measured]) -> bool:
    """The optimum under random caps is that of brute force: value, bound, fewest GPUs; tells whether a plan was left."""
    caps = random_caps(random.Random(seed), plans) if plans else Caps()
    found = SpaceSearch(env, space, objective, Limits(caps=caps)).run()
    left = [plan for plan in plans if plan.within(caps)]
    told = f"seed {seed}, {objective}, {caps}"
    if not left:
        assert found.choice is None and found.complete, told
        return False
    best = min(getattr(plan, FIELDS[objective]) for plan in left)
    assert found.choice is not None and space.contains(found.choice), told
    assert math.isclose(found.value, best, rel_tol=1e-8), f"{told}: {found.value} is not {best}"
    assert math.isclose(found.bound, best, rel_tol=1e-6) and found.bound <= found.value, f"{told}: bound {found.bound}"
    (own,) = [plan for plan in plans if plan.choice == found.choice]
    assert own.within(_looser(caps)), f"{told}: {own}"
    fewest = min(plan.gpus for plan in left if getattr(plan, FIELDS[objective]) <= best * (1 + SAME / 10))
    assert own.gpus <= fewest, f"{told}: {own.gpus} GPUs, {fewest} do as well"
    return True


def _looser(caps: Caps) -> Caps:
    return replace(caps, latency_s=caps.latency_s * (1 + 1e-8), steady_s=caps.steady_s * (1 + 1e-8),
                   dollars=caps.dollars * (1 + 1e-8))  # fmt: skip


def check_front(seed: int, pair: Pair, env: Setting, space: SearchSpace, plans: Sequence[Measured]) -> int:
    """The whole front is that of brute force; tells how many points it has."""
    search = FrontSearch(SpaceSearch(env, space, pair[0]), pair, Limits())
    corners, told = search.run(EVERYTHING), f"seed {seed}, {pair}"
    pairs = [tuple(getattr(plan, FIELDS[name]) for name in pair) for plan in plans]
    if not plans:
        assert not corners, told
        return 0
    assert search.closed and all(corner.proven for corner in corners), told
    for first, second in pairs:
        covered = any(c.first <= first * (1 + 2 * STEP) and c.second <= second * (1 + 2 * STEP) for c in corners)
        assert covered, f"{told}: no point is as good as {first}, {second}"
    for c in corners:
        better = [p for p in pairs if p[0] < c.first * (1 - 2 * STEP) and p[1] <= c.second * (1 + SAME)]
        better += [p for p in pairs if p[0] <= c.first * (1 + SAME) and p[1] < c.second * (1 - 2 * STEP)]
        assert not better, f"{told}: {c.first}, {c.second} is dominated by {better[0]}"
    for one, other in pairwise(corners):
        assert one.first < other.first and one.second > other.second, told
    assert math.isclose(corners[0].first, min(p[0] for p in pairs), rel_tol=1e-8), told
    assert math.isclose(corners[-1].second, min(p[1] for p in pairs), rel_tol=1e-8), told
    return len(corners)


def check_problem(seed: int) -> tuple[int, int, int] | None:
    """Every objective under caps and every front of one problem: (searches with a plan, without, points); None: too large."""
    problem = small_problem(seed)
    if problem is None:
        return None
    env, space, plans = problem
    found = [check_caps(7 * seed + at, name, env, space, plans) for at, name in enumerate(NAMES)]
    pairs: list[Pair] = [("latency", "cost"), ("throughput", "latency"), ("cost", "throughput")]
    return sum(found), len(found) - sum(found), check_front(seed, pairs[seed % 3], env, space, plans)


def main() -> None:
    """Check as many problems as asked for; ends with the counts, or with the first disagreement."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--problems", type=int, default=1000)
    parser.add_argument("--first", type=int, default=0)
    asked = parser.parse_args()
    told = []
    for seed in range(asked.first, asked.first + asked.problems):
        told.append(check_problem(seed))
        if len(told) % 50 == 0:
            print(f"{len(told)} problems agree", file=sys.stderr, flush=True)
    done = [counts for counts in told if counts is not None]
    totals = [sum(column) for column in zip(*done, strict=True)]
    print(
        f"{len(done)} problems ({len(told) - len(done)} too large): {totals[0]} searches under caps with a plan and "
        f"{totals[1]} without, fronts of {totals[2]} points: all agree"
    )


if __name__ == "__main__":
    main()
