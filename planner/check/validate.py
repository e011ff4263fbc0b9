"""check_choice and check_graph: everything that can be said about a plan and its graph without running it."""

from __future__ import annotations

from collections.abc import Iterator

from planner.check.conservation import check_conservation
from planner.check.cycles import check_cycles
from planner.check.destinations import check_destinations
from planner.check.findings import Finding, errors
from planner.check.flow import check_flow
from planner.check.forms import check_forms
from planner.check.index import Index
from planner.check.order import check_order
from planner.check.places import check_identity, check_places
from planner.check.prices import Context, check_prices
from planner.check.shapes import check_shapes
from planner.check.shards import check_shards
from planner.check.structure import check_structure
from planner.check.training import check_training
from planner.evaluate.capacity import over_capacity, stage_total
from planner.evaluate.setting import Setting
from planner.evaluate.training import StepPricing
from planner.evaluate.training_stage import training_stages
from planner.graph.expand import expand
from planner.graph.expand_training import expand_training
from planner.graph.nodes import Graph
from planner.units import show_bytes
from search_spaces.sizes import Sizes
from search_spaces.stages import Choice


def check_choice(env: Setting, sizes: Sizes, choice: Choice) -> tuple[Finding, ...]:
    """Structure first; where it is sound: everything that its graph shows, memory, and missing sums."""
    found = list(check_structure(sizes, choice))
    if errors(found):
        return tuple(found)
    if choice.training is not None:
        graph = expand_training(
            env.model, env.workload, sizes, choice, layers=_layer_of_each_kind(env, choice), micro_batches=2
        )
        return (*found, *check_training(env, sizes, choice, graph), *_training_memory(env, sizes, choice))
    found += check_graph(env, sizes, choice, sample_graph(env, sizes, choice))
    return (*found, *_sums(choice), *_memory(env, sizes, choice))


def check_graph(env: Setting, sizes: Sizes, choice: Choice, graph: Graph, complete: bool = False) -> tuple[Finding, ...]:
    """Whether a graph is one of a structurally sound plan: circles, places, order, flow of tensors, shapes, prices, work.

    `complete`: the graph has every layer and micro-batch of the plan; otherwise it may show some of them. What makes later
    checks meaningless ends the list: a circle, two operators of one id, a stage or layer that does not exist.
    """
    found = [*check_identity(graph), *check_cycles(graph)]
    if found:
        return tuple(found)
    index, sequences = Index(graph), sizes.batch // choice.replicas // choice.micro_batches
    found += check_places(env.model, choice, index, complete)
    if any(finding.code == "STRUCT018" for finding in found):
        return tuple(found)
    found += [*check_order(index, choice), *check_flow(index)]
    found += check_prices(Context(env.model, sequences * env.workload.query_length, sequences, index))
    found += check_destinations(env.model, env.workload, choice, sequences * env.workload.query_length, graph)
    found += check_forms(env.workload, sizes, choice, index)
    found += check_shards(env.model, env.workload, sizes, choice, index)
    found += check_shapes(graph)
    found += check_conservation(env.model, env.workload, sizes, choice, graph)
    return tuple(found)


def sample_graph(env: Setting, sizes: Sizes, choice: Choice) -> Graph:
    """One micro-batch through one layer of each kind per stage: equal layers and micro-batches repeat what it shows."""
    return expand(env.model, env.workload, sizes, choice, layers=_layer_of_each_kind(env, choice), micro_batches=1)


def _layer_of_each_kind(env: Setting, choice: Choice) -> list[int]:
    """Of every stage one layer of each kind."""
    layers, start = [], 0
    for stage in choice.stages:
        kinds = env.kind_of_layer[start : start + stage.layers]
        layers += [start + kinds.index(kind) for kind in dict.fromkeys(kinds)]
        start += stage.layers
    return layers


def _sums(choice: Choice) -> Iterator[Finding]:
    """Partial scores that nobody sums: the softmax of a part is no part of the softmax."""
    for index, stage in enumerate(choice.stages):
        segments = stage.attention.dimension_segments
        if segments > 1 and not stage.attention.score_reduce:
            yield Finding(
                "NUM001", "error", f"stages[{index}].attention.score_reduce",
                f"partial scores of {segments} dimension segments are not summed before the softmax: "
                "the plan does not compute attention",
                "false", "true", "sum the scores over the segments (score_reduce: true)",
            )  # fmt: skip


def _memory(env: Setting, sizes: Sizes, choice: Choice) -> Iterator[Finding]:
    """The fullest GPU of every stage against its memory, each item taken at its largest share."""
    fix = "use more micro-batches, more GPUs for this stage, or fewer layers on it"
    if choice.stages[0].separate:
        over = over_capacity(env, sizes, choice)
        if over > 0:
            message = f"the fullest GPU needs {show_bytes(over)} more than it has"
            yield Finding("MEM001", "error", "stages[0]", message, round(over), 0, fix)
        return
    for index, stage in enumerate(choice.stages):
        needed = stage_total(env, sizes, choice, index)[1]
        capacity = min(env.cluster.kind_of(rank).memory_bytes for rank in stage.devices)
        if needed > capacity:
            message = f"the fullest GPU needs {show_bytes(needed)} of {show_bytes(capacity)}"
            yield Finding("MEM001", "error", f"stages[{index}]", message, round(needed), capacity, fix)


def _training_memory(env: Setting, sizes: Sizes, choice: Choice) -> Iterator[Finding]:
    """The fullest GPU of every stage of a training step against its memory."""
    pricing = StepPricing(env, sizes, choice, training_stages(env, sizes, choice))
    for index, (stage, memory) in enumerate(zip(choice.stages, pricing.memory(), strict=True)):
        capacity = min(env.cluster.kind_of(rank).memory_bytes for rank in stage.devices)
        if memory.total > capacity:
            message = f"the fullest GPU needs {show_bytes(memory.total)} of {show_bytes(capacity)}"
            fix = "share states out (zero), recompute activations, or use smaller micro-batches, more stages or more GPUs"
            yield Finding("MEM001", "error", f"stages[{index}]", message, round(memory.total), capacity, fix)
