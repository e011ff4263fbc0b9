"""How a training step runs a plan: its fields in a space or a plan, and what can be trained at all."""

from __future__ import annotations

from planner.errors import InputError
from planner.fields import Fields
from planner.plan.domains import booleans, integers, words
from search_spaces.space import SearchSpace
from search_spaces.training import RECOMPUTES, SCHEDULES, ZEROS, TrainingChoice, TrainingDomain
from search_spaces.training_space import TrainingSpace

TRAINING_FIELDS = ("schedule", "virtual_stages", "recompute", "zero", "overlap")


def training_domain(fields: Fields, base: TrainingDomain, layers: int) -> TrainingDomain:
    """What `fields` leave open of how a step runs; what they do not name stays as in `base`."""
    return TrainingDomain(
        words(fields, "schedule", base.schedule, SCHEDULES),
        integers(fields, "virtual_stages", base.virtual_stages, layers),
        words(fields, "recompute", base.recompute, RECOMPUTES),
        integers(fields, "zero", base.zero, ZEROS[-1], low=0),
        booleans(fields, "overlap", base.overlap),
    )


def training_to_dict(training: TrainingChoice) -> dict[str, object]:
    """The fields of a training choice."""
    return {name: getattr(training, name) for name in TRAINING_FIELDS}


def check_trained(fields: Fields, space: SearchSpace) -> None:
    """Refuse what no training plan has, where the field that says so is named."""
    if not isinstance(space, TrainingSpace):
        return
    for attention in (space.attention, *(pin.attention for pin in space.layout)):
        pairs: tuple[tuple[str, object, object, str], ...] = (
            ("dimension_segments", attention.dimension_segments, 1, "1: training does not cut heads into segments"),
            ("output_projection", attention.output_projection, "row", "row: in training the output projection is row-split"),
            ("order", attention.order, "segments_inner", "segments_inner: training keeps the GPUs of a head group together"),
        )
        for name, values, only, allowed in pairs:
            if isinstance(values, tuple) and only not in values:
                raise InputError(f"{fields.path}.attention.{name}", list(values), allowed, fields.source)
    for experts in (space.experts, *(pin.experts for pin in space.layout)):
        if experts.form is not None and not {"local", "dispatch"} & set(experts.form):
            raise InputError(
                f"{fields.path}.experts.form", list(experts.form), "local or dispatch: training keeps experts beside attention",
                fields.source,
            )  # fmt: skip
