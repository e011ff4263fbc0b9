"""Measure: every shape on the device, from small to large, with a reason for each that was left out."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

from planner.profile.collectives import BACKENDS, measure_messages
from planner.profile.device import Device
from planner.profile.kernels import Run, attention_kernel, attention_run, product_kernel, product_run
from planner.profile.shapes import Attention, Message, Product, Shapes
from planner.profile.timing import Effort, seconds_of

Kernel = TypeVar("Kernel", Product, Attention)
Progress = Callable[[str], None]
SLOW, LARGE, UNKNOWN = "would take too long here", "more than the memory here", "no kernel for it here"
SURE = 1e8  # operations of a shape from which its rate says how long a larger one takes


@dataclass
class Profile:
    """What was measured: the rows of the table, and how many shapes were left out by reason."""

    device: str
    rows: list[dict[str, object]] = field(default_factory=list)
    left_out: Counter[str] = field(default_factory=Counter)


def measure(device: Device, shapes: Shapes, effort: Effort, progress: Progress) -> Profile:
    """Measure all shapes; one that takes more than `effort.seconds` by the best rate of smaller ones is left out."""
    found = Profile(device.gpu)
    facts = {"gpu": device.gpu, "torch": str(device.torch.__version__)}
    with device.torch.inference_mode():
        _kernels(device, shapes.products, product_run, product_kernel(device), effort, progress, found)
        _kernels(device, shapes.attention, attention_run, attention_kernel(device), effort, progress, found)
    if shapes.messages:
        progress(f"{len(shapes.messages)} collectives")
        times = measure_messages(device, shapes.messages, effort)
        kernel = f"torch.distributed {BACKENDS[device.kind]}"
        found.rows += [{**_timed(one, seconds), "kernel": kernel} for one, seconds in times.items()]
        found.left_out[UNKNOWN] += len(shapes.messages) - len(times)
    found.left_out = +found.left_out
    found.rows = [{**row, **facts} for row in found.rows]
    return found


def _kernels(
    device: Device,
    shapes: Sequence[Kernel],
    start: Callable[[Device, Kernel], Run | None],
    kernel: str,
    effort: Effort,
    progress: Progress,
    found: Profile,
) -> None:
    """Measure kernels by rising work, so that the rates of some say how long the next takes."""
    rates: dict[str, float] = {}
    ordered = sorted(shapes, key=lambda shape: (shape.dtype, shape.flops, repr(shape)))
    for at, shape in enumerate(ordered):
        progress(f"{kernel}: {at + 1} of {len(ordered)}")
        seconds, reason = _seconds(device, shape, start, effort, rates.get(shape.dtype, 0.0))
        if seconds is None:
            found.left_out[reason] += 1
            continue
        if shape.flops > SURE:
            rates[shape.dtype] = max(rates.get(shape.dtype, 0.0), shape.flops / seconds)
        found.rows.append({**_timed(shape, seconds), "kernel": kernel})


def _seconds(
    device: Device, shape: Kernel, start: Callable[[Device, Kernel], Run | None], effort: Effort, rate: float
) -> tuple[float | None, str]:
    """Seconds of one kernel, or why there are none."""
    if rate and shape.flops / rate > effort.seconds:
        return None, SLOW
    if shape.bytes > device.free_bytes:
        return None, LARGE
    try:
        run = start(device, shape)
        return (None, UNKNOWN) if run is None else (seconds_of(run, device, effort), "")
    except (RuntimeError, NotImplementedError):  # out of memory, or a shape that the kernel refuses
        return None, UNKNOWN


def _timed(shape: Product | Attention | Message, seconds: float) -> dict[str, object]:
    return {**shape.row(), "time_us": seconds * 1e6}
