"""The optimum of a space with its proof: branches by bound, exact program per branch, CP-SAT on what is left."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from planner.evaluate.setting import Setting
from planner.solve.answer import Counts, Limits, Optimum
from planner.solve.apart import ApartFound, ApartSpace
from planner.solve.blocks import PricedSpace
from planner.solve.branch import Branch, StageArrays
from planner.solve.cp import MAX_LEGS, PipelineModel, surviving_legs
from planner.solve.dp import Leg, MemoryTable, Path, PipelineTable
from planner.solve.exact import SAME, branch_optimum, stage_count_optima
from planner.solve.layout import pinned_excess, pinned_pipeline
from planner.solve.objective import Name, Objective
from planner.solve.pin import Pin
from search_spaces.space import SearchSpace
from search_spaces.stages import Choice, StageChoice

Progress = Callable[[str], None]


@dataclass(frozen=True)
class _Found:
    """A candidate plan: its price, what ties are broken by, and the pipeline or the stage with experts apart."""

    value: float
    gpus: int
    replicas: int
    micro_batches: int
    path: Path | None
    apart: ApartFound | None
    weight: float = 1.0

    def rank(self, best: float) -> tuple[float, int, int, int, int]:
        """Order of preference: least value (ties within SAME), fewer GPUs, fewer stages, fewer micro-batches and replicas."""
        tied = 0.0 if self.value <= best * (1 + SAME) else self.value
        return tied, self.gpus, len(self.path.legs) if self.path else 1, self.micro_batches, self.replicas


class SpaceSearch:
    """A priced space that can be asked for its optimum, also with some decisions pinned."""

    def __init__(
        self,
        env: Setting,
        space: SearchSpace,
        objective: Name = "latency",
        limits: Limits | None = None,
        *,
        extra_memory: float = 0.0,
        ignore_memory: bool = False,
    ) -> None:
        self.env, self.space, self.objective = env, space, objective
        self.sizes = space.sizes
        self.limits = limits or Limits()
        granted = np.inf if ignore_memory else extra_memory
        self.priced = PricedSpace(env, space, granted)
        self.apart = ApartSpace(env, space, granted)
        self._arrays: dict[tuple[int, int], StageArrays] = {}
        self._floor: dict[tuple[int, int], float] = {}

    def _objective(self, micro_batches: int) -> Objective:
        return Objective(self.objective, self.space.sizes.phase == "decode", micro_batches)

    def branch(self, replicas: int, micro_batches: int) -> Branch:
        """One branch of the space."""
        return Branch(self.priced, replicas, micro_batches)

    def arrays(self, branch: Branch, pin: Pin | None = None) -> StageArrays:
        """Best stages of a branch; those of the whole space are kept for later questions."""
        if pin:
            return branch.least(pin)
        key = (branch.replicas, branch.micro_batches)
        if key not in self._arrays:
            self._arrays[key] = branch.arrays()
        return self._arrays[key]

    def weight(self, replicas: int, gpus: int) -> float:
        """What seconds are multiplied by: one, or the price per second of the GPUs in use."""
        if self.objective != "cost":
            return 1.0
        kinds = self.env.cluster
        return replicas * sum(kinds.kind_of(rank).price_per_hour for rank in range(gpus)) / 3600.0

    def bound(self, branch: Branch, pin: Pin | None = None) -> float:
        """Closed-form lower bound of a branch: chain of the cheapest layers, and all work shared by all its GPUs."""
        objective = self._objective(branch.micro_batches)
        least = self.priced.least_layer(branch.sequences, pin)
        if least is None:
            return np.inf
        chain, work = least
        seconds = objective.value(chain, work / branch.stride)
        if self.objective != "cost":
            return seconds
        return min(self.weight(branch.replicas, g) * objective.value(chain, work / g) for g in range(1, branch.stride + 1))

    def run(self, cutoff: float = np.inf, progress: Progress | None = None, *, prove: bool = True) -> Optimum:
        """The optimum of the whole space; an interrupt or the time limit leaves the best found with its bound."""
        if self.space.layout:
            return self._run_pinned(cutoff)
        counts, start, complete = Counts(priced=self.priced.priced + self.apart.priced), time.monotonic(), True
        best = cutoff
        found: list[_Found] = []
        opened: list[Branch] = []
        bounds: list[float] = []
        branches = [self.branch(r, m) for r, m in self.space.branches]
        interrupted, queue = False, sorted((self.bound(b), i, b) for i, b in enumerate(branches))
        for at, (bound, _, branch) in enumerate(queue):
            if bound > best * (1 + SAME):
                counts.drop("bound" if np.isfinite(bound) else "no option", 1)
                continue
            if time.monotonic() - start > self.limits.seconds:
                complete = False
                bounds.append(bound)
                continue
            counts.branches += 1
            opened.append(branch)
            try:
                for candidate in self._linear(branch, best):
                    found.append(candidate)
                    best = min(best, candidate.value)
            except KeyboardInterrupt:
                interrupted, complete = True, False
                bounds += [b for b, _, _ in queue[at:] if b <= best * (1 + SAME)]
                opened.pop()
                break
            if progress:
                progress(
                    f"replicas {branch.replicas}, micro-batches {branch.micro_batches}: incumbent {best:.6g}, bound {bound:.6g}"
                )
        for branch in [] if interrupted else branches:
            apart = self._with_experts_apart(branch, best)
            if apart is not None:
                found.append(apart)
                best = min(best, apart.value)
        if not found:
            return Optimum(None, np.inf, np.inf, complete, counts, self._excess(branches), interrupted)
        chosen = min(found, key=lambda f: f.rank(best))
        chosen = self._fewer_gpus(chosen, best)
        proven = self._prove(opened, chosen, best, counts) if prove else best
        bound = min([proven, chosen.value, *bounds])
        return Optimum(self._choice(chosen), chosen.value, bound, complete, counts, interrupted=interrupted)

    def _linear(self, branch: Branch, cutoff: float, pin: Pin | None = None) -> list[_Found]:
        """The best linear pipeline of a branch if it is no worse than the cutoff."""
        table = PipelineTable(branch, self.arrays(branch, pin), self.space.stages)
        objective, found = self._objective(branch.micro_batches), []
        for first, last in self._end_groups(branch):
            weight = self.weight(branch.replicas, last)
            optimum = branch_optimum(table, objective, cutoff * (1 + 2 * SAME) / weight, first, last)
            if optimum.path is not None:
                value = optimum.value * weight
                gpus = branch.replicas * (optimum.path.legs[-1].first + optimum.path.legs[-1].width)
                found.append(_Found(value, gpus, branch.replicas, branch.micro_batches, optimum.path, None, weight))
                cutoff = min(cutoff, value)
        if not pin:
            key = (branch.replicas, branch.micro_batches)
            self._floor[key] = max(self._floor.get(key, 0.0), min([cutoff, *(f.value for f in found)]) * (1 - 2 * SAME))
        return found

    def floor(self, branch: Branch, pin: Pin | None = None) -> float:
        """Lower bound of a branch's linear pipelines: the closed form, or what an earlier run of the branch has shown."""
        return max(self.bound(branch, pin), self._floor.get((branch.replicas, branch.micro_batches), 0.0))

    def pinned_value(self, pin: Pin, branches: list[Branch] | None = None) -> float:
        """Least objective with some decisions held at a value on every stage (inf where no such plan fits)."""
        best = np.inf
        chosen = branches if branches is not None else [self.branch(r, m) for r, m in self.space.branches]
        if pin.get("form") != "separate":
            for bound, _, branch in sorted((self.floor(b, pin), i, b) for i, b in enumerate(chosen)):
                if bound >= best:
                    break
                best = min([best, *(f.value for f in self._linear(branch, best, pin))])
        for branch in chosen:
            apart = self._with_experts_apart(branch, best, pin)
            best = min(best, apart.value) if apart is not None else best
        return best

    def by_stage_count(self, most: int | None = None) -> list[tuple[int, float]]:
        """Least objective for every stage count that the space allows, up to `most` (inf where no such plan fits)."""
        branches = [self.branch(r, m) for r, m in self.space.branches]
        counts = self.space.stage_counts(max((b.stride for b in branches), default=0))
        counts = tuple(count for count in counts if most is None or count <= most)
        best = np.full(max(counts, default=0), np.inf)
        for bound, _, branch in sorted((self.floor(b), i, b) for i, b in enumerate(branches)):
            levels = min(best.size, max(self.space.stage_counts(branch.stride), default=0))
            if self.objective == "cost" or levels == 0 or bound >= best[:levels].max():
                continue
            table = PipelineTable(branch, self.arrays(branch))
            found = stage_count_optima(table, self._objective(branch.micro_batches), levels, best[:levels])
            best[:levels] = found
        for branch in branches if 1 in counts else []:
            apart = self._with_experts_apart(branch, float(best[0]))
            best[0] = min(best[0], apart.value) if apart is not None else best[0]
        return [(count, float(best[count - 1])) for count in counts]

    def branch_optima(self, skip: tuple[int, int]) -> list[tuple[float, Choice]]:
        """The best plan of every branch but one."""
        found = []
        for r, m in self.space.branches:
            if (r, m) != skip:
                branch = self.branch(r, m)
                linear = [] if self.space.layout else self._linear(branch, np.inf)
                options = [*linear, *(x for x in [self._with_experts_apart(branch, np.inf)] if x is not None)]
                if options:
                    best = min(options, key=lambda f: f.value)
                    found.append((best.value, self._choice(best)))
        return found

    def _end_groups(self, branch: Branch) -> list[tuple[int, int]]:
        """Ranges of end ranks that share a weight: all at once, or each alone when GPUs are paid for."""
        if self.objective != "cost":
            return [(1, branch.stride)]
        return [(g, g) for g in range(1, branch.stride + 1)]

    def _with_experts_apart(self, branch: Branch, cutoff: float, pin: Pin | None = None) -> _Found | None:
        if not self.apart.splits:
            return None
        weight = (lambda gpus: self.weight(branch.replicas, gpus)) if self.objective == "cost" else None
        best = self.apart.best(branch.replicas, branch.micro_batches, cutoff, pin, weight)
        if best is None:
            return None
        gpus = branch.replicas * len(best.stage.devices)
        return _Found(best.value, gpus, branch.replicas, branch.micro_batches, None, best)

    def _fewer_gpus(self, chosen: _Found, best: float) -> _Found:
        """The same value on fewer ranks, if the same branch has such a plan."""
        while chosen.path is not None and self.objective != "cost":
            end = chosen.path.legs[-1].first + chosen.path.legs[-1].width
            branch = self.branch(chosen.replicas, chosen.micro_batches)
            table = PipelineTable(branch, self.arrays(branch), self.space.stages)
            if end == 1:
                break
            again = branch_optimum(table, self._objective(branch.micro_batches), best * (1 + SAME), 1, end - 1)
            if again.path is None:
                break
            gpus = branch.replicas * (again.path.legs[-1].first + again.path.legs[-1].width)
            chosen = replace(chosen, value=again.value, gpus=gpus, path=again.path)
        return chosen

    def _prove(self, opened: list[Branch], chosen: _Found, best: float, counts: Counts) -> float:
        """Lower bound over the opened branches.

        The exact program has closed every branch but the chosen one: none of their plans is below the best value. In the
        chosen one the legs that no bound excludes go to CP-SAT, which starts from the plan found.
        """
        counts.drop("branch closed by the exact program", len(opened))
        if chosen.path is None:
            return best
        counts.drop("branch closed by the exact program", -1)
        branch = self.branch(chosen.replicas, chosen.micro_batches)
        used = chosen.path.legs[-1].first + chosen.path.legs[-1].width
        first, last = (used, used) if self.objective == "cost" else (1, branch.stride)
        objective, cutoff = self._objective(branch.micro_batches), best * (1 + SAME) / chosen.weight
        table = PipelineTable(branch, self.arrays(branch), self.space.stages)
        legs = [
            (leg, seconds)
            for leg, seconds in surviving_legs(table, objective, self._least_slowest(table), cutoff)
            if leg.stop < table.layers or first <= leg.first + leg.width <= last
        ]
        if not legs or len(legs) > MAX_LEGS:
            counts.drop("branch closed by the exact program")
            return best
        return min(best, chosen.weight * self._solve_model(table, objective, legs, cutoff, chosen.path, counts))

    def _least_slowest(self, table: PipelineTable) -> float:
        return float(table.sweep(minimax=True).final.min())

    def _solve_model(
        self,
        table: PipelineTable,
        objective: Objective,
        legs: list[tuple[Leg, float]],
        cutoff: float,
        start: Path,
        counts: Counts,
    ) -> float:
        model = PipelineModel(table, objective, legs, cutoff)
        model.hint(start)
        answer = model.solve(self.limits.seed, self.limits.workers, self.limits.effort)
        counts.iterations += 1
        return max(answer.bound, 0.0)

    def _choice(self, found: _Found) -> Choice:
        if found.apart is not None:
            return Choice(found.replicas, found.micro_batches, (found.apart.stage,), found.apart.in_flight)
        if found.path is None:
            raise ValueError("a candidate has a pipeline or experts apart")
        branch = self.branch(found.replicas, found.micro_batches)
        return Choice(found.replicas, found.micro_batches, self.stages(branch, found.path, self.arrays(branch)))

    def stages(self, branch: Branch, path: Path, arrays: StageArrays) -> tuple[StageChoice, ...]:
        """The stages of a found pipeline with their options."""
        stages, rows = [], self.priced.spans[1]
        for leg in path.legs:
            slot = branch.slot(leg.first, leg.width)
            if slot is None:
                raise ValueError("a found stage has a slot")
            index = arrays.option[rows[leg.start, leg.stop], leg.first, branch.widths.index(leg.width)]
            option = branch.option_at(slot, int(index))
            stages.append(StageChoice(leg.stop - leg.start, slot.devices, option.attention, option.mlp_ways, option.experts))
        return tuple(stages)

    def _run_pinned(self, cutoff: float) -> Optimum:
        """The optimum of a space whose stages are fixed: every stage takes its fastest option that fits."""
        counts = Counts(priced=self.priced.priced + self.apart.priced)
        best: tuple[float, Choice] | None = None
        branches = [self.branch(r, m) for r, m in self.space.branches]
        for branch in branches:
            counts.branches += 1
            found = [x for x in [pinned_pipeline(branch, self._objective(branch.micro_batches))] if x is not None]
            found = [(value * self.weight(branch.replicas, self._pinned_ranks), choice) for value, choice in found]
            apart = self._with_experts_apart(branch, np.inf)
            if apart is not None:
                found.append((apart.value, self._choice(apart)))
            for value, choice in found:
                if value < min(cutoff, best[0] * (1 - SAME) if best else np.inf):
                    best = (value, choice)
        if best is None:
            return Optimum(None, np.inf, np.inf, True, counts, self._excess(branches))
        return Optimum(best[1], best[0], best[0], True, counts)

    @property
    def _pinned_ranks(self) -> int:
        return sum(len(pin.devices) for pin in self.space.layout)

    def _excess(self, branches: list[Branch]) -> float:
        """Least number of bytes that every GPU would need besides for some plan to fit, over all branches."""
        least = np.inf
        for branch in branches:
            if self.space.layout:
                least = min(least, pinned_excess(branch))
            else:
                table = MemoryTable(branch, self.arrays(branch), self.space.stages)
                least = min(least, float(table.sweep(minimax=True).final.min()))
            if self.apart.splits:
                least = min(least, self.apart.least_excess(branch.replicas, branch.micro_batches))
        return least
