"""`inspect`: what a DOT file says, whether it is sound, and how long it takes."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

import typer

from planner.cli.options import AsFormat, AsJson
from planner.cli.output import Format, say, say_json


def inspect(
    file: Annotated[
        Path, typer.Argument(metavar="FILE", help="A graph in the DOT language, written by planner dag or by others.")
    ],
    cluster: Annotated[
        str,
        typer.Option(
            metavar="CLUSTER",
            help="The cluster that times are for: a name such as 2x8-h100, or a file.",
            show_default="what the file states, else 2x8-h100",
        ),
    ] = "",
    format_: AsFormat = Format.table,
    json_: AsJson = False,
) -> int:
    """Read a graph in DOT: acyclic or not, operators, GPUs, sizes that do not fit, longest path. Ends with 1 if it is wrong."""
    start = time.monotonic()
    from planner.inspect.inspection import inspect_file
    from planner.report.inspection import inspection_report

    found = inspect_file(file, cluster)
    if json_ or format_ == Format.json:
        say_json({**found.to_dict(), "runtime_s": round(time.monotonic() - start, 3)})
    else:
        say(inspection_report(found))
    return 0 if found.sound else 1
