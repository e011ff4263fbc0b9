"""What a plan must not contradict: itself, the model, and the cluster. Each check names the first field that is wrong."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from math import prod

from planner.errors import InputError
from planner.fields import Fields
from search_spaces.attention import AttentionDomain
from search_spaces.sizes import divisors
from search_spaces.space import SearchSpace
from search_spaces.stages import micro_batch_counts, replica_counts

GRID = ("batch_parts", "context_parts", "head_groups", "dimension_segments")


def check_counts(fields: Fields, space: SearchSpace) -> None:
    """Replicas and micro-batches that the plan itself gives must divide the batch."""
    sizes = space.sizes
    replicas = replica_counts(sizes, space.replicas)
    if fields.has("replicas") and not replicas:
        allowed = f"a divisor of the batch of {sizes.batch} that cuts the {sizes.devices} GPUs into blocks that look alike"
        raise fields.error("replicas", allowed)
    if fields.has("micro_batches") and replicas and not any(_micro(space, r) for r in replicas):
        each = sizes.batch // replicas[0]
        raise fields.error("micro_batches", f"a divisor of the {each} sequences of a replica: {_some(divisors(each))}")


def _micro(space: SearchSpace, replicas: int) -> tuple[int, ...]:
    return micro_batch_counts(space.sizes, replicas, space.micro_batches)


def check_layout(fields: Fields, space: SearchSpace) -> None:
    """The stages of a layout cover the layers, use ranks of replica 0 once, and leave a way to run each."""
    _check_cover(fields, space)
    _check_ranks(fields, space)
    for index in range(len(space.layout)):
        _check_stage(fields, space, index)
    if space.branches and space.size() == 0:
        allowed = "a plan that can be run: its batch parts must divide a micro-batch, and every part have a token"
        raise InputError(fields.path, _pins(space), allowed, fields.source)


def _check_cover(fields: Fields, space: SearchSpace) -> None:
    layers = [pin.layers for pin in space.layout]
    if sum(layers) != space.sizes.layers:
        allowed = f"layers of the stages that sum to the model's {space.sizes.layers}"
        sums = f"{' + '.join(map(str, layers))} = " if 1 < len(layers) <= 16 else ""
        raise InputError(fields.at("stages"), f"{sums}{sum(layers)} layers", allowed, fields.source)


def _check_ranks(fields: Fields, space: SearchSpace) -> None:
    owner: dict[int, int] = {}
    for index, pin in enumerate(space.layout):
        place = f"{fields.at('stages')}[{index}].devices"
        for rank in pin.devices:
            if rank in owner:
                allowed = f"ranks that no other stage uses; {rank} is in stage {owner[rank]}, too"
                raise InputError(place, list(pin.devices), allowed, fields.source)
            owner[rank] = index
        shared = not space.sizes.moe or (pin.experts.form is not None and "separate" not in pin.experts.form)
        if shared and not space.one_kind(pin.devices):
            raise InputError(place, list(pin.devices), "GPUs of one kind in a stage", fields.source)
    strides = [space.stride(replicas) for replicas in replica_counts(space.sizes, space.replicas)]
    if strides and max(owner) >= max(strides):
        allowed = f"ranks of replica 0: 0 to {max(strides) - 1}"
        raise InputError(fields.at("stages"), f"rank {max(owner)}", allowed, fields.source)


def _check_stage(fields: Fields, space: SearchSpace, index: int) -> None:
    """A stage has a grid, an FFN split and an expert split of its width; told in this order."""
    pin, place = space.layout[index], f"{fields.at('stages')}[{index}]"
    splits = _splits(space, index)
    if not splits:
        allowed = f"shared forms, or one stage with some of its {len(pin.devices)} GPUs for the experts"
        raise InputError(f"{place}.experts.form", "separate", allowed, fields.source)
    attention_ways = sorted({attention for attention, _ in splits})
    if not any(any(True for _ in pin.attention.partitions(space.sizes, ways)) for ways in attention_ways):
        raise InputError(f"{place}.attention", _grid(pin.attention), _grid_rule(space, attention_ways), fields.source)
    if not any(space.pinned(index).mlp_choices(ways) for ways in attention_ways):
        allowed = f"a divisor of the stage's {_some(attention_ways)} GPUs, at most {space.sizes.ffn_hidden} FFN columns"
        raise InputError(f"{place}.mlp.ways", _only(pin.mlp_ways), allowed, fields.source)
    if space.sizes.moe and not any(_placed(space, index, *split) for split in splits):
        if any(_placed(_served_by_all(space), index, *split) for split in splits):
            allowed = (
                "0 (copies take turns), or with dispatch and copies fewer GPUs than the stage has, a multiple of tensor_ways"
            )
            raise InputError(f"{place}.experts.serve_within", _only(pin.experts.serve_within), allowed, fields.source)
        placed = pin.experts.placement
        name, value = ("placement", _only(placed)) if placed else ("tensor_ways", _only(pin.experts.tensor_ways))
        homes = sorted({experts or attention for attention, experts in splits})
        allowed = f"tensor_ways that divide the {_some(homes)} GPUs with experts, and as many groups as the placement names"
        allowed += f" (at most {space.sizes.experts}: one for each expert)" if not placed else ""
        raise InputError(f"{place}.experts.{name}", value, allowed, fields.source)
    if not any(_runs(space, index, *split) for split in splits):
        allowed = "token splits of attention and FFN where one divides the other"
        raise InputError(place, _grid(pin.attention) + f", mlp.ways {_only(pin.mlp_ways)}", allowed, fields.source)


def _splits(space: SearchSpace, index: int) -> list[tuple[int, int]]:
    """(attention GPUs, GPUs with experts alone) that the stage allows; none alone: (all, 0)."""
    pin, total = space.layout[index], len(space.layout[index].devices)
    form, counts = pin.experts.form, pin.experts.devices
    found = [(total, 0)] if not space.sizes.moe or form is None or form != ("separate",) else []
    if space.sizes.moe and (form is None or "separate" in form) and len(space.layout) == 1:
        found += [(total - e, e) for e in range(1, total) if counts is None or e in counts]
    return found


def _served_by_all(space: SearchSpace) -> SearchSpace:
    """The space with all copies of an expert taking turns."""
    layout = tuple(replace(pin, experts=replace(pin.experts, serve_within=None)) for pin in space.layout)
    return replace(space, layout=layout)


def _placed(space: SearchSpace, index: int, attention: int, experts: int) -> bool:
    domain, sizes = space.layout[index].experts, space.sizes
    found = domain.separate(sizes, experts) if experts else domain.shared(sizes, attention)
    return any(True for _ in found)


def _runs(space: SearchSpace, index: int, attention: int, experts: int) -> bool:
    return bool(space.separate_options(attention, experts, index) if experts else space.options(attention, index))


def _grid(domain: AttentionDomain) -> str:
    """The pinned sides of a grid, as `head_groups 4 x dimension_segments 3 = 12`."""
    found = [(name, values) for name in GRID if (values := getattr(domain, name)) is not None and values != (1,)]
    text = " x ".join(f"{name} {_only(values)}" for name, values in found) or "every side open"
    if found and all(len(values) == 1 for _, values in found):
        text += f" = {prod(values[0] for _, values in found)}"
    return text


def _grid_rule(space: SearchSpace, ways: Iterable[int]) -> str:
    sizes = space.sizes
    most = min(sizes.head_dim // 2, sizes.v_head_dim)
    return (
        f"{' x '.join(GRID)} equal to the {_some(ways)} attention GPUs of the stage, with at most {sizes.heads} head groups, "
        f"{most} segments (none beside context parts), and batch and prompt cut evenly"
    )


def _pins(space: SearchSpace) -> str:
    return f"replicas {_only(space.replicas)}, micro_batches {_only(space.micro_batches)}, " + "; ".join(
        _grid(pin.attention) for pin in space.layout[:4]
    )


def _only(values: object) -> object:
    """A domain as a person wrote it: the value itself where it is the only one."""
    if values is None:
        return "any"
    return values[0] if isinstance(values, tuple) and len(values) == 1 else values


def _some(values: Iterable[object], most: int = 12) -> str:
    listed = [str(value) for value in values]
    return ", ".join(listed if len(listed) <= most else [*listed[: most - 1], "...", listed[-1]])
