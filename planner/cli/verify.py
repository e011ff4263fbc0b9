"""`verify`: whether a certificate holds, without trusting the search that wrote it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from planner.cli.options import AsFormat, AsJson
from planner.cli.output import Format, Progress, say, say_json

REFUSED = 1


def verify(
    certificate: Annotated[Path, typer.Argument(metavar="CERTIFICATE", help="A file that search --certificate wrote.")],
    samples: Annotated[int, typer.Option(min=0, max=100_000, metavar="N", help="Plans to draw at random.")] = 200,
    seed: Annotated[int, typer.Option(min=0, max=2**31 - 1, metavar="N", help="Seed of the plans drawn.")] = 0,
    format_: AsFormat = Format.table,
    json_: AsJson = False,
) -> int:
    """Check the proof of a search again: price its plan, derive every bound anew, and draw plans at random.

    Nothing of the search is trusted or used; exit code 1 means that the certificate is refused, with the reason.
    """
    from planner.certify.verify import verify as check

    progress = Progress("verify")
    try:
        found = check(certificate, samples=samples, seed=seed, progress=progress)
    finally:
        progress.done()
    if json_ or format_ == Format.json:
        say_json(found.to_dict())
    else:
        from planner.report.verification import verification_report

        say(verification_report(found))
    return 0 if found.verified else REFUSED
