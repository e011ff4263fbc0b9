"""The fitted constants as data: which GPU kind has its own, which borrows them from its nearest relative."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Any

import yaml

from planner.cluster import GpuKind

FILE = Path(__file__).parent / "calibration.yaml"


@lru_cache(maxsize=1)
def calibration() -> dict[str, Any]:
    """The whole calibration file."""
    with FILE.open(encoding="utf-8") as stream:
        found: dict[str, Any] = yaml.safe_load(stream)
    return found


@lru_cache(maxsize=64)
def lender(name: str, generation: str) -> str:
    """The GPU kind whose constants are used for `name`: itself where it was measured."""
    data = calibration()
    if name in data["gpus"]:
        return name
    if name in data["borrow"]:
        return str(data["borrow"][name])
    return str(data["generations"].get(generation, "h100"))


def constants(kind: GpuKind, family: str) -> tuple[dict[str, Any], bool]:
    """The constants of one family (gemm, attention, ...) and whether they were fitted to this very kind."""
    owner = lender(kind.name, kind.generation)
    return calibration()["gpus"][owner][family], owner == kind.name


def collective_lender(kind: GpuKind) -> str:
    """The GPU kind whose collective constants are used for `kind`."""
    data = calibration()
    if kind.name in data["collectives"]:
        return kind.name
    name = lender(kind.name, kind.generation)
    return name if name in data["collectives"] else "h100"
