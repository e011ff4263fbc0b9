"""`compare` and `explain`: plans side by side; what binds a plan and what would help it."""

from __future__ import annotations

import math
import time
from typing import Annotated

import typer

from planner.cli.options import AsFormat, AsJson, CommTable, GemmTable, Plan, Sets, with_tables
from planner.cli.output import Format, Progress, say, say_json
from planner.errors import InputError

DEFAULT_S = 60.0


def compare(
    plans: Annotated[list[str], typer.Argument(metavar="PLAN PLAN ...", help="Plans as for evaluate, two or more.")],
    sets: Sets = [],  # noqa: B006  # typer copies it
    gemm_table: GemmTable = [],  # noqa: B006
    comm_table: CommTable = None,
    format_: AsFormat = Format.table,
    json_: AsJson = False,
) -> int:
    """Put plans side by side: latency, where the time differs, memory, findings. Ends with 1 when none has a price."""
    start = time.monotonic()
    from planner.insight.compare import compare as beside
    from planner.report.side_by_side import comparison_report

    found = beside(plans, sets=with_tables(sets, gemm_table, comm_table))
    if json_ or format_ == Format.json:
        say_json({**found.to_dict(), "runtime_s": round(time.monotonic() - start, 3)})
    else:
        say(comparison_report(found).rstrip("\n"))
    return 0 if found.sides else 1


def explain(
    plan: Plan,
    sets: Sets = [],  # noqa: B006  # typer copies it
    gemm_table: GemmTable = [],  # noqa: B006
    comm_table: CommTable = None,
    time_limit: Annotated[
        float, typer.Option(metavar="S", help="Seconds for choosing plans anew; what they do not suffice for is named.")
    ] = DEFAULT_S,
    format_: AsFormat = Format.table,
    json_: AsJson = False,
) -> int:
    """Say what binds a plan, what would help it (decisions, hardware), and how far it is from the bounds."""
    start = time.monotonic()
    if not 0 < time_limit < math.inf:
        raise InputError("--time-limit", time_limit, "a number of seconds above 0")
    from planner.insight.explain import explain as ask
    from planner.report.explanation import explanation_report, summary_text
    from planner.solve.answer import Limits

    progress = Progress("explain")
    found = ask(plan, sets=with_tables(sets, gemm_table, comm_table), limits=Limits(seconds=time_limit), progress=progress)
    progress.done()
    if json_ or format_ == Format.json:
        say_json({**found.to_dict(), "summary": summary_text(found), "runtime_s": round(time.monotonic() - start, 3)})
    else:
        say(explanation_report(found).rstrip("\n"))
    return 0
