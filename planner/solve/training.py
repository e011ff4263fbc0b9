"""The best training plan: frames ordered by closed-form bounds, their plans priced exactly until no bound is below the best."""

from __future__ import annotations

import heapq
import time
from collections.abc import Callable, Iterator, Sequence
from copy import copy
from dataclasses import dataclass, replace

from planner.costs.memory import communication_bytes, reserve_bytes
from planner.evaluate.setting import Setting
from planner.evaluate.training import StepPricing, pipeline_bound
from planner.evaluate.training_parts import StageCase, StageParts, stage_parts
from planner.evaluate.training_stage import TrainingStage, assemble
from planner.solve.answer import Counts, Limits, Optimum
from planner.solve.objective import SAME, Caps, Name
from search_spaces.stages import Choice, block_pattern
from search_spaces.training_space import Frame, TrainingSpace

INF = float("inf")
Progress = Callable[[str], None]
Keep = Callable[[Choice], bool]
"""Which plans are looked at."""


@dataclass(frozen=True)
class Found:
    """A plan that fits, its objective, and what ties are broken by: GPUs, stages, micro-batches, replicas."""

    value: float
    choice: Choice

    @property
    def rank(self) -> tuple[int, int, int, int, str]:
        """Fewer GPUs, then simpler."""
        used = self.choice.replicas * sum(len(stage.devices) for stage in self.choice.stages)
        return used, len(self.choice.stages), self.choice.micro_batches, self.choice.replicas, repr(self.choice.training)

    def better(self, other: Found | None) -> bool:
        """Whether this plan is to be preferred."""
        if other is None or self.value < other.value * (1 - SAME):
            return True
        return self.value <= other.value * (1 + SAME) and self.rank < other.rank


