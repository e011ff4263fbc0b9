"""`evaluate`, `validate` and `dag`: what a plan costs, whether it is sound, what it looks like."""

from __future__ import annotations

import json
import time
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from planner.cli.options import AsFormat, AsJson, CommTable, GemmTable, Plan, Sets, check_file, with_tables
from planner.cli.output import Format, say, say_json, warn
from planner.errors import InputError

if TYPE_CHECKING:
    from planner.api import Chosen
    from planner.export.views import View as Picture


def evaluate(
    plan: Plan,
    sets: Sets = [],  # noqa: B006  # typer copies it
    gemm_table: GemmTable = [],  # noqa: B006
    comm_table: CommTable = None,
    format_: AsFormat = Format.table,
    json_: AsJson = False,
) -> int:
    """Price a plan: latency, critical path, Get_Time expression, time and memory of every GPU."""
    start = time.monotonic()
    sets = with_tables(sets, gemm_table, comm_table)
    chosen = _chosen(plan, sets)
    from planner.api import evaluate as price
    from planner.insight.serving import plan_serving
    from planner.report import evaluation_report

    found = price(chosen)
    served = plan_serving(chosen.env, chosen.choice, found)
    _note(plan, chosen)
    if json_ or format_ == Format.json:
        told = {"serving": None if served is None else served.to_dict(), **_about(chosen)}
        say_json({**found.to_dict(), **told, "runtime_s": round(time.monotonic() - start, 3)})
    else:
        say(evaluation_report(found, chosen.choice, chosen.problem, served))
    return 0


def validate(
    plan: Plan,
    no_run: Annotated[bool, typer.Option("--no-run", help="Leave out the run on small tensors.")] = False,
    claims: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Judge the claims of this file instead of the problem's own.")
    ] = None,
    sets: Sets = [],  # noqa: B006  # typer copies it
    gemm_table: GemmTable = [],  # noqa: B006
    comm_table: CommTable = None,
    format_: AsFormat = Format.table,
    json_: AsJson = False,
) -> int:
    """Check a plan: structure, shapes, cycles, work, memory, a run on small tensors, claims. Ends with 1 if it is not valid."""
    start = time.monotonic()
    sets = with_tables(sets, gemm_table, comm_table)
    chosen = _chosen(plan, sets)
    from planner.api import validate as check
    from planner.report import claims_report, findings_report

    found = check(chosen, sets=sets, run=not no_run, claims=claims)
    _note(plan, chosen)
    if json_ or format_ == Format.json:
        say_json({**found.to_dict(), **_about(chosen), "runtime_s": round(time.monotonic() - start, 3)})
    else:
        say(findings_report(found.findings, found.run))
        if found.claims:
            say(claims_report(found.claims))
        say(f"{chosen.problem.name}:{chosen.name} is {'valid' if found.valid else 'not valid'}")
    return 0 if found.valid else 1


def _chosen(plan: str, sets: list[str]) -> Chosen:
    from planner.api import choose

    return choose(plan, sets=sets)


def _note(plan: str, chosen: Chosen) -> None:
    """Say on standard error that the answer is about a plan that a search completed."""
    from planner.api import BEST
    from planner.report.show import count

    if chosen.completed:
        choice = chosen.choice
        made = f"{count(choice.micro_batches, 'micro-batch')}, {count(len(choice.stages), 'stage')}"
        what = "is a problem: this is its best plan" if chosen.name == BEST else "leaves decisions open: search made them"
        warn(f"note: {plan} {what} ({made})")


def _about(chosen: Chosen) -> dict[str, Any]:
    """Which plan an answer is about."""
    from planner.plan import choice_to_dict

    return {
        "problem": chosen.problem.name,
        "name": chosen.name,
        "completed": chosen.completed,
        "plan": choice_to_dict(chosen.choice, chosen.problem.sizes),
    }


class View(StrEnum):
    """What part of a plan is drawn."""

    model = "model"
    layer = "layer"
    mha = "mha"
    mlp = "mlp"
    moe = "moe"
    communication = "communication"
    full = "full"


class Drawing(StrEnum):
    """How a graph is written."""

    dot = "dot"
    svg = "svg"
    json = "json"


def dag(
    plan: Plan,
    view: Annotated[
        View, typer.Option(help="The part that is drawn; full is no drawing: every node, to be read back.")
    ] = View.layer,
    layer: Annotated[
        int | None, typer.Option(metavar="N", help="The layer that is drawn.", show_default="the first that has the view")
    ] = None,
    micro_batches: Annotated[
        int | None, typer.Option(metavar="N", min=1, help="The first N, of the full view.", show_default="all")
    ] = None,
    as_: Annotated[Drawing | None, typer.Option("--as", help="The format.", show_default="as FILE ends, else dot")] = None,
    out: Annotated[
        Path | None, typer.Option("--output", "-o", metavar="FILE", help="The file.", show_default="standard output")
    ] = None,
    sets: Sets = [],  # noqa: B006  # typer copies it
) -> int:
    """Draw the operator graph of a plan: which GPU runs which operator on which shard, and what joins them."""
    ending = out.suffix.lower().removeprefix(".") if out is not None else ""
    if out is not None and ending not in [form.value for form in Drawing if as_ in (None, form)]:
        allowed = f"a file that ends in .{as_.value}" if as_ else "a file that ends in .dot, .svg or .json"
        raise InputError("--output", str(out), allowed)
    form = as_ or (Drawing(ending) if ending else Drawing.dot)
    check_file(out, "--output")
    if view == View.full and form == Drawing.svg:
        raise InputError("--as", form.value, "dot or json: the full view is no drawing")
    if view != View.full and micro_batches is not None:
        raise InputError("--micro-batches", micro_batches, "--view full: drawings show one micro-batch")
    from planner.cli.drawing import Drawer
    from planner.files import write_bytes_atomic

    chosen = _chosen(plan, sets)
    drawer = Drawer(chosen)
    if view == View.full:
        whole = drawer.full(layer, micro_batches, as_json=form == Drawing.json)
        text = whole if isinstance(whole, str) else json.dumps(whole, indent=1, ensure_ascii=False)
    elif form == Drawing.json:
        text = json.dumps(drawer.json(cast("Picture", view.value), layer), indent=1, ensure_ascii=False)
    else:
        text = drawer.dot(cast("Picture", view.value), layer)
    if form == Drawing.svg:
        from planner.export.dot import dag_svg

        text = dag_svg(text).decode()
    _note(plan, chosen)
    if out is None:
        say(text.rstrip("\n"))
    else:
        write_bytes_atomic(out, (text.rstrip("\n") + "\n").encode())
        warn(f"written to {out}")
    return 0
