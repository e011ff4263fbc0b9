"""The enumeration a reader wants: for every open decision the best objective with each of its values held."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from planner.evaluate.tables import FfnOption
from planner.solve.answer import Optimum
from planner.solve.optimum import SpaceSearch
from planner.solve.pin import Pin, pinned
from search_spaces.attention import AttentionPartition, legal_grid
from search_spaces.experts import ExpertPlacement
from search_spaces.space import SearchSpace
from search_spaces.stages import StageChoice

Fields = dict[str, object]
TIE = 1e-9
MANY_LAYERS, FEW_STAGES = 32, 4
MOST_GPUS = 512
"""Decisions are enumerated on clusters of so many GPUs at most."""
EVERY_VALUE, MOST_ON_LARGE = 16, 1.25
"""On more GPUs than the first, values are enumerated up to so many times the best, in seconds or dollars."""
COUNTS = frozenset({"batch_parts", "context_parts", "tensor_ways"})


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


@dataclass(frozen=True, slots=True)
class RunnerUp:
    """The best plan with another value of some decision: which, its objective, and whether it lies within the interval of
    the best plan's prediction, so that a measurement may turn them round.
    """

    decision: str
    value: str
    objective: float
    within_interval: bool


def runner_up(decisions: Sequence[Decision], best: float, most: float) -> RunnerUp | None:
    """The closest of all values that are not the best plan's; `most` is how much worse, as a factor, the interval allows."""
    others = [
        (max(value.objective / best, best / value.objective), decision.name, value)
        for decision in decisions
        for value in decision.values
        if value.objective is not None and abs(value.objective / best - 1.0) > TIE
    ]
    if not others:
        return None
    factor, name, value = min(others, key=lambda other: (other[0], other[1]))
    return RunnerUp(name, value.value, float(value.objective or 0.0), factor <= most)


def enumerated(space: SearchSpace) -> bool:
    """Whether a space is small enough to search it again for every value of every decision."""
    return space.sizes.devices <= MOST_GPUS


def decision_tables(search: SpaceSearch, optimum: Optimum) -> tuple[Decision, ...]:
    """A table for every decision of the space that has more than one value; `optimum` is the answer of the whole space."""
    if search.space.layout or optimum.choice is None or not enumerated(search.space):
        return ()
    most = MOST_ON_LARGE * optimum.value if search.sizes.devices > EVERY_VALUE else np.inf
    found = [
        _branches(search, optimum, "replicas", 0, most),
        _branches(search, optimum, "micro_batches", 1, most),
        _stages(search, optimum, most),
        *(Decision(name, tuple(_held(search, optimum, most, *value) for value in values)) for name, values in pins(search)),
    ]
    return tuple(decision for decision in found if len(decision.values) > 1)


def _branches(search: SpaceSearch, optimum: Optimum, name: str, position: int, most: float) -> Decision:
    """One row per replica or micro-batch count."""
    values, best = [], optimum.choice and (optimum.choice.replicas, optimum.choice.micro_batches)[position]
    for number in sorted({b[position] for b in search.space.branches}):
        some = [search.branch(r, m) for r, m in search.space.branches if (r, m)[position] == number]
        value = optimum.value if number == best else search.pinned_value({}, some, most)
        values.append(_row(str(number), value, most))
    return Decision(name, tuple(values))


def _stages(search: SpaceSearch, optimum: Optimum, most: float) -> Decision:
    """One row per stage count; cost is not enumerated by it."""
    if search.objective == "cost":
        return Decision("stages", ())
    deep = search.sizes.layers > MANY_LAYERS
    values = search.by_stage_count(FEW_STAGES if deep else None, most)
    best = optimum.choice and len(optimum.choice.stages)
    rows = [_row(str(count), optimum.value if count == best else value, most) for count, value in values]
    if deep and rows:
        rows.append(DecisionValue(f"over {FEW_STAGES}", None, f"not enumerated for models of more than {MANY_LAYERS} layers"))
    return Decision("stages", tuple(rows))


def _held(search: SpaceSearch, optimum: Optimum, most: float, label: str, pin: Pin) -> DecisionValue:
    """One value held; where the best plan of all has it already, that is the answer."""
    if optimum.choice is not None and all(_has(stage, pin) for stage in optimum.choice.stages):
        return _row(label, optimum.value, most)
    return _row(label, search.pinned_value(pin, most=most), most)


def _has(stage: StageChoice, pin: Pin) -> bool:
    return bool(pinned([stage.attention], pin)[0] and pinned([FfnOption(stage.mlp_ways, stage.experts)], pin)[0])


def _row(label: str, value: float, most: float) -> DecisionValue:
    if np.isfinite(value):
        return DecisionValue(label, value)
    if np.isfinite(most):
        return DecisionValue(label, None, f"no plan with this value fits that is within {MOST_ON_LARGE:g} times the best")
    return DecisionValue(label, None, "no plan with this value fits the GPUs' memory and the rules of the space")


def pins(search: SpaceSearch) -> Iterator[tuple[str, list[tuple[str, Fields]]]]:
    """Decisions on partitions and placements with the values that some option has."""
    partitions = list(dict.fromkeys(p for b in search.priced.blocks for p in b.block.partitions))
    experts = list(dict.fromkeys(f.experts for b in search.priced.blocks for f in b.block.ffns if f.experts is not None))
    apart = list(dict.fromkeys(p for _, far in search.apart.splits for p in search.apart.placements(len(far))))
    grids = sorted({(p.head_groups, p.dimension_segments) for p in partitions})
    yield (
        "attention.head_groups x attention.dimension_segments",
        [(f"{n} x {m}", {"head_groups": n, "dimension_segments": m}) for n, m in _power_grids(search, grids)],
    )
    for name in ("batch_parts", "context_parts", "sequence_parallel", "output_projection", "softmax", "order"):
        yield f"attention.{name}", _values(partitions, name, search.sizes.devices)
    if search.sizes.dense:
        ways = sorted(
            {f.mlp_ways for b in search.priced.blocks for f in b.block.ffns if search.sizes.devices % f.mlp_ways == 0}
        )
        yield "mlp.ways", [(str(w), {"mlp_ways": w}) for w in ways]
    for name in ("form", "tensor_ways", "router_side"):
        yield f"experts.{name}", _values([*experts, *apart] if name != "router_side" else apart, name, search.sizes.devices)
    yield "experts.devices", [(str(n), {"form": "separate", "devices": n}) for n in sorted({p.devices for p in apart})]


def _values(options: list[AttentionPartition] | list[ExpertPlacement], name: str, total: int) -> list[tuple[str, Fields]]:
    """Every value that some option has for a field; of ways and parts only those that divide the GPUs."""
    values = sorted({getattr(option, name) for option in options})
    return [(str(value), {name: value}) for value in values if name not in COUNTS or total % value == 0]


def _power_grids(search: SpaceSearch, grids: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """Head groups x segments worth a row each: products of divisors of the GPUs, or what the plans of the space use."""
    total = search.sizes.devices
    return [(n, m) for n, m in grids if total % (n * m) == 0 and legal_grid(search.sizes, 1, 1, n, m)]
