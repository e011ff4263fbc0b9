"""`pareto`: the proven front of two objectives, as a table with a sketch, an SVG or JSON."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from planner.cli.interrupts import told_first
from planner.cli.options import AsFormat, AsJson, GpusAtMost, MaxLatency, MaxMemory, Sets, caps_of, check_file, limits_of
from planner.cli.output import Format, Progress, say, say_json, warn
from planner.cli.search import CODES, INTERRUPTED, ProblemName
from planner.errors import InputError

if TYPE_CHECKING:
    from planner.front import Front


def pareto(
    problem: ProblemName = None,
    objectives: Annotated[
        str, typer.Option(metavar="FIRST,SECOND", help="Two of latency, throughput and cost.")
    ] = "latency,cost",
    points: Annotated[int | None, typer.Option(metavar="N", help="Most points to find.", show_default="24")] = None,
    model: Annotated[str | None, typer.Option(help="As for search.", show_default=False)] = None,
    cluster: Annotated[str | None, typer.Option(help="As for search.", show_default=False)] = None,
    workload: Annotated[str | None, typer.Option(help="As for search.", show_default=False)] = None,
    space: Annotated[str | None, typer.Option(help="As for search.", show_default=False)] = None,
    sets: Sets = [],  # noqa: B006  # typer copies it
    max_latency_ms: MaxLatency = None,
    max_memory_gb: MaxMemory = None,
    gpus_at_most: GpusAtMost = None,
    time_limit: Annotated[
        float | None, typer.Option(metavar="S", help="Seconds after which no further point is sought.", show_default=False)
    ] = None,
    seed: Annotated[int, typer.Option(min=0, max=2**31 - 1, metavar="N", help="Seed of the solver.")] = 0,
    workers: Annotated[int, typer.Option(min=1, max=256, metavar="N", help="Threads of the solver.")] = 2,
    out: Annotated[Path | None, typer.Option(metavar="FILE.svg", help="Draw the front.", show_default=False)] = None,
    format_: AsFormat = Format.table,
    json_: AsJson = False,
) -> int:
    """Find the plans that no other beats in one of two objectives without losing in the other, and prove each.

    PROBLEM is a library name or a file; without it the problem is composed of --model, --workload and --cluster.
    """
    start = time.monotonic()
    limits = limits_of(time_limit, workers, seed, caps_of(max_latency_ms, max_memory_gb, gpus_at_most))
    if problem is None and not any((model, cluster, workload, space)):
        raise InputError("PROBLEM", "missing", "a library name, a file, or --model with --workload")
    _check_file(out)

    from planner.front import POINTS, check_points, pair_of
    from planner.front import pareto as find
    from planner.problem import load_problem
    from planner.solve.preload import preload

    pair = pair_of([name.strip() for name in objectives.split(",")])
    most = POINTS if points is None else points
    check_points(most)
    asked = load_problem(problem, sets=sets, model=model, cluster=cluster, workload=workload, space=space)
    preload()
    progress = Progress(asked.name)
    try:
        found = find(asked, objectives=pair, points=most, limits=limits, progress=progress)
    finally:
        progress.done()
    with told_first():
        _tell(found, out, json_ or format_ == Format.json, time.monotonic() - start)
    return INTERRUPTED if found.interrupted else CODES[found.status]


def _check_file(out: Path | None) -> None:
    """Refuse a file that cannot be written, or is no SVG, before time is spent on the search."""
    if out is not None and out.suffix.lower() != ".svg":
        raise InputError("--out", str(out), "a file whose name ends with .svg")
    check_file(out, "--out")


def _tell(found: Front, out: Path | None, as_json: bool, seconds: float) -> None:
    """Write the drawing, then the answer."""
    from planner.files import write_text_atomic
    from planner.report.front import front_report, front_svg

    drawn = out is not None and bool(found.points)
    if out is not None and drawn:
        write_text_atomic(out, front_svg(found))
    elif out is not None:
        warn(f"{out} is not written: the front has no points")
    if as_json:
        say_json({**found.to_dict(), "runtime_s": round(seconds, 3)})
        return
    say(front_report(found).rstrip("\n"))
    if drawn:
        say(f"\nwritten to {out}")
    say(f"\nruntime_s: {seconds:.2f}")
