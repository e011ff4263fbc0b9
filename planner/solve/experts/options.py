"""Placements for a search: found for every number of expert groups beforehand, made faster for the best plan afterwards."""

from __future__ import annotations

from collections.abc import Container, Hashable, Iterable, Mapping, Sequence
from dataclasses import fields, replace
from functools import lru_cache

import numpy as np

from planner.errors import InputError
from planner.evaluate.setting import Setting
from planner.graph.experts import Load
from planner.solve.experts.costs import Mixture, Placement
from planner.solve.experts.load import balance
from planner.solve.experts.nodes import node_placements
from planner.solve.experts.timed import Timed, fastest, quickly
from search_spaces.attention import AttentionDomain, AttentionPartition
from search_spaces.experts import ExpertDomain, Placed, contiguous_placement, spare_slots
from search_spaces.sizes import Sizes, divisors
from search_spaces.space import SearchSpace, StagePin, residual_shards
from search_spaces.stages import Choice, StageChoice
from search_spaces.training_space import TrainingSpace

FOUND = (
    "expert placements: consecutive experts, and for each number of groups what the placement search found, without copies and "
    "with a quarter more experts on each GPU at most, once for all layers and, where their loads differ, for every layer; "
    "copies take turns, or serve the tokens of their own node first"
)
RULE = f"{FOUND}. The bound is that of any placement with no more experts on a GPU"
AMONG = f"{FOUND}. What is proven is proven among these"


def different_loads(env: Setting) -> tuple[Load, ...]:
    """The different expert loads of the layers, unequal ones only."""
    return _unequal(kind.load for kind in env.kinds)


def _unequal(loads: Iterable[Load]) -> tuple[Load, ...]:
    return tuple(load for load in loads if len(set(load)) > 1)


def _mixture_loads(env: Setting) -> tuple[Load, ...]:
    """The loads of every layer with experts, in turn."""
    return tuple(layer.load for layer in env.layers if layer.moe)


def open_to_search(env: Setting, space: SearchSpace) -> bool:
    """Whether placements are worth a search: loads are unequal, and the space leaves the placement open."""
    domains = [pin.experts for pin in space.layout] or [space.experts]
    if isinstance(space, TrainingSpace):
        return False
    return space.sizes.moe and any(domain.placement is None for domain in domains) and bool(different_loads(env))


def with_found_placements(env: Setting, space: SearchSpace) -> SearchSpace:
    """The space with placements found where they are worth a search, else the space as it is."""
    return with_placements(env, space) if open_to_search(env, space) else space


def with_placements(env: Setting, space: SearchSpace) -> SearchSpace:
    """The space with placements found for every number of groups that its stages may have, where they are open."""
    rows = _mixture_loads(env)

    def opened(domain: ExpertDomain, widths: set[int]) -> ExpertDomain:
        if domain.placement is not None:
            return domain
        if not set(domain.serve_within or ()) <= {0, env.cluster.neighbours}:
            allowed = f"0 or {env.cluster.neighbours}, the GPUs of a scale-up domain, where the placement is open"
            raise InputError("space.experts.serve_within", list(domain.serve_within or ()), allowed)
        counts = _group_counts(space.sizes.experts, domain, widths)
        tensor = domain.tensor_ways if domain.tensor_ways and len(domain.tensor_ways) == 1 else (1,)
        near = env.cluster.neighbours // tensor[0]
        found = tuple((groups, _candidates(rows, groups, near)) for groups in counts if groups > 1)
        return replace(domain, searched=tuple(pair for pair in found if pair[1]), neighbours=env.cluster.neighbours)

    layout = tuple(replace(pin, experts=opened(pin.experts, _homes(pin))) for pin in space.layout)
    strides = {space.stride(replicas) for replicas, _ in space.branches}
    widths = {width for stride in strides for width in space.widths(stride)}
    return replace(space, layout=layout, experts=space.experts if layout else opened(space.experts, widths))


def _homes(pin: StagePin) -> set[int]:
    """How many GPUs of a fixed stage may hold experts: all, or fewer where experts are apart."""
    if pin.experts.devices is not None:
        return {len(pin.devices), *pin.experts.devices}
    apart = pin.experts.form is None or "separate" in pin.experts.form
    return set(range(1, len(pin.devices))) | {len(pin.devices)} if apart else {len(pin.devices)}


