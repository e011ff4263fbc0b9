"""A plan as a space in which everything is pinned but one decision: what that decision alone could gain."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from search_spaces.attention import AttentionDomain, AttentionPartition
from search_spaces.experts import ExpertDomain, ExpertPlacement
from search_spaces.space import SearchSpace, StagePin
from search_spaces.stages import Choice, StageChoice

GRID = ("batch_parts", "context_parts", "head_groups", "dimension_segments", "heads_per_group")
"""How many GPUs share what in attention: one decision, since the product of the parts is the width of the stage."""
STAGES = "stages, with the grids and ways that fit them"
SINGLE = ("order", "score_reduce", "softmax", "output_projection", "sequence_parallel")


@dataclass(frozen=True, slots=True)
class Freed:
    """A decision set free: its name, the value it has in the plan, and the space in which it alone is open."""

    name: str
    now: str
    space: SearchSpace


FEW = 4


def freed_spaces(base: SearchSpace, choice: Choice) -> Iterator[Freed]:
    """A space for every decision of a plan that `base` leaves open; what cannot stay without it follows (see `_stages`)."""
    pinned = pinned_space(base, choice)
    if not _fixed(base.micro_batches):
        yield Freed("micro_batches", str(choice.micro_batches), replace(pinned, micro_batches=base.micro_batches))
    if choice.stages[0].separate and not _fixed(base.in_flight):
        yield Freed("in_flight", str(choice.in_flight), replace(pinned, in_flight=base.in_flight))
    if not (_fixed(base.stages) and _fixed(base.replicas)):
        name = STAGES if _fixed(base.replicas) else f"replicas and {STAGES}"
        yield Freed(name, value_of(name, choice), _stages(base, choice))
    for name in ("attention.grid", *(f"attention.{field}" for field in SINGLE)):
        fields = GRID if name == "attention.grid" else (name.partition(".")[2],)
        yield from _attention(base, choice, pinned, name, fields)
    if base.sizes.dense and not _fixed(base.mlp_ways):
        layout = tuple(replace(pin, mlp_ways=base.mlp_ways) for pin in pinned.layout)
        yield Freed("mlp.ways", value_of("mlp.ways", choice), replace(pinned, layout=layout))
    if base.sizes.moe:
        yield from _experts(base, choice, pinned)


def value_of(name: str, choice: Choice) -> str:
    """A decision's value in a plan, in few words; different values of stages side by side."""
    if name in ("micro_batches", "in_flight", "replicas"):
        return str(getattr(choice, name))
    if name.endswith(STAGES):
        return (f"{choice.replicas} replicas, " if name != STAGES else "") + _stages_value(choice)
    return " / ".join(dict.fromkeys(_stage_value(name, stage) for stage in choice.stages))


def _stages_value(choice: Choice) -> str:
    """Layers and GPUs of the stages, and what depends on their widths."""
    each = []
    for stage in choice.stages:
        both = (len(stage.attention_devices), len(stage.expert_devices)) if stage.separate else (len(stage.devices),)
        each.append(f"{stage.layers} on {' + '.join(map(str, both))}")
    shown = each if len(each) <= FEW else [*each[: FEW - 1], "..."]
    grid, ways = value_of("attention.grid", choice), value_of("mlp.ways", choice)
    tensor = value_of("experts.tensor_ways", choice)
    split = f"experts {tensor}-way" if choice.stages[0].experts else f"MLP {ways}-way"
    return f"{len(each)} ({'; '.join(shown)}), {grid}, {split}"


def _stage_value(name: str, stage: StageChoice) -> str:
    if name == "mlp.ways":
        return str(stage.mlp_ways)
    part, _, field = name.partition(".")
    if name == "attention.grid":
        a = stage.attention
        parts = {"head group": a.head_groups, "segment": a.dimension_segments}
        more = {"batch part": a.batch_parts, "context part": a.context_parts}
        parts |= {noun: number for noun, number in more.items() if number > 1}
        return " x ".join(f"{number} {noun}{'s' if number > 1 else ''}" for noun, number in parts.items())
    if part == "attention":
        return str(getattr(stage.attention, field))
    experts = stage.experts or ExpertPlacement()
    if field in ("form", "devices"):
        apart = f", {len(stage.attention_devices)} + {experts.devices} GPUs" if stage.separate else ""
        return experts.form + apart
    if field == "placement":
        return "as even as can be" if not experts.placement else "as the plan says" + ", layer by layer" * experts.by_layer
    return str(getattr(experts, field))


