"""What a search is allowed and what it answers: limits, counts, and the optimum with its bound."""

from __future__ import annotations

from dataclasses import dataclass, field

from planner.solve.objective import NO_CAPS, Caps
from search_spaces.stages import Choice


@dataclass(frozen=True)
class Limits:
    """What a search may spend, and how CP-SAT runs: wall seconds, deterministic seconds per CP model, workers, seed; and
    what the plans of its answer may not exceed.
    """

    seconds: float = float("inf")
    effort: float = 20.0
    workers: int = 2
    seed: int = 0
    caps: Caps = NO_CAPS


@dataclass(frozen=True, slots=True)
class ModelFacts:
    """The CP model of the chosen branch: its legs, the most its pipelines may take and the bound that it proved, both in
    seconds (times `weight` in what is minimized); status as CP-SAT names it, cuts, and how it ran.
    """

    replicas: int
    micro_batches: int
    legs: int
    cutoff: float
    bound: float
    weight: float
    status: str
    cuts: int
    seed: int
    workers: int
    effort: float


@dataclass
class Counts:
    """What the search did: options priced, branches opened, CP models solved, cuts added, choices dropped by reason, and the
    CP model of the chosen branch (None where none was needed).
    """

    priced: int = 0
    branches: int = 0
    iterations: int = 0
    cuts: int = 0
    dropped: dict[str, int] = field(default_factory=dict)
    model: ModelFacts | None = None

    def drop(self, reason: str, count: int = 1) -> None:
        """Count what was left out."""
        if count:
            self.dropped[reason] = self.dropped.get(reason, 0) + count

    def plus(self, other: Counts) -> Counts:
        """Both together; of no CP model."""
        dropped = {
            reason: self.dropped.get(reason, 0) + other.dropped.get(reason, 0) for reason in self.dropped | other.dropped
        }
        return Counts(
            self.priced + other.priced, self.branches + other.branches, self.iterations + other.iterations,
            self.cuts + other.cuts, dropped,
        )  # fmt: skip


@dataclass(frozen=True)
class Optimum:
    """The best choice (None if there is none), its objective in seconds (or dollars) and the proven lower bound.

    `complete` is False when the time ran out before every branch was closed. `excess_bytes` is the fewest bytes by which
    any plan exceeds the memory, when none fits.
    """

    choice: Choice | None
    value: float
    bound: float
    complete: bool
    counts: Counts
    excess_bytes: float = float("inf")
    interrupted: bool = False

    @property
    def gap(self) -> float:
        """Relative distance of the bound."""
        return abs(self.bound - self.value) / abs(self.value) if self.choice is not None and self.value else 0.0
