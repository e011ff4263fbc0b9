"""The stages that a plan writes out: their ranks, their experts by rank, and what they leave open."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from planner.errors import InputError
from planner.fields import Fields
from planner.plan.domains import ANY, attention_domain, check_copies, expert_domain, integer_range, integers, read_copies
from search_spaces.experts import ExpertDomain, contiguous_placement
from search_spaces.sizes import Sizes
from search_spaces.space import SearchSpace, StagePin

PARTS = ("attention", "mlp", "experts")
# Two ways to say one thing: who overrides one of a pair withdraws the other, unless both are given.
_RIVALS = {"head_groups": "heads_per_group", "heads_per_group": "head_groups", "placement": "replicas"}


def merge_part(base: object, own: object) -> dict[str, object]:
    """The fields of `own` laid over those of `base`."""
    old = dict(base) if isinstance(base, Mapping) else {}
    new = dict(own) if isinstance(own, Mapping) else {}
    for name in new:
        if name in _RIVALS and _RIVALS[name] not in new:
            old.pop(_RIVALS[name], None)
    return {**old, **new}


def mlp_ways(fields: Fields, base: tuple[int, ...] | None, sizes: Sizes) -> tuple[int, ...] | None:
    """The GPUs that may share the dense FFN."""
    return integers(fields, "ways", base, sizes.devices)


def stage_pin(stage: Fields, shared: Mapping[str, Mapping[str, object]], space: SearchSpace, count: int) -> StagePin:
    """One of `count` stages: its layers, its ranks, and its domains; its own fields override the plan's `shared` ones."""
    sizes = space.sizes
    layers = stage.integer("layers", low=1, high=sizes.layers, default=sizes.layers) if count == 1 else _layers(stage, sizes)
    attention, mlp, experts = (_part(stage, part, shared[part]) for part in PARTS)
    if not sizes.moe and experts.values:
        raise InputError(experts.path, dict(experts.values), "no such field: the model has no experts", stage.source)
    devices, apart = _devices(stage, attention, experts, sizes)
    experts = _with_counts(experts, devices, apart, sizes)
    domain = expert_domain(experts, _base_experts(space.experts, experts, apart), sizes)
    pin = StagePin(
        layers,
        devices,
        attention_domain(attention, space.attention, sizes),
        mlp_ways(mlp, space.mlp_ways, sizes),
        domain,
    )
    attention.ignore(("devices",))
    for fields in (stage, attention, mlp, experts):
        fields.done()
    return pin


def _layers(stage: Fields, sizes: Sizes) -> int:
    return stage.integer("layers", low=1, high=sizes.layers)


def _part(stage: Fields, part: str, shared: Mapping[str, object]) -> Fields:
    own = stage.maybe_mapping(part)
    return Fields(merge_part(shared, own.values if own else {}), stage.source, stage.at(part))


def _base_experts(base: ExpertDomain, experts: Fields, apart: int | None) -> ExpertDomain:
    """The space's domain; a plan that says where its experts are is not bound by the space's forms and counts."""
    if apart:
        return ExpertDomain(("separate",), base.tensor_ways, (apart,), base.placement, base.router_side, base.serve_within)
    return base


def _ranks(fields: Fields, name: str, sizes: Sizes) -> tuple[int, ...] | None:
    """Different ranks of the cluster: a list or a range; None where the field is absent."""
    value = fields.raw(name)
    if value is None:
        return None
    last = sizes.devices - 1
    if isinstance(value, dict):
        return integer_range(fields.mapping(name), last, 0)
    if not isinstance(value, list | tuple) or not value:
        raise fields.error(name, f"a list of ranks from 0 to {last}")
    ranks = tuple(fields.integers(name, low=0, high=last))
    twice = sorted({rank for rank in ranks if ranks.count(rank) > 1}) if len(set(ranks)) < len(ranks) else []
    if twice:
        raise fields.error(name, f"different ranks; {twice[0]} stands twice")
    return ranks


def _devices(stage: Fields, attention: Fields, experts: Fields, sizes: Sizes) -> tuple[tuple[int, ...], int | None]:
    """The ranks of a stage, attention GPUs first, and how many hold experts alone (None: not said, 0: none)."""
    whole, first = _ranks(stage, "devices", sizes), _ranks(attention, "devices", sizes)
    given = experts.raw("devices")
    if isinstance(given, int) and not isinstance(given, bool):
        return _counted(stage, attention, experts, whole or first)
    own = _ranks(experts, "devices", sizes)
    if whole is None:
        if first is None:
            raise stage.error("devices", f"a list of ranks from 0 to {sizes.devices - 1}")
        both = set(first) & set(own or ())
        whole = first if own is None or both == set(own) == set(first) else (*first, *own)
        if own is not None and both and len(whole) > len(first):
            raise experts.error("devices", "the same ranks as attention's, or none of them")
    for part, ranks in ((attention, first), (experts, own)):
        if ranks is not None and not set(ranks) <= set(whole):
            raise part.error("devices", f"ranks of its stage: {_shown(whole)}")
    if own is None:
        own = tuple(r for r in whole if r not in first) if first is not None else None
        return (whole, None) if own is None else (whole if not own else (*(first or ()), *own), len(own))
    if set(own) == set(whole):
        if first is not None and set(first) != set(whole):
            raise attention.error("devices", f"every rank of the stage, as its experts are there: {_shown(whole)}")
        return whole, 0
    rest = tuple(r for r in (first or whole) if r not in own)
    if len(rest) + len(own) != len(whole) or (first is not None and rest != first):
        raise attention.error("devices", f"the ranks of the stage that hold no experts: {_shown(_without(whole, own))}")
    return (*rest, *own), len(own)


