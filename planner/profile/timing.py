"""Timing: the median of repeated runs after a warm-up, each with cold caches."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from statistics import median

from planner.profile.device import Device

WARM_UP = 3
FLUSH_BYTES = {"cuda": 256 * 2**20, "cpu": 64 * 2**20}  # more than the last level of cache holds


@dataclass(frozen=True, slots=True)
class Effort:
    """How long a shape may take: `repeats` runs, fewer where they take more than `seconds` in all (one at least)."""

    repeats: int = 20
    seconds: float = 2.0


def seconds_of(run: Callable[[], object], device: Device, effort: Effort) -> float:
    """Median seconds of `run`, which starts work on the device; between runs the caches are written over."""
    begin = time.perf_counter()
    run()
    _wait(device)
    first = time.perf_counter() - begin
    many = max(1, min(effort.repeats, int(effort.seconds / max(first, 1e-9))))
    for _ in range(min(WARM_UP, many - 1)):
        run()
    flush = device.torch.empty(FLUSH_BYTES[device.kind], dtype=device.torch.int8, device=device.kind)
    measure = _by_events if device.kind == "cuda" else _by_clock
    return median(measure(run, device, flush) for _ in range(many))


def _by_events(run: Callable[[], object], device: Device, flush: object) -> float:
    """Seconds between two events on the GPU's stream, the host's time to start work left out."""
    cuda = device.torch.cuda
    start, end = cuda.Event(enable_timing=True), cuda.Event(enable_timing=True)
    flush.zero_()  # type: ignore[attr-defined]  # a tensor
    start.record()
    run()
    end.record()
    end.synchronize()
    return float(start.elapsed_time(end)) / 1e3


def _by_clock(run: Callable[[], object], device: Device, flush: object) -> float:
    flush.zero_()  # type: ignore[attr-defined]  # a tensor
    begin = time.perf_counter()
    run()
    return time.perf_counter() - begin


def _wait(device: Device) -> None:
    if device.kind == "cuda":
        device.torch.cuda.synchronize()
