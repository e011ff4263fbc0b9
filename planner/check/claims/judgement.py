"""Judgement: what became of a claim: holds, wrong by a factor because ..., or not derivable, needs ..."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from planner.check.claims.claim import Claim
from planner.check.claims.mistakes import Mistake
from planner.check.findings import Finding

Verdict = Literal["holds", "wrong", "not_derivable"]


@dataclass(frozen=True, slots=True)
class Judgement:
    """The verdict on a claim. `factor` is claimed over required work (or over the derived value); None where there is none.

    `mistakes` are names of what went wrong, `seconds` what a claimed total comes to under the planner's own Get_Time.
    """

    id: str
    plan: str
    kind: str
    at: str
    text: str
    verdict: Verdict
    claimed: str
    derived: str
    factor: float | None
    mistakes: tuple[str, ...]
    reason: str
    seconds: float | None = None

    def to_dict(self) -> dict[str, Any]:
        """As JSON-ready data."""
        return asdict(self)


def judged(
    claim: Claim,
    verdict: Verdict,
    claimed: object,
    derived: object,
    reason: str,
    factor: float | None = None,
    mistakes: Iterable[Mistake] = (),
    seconds: float | None = None,
) -> Judgement:
    """A judgement on a claim; a wrong one without a known mistake is named after its kind."""
    names = tuple(dict.fromkeys(mistake.name for mistake in mistakes if mistake.name))
    told = f"{reason} ({claim.note})" if claim.note else reason
    return Judgement(
        claim.id, claim.plan, claim.kind, claim.at, claim.text, verdict, str(claimed), str(derived), factor,
        names if verdict == "wrong" else (), told, seconds,
    )  # fmt: skip


def claim_findings(judgements: Sequence[Judgement]) -> tuple[Finding, ...]:
    """One finding for each verdict that occurs: a wrong claim warns, and no claim makes a plan invalid."""
    found = []
    kinds: tuple[tuple[Verdict, str, Literal["warning", "info"], str], ...] = (
        ("wrong", "CLAIM001", "warning", "wrong"),
        ("not_derivable", "CLAIM002", "info", "not derivable"),
        ("holds", "CLAIM003", "info", "right"),
    )
    for verdict, code, severity, words in kinds:
        ids = [judgement.id for judgement in judgements if judgement.verdict == verdict]
        if ids:
            named = f": {', '.join(ids)}" if verdict != "holds" else ""
            message = f"{len(ids)} of {len(judgements)} claims {'is' if len(ids) == 1 else 'are'} {words}{named}"
            expected = 0 if verdict == "wrong" else None
            found.append(Finding(code, severity, "claims", message, len(ids), expected))
    return tuple(found)