def _counted(stage: Fields, attention: Fields, experts: Fields, whole: tuple[int, ...] | None) -> tuple[tuple[int, ...], int]:
    """Ranks where `experts.devices` counts the last GPUs of the stage."""
    if whole is None:
        raise stage.error("devices", "a list of ranks")
    if attention.raw("devices") is not None:
        raise experts.error("devices", "a list of ranks, as attention's are")
    return whole, experts.integer("devices", low=0, high=len(whole) - 1)


def _without(ranks: Sequence[int], others: Sequence[int]) -> tuple[int, ...]:
    return tuple(rank for rank in ranks if rank not in others)


def _with_counts(experts: Fields, devices: tuple[int, ...], apart: int | None, sizes: Sizes) -> Fields:
    """The experts' fields with `devices` as a count, and the placement as a list of groups for each expert."""
    values = {name: value for name, value in experts.values.items() if name != "devices"}
    form = values.get("form")
    forms = form if isinstance(form, list | tuple) else [form]
    if apart and not {None, ANY, "separate"} & {name for name in forms if isinstance(name, str | None)}:
        raise experts.error("devices", f"all GPUs of the stage, since form is {form}; or form: separate")
    if apart == 0 and form == "separate":
        raise experts.error("devices", "some of the GPUs of the stage, since form is separate")
    if apart:
        values["form"] = "separate"
    counted = apart is not None or form in ("local", "dispatch")
    homes = devices[len(devices) - apart :] if apart else devices
    if isinstance(values.get("placement"), Mapping):
        if not counted:
            raise experts.error("placement", "a form or devices beside it, so that the GPUs of the experts are known")
        values["placement"] = _by_rank(experts, homes, sizes)
    elif values.get("replicas") not in (None, 1) and values.get("placement") is None:
        if not counted:
            raise experts.error("replicas", "a form or devices beside it, so that the GPUs of the experts are known")
        values["placement"] = _copies(experts, len(homes), sizes)
    return Fields(values, experts.source, experts.path)


def _by_rank(experts: Fields, homes: tuple[int, ...], sizes: Sizes) -> list[list[int]]:
    """Groups of each expert from `placement: {by_rank: {"12": [0, 1], ...}}`; the ranks of a group name the same experts."""
    outer = experts.mapping("placement")
    held = outer.raw("by_rank")
    outer.done()
    ways = experts.integer("tensor_ways", low=1, high=len(homes), default=1)
    allowed = f"a mapping from each rank of {_shown(homes)} to a list of experts from 0 to {sizes.experts - 1}"
    if not isinstance(held, Mapping) or {str(rank) for rank in held} != {str(rank) for rank in homes}:
        raise outer.error("by_rank", allowed)
    if len(homes) % ways:
        raise experts.error("tensor_ways", f"a divisor of the {len(homes)} GPUs that hold experts")
    of_rank = Fields({str(rank): value for rank, value in held.items()}, experts.source, outer.at("by_rank"))
    lists = [of_rank.integers(str(rank), high=sizes.experts - 1) for rank in homes]
    placed: list[list[int]] = [[] for _ in range(sizes.experts)]
    for index, own in enumerate(lists):
        if own != lists[index - index % ways]:
            raise of_rank.error(str(homes[index]), f"the experts of its group of {ways} GPUs: {lists[index - index % ways]}")
        for expert in own if index % ways == 0 else ():
            placed[expert].append(index // ways)
    check_copies(experts, tuple(tuple(groups) for groups in placed))
    return placed


def _copies(experts: Fields, homes: int, sizes: Sizes) -> list[list[int]]:
    """The default placement of experts that all have the same number of copies: blocks of groups, each with every expert."""
    copies = read_copies(experts, sizes.experts)
    groups = homes // experts.integer("tensor_ways", low=1, high=homes, default=1)
    if len(set(copies)) > 1 or groups % copies[0]:
        raise experts.error("replicas", f"a divisor of the {groups} expert groups, or a placement beside it")
    block = groups // copies[0]
    return [[held[0] + block * copy for copy in range(copies[0])] for held in contiguous_placement(sizes.experts, block)]


def _shown(ranks: Sequence[int]) -> str:
    """Ranks as a short text: `0-7` where they are consecutive."""
    if len(ranks) > 2 and tuple(ranks) == tuple(range(ranks[0], ranks[0] + len(ranks))):
        return f"{ranks[0]}-{ranks[-1]}"
    return ", ".join(str(rank) for rank in ranks)