def _group_counts(experts: int, domain: ExpertDomain, widths: set[int]) -> tuple[int, ...]:
    """Numbers of expert groups that stages with experts on so many GPUs may have."""
    tensor = domain.tensor_ways
    counts = {w // t for w in widths for t in divisors(w) if tensor is None or t in tensor}
    return tuple(sorted(c for c in counts if c <= experts))


@lru_cache(maxsize=256)
def _candidates(rows: tuple[Load, ...], groups: int, near: int) -> tuple[Placed, ...]:
    """Balanced placements on `groups` groups, without copies and with: of the sum of the layers' loads, and of each layer's.
    Where `near` groups are a node, those with the hottest experts on every node, too.
    """
    experts, distinct = len(rows[0] or rows[-1]), tuple(dict.fromkeys(row for row in rows if row))
    summed, found = np.sum(_unequal(distinct), axis=0), list[Placed]()
    for spare in spare_slots(experts, groups):
        slots = -(-experts // groups) + spare
        (answer,) = balance(summed[None], groups, slots, exact=False)
        found.append(answer.placement)
        if len(distinct) > 1:
            own = [one.placement for one in balance(np.array(distinct), groups, slots, exact=False)]
            found.append(_turned(rows, dict(zip(distinct, own, strict=True))))
        loads = np.array([summed, *(distinct if len(distinct) > 1 else ())])
        local = node_placements(loads, groups, near, slots) if near and groups > near and groups % near == 0 else None
        if local is not None:
            found += [local[0], *([_turned(rows, dict(zip(distinct, local[1:], strict=True)))] if len(local) > 1 else [])]
    return tuple(dict.fromkeys(p for p in found if p != contiguous_placement(experts, groups)))


def _turned(rows: Sequence[Load], own: Mapping[Load, Placement]) -> tuple[Placement, ...]:
    """The placements of the layers in turn, by their loads."""
    return tuple(own[row] for row in rows)


def mixture_of(env: Setting, sizes: Sizes, choice: Choice, stage: StageChoice, load: Load) -> Mixture | None:
    """The mixture of a stage under one load; None where its experts have GPUs of their own."""
    if stage.experts is None or stage.separate:
        return None
    layer = next(kind for kind in env.kinds if kind.moe and kind.load == load)
    sequences = env.workload.batch // choice.replicas // choice.micro_batches
    tokens = sequences * env.query_length
    shards = residual_shards(sizes, stage.attention)
    return Mixture(env, layer, stage.experts.form, stage.experts.tensor_ways, stage.devices, tokens, shards)


def refined(env: Setting, space: SearchSpace, choice: Choice) -> SearchSpace | None:
    """The space of a choice with its placements open to faster ones for its own tokens; None where there is nothing to try."""
    rows = _mixture_loads(env)
    pins, tried, start = [], False, 0
    known: dict[Hashable, Timed] = {}
    for index, stage in enumerate(choice.stages):
        domain, own = _held(stage), {layer.load for layer in env.layers[start : start + stage.layers] if layer.moe}
        start += stage.layers
        mixture = mixture_of(env, space.sizes, choice, stage, different_loads(env)[0])
        if stage.experts is not None and mixture is not None and mixture.groups > 1:
            faster = _faster(mixture, rows, own, known)
            placement = tuple(dict.fromkeys((stage.experts.placement, *faster)))
            asked = (space.layout[index].experts if space.layout else space.experts).serve_within
            domain = replace(domain, placement=placement, serve_within=asked, neighbours=env.cluster.neighbours)
            tried = tried or bool(faster)
        pins.append((stage, domain))
    return _held_space(space, choice, pins) if tried else None


def alone(space: SearchSpace, choice: Choice) -> SearchSpace:
    """The space that holds one choice."""
    return _held_space(space, choice, [(stage, _held(stage)) for stage in choice.stages])


def _held_space(space: SearchSpace, choice: Choice, pins: Sequence[tuple[StageChoice, ExpertDomain]]) -> SearchSpace:
    layout = tuple(StagePin(stage.layers, stage.devices, _grid(stage), (stage.mlp_ways,), domain) for stage, domain in pins)
    return replace(
        space, replicas=(choice.replicas,), micro_batches=(choice.micro_batches,), in_flight=(choice.in_flight,),
        stages=(len(layout),), layout=layout,
    )  # fmt: skip


def _faster(
    mixture: Mixture, rows: Sequence[Load], inside: Container[Load], known: dict[Hashable, Timed]
) -> tuple[Placed, ...]:
    """Fast placements, each with different slots: for the mean of the layers' loads, and for the own load of each layer that
    the stage has `inside` (the others have that of the mean: no GPU of the stage holds them). `known` are those for the mean.
    """
    every = tuple(dict.fromkeys(row for row in rows if row))
    mean = np.mean(_unequal(every), axis=0)
    distinct = tuple(row for row in every if row in inside)
    experts, found = mean.size, list[Placed]()
    for spare in spare_slots(experts, mixture.groups):
        slots = -(-experts // mixture.groups) + spare
        key = (mixture.case, slots)
        if key not in known:
            (known[key],) = fastest(mixture, mean[None], slots, effort=2)
        answer = known[key]
        found.append(answer.placement)
        if len(distinct) > 1:
            own = quickly(mixture, np.array(distinct), slots, answer.copies)
            found.append(_turned(rows, dict.fromkeys(every, answer.placement) | dict(zip(distinct, own, strict=True))))
    return tuple(dict.fromkeys(found))


def _held(stage: StageChoice) -> ExpertDomain:
    """The domain that holds the experts of a stage."""
    placed = stage.experts
    if placed is None:
        return ExpertDomain()
    count = (placed.devices,) if placed.form == "separate" else None
    return ExpertDomain(
        (placed.form,), (placed.tensor_ways,), count, (placed.placement,), (placed.router_side,), (placed.serve_within,)
    )


def _grid(stage: StageChoice) -> AttentionDomain:
    """The attention domain that holds the grid of a stage."""
    return AttentionDomain(**{field.name: (getattr(stage.attention, field.name),) for field in fields(AttentionPartition)})
