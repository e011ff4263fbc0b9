"""The options that several verbs share."""

from __future__ import annotations

from typing import Annotated

import typer

from planner.cli.output import Format

Plan = Annotated[
    str,
    typer.Argument(
        metavar="PLAN", help="PROBLEM:PLAN such as helix:m4n4, a plan file, a result file, or a PROBLEM (its best)."
    ),
]
Sets = Annotated[
    list[str],
    typer.Option(
        "--set",
        metavar="PATH=VALUE",
        help="Change a field, such as workload.batch=64 or plan.micro_batches=16; may be repeated.",
    ),
]
AsFormat = Annotated[Format, typer.Option("--format", help="How to write the answer.")]
AsJson = Annotated[bool, typer.Option("--json", help="Short for --format json.")]
