"""The device that measures: PyTorch, found when it is needed, and what is told about it in a table."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

from planner.errors import InputError

DEVICES = ("cuda", "cpu")
INSTALL = "pip install 'parallelism-planner[profile]' first"
SHARE = 0.6  # of the free memory that one shape may take
CPU_BYTES = 4e9


@dataclass(frozen=True)
class Device:
    """PyTorch and the kind of device; `gpu` is its name, `count` how many of it this machine has."""

    torch: Any
    kind: str
    gpu: str
    count: int

    @property
    def free_bytes(self) -> float:
        """Memory that one shape may take."""
        if self.kind == "cpu":
            return CPU_BYTES
        return SHARE * float(self.torch.cuda.mem_get_info()[0])

    def dtype(self, name: str) -> Any:
        """PyTorch's dtype; None for one that it cannot multiply."""
        names = {"bf16": "bfloat16", "fp16": "float16", "fp32": "float32", "fp8": "float8_e4m3fn"}
        return getattr(self.torch, names[name], None) if name in names else None


def find_device(kind: str | None) -> Device:
    """The device to measure on: `cuda` where there is one, unless `kind` says which.

    `InputError` where PyTorch, or the device, is missing.
    """
    if find_spec("torch") is None:
        raise InputError("PyTorch", None, INSTALL)
    import torch

    if kind not in (None, *DEVICES):
        raise InputError("--device", kind, " or ".join(DEVICES))
    there = bool(torch.cuda.is_available())
    if kind == "cuda" and not there:
        raise InputError("--device", kind, "cpu: PyTorch finds no GPU here")
    if there and kind != "cpu":
        return Device(torch, "cuda", str(torch.cuda.get_device_name(0)), int(torch.cuda.device_count()))
    return Device(torch, "cpu", "CPU", 1)
