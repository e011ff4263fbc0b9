"""A plan's mapping as a search space: what the plan pins has one value left, the rest stays open."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from planner.fields import Fields
from planner.plan.domains import attention_domain, expert_domain, integers
from planner.plan.legality import check_counts, check_layout
from planner.plan.order import check_gpus
from planner.plan.stages import PARTS, merge_part, mlp_ways, stage_pin
from planner.plan.training import TRAINING_FIELDS, check_trained, training_domain
from search_spaces.space import SearchSpace, StagePin
from search_spaces.training_space import TrainingSpace

PLAN_SCHEMA = "planner.plan/1"
SCHEDULES = ("forward",)  # forward passes alone: micro-batches follow each other through the stages


def merge_plans(base: Mapping[str, object], own: Mapping[str, object]) -> dict[str, object]:
    """`own` laid over `base`: mappings are merged, anything else is replaced."""
    merged = dict(base)
    for name, value in own.items():
        old = merged.get(name)
        both = isinstance(old, Mapping) and isinstance(value, Mapping)
        merged[name] = merge_part(old, value) if both else value
    return merged


def plan_space(mapping: Mapping[str, object], base: SearchSpace, source: str = "") -> SearchSpace:
    """`base` with the decisions pinned that `mapping` names; `stages` given as mappings become the layout.

    A value replaces what the base allows, so a plan may say what its space leaves out. `InputError` names the field of
    a plan that contradicts itself, the model or the cluster.
    """
    fields = Fields(mapping, source, "plan")
    _check_constants(fields, base)
    check_gpus(fields, base.sizes)
    sizes = base.sizes
    space = replace(
        base,
        replicas=integers(fields, "replicas", base.replicas, sizes.devices),
        micro_batches=integers(fields, "micro_batches", base.micro_batches, sizes.batch),
        in_flight=integers(fields, "in_flight", base.in_flight, sizes.batch),
        use_all=fields.boolean("use_all", default=base.use_all),
    )
    if isinstance(space, TrainingSpace):
        space = replace(space, training=training_domain(fields, space.training, sizes.layers))
    listed = _stage_fields(fields)
    space = _with_layout(fields, listed, space) if listed else _without_stages(fields, space)
    fields.done()
    check_trained(fields, space)
    check_counts(fields, space)
    if space.layout:
        check_layout(fields, space)
    return space


def _check_constants(fields: Fields, base: SearchSpace) -> None:
    """Fields with one legal value today, and those that tell about the plan without being part of it."""
    fields.ignore(("name", "note", "problem"))
    if fields.raw("schema") not in (None, PLAN_SCHEMA):
        raise fields.error("schema", f"{PLAN_SCHEMA}, the only version that this planner reads")
    if not isinstance(base, TrainingSpace):
        if fields.raw("schedule") not in (None, "any", *SCHEDULES):
            raise fields.error("schedule", f"{SCHEDULES[0]}: other schedules are those of training workloads")
        for name in TRAINING_FIELDS[1:]:
            if fields.raw(name) is not None:
                raise fields.error(name, "no such field: the workload is not training")
    if fields.boolean("uneven_micro_batches", default=False):
        raise fields.error("uneven_micro_batches", "false: micro-batches divide the batch of a replica")


def _stage_fields(fields: Fields) -> list[Fields]:
    """The stages that a plan writes out; none where it gives their number or nothing."""
    stages = fields.raw("stages")
    if isinstance(stages, list | tuple) and any(isinstance(stage, Mapping) for stage in stages):
        return fields.mappings("stages")
    attention = fields.raw("attention")
    if stages in (None, 1) and isinstance(attention, Mapping) and attention.get("devices") is not None:
        return [Fields({}, fields.source, f"{fields.path}.stages[0]")]
    return []


def _with_layout(fields: Fields, listed: list[Fields], space: SearchSpace) -> SearchSpace:
    shared: dict[str, Mapping[str, object]] = {}
    for part in PARTS:
        own = fields.maybe_mapping(part)
        shared[part] = own.values if own else {}
    pins = tuple(stage_pin(stage, shared, space, len(listed)) for stage in listed)
    return replace(space, stages=(len(pins),), layout=pins)


def _without_stages(fields: Fields, space: SearchSpace) -> SearchSpace:
    """The space with the decisions pinned that hold for every stage, those of a layout it may have already included."""
    sizes = space.sizes
    written = fields.raw("stages")
    if isinstance(written, Mapping) and not set(written) <= {"from", "to"}:
        raise fields.error("stages", "how many stages there are, or a list with their layers and devices")
    layout = () if fields.has("stages") else space.layout
    stages = integers(fields, "stages", space.stages, min(sizes.layers, sizes.devices))
    own = StagePin(0, (), space.attention, space.mlp_ways, space.experts)
    first, *pins = (_pinned(fields, pin, space) for pin in (own, *layout))
    return replace(
        space, stages=stages, layout=tuple(pins), attention=first.attention, mlp_ways=first.mlp_ways, experts=first.experts
    )


def _pinned(fields: Fields, pin: StagePin, space: SearchSpace) -> StagePin:
    sizes = space.sizes
    attention, mlp, experts = (fields.maybe_mapping(p) or Fields({}, fields.source, fields.at(p)) for p in PARTS)
    if experts.raw("devices") is not None and not isinstance(experts.raw("devices"), int | dict | str):
        raise experts.error("devices", "the number of GPUs that hold experts alone; for ranks write the `stages`, too")
    if isinstance(experts.raw("placement"), Mapping) or (experts.has("replicas") and not experts.has("placement")):
        name = "placement" if experts.has("placement") else "replicas"
        raise experts.error(name, "a placement as a list; to place by rank or count write the `stages`, too")
    if not sizes.moe and experts.values:
        raise fields.error("experts", "no such field: the model has no experts")
    found = replace(
        pin,
        attention=attention_domain(attention, pin.attention, sizes),
        mlp_ways=mlp_ways(mlp, pin.mlp_ways, sizes),
        experts=expert_domain(experts, pin.experts, sizes),
    )
    for part in (attention, mlp, experts):
        part.done()
    return found
