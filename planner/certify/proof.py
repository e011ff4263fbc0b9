"""The proof of a certificate, gone through once more: branch by branch, with the verifier's own prices and programs."""

from __future__ import annotations

from dataclasses import replace
from functools import cached_property

import numpy as np

from planner.certify.apart import ApartPlans
from planner.certify.branch import Branch, TooLargeError
from planner.certify.document import BranchClaim, Certificate, Part
from planner.certify.model import solve_again
from planner.certify.pipelines import PipelineTimes, pipeline_below
from planner.certify.question import INF, TOLERANCE, Question
from planner.certify.refusal import RefusedError
from planner.certify.sample import Sampler, values
from planner.certify.stages import StageTimes
from planner.certify.winner import chosen, fits
from planner.evaluate.setting import Setting, setting

NEAR = 1 + 2 * TOLERANCE


class Proof:
    """What is derived anew of one certificate; branches that are too large for it are listed, with the reason."""

    def __init__(self, read: Certificate) -> None:
        self.read, self.space = read, read.problem.space
        self.too_large: dict[tuple[int, int], str] = {}

    @cached_property
    def env(self) -> Setting:
        """The setting that plans are priced in."""
        problem = self.read.problem
        return setting(problem.model, problem.workload, problem.cluster)

    @cached_property
    def bounding(self) -> Setting:
        """The setting of the bounds: where they are claimed of any placement, mixtures cost what none goes below."""
        return replace(self.env, any_placement=True) if self.read.any_placement else self.env

    @cached_property
    def question(self) -> Question:
        """The objective and the limits."""
        return Question(self.env, self.read.objective, self.read.most)

    @cached_property
    def times(self) -> StageTimes:
        """Stages of linear pipelines, priced anew."""
        return StageTimes(self.bounding, self.space, self.read.most.memory_bytes)

    @cached_property
    def apart(self) -> ApartPlans:
        """Plans with experts apart, priced anew."""
        return ApartPlans(self.bounding, self.space, self.read.most.memory_bytes)

    def _branch(self, claim: BranchClaim) -> Branch:
        return Branch(self.space, claim.replicas, claim.micro_batches)

    def check_branches(self) -> str:
        """The list has every branch of the space once, and a claim about every form of plan that the space has."""
        listed = [(claim.replicas, claim.micro_batches) for claim in self.read.branches]
        known = set(self.space.branches)
        for key in known.symmetric_difference(listed):
            told = "is missing from the list" if key in known else "is not of the space"
            raise RefusedError(f"the branch of {key[0]} replicas and {key[1]} micro-batches {told}")
        if len(listed) != len(known):
            raise RefusedError("a branch is listed twice")
        for claim in self.read.branches:
            splits = next(self.apart.splits(self.space.stride(claim.replicas)), None)
            if splits is not None and claim.apart is None:
                raise RefusedError(f"nothing is said of {_name(claim)} with experts on GPUs of their own")
        return f"all {len(listed)} branches (replicas, micro-batches) of the space are listed"

    def check_closed_forms(self) -> str:
        """The terms that closed branches without opening them, and what they give."""
        count = 0
        for claim in self.read.branches:
            part = claim.pipelines
            if part.closed_by != "closed form" or self._is_too_large(claim):
                continue
            terms, value = self.closed_form(claim)
            for name, own, told in zip(("chain", "work"), terms, (part.chain_s, part.work_s), strict=True):
                if own == INF or abs(own - told) > TOLERANCE * own:
                    raise RefusedError(f"{_name(claim)}: the {name} of the closed form is {own:.12g} s, not {told:.12g}")
            if part.bound > value * NEAR:
                raise RefusedError(f"{_name(claim)}: the closed form gives {value:.12g}, not {part.bound:.12g}")
            count += 1
        return f"{count} branches closed by chain and work of their layers"

    def closed_form(self, claim: BranchClaim) -> tuple[tuple[float, float], float]:
        """((chain, work), lower bound): one micro-batch through the fastest layers, all work shared by all ranks."""
        branch = self._branch(claim)
        terms = self.times.fastest_layers(branch.sequences)
        if terms is None:
            return (INF, INF), INF
        chain, work = terms
        ends = np.arange(1, branch.most_ranks(self.question) + 1)
        values = self.question.of_pipeline(branch.replicas, branch.micro_batches, ends, np.full(ends.size, chain), work / ends)
        return terms, float(values.min(initial=INF))

    def _is_too_large(self, claim: BranchClaim) -> bool:
        """Whether a branch is left out; the prices are looked up here first."""
        try:
            self.times.fastest_layers(self._branch(claim).sequences)
        except TooLargeError as reason:
            self.too_large[claim.replicas, claim.micro_batches] = str(reason)
        return (claim.replicas, claim.micro_batches) in self.too_large

    def check_pipelines(self) -> str:
        """No linear pipeline of a branch is below the branch's bound."""
        done = formulas = 0
        for claim in self._chosen_first():
            bound = claim.pipelines.bound
            if claim.pipelines.closed_by == "closed form" or self._is_too_large(claim):
                continue
            if not self.space.layout and self.closed_form(claim)[1] >= bound:
                formulas += 1
                continue
            try:
                found = None if self.space.layout and self._no_pin_room(claim) else self._pipeline_below(claim, bound)
            except TooLargeError as reason:
                self.too_large[claim.replicas, claim.micro_batches] = str(reason)
                continue
            _refuse_below(claim, claim.pipelines, found, "a pipeline")
            done += 1
        also = f", {formulas} more closed by a formula" if formulas else ""
        return f"{done} branches gone through stage by stage{also}: no pipeline is below its bound{self._left_out()}"

    def _chosen_first(self) -> list[BranchClaim]:
        """The branches in order, that of the plan before all others: should there be too many, it is not the one left out."""
        plan = self.read.plan or {}
        key = plan.get("replicas"), plan.get("micro_batches")
        return sorted(self.read.branches, key=lambda claim: (claim.replicas, claim.micro_batches) != key)

    def _no_pin_room(self, claim: BranchClaim) -> bool:
        return claim.replicas * sum(len(pin.devices) for pin in self.space.layout) > self.read.most.gpus

    def _pipeline_below(self, claim: BranchClaim, bound: float) -> float | None:
        return pipeline_below(self.times, self.question, self._branch(claim), _below(bound))

    def check_apart(self) -> str:
        """No plan with experts on GPUs of their own is below the branch's bound."""
        done = 0
        for claim in self.read.branches:
            if claim.apart is None or self._is_too_large(claim):
                continue
            try:
                found = self.apart.below(self.question, self._branch(claim), _below(claim.apart.bound))
            except TooLargeError as reason:
                self.too_large[claim.replicas, claim.micro_batches] = str(reason)
                continue
            _refuse_below(claim, claim.apart, found, "a plan with experts apart")
            done += 1
        if not done and not self.too_large:
            return "the space has no such plans"
        return f"{done} branches tabulated: no plan is below its bound{self._left_out()}"

    def check_model(self) -> str:
        """CP-SAT finds nothing below the bound of the model that closed the search."""
        told, least = self.read.model, self.read.least
        if told is None or least is None:
            return "no CP model is part of the proof"
        key = told.replicas, told.micro_batches
        claim = next((claim for claim in self.read.branches if (claim.replicas, claim.micro_batches) == key), None)
        if claim is None:
            raise RefusedError("its branch is not of the space")
        if key in self.too_large or self.space.regular:
            return "not solved again: its branch is too large"
        branch = self._branch(claim)
        used = sum(len(stage.devices) for stage in chosen(self.read).stages)
        times = PipelineTimes(self.times, branch, branch.most_ranks(self.question))
        how = told.seed, told.workers, told.effort
        status, legs = solve_again(times, self.question, told.bound_s, least * NEAR, used, how)
        if status in ("OPTIMAL", "FEASIBLE"):
            raise RefusedError(f"{_name(claim)}: CP-SAT finds a pipeline below the bound of {told.bound_s:.12g} s")
        if status != "INFEASIBLE":
            return f"not decided within its effort ({status}, {legs} stages); the bound rests on the check of pipelines alone"
        return f"{_name(claim)}: infeasible below {told.bound_s:.12g} s over {legs} stages"

    def check_samples(self, count: int, seed: int) -> str:
        """None of the plans drawn at random is sound, within all limits, and below the bound."""
        below, better, drawn = _below(self.read.at_least), 0, Sampler(self.space, seed).draws(count)
        for choice, value in zip(drawn, values(self.env, self.question, self.space.sizes, drawn), strict=True):
            if value < below:
                better += 1
                if fits(self.env, self.space, self.question, choice):
                    shape = "-".join(f"{stage.layers}x{len(stage.devices)}" for stage in choice.stages)
                    raise RefusedError(
                        f"a plan drawn at random is worth {value:.12g}, below {self.read.at_least:.12g}: {choice.replicas} "
                        f"replicas, {choice.micro_batches} micro-batches, layers x GPUs {shape}"
                    )
        return f"{len(drawn)} plans drawn with seed {seed}: none is better ({better} would be, with more memory)"

    def _left_out(self) -> str:
        """What was not gone through, in words."""
        if not self.too_large:
            return ""
        why = next(iter(self.too_large.values()))
        return f"; {len(self.too_large)} branches NOT derived anew, only drawn from ({why})"


def _below(bound: float) -> float:
    return bound / NEAR if bound != INF else INF


def _refuse_below(claim: BranchClaim, part: Part, found: float | None, what: str) -> None:
    if found is not None:
        told = "though there is said to be none" if part.bound == INF else f"below its bound of {part.bound:.12g}"
        raise RefusedError(f"{_name(claim)}: {what} is worth {found:.12g}, {told}")


def _name(claim: BranchClaim) -> str:
    """A branch in words."""
    return f"{claim.replicas} replicas x {claim.micro_batches} micro-batches"