def pinned_space(base: SearchSpace, choice: Choice) -> SearchSpace:
    """The space that holds this plan alone."""
    layout = tuple(
        StagePin(stage.layers, stage.devices, attention_pin(stage.attention), (stage.mlp_ways,), expert_pin(stage.experts))
        for stage in choice.stages
    )
    return replace(
        base, replicas=(choice.replicas,), micro_batches=(choice.micro_batches,), in_flight=(choice.in_flight,), stages=None,
        layout=layout, use_all=False,
    )  # fmt: skip


def attention_pin(partition: AttentionPartition) -> AttentionDomain:
    """The domain that holds one partition."""
    return AttentionDomain(**{name: (getattr(partition, name),) for name in (*GRID, *SINGLE)})


def expert_pin(placement: ExpertPlacement | None) -> ExpertDomain:
    """The domain that holds one placement."""
    if placement is None:
        return ExpertDomain()
    return ExpertDomain(
        form=(placement.form,), tensor_ways=(placement.tensor_ways,),
        devices=(placement.devices,) if placement.form == "separate" else None,
        placement=(placement.placement,) if placement.placement else None, router_side=(placement.router_side,),
        serve_within=(placement.serve_within,),
    )  # fmt: skip


def _fixed(values: tuple[Any, ...] | None) -> bool:
    return values is not None and len(values) == 1


def _attention(base: SearchSpace, choice: Choice, pinned: SearchSpace, name: str, fields: tuple[str, ...]) -> Iterator[Freed]:
    """Some fields of the attention partition, on every stage."""
    open_values: dict[str, Any] = {field: getattr(base.attention, field) for field in fields}
    now = {getattr(stage.attention, field) for stage in choice.stages for field in fields}
    if all(_fixed(values) and set(values) <= now for values in open_values.values()):
        return
    layout = tuple(replace(pin, attention=replace(pin.attention, **open_values)) for pin in pinned.layout)
    yield Freed(name, value_of(name, choice), replace(pinned, layout=layout))


def _experts(base: SearchSpace, choice: Choice, pinned: SearchSpace) -> Iterator[Freed]:
    """Form, tensor ways, placement and router side; GPUs of their own bring the split of the stage's GPUs with them."""
    own = base.experts
    apart = choice.stages[0].separate
    changes: dict[str, dict[str, Any]] = {
        "experts.devices" if apart else "experts.form": {
            "form": own.form,
            "devices": own.devices,
            "placement": own.placement,
            "router_side": own.router_side,
        },
        "experts.tensor_ways": {"tensor_ways": own.tensor_ways, "placement": own.placement},
        "experts.placement": {"placement": own.placement},
    }
    if apart:
        changes["experts.router_side"] = {"router_side": own.router_side}
    if not any(stage.experts is not None and stage.experts.placement for stage in choice.stages):
        del changes["experts.placement"]
    for name, values in changes.items():
        follows = name in ("experts.form", "experts.devices") and len(choice.stages) == 1
        layout = []
        for pin in pinned.layout:
            attention = replace(pin.attention, **_grid_of(base)) if follows else pin.attention
            mlp = base.mlp_ways if follows else pin.mlp_ways
            layout.append(replace(pin, experts=replace(pin.experts, **values), attention=attention, mlp_ways=mlp))
        space = replace(pinned, layout=tuple(layout), in_flight=base.in_flight if follows else pinned.in_flight)
        yield Freed(name, value_of(name, choice), space)


def _grid_of(base: SearchSpace) -> dict[str, Any]:
    return {field: getattr(base.attention, field) for field in GRID}


def _stages(base: SearchSpace, choice: Choice) -> SearchSpace:
    """Stages free: layers and GPUs of each, and with them the grids and ways, which must match the widths; the rest stays."""
    partitions = [stage.attention for stage in choice.stages]
    held = {field: tuple(dict.fromkeys(getattr(p, field) for p in partitions)) for field in SINGLE}
    experts = [stage.experts for stage in choice.stages if stage.experts is not None]
    forms = tuple(dict.fromkeys(e.form for e in experts)) or None
    sides = tuple(dict.fromkeys(e.router_side for e in experts)) or None
    return replace(
        base, layout=(), micro_batches=(choice.micro_batches,), in_flight=(choice.in_flight,),
        attention=replace(base.attention, **held), experts=replace(base.experts, form=forms, router_side=sides),
    )  # fmt: skip
