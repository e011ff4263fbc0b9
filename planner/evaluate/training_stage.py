"""A stage of a training plan: its parts added up over the layers of its chunks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from planner.evaluate.setting import Setting
from planner.evaluate.training_host import issued
from planner.evaluate.training_parts import Parameters, Part, Passes, StageCase, StageParts, stage_parts
from planner.graph.chunks import chunk_layers
from search_spaces.sizes import Sizes
from search_spaces.stages import Choice
from search_spaces.training import TrainingChoice


@dataclass(frozen=True, slots=True)
class TrainingStage:
    """A stage: the passes of each chunk of its layers, and its parameters by how often they are held."""

    chunks: tuple[Passes, ...]
    parameters: tuple[Parameters, ...]
    layers: int


def training_stages(env: Setting, sizes: Sizes, choice: Choice, fused: bool | None = None) -> tuple[TrainingStage, ...]:
    """Price the stages of a training plan; equal ones once."""
    sequences = sizes.batch // choice.replicas // choice.micro_batches
    cases = [StageCase(s.devices, s.attention, s.mlp_ways, s.experts, sequences) for s in choice.stages]
    parts = stage_parts(env, sizes, cases, fused)
    return assemble(env, [stage.layers for stage in choice.stages], parts, choice.training or TrainingChoice(), choice.replicas)


def assemble(
    env: Setting, layers: Sequence[int], parts: Sequence[StageParts], training: TrainingChoice, replicas: int
) -> tuple[TrainingStage, ...]:
    """The stages of a plan from their parts; equal chunks of equal stages are added up once."""
    last, stages = len(layers) - 1, chunk_layers(layers, training.virtual_stages)
    known: dict[tuple[object, ...], TrainingStage] = {}
    found = []
    for index, chunks in enumerate(stages):
        kinds = tuple(tuple(env.kind_of_layer[layer] for layer in chunk) for chunk in chunks)
        key = (id(parts[index]), kinds, index == 0, index == last)
        if key not in known:
            pieces = [
                _pieces(env, parts[index], own, index == 0 and c == 0, index == last and c == len(kinds) - 1)
                for c, own in enumerate(kinds)
            ]
            known[key] = _stage(env, pieces, training, replicas, sum(map(len, chunks)))
        found.append(known[key])
    return tuple(found)


def _stage(
    env: Setting, chunks: Sequence[Sequence[tuple[Part, int]]], training: TrainingChoice, replicas: int, layers: int
) -> TrainingStage:
    found: list[Passes] = []
    held: dict[int, list[float]] = {}
    for pieces in chunks:
        passes = Passes()
        for part, times in pieces:
            passes = passes.plus(part.passes[training.recompute], times)
            for own in part.parameters:
                amounts = held.setdefault(own.copies * replicas, [0.0, 0.0])
                amounts[0] += times * own.elements
                amounts[1] += times * own.bytes
        found.append(issued(env, passes, training.schedule == "zb_h1"))
    return TrainingStage(tuple(found), tuple(Parameters(a, b, copies) for copies, (a, b) in held.items()), layers)


def _pieces(env: Setting, parts: StageParts, kinds: Sequence[int], first: bool, last: bool) -> list[tuple[Part, int]]:
    """The parts of a chunk and how often it has each."""
    pieces = [(parts.layers[kind], kinds.count(kind)) for kind in dict.fromkeys(kinds)]
    if not first:
        pieces.insert(0, (parts.receive, 1))
    elif parts.embedding is not None:
        pieces.insert(0, (parts.embedding, 1))
    if not last:
        pieces.append((parts.leave, 1))
    elif parts.head is not None:
        tied = first and env.model.tied_embeddings
        pieces.append((Part(parts.head.passes) if tied else parts.head, 1))
    return pieces