class TrainingSearch:
    """The space of a training problem, priced, to be asked for the best plan; all its numbers are those of the evaluator.

    A frame's bound is the work of all layers spread over its stages without loss, a plan's that of `StepPricing.bound`.
    """

    def __init__(
        self, env: Setting, space: TrainingSpace, objective: Name = "latency", limits: Limits | None = None,
        *, ignore_memory: bool = False,
    ) -> None:  # fmt: skip
        self.env, self.space, self.objective, self.limits = env, space, objective, limits or Limits()
        self.ignore_memory = ignore_memory
        self.sizes = space.sizes
        self.counts = Counts()
        self.excess = INF
        self.started = time.monotonic()
        self._places: dict[tuple[int, ...], object] = {}
        self._stages: dict[tuple[tuple[int, ...], ...], list[object]] = {}
        self._floors = list(self._bounded())
        self.frames = self.ordered()

    def asking(self, objective: Name, caps: Caps, seconds: float = INF) -> TrainingSearch:
        """The same priced space, asked for another objective under other caps on time and money, with counts of its own."""
        if (caps.memory_bytes, caps.gpus) != (self.limits.caps.memory_bytes, self.limits.caps.gpus):
            raise ValueError("another memory, or other GPUs, is another pricing")
        other = copy(self)
        other.objective, other.counts = objective, Counts()
        other.limits = replace(self.limits, caps=caps, seconds=min(seconds, self.limits.seconds))
        other.frames, other.started = other.ordered(), time.monotonic()
        return other

    def run(
        self, cutoff: float = INF, *, progress: Progress | None = None, keep: Keep | None = None, any_plan: bool = False
    ) -> Optimum:
        """The best plan below `cutoff` (of those that `keep` allows) with its bound; an interrupted or timed out
        search gives the best so far, and where `any_plan` will do, the first that is found ends it.
        """
        best: Found | None = None
        bound, complete, interrupted = INF, True, False
        say = progress or (lambda text: None)
        try:
            for least, frame in self.frames:
                most = cutoff if best is None else best.value
                if least > most * (1 + SAME):
                    break
                if time.monotonic() - self.started > self.limits.seconds:
                    complete, bound = False, least
                    break
                self.counts.branches += 1
                better = self._of_frame(frame, most, best, keep)
                if better is not best and better is not None:
                    best = better
                    say(f"best so far {best.value:.6g}: {frame.replicas} replicas x {len(frame.devices)} stages")
                    if any_plan:
                        complete, bound = False, least
                        break
        except KeyboardInterrupt:
            complete, interrupted, bound = False, True, self.frames[0][0] if self.frames else INF
        if best is None:
            return Optimum(None, INF, min(bound, cutoff), complete, self.counts, self.excess, interrupted)
        value = best.value
        return Optimum(best.choice, value, min(bound, value), complete, self.counts, 0.0, interrupted)

    def best(self, keep: Keep) -> float:
        """The best objective of the plans that `keep` allows; inf where none fits."""
        return self._aside(self.frames, INF, keep).value

    def samples(self) -> Iterator[Choice]:
        """Plans that between them have every value of every decision."""
        seen = set[tuple[int, int, int]]()
        for _, frame in self.frames:
            split, training = next(iter(self.space.runs(frame)))
            yield frame.choice(split, training)
            kind = (len(frame.devices), frame.micro_batches, self.space.copies(frame))
            if kind not in seen:
                seen.add(kind)
                yield from (frame.choice(split, training) for split, training in self.space.runs(frame))

    def branch_optima(self, skip: tuple[int, int]) -> Iterator[tuple[float, Choice]]:
        """The best plan of every other (replicas, micro-batches)."""
        branches = dict[tuple[int, int], list[tuple[float, Frame]]]()
        for least, frame in self.frames:
            branches.setdefault((frame.replicas, frame.micro_batches), []).append((least, frame))
        for branch, frames in branches.items():
            if branch == skip:
                continue
            found = self._aside(frames, self.limits.seconds)
            if found.choice is not None:
                yield found.value, found.choice

    def _aside(self, frames: list[tuple[float, Frame]], seconds: float, keep: Keep | None = None) -> Optimum:
        """The best plan of some priced frames; the counts of this search, which are those of its answer, stay as they are."""
        other = copy(self)
        other.frames, other.limits, other.counts, other.excess = frames, replace(self.limits, seconds=seconds), Counts(), INF
        other.started = time.monotonic()
        found = other.run(keep=keep)
        if found.interrupted:  # what was asked for is not known
            raise KeyboardInterrupt
        return found

    def _of_frame(self, frame: Frame, most: float, best: Found | None, keep: Keep | None = None) -> Found | None:
        """The best plan of a frame (of those that `keep` allows), where it is better than the one known."""
        queue = self._open(frame, most, keep)
        ends: dict[object, Sequence[float]] = {}
        while queue:
            least, _, pricing = heapq.heappop(queue)
            if least > most * (1 + SAME):
                self.counts.drop("bound above the best plan", len(queue) + 1)
                break
            if not self._fits(pricing):
                continue
            key = _pipeline_key(pricing.choice)
            if key not in ends:
                ends[key] = pricing.ends()
                self.counts.iterations += 1
            step = pricing.step(ends[key])
            if self._beyond(frame, step.seconds):
                self.counts.drop("over a limit of the search")
                continue
            found = Found(self._value(frame, step.seconds), pricing.choice)
            if found.value <= most * (1 + SAME) and found.better(best):
                best, most = found, min(most, found.value)
        return best

    def _open(self, frame: Frame, most: float, keep: Keep | None) -> list[tuple[float, int, StepPricing]]:
        """A frame's plans whose bounds are not above `most`, the least first; plans of the same stages are bounded once."""
        queue: list[tuple[float, int, StepPricing]] = []
        parts, known = self._parts_of(frame), dict[object, tuple[tuple[TrainingStage, ...], float]]()
        for split, training in self.space.runs(frame):
            if keep is not None and not keep(frame.choice(split, training)):
                continue
            self.counts.priced += 1
            key = (split, training.virtual_stages, training.recompute, training.schedule == "zb_h1")
            if key not in known:
                stages = assemble(self.env, split, parts, training, frame.replicas)
                known[key] = (stages, self._value(frame, pipeline_bound(stages, frame.micro_batches)))
            stages, least = known[key]
            if least > most * (1 + SAME):
                self.counts.drop("bound above the best plan")
                continue
            pricing = StepPricing(self.env, self.sizes, frame.choice(split, training), stages)
            least = self._value(frame, pricing.bound())
            if least > most * (1 + SAME):
                self.counts.drop("bound above the best plan")
            else:
                heapq.heappush(queue, (least, len(queue), pricing))
        return queue

    def _value(self, frame: Frame, seconds: float) -> float:
        """What is minimized: seconds of a step, or its dollars."""
        return seconds if self.objective != "cost" else seconds * self._rate(frame)

    def _rate(self, frame: Frame) -> float:
        """Dollars per second of the GPUs of a frame."""
        rate = sum(self.env.cluster.kind_of(rank).price_per_hour for ranks in frame.devices for rank in ranks)
        return frame.replicas * rate / 3600.0

    def _beyond(self, frame: Frame, seconds: float) -> bool:
        """Whether a step of so many seconds is beyond a limit on time or money."""
        caps, near = self.limits.caps, 1 + SAME
        return seconds > min(caps.latency_s, caps.steady_s) * near or seconds * self._rate(frame) > caps.dollars * near

    def _fits(self, pricing: StepPricing) -> bool:
        if self.ignore_memory:
            return True
        worst = pricing.over_capacity(self.limits.caps.memory_bytes)
        if worst > 0:
            self.excess = min(self.excess, worst)
            self.counts.drop("memory")
        return worst <= 0

    def ordered(self) -> list[tuple[float, Frame]]:
        """The frames by the least objective that each may have."""
        return sorted(((self._value(frame, seconds), frame) for seconds, frame in self._floors), key=lambda pair: pair[0])

    def _bounded(self) -> Iterator[tuple[float, Frame]]:
        """Every frame that could fit with the least seconds of a step it may have."""
        frames = [frame for frame in self.space.frames() if self._allowed(frame)]
        self._price(frames)
        for frame in frames:
            if not self.ignore_memory and self._least_bytes(frame) > 0:
                self.excess = min(self.excess, self._least_bytes(frame))
                self.counts.drop("weights alone exceed the memory")
                continue
            yield self._least(frame), frame

    def _allowed(self, frame: Frame) -> bool:
        used = frame.replicas * sum(map(len, frame.devices))
        if used > self.limits.caps.gpus:
            self.counts.drop("over a limit of the search")
        return used <= self.limits.caps.gpus

    def _price(self, frames: Sequence[Frame]) -> None:
        """Price every different stage once."""
        cases: dict[object, StageCase] = {}
        for frame in frames:
            keys = self._keys(frame)
            if any(key not in cases for key in dict.fromkeys(keys)):
                for key, case in zip(keys, self._cases(frame), strict=True):
                    cases.setdefault(key, case)
        self._parts = dict(zip(cases, stage_parts(self.env, self.sizes, list(cases.values())), strict=True))

    def _parts_of(self, frame: Frame) -> list[StageParts]:
        return [self._parts[key] for key in self._keys(frame)]

    def _cases(self, frame: Frame) -> list[StageCase]:
        sequences = self.space.sequences(frame.replicas, frame.micro_batches)
        return [
            StageCase(ranks, option.attention, option.mlp_ways, option.experts, sequences)
            for ranks, option in zip(frame.devices, frame.options, strict=True)
        ]

    def _keys(self, frame: Frame) -> list[object]:
        """What tells the stages of frames apart: how nodes cut their ranks, the GPUs and links there, option, micro-batch."""
        sequences = self.space.sequences(frame.replicas, frame.micro_batches)
        if frame.devices not in self._stages:
            self._stages[frame.devices] = [self._place(ranks) for ranks in frame.devices]
        places = self._stages[frame.devices]
        return [(place, option, sequences) for place, option in zip(places, frame.options, strict=True)]

    def _place(self, ranks: tuple[int, ...]) -> object:
        if ranks not in self._places:
            cluster = self.env.cluster
            domains = dict.fromkeys(cluster.domain_of[rank] for rank in ranks)
            links = tuple(cluster.domains[index].link for index in domains)
            self._places[ranks] = (block_pattern(self.sizes, ranks[0], len(ranks)), links, cluster.device_kinds[ranks[0]])
        return self._places[ranks]

    def _least(self, frame: Frame) -> float:
        """Seconds that no plan of a frame goes below: the work of a step on stages that share it out evenly."""
        parts = self._parts_of(frame)
        different = list({id(own): own for own in parts}.values())
        counts = [self.env.kind_of_layer.count(kind) for kind in range(len(self.env.kinds))]
        total = 0.0
        for kind, count in enumerate(counts):
            passes = [own.layers[kind].passes["none"] for own in different]
            total += count * min(p.forward_s + p.inputs_s + p.weights_s for p in passes)
        for end in (parts[0].embedding, parts[-1].head):
            if end is not None:
                own = end.passes["none"]
                total += own.forward_s + own.inputs_s + own.weights_s
        return frame.micro_batches * total / len(frame.devices)

    def _least_bytes(self, frame: Frame) -> float:
        """Bytes by which the weights alone, spread evenly and shared as far as can be, exceed the memory of a stage."""
        parts, model = {id(own): own for own in self._parts_of(frame)}.values(), self.env.kind_of_layer
        held = 0.0
        for kind in range(len(self.env.kinds)):
            count = model.count(kind)
            held += count * min(
                sum(p.bytes / (p.copies * frame.replicas) for p in some.layers[kind].parameters) for some in parts
            )
        gpus = [self.env.cluster.kind_of(ranks[0]) for ranks in frame.devices]
        most = max(gpu.memory_bytes - reserve_bytes(gpu) for gpu in gpus) - communication_bytes(1)
        return held / len(frame.devices) - most


def _pipeline_key(choice: Choice) -> object:
    """What the pipeline's times depend on: zero 0 and 1 exchange after it."""
    training = choice.training
    assert training is not None
    shared = training.zero if training.zero >= 2 else 0
    layers = tuple(stage.layers for stage in choice.stages)
    return layers, training.schedule, training.virtual_stages, training.recompute, shared, training.overlap
