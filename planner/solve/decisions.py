"""The enumeration a reader wants: for every open decision the best objective with each of its values held."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from planner.solve.optimum import SpaceSearch
from planner.solve.pin import Pin
from search_spaces.attention import AttentionPartition, legal_grid
from search_spaces.experts import ExpertPlacement

Fields = dict[str, object]


@dataclass(frozen=True, slots=True)
class DecisionValue:
    """One value of a decision: the best objective with it held and the rest free, or why there is no such plan."""

    value: str
    objective: float | None
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Decision:
    """An open decision and its values."""

    name: str
    values: tuple[DecisionValue, ...]


def decision_tables(search: SpaceSearch) -> tuple[Decision, ...]:
    """A table for every decision of the space that has more than one value."""
    if search.space.layout:
        return ()
    found = [
        _branches(search, "replicas", 0),
        _branches(search, "micro_batches", 1),
        _stages(search),
        *(Decision(name, tuple(_held(search, label, pin) for label, pin in values)) for name, values in _pins(search)),
    ]
    return tuple(decision for decision in found if len(decision.values) > 1)


def _branches(search: SpaceSearch, name: str, position: int) -> Decision:
    """One row per replica or micro-batch count."""
    values = []
    for number in sorted({b[position] for b in search.space.branches}):
        some = [search.branch(r, m) for r, m in search.space.branches if (r, m)[position] == number]
        values.append(_row(str(number), search.pinned_value({}, some)))
    return Decision(name, tuple(values))


def _stages(search: SpaceSearch) -> Decision:
    strides = [search.space.stride(r) for r, _ in search.space.branches]
    counts = search.space.stage_counts(max(strides, default=0))
    return Decision("stages", tuple(_row(str(s), search.pinned_value({}, stages=(s,))) for s in counts))


def _held(search: SpaceSearch, label: str, pin: Pin) -> DecisionValue:
    return _row(label, search.pinned_value(pin))


def _row(label: str, value: float) -> DecisionValue:
    if np.isfinite(value):
        return DecisionValue(label, value)
    return DecisionValue(label, None, "no plan with this value fits the GPUs' memory and the rules of the space")


def _pins(search: SpaceSearch) -> Iterator[tuple[str, list[tuple[str, Fields]]]]:
    """Decisions on partitions and placements with the values that some option has."""
    partitions = list(dict.fromkeys(p for b in search.priced.blocks for p in b.block.partitions))
    experts = list(dict.fromkeys(f.experts for b in search.priced.blocks for f in b.block.ffns if f.experts is not None))
    apart = list(dict.fromkeys(p for _, far in search.apart.splits for p in search.apart.placements(len(far))))
    grids = sorted({(p.head_groups, p.dimension_segments) for p in partitions})
    yield "attention.head_groups x attention.dimension_segments", [
        (f"{n} x {m}", {"head_groups": n, "dimension_segments": m}) for n, m in _power_grids(search, grids)
    ]
    for name in ("batch_parts", "context_parts", "sequence_parallel", "output_projection", "softmax", "order"):
        yield f"attention.{name}", _values(partitions, name)
    if search.sizes.dense:
        ways = sorted({f.mlp_ways for b in search.priced.blocks for f in b.block.ffns})
        yield "mlp.ways", [(str(w), {"mlp_ways": w}) for w in ways]
    for name in ("form", "tensor_ways", "router_side"):
        yield f"experts.{name}", _values([*experts, *apart] if name != "router_side" else apart, name)
    yield "experts.devices", [(str(n), {"form": "separate", "devices": n}) for n in sorted({p.devices for p in apart})]


def _values(options: list[AttentionPartition] | list[ExpertPlacement], name: str) -> list[tuple[str, Fields]]:
    """Every value that some option has for a field."""
    values = sorted({getattr(option, name) for option in options})
    return [(str(value), {name: value}) for value in values]


def _power_grids(search: SpaceSearch, grids: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """Head groups x segments worth a row each: products of divisors of the GPUs, or what the plans of the space use."""
    total = search.sizes.devices
    return [(n, m) for n, m in grids if total % (n * m) == 0 and legal_grid(search.sizes, 1, 1, n, m)]
