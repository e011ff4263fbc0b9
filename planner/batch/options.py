"""What a sweep may ask of each search, read once and passed on."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass

from planner.fields import Fields
from planner.problem import Problem
from planner.search import Result, search
from planner.solve.answer import Limits
from planner.solve.objective import NAMES, Caps, Name

OPTIONS = (
    "objective", "top", "details", "seed", "workers", "time_limit_s", "max_latency_ms", "max_memory_gb", "gpus_at_most",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Options:
    """Options of a search, as `planner search` has them; `details` adds the decision tables and the hand-designed plans."""

    objective: Name = "latency"
    top: int = 1
    details: bool = False
    seed: int = 0
    workers: int = 1
    time_limit_s: float | None = None
    max_latency_ms: float | None = None
    max_memory_gb: float | None = None
    gpus_at_most: int | None = None

    def to_dict(self) -> dict[str, object]:
        """The options as plain data, for the run's key and its record."""
        return asdict(self)

    def limits(self) -> Limits:
        """What the search may spend and what its plans may not exceed."""
        caps = Caps(
            latency_s=_scaled(self.max_latency_ms, 1e-3),
            memory_bytes=_scaled(self.max_memory_gb, 1e9),
            gpus=_scaled(self.gpus_at_most, 1),
        )
        return Limits(seconds=_scaled(self.time_limit_s, 1), workers=self.workers, seed=self.seed, caps=caps)

    def search(self, problem: Problem) -> Result:
        """The answer of a problem under these options."""
        return search(problem, objective=self.objective, limits=self.limits(), top=self.top, details=self.details)


def read_options(values: Mapping[str, object], source: str = "") -> Options:
    """Options from a mapping; `InputError` for an unknown one or a value out of range."""
    fields = Fields(values, source, "options")
    options = Options(
        objective=fields.choice("objective", NAMES, default="latency"),
        top=fields.integer("top", low=1, high=1000, default=1),
        details=fields.boolean("details", default=False),
        seed=fields.integer("seed", high=2**31 - 1, default=0),
        workers=fields.integer("workers", low=1, high=256, default=1),
        time_limit_s=fields.maybe_number("time_limit_s", low=1e-3, high=1e9),
        max_latency_ms=fields.maybe_number("max_latency_ms", low=1e-9),
        max_memory_gb=fields.maybe_number("max_memory_gb", low=1e-9),
        gpus_at_most=fields.maybe_integer("gpus_at_most", low=1),
    )
    fields.done()
    return options


def _scaled(value: float | None, unit: float) -> float:
    return math.inf if value is None else value * unit
