"""Domains from a file: each field is a value, a list of values, a range `{from: 1, to: 8}`, or `any`.

A field that is absent keeps the domain it had; `any` opens it. The same readers serve a problem's `space` and a plan.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TypeVar

from planner.errors import InputError, unknown_name
from planner.fields import Fields
from search_spaces.attention import ORDERS, PROJECTIONS, SOFTMAXES, AttentionDomain
from search_spaces.experts import FORMS, ROUTER_SIDES, ExpertDomain, Form, Placed, Placement
from search_spaces.sizes import Sizes

Text = TypeVar("Text", bound=str)

ANY = "any"
CONTIGUOUS = "consecutive"
ALL_FORMS: tuple[Form, ...] = (*FORMS, "separate")
MOST_VALUES = 1_000_000


def integers(fields: Fields, name: str, base: tuple[int, ...] | None, high: int, *, low: int = 1) -> tuple[int, ...] | None:
    """The whole numbers a field allows, ascending; None for every legal one. A range may end beyond `high`."""
    value = fields.raw(name)
    if value is None or value == ANY:
        return base if value is None else None
    if isinstance(value, dict):
        return integer_range(fields.mapping(name), high, low)
    if isinstance(value, list | tuple):
        if not value:
            raise fields.error(name, f"integers from {low} to {high}, at least one")
        return tuple(sorted(set(fields.integers(name, low=low, high=high))))
    return (fields.integer(name, low=low, high=high),)


def integer_range(fields: Fields, high: int, low: int) -> tuple[int, ...]:
    """The integers of a range `{from: 1, to: 8}`, both ends counted; without `to` up to `high`."""
    first = fields.integer("from", low=low, high=high, default=low)
    last = min(fields.integer("to", low=first, default=high), high)
    fields.done()
    if last - first >= MOST_VALUES:
        raise InputError(fields.path, dict(fields.values), f"at most {MOST_VALUES} values", fields.source)
    return tuple(range(first, last + 1))


def words(fields: Fields, name: str, base: tuple[Text, ...] | None, known: tuple[Text, ...]) -> tuple[Text, ...] | None:
    """The words a field allows, in our order; None for every legal one."""
    value = fields.raw(name)
    if value is None or value == ANY:
        return base if value is None else None
    listed = value if isinstance(value, list | tuple) else [value]
    for item in listed:
        if item not in known:
            raise unknown_name(fields.at(name), item, [*known, ANY], fields.source)
    if not listed:
        raise fields.error(name, "one or more of " + ", ".join(known))
    return tuple(word for word in known if word in listed)


def booleans(fields: Fields, name: str, base: tuple[bool, ...] | None) -> tuple[bool, ...] | None:
    """The truth values a field allows; None for both."""
    value = fields.raw(name)
    if value is None or value == ANY:
        return base if value is None else None
    listed = value if isinstance(value, list | tuple) else [value]
    if not listed or not all(isinstance(item, bool) for item in listed):
        raise fields.error(name, "true, false, or a list of them")
    return tuple(truth for truth in (False, True) if truth in listed)


def attention_domain(fields: Fields, base: AttentionDomain, sizes: Sizes) -> AttentionDomain:
    """The attention partitions that `fields` leave open; what they do not name stays as in `base`."""
    groups = integers(fields, "head_groups", base.head_groups, sizes.heads)
    splits = _splits(fields, base, sizes)
    if fields.has("heads_per_group") and splits is not None:
        lengths = tuple(sorted({len(split) for split in splits}))
        if fields.has("head_groups") and groups is not None and not set(lengths) <= set(groups):
            raise fields.error("heads_per_group", f"as many groups as head_groups says: {_listed(groups)}")
        groups = lengths
    elif fields.has("head_groups") and splits is not None and groups is not None:
        splits = tuple(split for split in splits if len(split) in groups) or None
    segments = max(1, min(sizes.head_dim // 2, sizes.v_head_dim))
    return AttentionDomain(
        groups,
        integers(fields, "dimension_segments", base.dimension_segments, segments),
        integers(fields, "batch_parts", base.batch_parts, sizes.batch),
        integers(fields, "context_parts", base.context_parts, sizes.kv_length),
        splits,
        words(fields, "order", base.order, ORDERS),
        booleans(fields, "score_reduce", base.score_reduce) or (True,),
        words(fields, "softmax", base.softmax, SOFTMAXES),
        words(fields, "output_projection", base.output_projection, PROJECTIONS),
        booleans(fields, "sequence_parallel", base.sequence_parallel),
    )


def _splits(fields: Fields, base: AttentionDomain, sizes: Sizes) -> tuple[tuple[int, ...], ...] | None:
    """Heads of each group: one list, or a list of such lists; each must hold every head once."""
    value = fields.raw("heads_per_group")
    if value is None or value == ANY:
        return base.heads_per_group if value is None else None
    if not isinstance(value, list | tuple) or not value:
        raise fields.error("heads_per_group", "a list with the heads of each group")
    listed = value if all(isinstance(item, list | tuple) for item in value) else [value]
    for split in listed:
        whole = all(isinstance(count, int) and not isinstance(count, bool) and count > 0 for count in split)
        if not whole or sum(split) != sizes.heads:
            raise fields.error("heads_per_group", f"positive integers that sum to the model's {sizes.heads} heads")
    return tuple(tuple(split) for split in listed)


def expert_domain(fields: Fields, base: ExpertDomain, sizes: Sizes) -> ExpertDomain:
    """The expert placements that `fields` leave open; `devices` counts GPUs that hold experts alone.

    A placement is one list entry per expert: the position of its group among the expert groups, or a list of such
    positions for an expert with copies; `replicas` declares the copies. `consecutive` is the default one alone.
    """
    placement: tuple[Placed, ...] | None = base.placement
    if fields.raw("placement") is not None:
        value = fields.raw("placement")
        named: dict[str, tuple[Placed, ...] | None] = {ANY: None, CONTIGUOUS: ((),)}
        placement = named[value] if isinstance(value, str) and value in named else (read_placement(fields, sizes.experts),)
    if fields.raw("placement_by_layer") is not None:
        placement = (read_layers(fields, sizes),)
    fields.ignore(("replicas",))
    return ExpertDomain(
        words(fields, "form", base.form, ALL_FORMS),
        integers(fields, "tensor_ways", base.tensor_ways, max(1, sizes.expert_hidden)),
        integers(fields, "devices", base.devices, sizes.devices),
        placement,
        words(fields, "router_side", base.router_side, ROUTER_SIDES),
        integers(fields, "serve_within", base.serve_within, sizes.devices, low=0),
    )


def read_placement(fields: Fields, experts: int) -> Placement:
    """The groups of each expert from a list; every expert must have as many as `replicas` declares."""
    value = fields.raw("placement")
    allowed = (
        f"any, consecutive, or a list with one entry for each of the {experts} experts: its group, or a list of its groups"
    )
    if not isinstance(value, list | tuple) or len(value) != experts:
        raise fields.error("placement", allowed)
    placed = _groups(value, fields.at("placement"), allowed, fields.source)
    check_copies(fields, placed)
    return placed


def _groups(value: Sequence[object], place: str, allowed: str, source: str) -> Placement:
    """The groups of each expert: an entry is one group, or a list of them."""
    placed = tuple(tuple(entry) if isinstance(entry, list | tuple) else (entry,) for entry in value)
    for expert, held in enumerate(placed):
        if not all(isinstance(g, int) and not isinstance(g, bool) and g >= 0 for g in held):
            raise InputError(f"{place}[{expert}]", value[expert], allowed, source)
    return placed


def read_layers(fields: Fields, sizes: Sizes) -> tuple[Placement, ...]:
    """A placement for every layer with experts; the copies are those that it lists."""
    value, count = fields.raw("placement_by_layer"), len(sizes.expert_rows)
    for other in ("placement", "replicas"):
        if fields.raw(other) is not None:
            raise fields.error(other, "nothing beside placement_by_layer, which says where every copy is")
    if not isinstance(value, list | tuple) or len(value) != count:
        raise fields.error("placement_by_layer", f"a list with one placement for each of the {count} layers with experts")
    place = fields.at("placement_by_layer")
    rows = tuple(_layer(row, f"{place}[{index}]", sizes.experts, fields.source) for index, row in enumerate(value))
    for index, first in enumerate(sizes.expert_rows):
        if rows[index] != rows[first]:
            allowed = f"the placement of row {first}: both layers have the same expert loads"
            raise InputError(f"{place}[{index}]", "another placement", allowed, fields.source)
    return rows


def _layer(value: object, place: str, experts: int, source: str) -> Placement:
    allowed = f"a list with one entry for each of the {experts} experts: its group, or a list of different groups"
    if not isinstance(value, list | tuple) or len(value) != experts:
        raise InputError(place, value if not isinstance(value, list | tuple) else f"{len(value)} entries", allowed, source)
    placed = _groups(value, place, allowed, source)
    for expert, held in enumerate(placed):
        if not held or len(set(held)) != len(held):
            raise InputError(f"{place}[{expert}]", value[expert], allowed, source)
    return placed


def check_copies(fields: Fields, placement: Placement) -> None:
    """Every expert has as many different groups as `replicas` declares (1 where it says nothing)."""
    copies = read_copies(fields, len(placement))
    for expert, held in enumerate(placement):
        place = f"{fields.at('placement')}[{expert}]"
        if not held:
            raise InputError(place, "no group", f"a group for expert {expert}", fields.source)
        if len(set(held)) != len(held):
            raise InputError(place, list(held), f"different groups for the copies of expert {expert}", fields.source)
        if len(held) != copies[expert]:
            hint = f"{copies[expert]} of expert {expert}; more copies are declared by {fields.at('replicas')}"
            raise InputError(place, list(held), hint, fields.source)


def read_copies(fields: Fields, experts: int) -> tuple[int, ...]:
    """Copies of each expert: one number for all, or a list; 1 where nothing is said."""
    if isinstance(fields.raw("replicas"), list | tuple):
        found = tuple(fields.integers("replicas", low=1))
        if len(found) != experts:
            raise fields.error("replicas", f"one number for all, or one for each of the {experts} experts")
        return found
    return (fields.integer("replicas", low=1, default=1),) * experts


def _listed(values: Iterable[object]) -> str:
    return ", ".join(str(value) for value in values)
