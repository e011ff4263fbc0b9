"""The fitted constants as data: which GPU kind has its own, which borrows them from its nearest relative."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Any

from planner.cluster import GpuKind
from planner.files import read_yaml

FILE = Path(__file__).parent / "calibration.yaml"

# Where a dtype was not measured on a GPU, the constants of the nearest that may have been.
NEAREST = {"fp16": "bf16", "int8": "fp8", "mxfp4": "nvfp4", "nvfp4": "mxfp4"}
RELATIVE = {"ampere": "a100-80gb", "ada": "l40s", "hopper": "h100", "blackwell": "b200", "cdna3": "h100"}


@lru_cache(maxsize=1)
def calibration() -> dict[str, Any]:
    """The whole calibration file: `gpus` and `collectives` by GPU kind, `network`, `adjust`, `copied`."""
    return dict(read_yaml(FILE))


class Constants:
    """The constants that price one GPU kind, and whether they were fitted to it."""

    def __init__(self, kind: GpuKind, data: dict[str, Any] | None = None) -> None:
        self._data = calibration() if data is None else data
        self._kind = kind

    def owner(self, family: str) -> str:
        """The GPU kind whose measurements of `family` (gemm, prefill, ...) are used: itself, a relative, or the A100."""
        gpus = self._data["gpus"]
        for name in (self._kind.name, RELATIVE.get(self._kind.generation, "h100")):
            if family in gpus.get(name, {}):
                return name
        return "a100-80gb" if self._kind.generation == "ada" else "h100"

    def row(self, family: str, dtype: str) -> tuple[dict[str, float], bool]:
        """The constants of one family and dtype, and whether this kind was measured in that dtype."""
        owner = self.owner(family)
        table = self._data["gpus"][owner][family]
        chosen = dtype if dtype in table else NEAREST.get(dtype, "bf16")
        measured = dtype in table or (dtype == "fp16" and "bf16" in table)
        copied = f"{owner} {family} {chosen}" in self._data.get("copied", ())
        exact = owner == self._kind.name and measured and not copied
        row = dict(table.get(chosen) or table["bf16"])
        row.update(self._data["adjust"].get(self._kind.name, {}).get(family, {}))
        return row, exact

    def has(self, family: str, dtype: str) -> bool:
        """Whether the owner of a family has constants for this very dtype."""
        return dtype in self._data["gpus"][self.owner(family)].get(family, {})

    def prefill(self, dtype: str, cache: str, expanded: bool) -> dict[str, float]:
        """The constants of prefill; a narrower cache and expanded MLA (keys wider than values) have kernels of their own."""
        family = "mla_prefill" if expanded else "prefill"
        mixed = f"{dtype}-{cache}"
        return self.row(family, mixed if mixed in self._data["gpus"][self.owner(family)][family] else dtype)[0]


def collectives_measured(kind: GpuKind, data: dict[str, Any] | None = None) -> bool:
    """Whether the collectives of this very kind were measured over message sizes."""
    found = calibration() if data is None else data
    return kind.name in found["collectives"] and f"{kind.name} collectives" not in found.get("copied", ())


def collective_owner(kind: GpuKind, data: dict[str, Any] | None = None) -> str:
    """The GPU kind whose collective constants are used for `kind`."""
    table = (calibration() if data is None else data)["collectives"]
    if kind.name in table:
        return kind.name
    name = RELATIVE.get(kind.generation, "h100")
    return name if name in table else "h100"
