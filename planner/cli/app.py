"""The verbs in one command, and what every end of it means: exit codes, one line for an error, a quiet broken pipe."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import Annotated

import typer

from planner.cli.batch import batch, results
from planner.cli.catalogs import list_, show
from planner.cli.comparison import compare, explain
from planner.cli.inspection import inspect
from planner.cli.interrupts import heard_between_imports
from planner.cli.output import close_quietly, say, warn
from planner.cli.pareto import pareto
from planner.cli.plans import dag, evaluate, validate
from planner.cli.profile import profile
from planner.cli.search import search
from planner.cli.verify import verify
from planner.errors import PlannerError, shown

BAD_INPUT, INTERNAL, INTERRUPTED = 2, 70, 130

app = typer.Typer(
    name="planner",
    help="Finds the provably fastest way to deploy a large language model on a GPU cluster, and draws its operator graph.",
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command("search", short_help="Find the best plan of a problem, with proof.")(search)
app.command("pareto", short_help="Find the proven front of two objectives.")(pareto)
app.command("verify", short_help="Check the proof of a search again, without the search.")(verify)
app.command("evaluate", short_help="Price a plan: latency, critical path, memory.")(evaluate)
app.command("validate", short_help="Check whether a plan is sound, fits and computes the model.")(validate)
app.command("compare", short_help="Put plans side by side.")(compare)
app.command("explain", short_help="Say what binds a plan, and what would help it.")(explain)
app.command("dag", short_help="Draw the operator graph of a plan.")(dag)
app.command("inspect", short_help="Read a graph in DOT that anybody drew.")(inspect)
app.command("batch", short_help="Solve every problem of a sweep, and store the answers.")(batch)
app.command("results", short_help="Ask the store of a batch which run is best.")(results)
app.command("profile", short_help="Measure this machine, as a table to price by.")(profile)
app.command("list", short_help="List models, clusters, problems, plans or findings.")(list_)
app.command("show", short_help="Show one model, cluster, problem or plan.")(show)


def _print_version(asked: bool) -> None:
    if asked:
        from importlib.metadata import PackageNotFoundError, version

        try:
            say(f"planner {version('parallelism-planner')}")
        except PackageNotFoundError:
            say("planner, run from its source without being installed")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    """Finds the provably fastest way to deploy a large language model on a GPU cluster, and draws its operator graph."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit code (see INTERFACES: 0 done, 1 a sound no, 2 bad input, 3 out of time)."""
    for stream in (sys.stdout, sys.stderr):  # a terminal that cannot show a sign gets a question mark, not a traceback
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")
    given = list(sys.argv[1:] if arguments is None else arguments)
    try:
        with heard_between_imports():
            code = app(args=given or ["--help"], prog_name="planner", standalone_mode=False)
        code = code if given else BAD_INPUT
    except PlannerError as error:
        warn(f"error: {' '.join(str(error).split())}")
        code = getattr(error, "exit_code", BAD_INPUT)
    except (KeyboardInterrupt, typer.Abort):
        code = INTERRUPTED
    except BrokenPipeError:
        close_quietly()
        code = 0
    except OSError as error:
        if os.environ.get("PLANNER_DEBUG") == "1":
            raise
        warn(f"error: {shown(error.filename)} cannot be read or written: {error.strerror}")
        code = BAD_INPUT
    except Exception as error:
        if os.environ.get("PLANNER_DEBUG") == "1":
            raise
        code = _ended_by(error)
    if code == INTERRUPTED:
        warn("interrupted")
    return code if isinstance(code, int) else 0


def _ended_by(error: Exception) -> int:
    """Tell a wrong option in the same way as wrong input, and anything else as a fault of ours."""
    told = getattr(error, "format_message", None)  # what typer raises for wrong usage, whichever click it builds on
    if callable(told):
        command = getattr(getattr(error, "ctx", None), "command_path", "planner")
        warn(f"error: {' '.join(str(told()).split())} (see {command} --help)")
        return BAD_INPUT
    text = " ".join(str(error).split())[:200]
    warn(f"internal error: {type(error).__name__}: {text} (run again with PLANNER_DEBUG=1 for the traceback)")
    return INTERNAL
