"""The `space` section of a problem: what is open, and in words what is not."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace

from planner.errors import InputError
from planner.fields import Fields
from planner.plan import attention_domain, expert_domain, integers
from planner.plan.training import check_trained, training_domain
from search_spaces.attention import AttentionDomain
from search_spaces.experts import ExpertDomain
from search_spaces.large import LARGE_RULES
from search_spaces.sizes import Sizes
from search_spaces.space import RULES, SearchSpace
from search_spaces.training_space import ATTENTION, TRAINING_RULES, TrainingSpace

FULL = "full"
GPU_ORDERS = ("any", "listed")
"""In which orders ranks may count the GPUs of the cluster."""


def read_space(section: object, sizes: Sizes, source: str = "", training: bool = False) -> SearchSpace:
    """The space of a `space` section; nothing or `full` leaves everything open."""
    if section is None or section == FULL:
        return TrainingSpace(sizes) if training else SearchSpace(sizes)
    if not isinstance(section, Mapping):
        raise InputError("space", section, "full, or a mapping of decisions to what they may be", source)
    fields = Fields(section, source, "space")
    attention, mlp, experts = (_part(fields, name) for name in ("attention", "mlp", "experts"))
    kind = TrainingSpace if training else SearchSpace
    base = ATTENTION if training else AttentionDomain()
    space = kind(
        sizes,
        replicas=integers(fields, "replicas", None, sizes.devices),
        stages=integers(fields, "stages", None, sizes.devices),
        micro_batches=integers(fields, "micro_batches", None, sizes.batch),
        in_flight=integers(fields, "in_flight", None, sizes.batch),
        attention=attention_domain(attention, base, sizes),
        mlp_ways=integers(mlp, "ways", None, sizes.devices),
        experts=expert_domain(experts, ExpertDomain(), sizes),
        use_all=fields.boolean("use_all", default=False),
        any_order=fields.choice("gpus", GPU_ORDERS, default=GPU_ORDERS[0]) == GPU_ORDERS[0],
    )
    if isinstance(space, TrainingSpace):
        space = replace(space, training=training_domain(fields, space.training, sizes.layers))
    for part in (fields, attention, mlp, experts):
        part.done()
    check_trained(fields, space)
    return space


def restrictions(section: object, pins: Mapping[str, object], space: SearchSpace) -> tuple[str, ...]:
    """What a space leaves out: the rules of its kind, those of a large cluster, and what its file and the pins say."""
    own = section if isinstance(section, Mapping) else {}
    large = [f"above {space.large} GPUs {rule}" for rule in LARGE_RULES] if space.regular else []
    rules = TRAINING_RULES if isinstance(space, TrainingSpace) else (*RULES, *large)
    return (
        *rules,
        *(f"the space has {text}" for text in _said(own, "")),
        *(f"pinned: {text}" for text in _said(pins, "")),
    )


def _part(fields: Fields, name: str) -> Fields:
    return fields.maybe_mapping(name) or Fields({}, fields.source, fields.at(name))


def _said(section: Mapping[str, object], path: str) -> Iterator[str]:
    for name, value in section.items():
        if isinstance(value, Mapping) and not {"from", "to"} & set(value):
            yield from _said(value, f"{path}{name}.")
        elif value is not None and value != "any":
            text = f"{value.get('from', 1)} to {value.get('to', 'any')}" if isinstance(value, Mapping) else value
            yield f"{path}{name} = {text}"
