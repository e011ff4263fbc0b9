"""Where no plan is left: which constraint leaves none, and its smallest relaxation that lets one fit."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache

from planner.cluster import GpuKind
from planner.costs.memory import reserve_bytes
from planner.evaluate.setting import Setting, setting
from planner.solve.answer import Optimum
from planner.solve.objective import INF, NO_CAPS, Caps, Name
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


@dataclass(frozen=True, slots=True)
class Question:
    """A search whose caps leave nothing: `ask` answers for another objective and other caps, `any_plan` will do where only
    it matters whether one fits; `missing` bytes at least are lacking on a GPU (0: not known).
    """

    objective: Name
    caps: Caps
    devices: int
    capacity: float
    ask: Callable[[Name, Caps, bool], Optimum]
    missing: float = 0.0

    def best(self, objective: Name, caps: Caps) -> Optimum:
        """The best plan under other caps."""
        return self.ask(objective, caps, False)

    def fits(self, **caps: float) -> bool:
        """Whether any plan is left with some caps replaced."""
        return self.ask(self.objective, replace(self.caps, **caps), True).choice is not None


def relaxation(asked: SpaceSearch, optimum: Optimum) -> Relaxation:
    """Why a search that was completed has found nothing."""
    if asked.caps.none:
        return _memory_or_rules(asked, optimum)
    ask = cache(lambda objective, caps, any_plan: _with(asked, caps, objective).run(prove=False))
    without = ask("latency", NO_CAPS, False)  # of all questions the one that may be asked again
    if without.choice is None:
        return _memory_or_rules(_with(asked, NO_CAPS), without)
    return relaxed_caps(Question(asked.objective, asked.caps, asked.sizes.devices, largest_memory(asked.env), ask))


def relaxed_caps(asked: Question) -> Relaxation:
    """Caps leave nothing, and without them something fits: the smallest change of each that is enough alone."""
    relaxed = [found for found in (_latency(asked), _gpus(asked), _memory(asked)) if found is not None]
    if not relaxed:
        return _together(asked)
    then = asked.best(asked.objective, relaxed[0].caps)
    constraint = "; ".join(found.constraint for found in relaxed)
    return Relaxation(constraint, ", or ".join(found.change for found in relaxed), then.value if then.choice else None)


def largest_memory(env: Setting) -> int:
    """Bytes of the GPU that has most."""
    return max(kind.memory_bytes for kind in env.cluster.kinds.values())


def _with(asked: SpaceSearch, caps: Caps, objective: Name | None = None) -> SpaceSearch:
    """The same question under other caps; priced anew only where the memory differs."""
    if caps.memory_bytes == asked.caps.memory_bytes:
        return asked.asking(objective or asked.objective, caps)
    return SpaceSearch(asked.env, asked.space, objective or asked.objective, replace(asked.limits, caps=caps))


def _memory_or_rules(asked: SpaceSearch, optimum: Optimum) -> Relaxation:
    """Without caps the memory of the GPUs or the rules of the space leave nothing."""
    lenient = SpaceSearch(asked.env, asked.space, asked.objective, asked.limits, ignore_memory=True).run()
    if lenient.choice is None:
        return Relaxation("the rules of the space", "leave more decisions open: no plan obeys its pins and rules", None)
    return larger_gpus(
        asked.env, optimum, lambda env: SpaceSearch(env, asked.space, asked.objective, asked.limits).run(prove=False)
    )


def larger_gpus(env: Setting, optimum: Optimum, ask: Callable[[Setting], Optimum]) -> Relaxation:
    """The least memory in whole gigabytes, on each GPU alike, with which a plan fits; `ask` answers for larger GPUs."""
    kinds = list(env.cluster.kinds.values())
    capacity, useful = largest_memory(env), 1.0 - max(_reserve_growth(kind) for kind in kinds)
    total, found = float(capacity), optimum
    while found.choice is None and found.complete and 0 < found.excess_bytes < INF:  # lacking bytes are a bound
        total = math.ceil((total + found.excess_bytes / useful) / GB) * GB  # memory is bought no finer
        found = ask(_with_larger_gpus(env, total - capacity))
    text = f"{(total - capacity) / GB:.2f} GB more"
    text = f"{total / GB:.0f} GB of memory on each GPU ({text})" if len(kinds) == 1 else f"{text} memory on each GPU"
    return Relaxation("memory of a GPU", text, found.value if found.choice is not None else None)


def _reserve_growth(kind: GpuKind) -> float:
    """Part of a GPU's further memory that its reserve takes: it grows with the memory."""
    return (reserve_bytes(replace(kind, memory_bytes=2 * kind.memory_bytes)) - reserve_bytes(kind)) / kind.memory_bytes


def _with_larger_gpus(env: Setting, more_bytes: float) -> Setting:
    """The cluster whose GPUs have so much more memory."""
    kinds = {name: replace(k, memory_bytes=k.memory_bytes + round(more_bytes)) for name, k in env.cluster.kinds.items()}
    return setting(env.model, env.workload, replace(env.cluster, kinds=kinds))


def _latency(asked: Question) -> _Relaxed | None:
    """The least latency under the other caps."""
    most = asked.caps.latency_s
    if most == INF:
        return None
    fastest = asked.best("latency", replace(asked.caps, latency_s=INF))
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


def _gpus(asked: Question) -> _Relaxed | None:
    """The fewest GPUs under the other caps."""
    most = asked.caps.gpus
    if most == INF:
        return None
    least = _least(lambda count: asked.fits(gpus=count), int(most), asked.devices)
    if least is None:
        return None
    text = f"{int(most)} GPU{'s' if most > 1 else ''} are too few"
    return _Relaxed(text.replace("1 GPU are", "1 GPU is"), f"{least} GPUs", replace(asked.caps, gpus=least))


def _memory(asked: Question) -> _Relaxed | None:
    """The least memory of each GPU under the other caps."""
    most = asked.caps.memory_bytes
    if most == INF:
        return None
    lacking = math.ceil((most + asked.missing) / FINEST_BYTES) - 1 if asked.missing else math.floor(most / FINEST_BYTES)
    least = _least(
        lambda steps: asked.fits(memory_bytes=steps * FINEST_BYTES), lacking, math.ceil(asked.capacity / FINEST_BYTES)
    )
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
    middle = low + 1  # what is known to be lacking is often all that is
    while high - low > 1:
        low, high = (low, middle) if fits(middle) else (middle, high)
        middle = (low + high) // 2
    return high


def _together(asked: Question) -> Relaxation:
    """No cap alone is at fault: what the fastest plan of all needs."""
    fastest = asked.best("latency", NO_CAPS)
    if fastest.choice is None:
        raise ValueError("without caps a plan fits")
    used = fastest.choice.replicas * sum(len(stage.devices) for stage in fastest.choice.stages)
    return Relaxation(
        "the limits together: relaxing any one of them is not enough",
        f"relax several; without limits the fastest plan takes {show_seconds(fastest.value)} on {used} GPUs", None,
    )  # fmt: skip
