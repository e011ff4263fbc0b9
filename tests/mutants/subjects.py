"""Subjects: the sound plans that mutants are made of, those of the library and some that it has no like of."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

from planner.api import choose
from planner.check.run.twin import Twin, twin_of
from planner.check.validate import sample_graph
from planner.clusters import load_cluster
from planner.evaluate.setting import Setting, setting
from planner.graph.expand import expand
from planner.graph.nodes import Graph
from planner.models import load_model
from planner.problem import library_names, load_problem
from planner.problem.sizes import sizes_of
from planner.workload import load_workload
from search_spaces.attention import AttentionPartition as P
from search_spaces.experts import ExpertPlacement as E
from search_spaces.sizes import Sizes
from search_spaces.stages import Choice, StageChoice


@dataclass(frozen=True)
class Subject:
    """A plan with its problem, or the small twin of one (`complete`: its graph has every layer and micro-batch)."""

    name: str
    env: Setting
    sizes: Sizes
    choice: Choice
    complete: bool = False

    @cached_property
    def graph(self) -> Graph:
        """The graph that is checked: a sample of the plan, or all of the twin."""
        return self.graph_of(self.choice)

    def graph_of(self, choice: Choice) -> Graph:
        """The graph of another plan for the same problem, cut alike."""
        if self.complete:
            return expand(self.env.model, self.env.workload, self.sizes, choice)
        return sample_graph(self.env, self.sizes, choice)

    @cached_property
    def small(self) -> Twin:
        """The twin that the numeric run executes."""
        return twin_of(self.env.model, self.env.workload, self.env.cluster, self.sizes, self.choice)

    @cached_property
    def twin(self) -> Subject:
        """The twin as a subject of its own."""
        small = self.small
        return Subject(
            f"{self.name} (twin)", setting(small.model, small.workload, self.env.cluster), small.sizes, small.choice, True
        )


def library() -> Iterator[Subject]:
    """All hand-designed plans of all library problems."""
    for name in library_names():
        for plan in load_problem(name).plans:
            chosen = choose(f"{name}:{plan}")
            yield Subject(f"{name}:{plan}", chosen.env, chosen.problem.sizes, chosen.choice)


def _subject(
    name: str, model: str, workload: str, cluster: str, micro_batches: int, *stages: StageChoice, in_flight: int = 1
) -> Subject:
    spec, work, gpus = load_model(model), load_workload(workload), load_cluster(cluster)
    env = setting(spec, work, gpus)
    return Subject(name, env, sizes_of(spec, work, gpus), Choice(1, micro_batches, stages, in_flight))


def _spread(experts: int, groups: int, copied: int) -> tuple[tuple[int, ...], ...]:
    """Experts in turn over groups, the first `copied` of them with a replica on the next group."""
    return tuple((e % groups, (e + 1) % groups) if e < copied else (e % groups,) for e in range(experts))


def extras() -> Iterator[Subject]:
    """Latent attention, replicas, context parts, rings, segments, sequence parallelism, three stages, experts apart."""
    yield _subject(
        "latent decode, experts dispatched with replicas", "deepseek-v2", "decode:batch=128,context=4096", "2x8-h100", 2,
        StageChoice(60, tuple(range(8)), P(4, batch_parts=2), 4, E("dispatch", 2, placement=_spread(160, 4, 8))),
    )  # fmt: skip
    yield _subject(
        "latent prefill in segments", "deepseek-v2", "prefill:batch=8,prompt=2048", "1x8-h100", 2,
        StageChoice(60, tuple(range(8)), P(2, 4, order="heads_inner", softmax="scattered"), 8, E("local", 2)),
    )  # fmt: skip
    yield _subject(
        "decode over context parts", "llama-3.1-70b", "decode:batch=64,context=8192", "1x8-h100", 4,
        StageChoice(80, tuple(range(8)), P(2, context_parts=4, sequence_parallel=True), 4),
    )  # fmt: skip
    yield _subject(
        "ring over a causal prompt", "llama-3.1-8b", "prefill:batch=4,prompt=8192", "1x8-h100", 2,
        StageChoice(32, tuple(range(8)), P(2, context_parts=4), 2),
    )  # fmt: skip
    yield _subject(
        "segments with a normed query", "qwen3-8b", "decode:batch=32,context=2048", "1x8-h100", 2,
        StageChoice(36, tuple(range(8)), P(2, 2, batch_parts=2, output_projection="gather"), 8),
    )  # fmt: skip
    yield _subject(
        "post-norms and windows, tokens split", "gemma-2-9b", "prefill:batch=8,prompt=6144", "1x8-h100", 4,
        StageChoice(42, tuple(range(8)), P(8, sequence_parallel=True), 4),
    )  # fmt: skip
    yield _subject(
        "three stages, uneven", "qwen2.5-7b", "decode:batch=32,context=1024", "1x8-h100", 4,
        StageChoice(8, (0,), P(), 1), StageChoice(14, (1, 2, 3, 4), P(4), 4),
        StageChoice(6, (5, 6), P(2, sequence_parallel=True), 2),
    )  # fmt: skip
    yield _subject(
        "experts apart, routed by attention", "mixtral-8x7b", "prefill:batch=16,prompt=1024", "1x8-h100", 4,
        StageChoice(32, tuple(range(7)), P(3, heads_per_group=(12, 12, 8)), 3, E("separate", 2, 4, _spread(8, 2, 2))),
        in_flight=2,
    )  # fmt: skip
    yield _subject(
        "experts apart, routed by them", "qwen3-30b-a3b", "decode:batch=64,context=1024", "1x8-h100", 4,
        StageChoice(48, tuple(range(8)), P(4, output_projection="gather"), 4, E("separate", 1, 4, router_side="expert")),
        in_flight=2,
    )  # fmt: skip
    yield _subject(
        "sinks, parallel halves of a stage", "gpt-oss-20b", "prefill:batch=8,prompt=512", "1x8-h100", 2,
        StageChoice(10, (0, 1, 2, 3), P(2, batch_parts=2), 4, E("dispatch")),
        StageChoice(14, (4, 5, 6, 7), P(4), 4, E("local", 2)),
    )  # fmt: skip
