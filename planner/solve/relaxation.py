"""Where no plan is left: which constraint leaves none, and its smallest relaxation that lets one fit."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

from planner.cluster import GpuKind
from planner.costs.memory import reserve_bytes
from planner.evaluate.setting import setting
from planner.solve.answer import Optimum
from planner.solve.objective import INF, NO_CAPS, Caps
from planner.solve.optimum import SpaceSearch
from planner.units import show_seconds

GB = 1e9
FINEST_BYTES = 1e7
"""Memory that is asked for is told in steps of this size."""
DIGITS = 4


@dataclass(frozen=True, slots=True)
class Relaxation:
    """The constraint that binds, the smallest change with which a plan fits, and the objective then (in what is minimized)."""

    constraint: str
    change: str
    then: float | None


@dataclass(frozen=True, slots=True)
class _Relaxed:
    """One cap relaxed to the least value with which a plan fits."""

    constraint: str
    change: str
    caps: Caps


def relaxation(asked: SpaceSearch, optimum: Optimum) -> Relaxation:
    """Why a search that was completed has found nothing."""
    if asked.caps.none:
        return _memory_or_rules(asked, optimum)
    free = _with(asked, NO_CAPS)
    without = free.run(prove=False)
    if without.choice is None:
        return _memory_or_rules(free, without)
    relaxed = [found for found in (_latency(asked), _gpus(asked), _memory(asked)) if found is not None]
    if not relaxed:
        return _together(asked, free)
    then = _with(asked, relaxed[0].caps).run(prove=False)
    constraint = "; ".join(found.constraint for found in relaxed)
    return Relaxation(constraint, ", or ".join(found.change for found in relaxed), then.value if then.choice else None)


def _with(asked: SpaceSearch, caps: Caps, **memory: float) -> SpaceSearch:
    """The same question under other caps; priced anew only where the memory differs."""
    if caps.memory_bytes == asked.caps.memory_bytes and not memory:
        return asked.asking(asked.objective, caps)
    limits = replace(asked.limits, caps=caps)
    return SpaceSearch(asked.env, asked.space, asked.objective, limits, **memory)  # type: ignore[arg-type]


def _memory_or_rules(asked: SpaceSearch, optimum: Optimum) -> Relaxation:
    """Without caps the memory of the GPUs or the rules of the space leave nothing."""
    lenient = SpaceSearch(asked.env, asked.space, asked.objective, asked.limits, ignore_memory=True).run()
    if lenient.choice is None:
        return Relaxation("the rules of the space", "leave more decisions open: no plan obeys its pins and rules", None)
    kinds = list(asked.env.cluster.kinds.values())
    capacity = max(kind.memory_bytes for kind in kinds)
    useful = 1.0 - max(_reserve_growth(kind) for kind in kinds)
    total = math.ceil((capacity + optimum.excess_bytes / useful) / GB) * GB  # whole gigabytes: memory is bought no finer
    more = _with_larger_gpus(asked, total - capacity)
    text = f"{(total - capacity) / GB:.2f} GB more"
    text = f"{total / GB:.0f} GB of memory on each GPU ({text})" if len(kinds) == 1 else f"{text} memory on each GPU"
    return Relaxation("memory of a GPU", text, more.value if more.choice is not None else None)


def _reserve_growth(kind: GpuKind) -> float:
    """Part of a GPU's further memory that its reserve takes: it grows with the memory."""
    return (reserve_bytes(replace(kind, memory_bytes=2 * kind.memory_bytes)) - reserve_bytes(kind)) / kind.memory_bytes


def _with_larger_gpus(asked: SpaceSearch, more_bytes: float) -> Optimum:
    """The answer on the cluster whose GPUs have so much more memory."""
    env = asked.env
    kinds = {name: replace(k, memory_bytes=k.memory_bytes + round(more_bytes)) for name, k in env.cluster.kinds.items()}
    larger = setting(env.model, env.workload, replace(env.cluster, kinds=kinds))
    return SpaceSearch(larger, asked.space, asked.objective, asked.limits).run(prove=False)


def _latency(asked: SpaceSearch) -> _Relaxed | None:
    """The least latency under the other caps."""
    most = asked.caps.latency_s
    if most == INF:
        return None
    fastest = asked.asking("latency", replace(asked.caps, latency_s=INF)).run(prove=False)
    if fastest.choice is None or not fastest.complete:
        return None
    needed = _rounded_up(fastest.value * 1e3)
    return _Relaxed(
        f"no plan is under {show_seconds(most)}: the fastest takes {show_seconds(fastest.value)}",
        f"a latency of {needed:g} ms", replace(asked.caps, latency_s=needed / 1e3),
    )  # fmt: skip


def _rounded_up(value: float) -> float:
    """A number of few digits, not below the value."""
    step = 10.0 ** (math.floor(math.log10(value)) + 1 - DIGITS)
    return math.ceil(value / step) * step


def _gpus(asked: SpaceSearch) -> _Relaxed | None:
    """The fewest GPUs under the other caps."""
    most = asked.caps.gpus
    if most == INF:
        return None

    def fits(count: int) -> bool:
        return asked.asking(asked.objective, replace(asked.caps, gpus=count)).run(prove=False).choice is not None

    least = _least(fits, int(most), asked.sizes.devices)
    if least is None:
        return None
    text = f"{int(most)} GPU{'s' if most > 1 else ''} are too few"
    return _Relaxed(text.replace("1 GPU are", "1 GPU is"), f"{least} GPUs", replace(asked.caps, gpus=least))


def _memory(asked: SpaceSearch) -> _Relaxed | None:
    """The least memory of each GPU under the other caps."""
    most = asked.caps.memory_bytes
    if most == INF:
        return None

    def fits(steps: int) -> bool:
        return _with(asked, replace(asked.caps, memory_bytes=steps * FINEST_BYTES)).run(prove=False).choice is not None

    capacity = max(kind.memory_bytes for kind in asked.env.cluster.kinds.values())
    least = _least(fits, math.floor(most / FINEST_BYTES), math.ceil(capacity / FINEST_BYTES))
    if least is None:
        return None
    needed = least * FINEST_BYTES
    return _Relaxed(
        f"{most / GB:g} GB of memory is too little", f"{needed / GB:.2f} GB of memory on each GPU",
        replace(asked.caps, memory_bytes=needed),
    )  # fmt: skip


def _least(fits: Callable[[int], bool], low: int, high: int) -> int | None:
    """The least whole number in (low, high] that fits, if high does; what fits goes on fitting above."""
    if high <= low or not fits(high):
        return None
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if fits(middle) else (middle, high)
    return high


def _together(asked: SpaceSearch, free: SpaceSearch) -> Relaxation:
    """No cap alone is at fault: what the fastest plan of all needs."""
    fastest = free.asking("latency", NO_CAPS).run(prove=False)
    if fastest.choice is None:
        raise ValueError("without caps a plan fits")
    used = fastest.choice.replicas * sum(len(stage.devices) for stage in fastest.choice.stages)
    return Relaxation(
        "the limits together: relaxing any one of them is not enough",
        f"relax several; without limits the fastest plan takes {show_seconds(fastest.value)} on {used} GPUs", None,
    )  # fmt: skip
