"""What a derivation is asked for, and what it answers."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Ask:
    """Operators and GPUs that a claim speaks of; empty means all."""

    operators: tuple[str, ...] = ()
    gpus: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Answer:
    """A derived value with the reason for it; None where it cannot be derived, with what would be needed."""

    value: float | bool | str | None
    why: str = ""
    needs: str = ""
