"""The optimum of a space with its proof: branches by bound, exact program per branch, CP-SAT on what is left."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from heapq import heappop, heappush

import numpy as np
from numpy.typing import NDArray

from planner.solve.answer import Counts, ModelFacts, Optimum
from planner.solve.anytime import go_through
from planner.solve.branch import Branch, StageArrays
from planner.solve.branches import Branches
from planner.solve.cp import MAX_LEGS, PipelineModel, surviving_legs
from planner.solve.dp import Leg, MemoryTable, Path, PipelineTable
from planner.solve.exact import branch_optimum, stage_count_optima
from planner.solve.layout import pinned_excess, pinned_pipeline
from planner.solve.objective import SAME, Objective
from planner.solve.pin import Pin
from planner.solve.runs import Asked, RunTable
from planner.solve.ties import Found, sent_bytes
from search_spaces.stages import Choice, StageChoice

Progress = Callable[[str], None]
DECIDED = ("OPTIMAL", "INFEASIBLE")
LEAST_EFFORT, EFFORT_OF_LEG = 1.0, 1e-3
"""Deterministic seconds that CP-SAT gets at most, in all and for each leg: the exact program has proven the value already."""


class SpaceSearch(Branches):
    """A priced space that can be asked for its optimum, also with some decisions pinned."""

    def run(self, cutoff: float = np.inf, progress: Progress | None = None, *, prove: bool = True) -> Optimum:
        """The optimum of the whole space; an interrupt or the time limit leaves the best found with its bound."""
        if self.space.layout:
            return self._run_pinned(cutoff)
        counts, start, complete = Counts(priced=self.priced.priced + self.apart.priced), time.monotonic(), True
        best = cutoff
        found, opened, bounds = list[Found](), list[Branch](), list[float]()
        branches = [self.branch(r, m) for r, m in self.space.branches]
        interrupted, queue = False, sorted((self.bound(b), b.stride, i, b) for i, b in enumerate(branches))
        tight: set[int] = set()
        if self.space.regular and not np.isfinite(best):
            found = self._first_plan([entry[-1] for entry in queue if entry[0] < np.inf])
            best = min((candidate.value for candidate in found), default=best)
        while queue:
            bound, stride, number, branch = heappop(queue)
            if (
                bound < np.inf and bound <= best * (1 + SAME) and number not in tight
            ):  # the stronger form takes longer: where it is needed alone
                tight.add(number)
                try:
                    heappush(queue, (max(bound, self.tight(branch, best * (1 + SAME))), stride, number, branch))
                    continue
                except KeyboardInterrupt:
                    interrupted, bounds = True, [bound, *(entry[0] for entry in queue)]
                    break
            if bound == np.inf or bound > best * (1 + SAME):
                counts.drop("bound" if np.isfinite(bound) else "no option", 1)
                if np.isinf(best):  # nothing is found, nor will be: the certificate has a claim to make
                    self.floors[branch.replicas, branch.micro_batches] = bound
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
                if progress:
                    names = f"replicas {branch.replicas}, micro-batches {branch.micro_batches}"
                    progress(f"{names}: incumbent {best:.6g}, bound {bound:.6g}")
            except KeyboardInterrupt:
                interrupted, bounds = True, [*bounds, bound, *(entry[0] for entry in queue)]
                opened.pop()
                break
        late: Callable[[], bool] = lambda: interrupted or time.monotonic() - start > self.limits.seconds  # noqa: E731
        some = branches if self.apart.splits else []
        apart = go_through(some, best, self._with_experts_apart, self.apart_floor, late)
        self.apart_left, interrupted = apart.left, interrupted or apart.interrupted
        found, bounds, complete = [*found, *apart.found], [*bounds, *apart.left.values()], complete and not interrupted
        return self._concluded(
            found, opened, bounds, counts, complete and not apart.left, interrupted, prove and not late(), cutoff
        )

    def _concluded(
        self, found: list[Found], opened: list[Branch], bounds: list[float], counts: Counts, complete: bool,
        interrupted: bool, prove: bool, cutoff: float,
    ) -> Optimum:  # fmt: skip
        """The answer from what was found, the bounds of what was left, and the final proof, which an interrupt leaves out."""
        if not found:  # with a cutoff plans may fit, but none below it
            timed = np.isfinite([cutoff, self.caps.latency_s, self.caps.steady_s, self.caps.dollars]).any()  # not memory alone
            excess = np.inf if timed or not complete else self._excess([self.branch(*b) for b in self.space.branches])
            return Optimum(None, np.inf, min(bounds, default=np.inf), complete, counts, excess, interrupted)
        best = proven = min(candidate.least for candidate in found)  # not the cutoff, which a tie may exceed
        chosen = min(found, key=lambda candidate: candidate.value)
        try:
            if not interrupted:
                chosen = self._preferred(found, best)
                proven = self._prove(opened, chosen, best, counts) if prove else best
        except KeyboardInterrupt:
            interrupted, complete = True, False
        bound = min([proven, chosen.value, *bounds])
        return Optimum(self._choice(chosen), chosen.value, bound, complete, counts, interrupted=interrupted)

    def apart_floor(self, branch: Branch) -> float:
        """Lower bound of a branch's plans with experts apart."""
        gpus = {len(near) + len(far) for near, far in self.apart.splits}
        weight = min((self.weight(branch.replicas, count) for count in gpus), default=1.0)
        return weight * self.apart.floor(branch.replicas, branch.micro_batches)

    def _linear(self, branch: Branch, cutoff: float, pin: Pin | None = None) -> list[Found]:
        """The best linear pipeline of a branch if it is no worse than the cutoff."""
        if self.space.regular:
            return self._floored(branch, cutoff, pin, self._regular(branch, cutoff, pin))
        for limit in [cutoff] if pin else self.limits_for(branch, cutoff):
            found = self._of_arrays(branch, self.arrays_within(branch, limit, pin), limit)
            if found:
                break
        return self._floored(branch, cutoff, pin, found)

    def _of_arrays(self, branch: Branch, arrays: StageArrays, cutoff: float) -> list[Found]:
        """The best linear pipelines of some stages that are no worse than the cutoff, for every number of GPUs that matters."""
        table, found = PipelineTable(branch, arrays, self.space.stages), list[Found]()
        for first, last in self._end_groups(branch) if arrays.widths else ():
            weight, objective = self.weight(branch.replicas, last), self._objective(branch, last)
            optimum = branch_optimum(table, objective, cutoff * (1 + 2 * SAME) / weight, first, last)
            if optimum.path is not None:
                value = optimum.value * weight
                gpus = branch.replicas * (optimum.path.legs[-1].first + optimum.path.legs[-1].width)
                found.append(Found(value, value, gpus, branch.replicas, branch.micro_batches, optimum.path, None, weight))
                cutoff = min(cutoff, value)
        return found

    def _first_plan(self, branches: list[Branch]) -> list[Found]:
        """The best plan of stages within a node, in the first of some branches of a large cluster that has any: with its
        value known, most widths of the other branches need no prices.
        """
        for branch in branches:
            most = self._most_ranks(branch)
            if most and (found := self._of_table(branch, self.inside_nodes(branch), self.question(branch, np.inf, most))):
                return found
        return []

    def _regular(self, branch: Branch, cutoff: float, pin: Pin | None, stages: int | None = None) -> list[Found]:
        """The same on a large cluster, for all numbers of stages or for one."""
        most = self._most_ranks(branch)
        if most < 1:
            return []
        asked = self.question(branch, cutoff * (1 + 2 * SAME), most)
        return self._of_table(branch, self.promising(branch, asked, pin), asked, stages)

    def _of_table(self, branch: Branch, table: RunTable, asked: Asked, stages: int | None = None) -> list[Found]:
        """The best pipeline of a table, if there is any."""
        optimum = (table if stages is None else table.of(stages)).optimum(asked)
        if optimum.path is None:
            return []
        end = optimum.path.legs[-1].first + optimum.path.legs[-1].width
        weight = float(asked.weight[end])
        value, gpus = optimum.value * weight, branch.replicas * end
        return [Found(value, value, gpus, branch.replicas, branch.micro_batches, optimum.path, None, weight)]

    def _floored(self, branch: Branch, cutoff: float, pin: Pin | None, found: list[Found]) -> list[Found]:
        """Keep what a search of a branch has shown about it."""
        if not pin:
            key = (branch.replicas, branch.micro_batches)
            self.floors[key] = max(self.floors.get(key, 0.0), min([cutoff, *(f.value for f in found)]) * (1 - 2 * SAME))
        return found

    def pinned_value(self, pin: Pin, branches: list[Branch] | None = None, most: float = np.inf) -> float:
        """Least objective below `most` with some decisions held at a value on every stage (inf where no such plan fits)."""
        best, found = most, np.inf
        chosen = branches if branches is not None else [self.branch(r, m) for r, m in self.space.branches]
        if pin.get("form") != "separate":
            for bound, _, branch in sorted((self.floor(b), i, b) for i, b in enumerate(chosen)):
                if bound >= best:
                    break
                if not pin or self.bound(branch, pin) < best:
                    found = min([found, *(f.value for f in self._linear(branch, best, pin))])
                    best = min(best, found)
        for branch in chosen:
            apart = self._with_experts_apart(branch, best, pin)
            found = min(found, apart.value) if apart is not None else found
            best = min(best, found)
        return found

    def by_stage_count(self, most: int | None = None, below: float = np.inf) -> list[tuple[int, float]]:
        """Least objective `below` a value for every stage count of the space, up to `most` (inf where there is none)."""
        branches = [self.branch(r, m) for r, m in self.space.branches]
        counts = self.space.stage_counts(max((b.stride for b in branches), default=0))
        counts = tuple(count for count in counts if most is None or count <= most)
        best = np.full(max(counts, default=0), below)
        if self.space.regular:
            self._count_regular(branches, counts, best)
        for bound, _, branch in [] if self.space.regular else sorted((self.floor(b), i, b) for i, b in enumerate(branches)):
            levels = min(best.size, max(self.space.stage_counts(branch.stride), default=0))
            if self.pays or levels == 0 or bound >= best[:levels].max():
                continue
            arrays, most = self.arrays_within(branch, float(best[:levels].max())), self._most_ranks(branch)
            if not arrays.widths:
                continue
            table = PipelineTable(branch, arrays)
            found = stage_count_optima(table, self._objective(branch, most), levels, best[:levels], most)
            best[:levels] = found
        for branch in branches if 1 in counts else []:
            apart = self._with_experts_apart(branch, float(best[0]))
            best[0] = min(best[0], apart.value) if apart is not None else best[0]
        return [(count, float(best[count - 1]) if best[count - 1] < below else np.inf) for count in counts]

    def _count_regular(self, branches: list[Branch], counts: tuple[int, ...], best: NDArray[np.float64]) -> None:
        """Fill in the least objective of every stage count on a large cluster."""
        for bound, _, branch in sorted((self.floor(b), i, b) for i, b in enumerate(branches)):
            for count in counts:
                if bound < best[count - 1] and count in self.space.stage_counts(branch.stride):
                    found = self._regular(branch, float(best[count - 1]), None, count)
                    best[count - 1] = min([best[count - 1], *(f.value for f in found)])

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

    def _with_experts_apart(self, branch: Branch, cutoff: float, pin: Pin | None = None) -> Found | None:
        if not self.apart.splits:
            return None
        weight = (lambda gpus: self.weight(branch.replicas, gpus)) if self.objective == "cost" else None
        best = self.apart.best(branch.replicas, branch.micro_batches, cutoff, pin, weight, partial(self._most_apart, branch))
        if best is None:
            return None
        gpus = branch.replicas * len(best.stage.devices)
        return Found(best.value, best.least, gpus, branch.replicas, branch.micro_batches, None, best)

    def _most_apart(self, branch: Branch, ranks: int) -> float:
        """Seconds that a plan with experts apart on `ranks` of each replica may take: none at all on too many."""
        if branch.replicas * ranks > self.caps.gpus:
            return -np.inf
        return min(self._most_seconds(branch.replicas, ranks), self.caps.steady_s) * (1 + SAME)

    def _preferred(self, found: list[Found], best: float) -> Found:
        """The plan among ties (see `TIE_RULE`)."""
        ties = [self._fewer_gpus(f, best) for f in found if f.value <= best * (1 + SAME)]
        fewest = min(tie.gpus for tie in ties)
        ties = [tie for tie in ties if tie.gpus == fewest]
        if len(ties) == 1:
            return ties[0]
        return min(ties, key=lambda tie: (sent_bytes(self.env, self.sizes, self._choice(tie), tie.apart), *tie.simplicity))

    def _fewer_gpus(self, chosen: Found, best: float) -> Found:
        """The same value on the fewest ranks that a plan of the same branch can have it on."""
        while chosen.path is not None and not self.pays and not self.space.regular:  # else fewer ranks were tried already
            end = chosen.path.legs[-1].first + chosen.path.legs[-1].width
            branch = self.branch(chosen.replicas, chosen.micro_batches)
            if end == 1:
                break
            table = PipelineTable(branch, self.arrays_within(branch, best * (1 + 2 * SAME)), self.space.stages)
            again = branch_optimum(table, self._objective(branch, end - 1), best * (1 + 2 * SAME), 1, end - 1)
            if again.path is None or again.value > best * (1 + SAME):
                break
            gpus = branch.replicas * (again.path.legs[-1].first + again.path.legs[-1].width)
            chosen = replace(chosen, value=again.value, gpus=gpus, path=again.path)
        return chosen

    def _prove(self, opened: list[Branch], chosen: Found, best: float, counts: Counts) -> float:
        """Lower bound over the opened branches.

        The exact program has closed every branch but the chosen one: none of their plans is below the best value. In the
        chosen one the legs that no bound excludes go to CP-SAT, which starts from the plan found.
        """
        counts.drop("branch closed by the exact program", len(opened))
        if chosen.path is None:
            return best
        if self.space.regular:
            return best
        counts.drop("branch closed by the exact program", -1)
        branch = self.branch(chosen.replicas, chosen.micro_batches)
        used = chosen.path.legs[-1].first + chosen.path.legs[-1].width
        first, last = (used, used) if self.pays else (1, self._most_ranks(branch))
        objective, cutoff = self._objective(branch, last), best * (1 + SAME) / chosen.weight
        table = PipelineTable(branch, self.arrays_within(branch, best * (1 + 2 * SAME)), self.space.stages)
        legs = [
            (leg, seconds)
            for leg, seconds in surviving_legs(table, objective, self._least_slowest(table), cutoff)
            if leg.stop < table.layers or first <= leg.first + leg.width <= last
        ]
        if not legs or len(legs) > MAX_LEGS:
            counts.drop("branch closed by the exact program")
            return best
        return min(best, self._solve_model(table, objective, legs, cutoff, chosen, counts))

    def _least_slowest(self, table: PipelineTable) -> float:
        return float(table.sweep(minimax=True).final.min())

    def _solve_model(
        self,
        table: PipelineTable,
        objective: Objective,
        legs: list[tuple[Leg, float]],
        cutoff: float,
        start: Found,
        counts: Counts,
    ) -> float:
        model = PipelineModel(table, objective, legs, cutoff, self._least_slowest(table))
        if start.path is not None:
            model.hint(start.path)
        how = self.limits.seed, self.limits.workers, min(self.limits.effort, max(LEAST_EFFORT, len(legs) * EFFORT_OF_LEG))
        answer = model.solve(*how)
        counts.iterations += 1
        if answer.status not in DECIDED:  # what the exact program has proven stands
            counts.drop("branch closed by the exact program")
            return start.least
        bound = max(answer.bound, 0.0)
        counts.model = ModelFacts(
            start.replicas, start.micro_batches, len(legs), cutoff, bound, start.weight, answer.status, counts.cuts, *how
        )
        return start.weight * bound

    def _choice(self, found: Found) -> Choice:
        if found.apart is not None:
            return Choice(found.replicas, found.micro_batches, (found.apart.stage,), found.apart.in_flight)
        if found.path is None:
            raise ValueError("a candidate has a pipeline or experts apart")
        branch = self.branch(found.replicas, found.micro_batches)
        return Choice(found.replicas, found.micro_batches, self.stages(branch, found.path))

    def stages(self, branch: Branch, path: Path) -> tuple[StageChoice, ...]:
        """The stages of a found pipeline with their options."""
        stages, rows = [], self.priced.spans[1]
        for leg in path.legs:
            slot = branch.slot(leg.first, leg.width)
            if slot is None:
                raise ValueError("a found stage has a slot")
            row = rows[leg.start, leg.stop]
            option = branch.option_at(
                slot, int(branch.best(slot, rows=np.arange(self.priced.spans[0].first.size) == row)[1][row])
            )
            devices = tuple(slot.devices)
            stages.append(StageChoice(leg.stop - leg.start, devices, option.attention, option.mlp_ways, option.experts))
        return tuple(stages)

    def _run_pinned(self, cutoff: float) -> Optimum:
        """The optimum of a space whose stages are fixed: every stage takes its fastest option that fits."""
        counts = Counts(priced=self.priced.priced + self.apart.priced)
        best: tuple[float, Choice] | None = None
        branches = [self.branch(r, m) for r, m in self.space.branches]
        for branch in branches:
            counts.branches += 1
            objective = self._objective(branch, self._pinned_ranks)
            fits = branch.replicas * self._pinned_ranks <= self.caps.gpus
            found = [x for x in [pinned_pipeline(branch, objective) if fits else None] if x is not None]
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
        """Least number of bytes that every GPU would need besides for some plan to fit, over all branches; of the caps only
        that on GPUs counts.
        """
        least = np.inf
        for branch in branches:
            most = self._most_ranks(branch)
            if self.space.layout:
                least = min(least, pinned_excess(branch) if self._pinned_ranks <= most else np.inf)
            elif self.space.regular:
                least = min(least, self.runs(branch).least_excess(most))
            else:
                table, ends = MemoryTable(branch, self.arrays(branch), self.space.stages), slice(most + 1)
                least = min(least, float(table.sweep(minimax=True, ends=ends).final[ends].min()))
            if self.apart.splits:
                least = min(least, self.apart.least_excess(branch.replicas, branch.micro_batches, most))
        return least
