"""What verifying a certificate found, for a person."""

from __future__ import annotations

from collections.abc import Iterator

from planner.certify.verify import NOT_CHECKED, Verification
from planner.report.document import Bullets, Section, Text, table, to_text
from planner.report.show import plain

IN_PART = "Branches that were too large to derive anew were only drawn from at random: for them this is no proof."


def verification_report(found: Verification) -> str:
    """The answer for the terminal."""
    return to_text(headline(found), _sections(found))


def headline(found: Verification) -> str:
    """Verified or refused, in one line with the reason."""
    name = plain(found.name) or "certificate"
    if not found.verified:
        return f"REFUSED: {name}: {plain(found.reason, 400)}"
    return f"VERIFIED{'' if found.whole else ' IN PART'}: {name}: {found.statement}"


def _sections(found: Verification) -> Iterator[Section]:
    rows = [(check.name, "holds" if check.passed else "REFUSED", check.detail) for check in found.checks]
    yield Section("Checks", (table(("check", "result", "what was found"), rows, wide=80),))
    if found.verified:
        whole = () if found.whole else (Text(IN_PART),)
        yield Section("Not checked", (*whole, Bullets(NOT_CHECKED)))
