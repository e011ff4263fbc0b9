"""`profile`: Get_Time of this machine, as a table that every verb about plans can price by."""

from __future__ import annotations

import time
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from planner.cli.options import AsFormat, AsJson, Sets, check_file
from planner.cli.output import Format, Progress, say, say_json
from planner.errors import InputError

if TYPE_CHECKING:
    from planner.profile.device import Device
    from planner.profile.shapes import Shapes

SCHEMA = "planner.profile/1"
DTYPES = ("bf16", "fp16", "fp32", "fp8")


class DeviceKind(StrEnum):
    """Where is measured."""

    cuda = "cuda"
    cpu = "cpu"


What = Annotated[
    str | None,
    typer.Argument(
        metavar="PROBLEM", help="Measure what its prices need, or those of one PROBLEM:PLAN, not a grid.", show_default=False
    ),
]
Where = Annotated[DeviceKind | None, typer.Option(help="Where to measure.", show_default="cuda where there is a GPU, else cpu")]
ShapesFile = Annotated[
    Path | None, typer.Option(metavar="FILE", help="Measure the rows of this CSV (a table without times).", show_default=False)
]
Dtypes = Annotated[
    list[str], typer.Option(metavar="DTYPE", help=f"Of the grid: {', '.join(DTYPES)}; may be repeated.", show_default="bf16")
]
AtMost = Annotated[int, typer.Option(min=1, max=20_000, metavar="N", help="Most products, and most attention kernels.")]
Repeats = Annotated[int, typer.Option(min=1, max=10_000, metavar="N", help="Runs of each shape; the median counts.")]
Seconds = Annotated[float, typer.Option(min=0.001, max=3600, metavar="S", help="Most time for the runs of a shape.")]


def profile(
    plan: What = None,
    out: Annotated[Path, typer.Option("--output", "-o", metavar="FILE", help="The table.")] = Path("table.csv"),
    device: Where = None,
    shapes: ShapesFile = None,
    dtype: Dtypes = [],  # noqa: B006  # typer copies it
    at_most: AtMost = 2000,
    repeats: Repeats = 20,
    seconds: Seconds = 2.0,
    sets: Sets = [],  # noqa: B006
    format_: AsFormat = Format.table,
    json_: AsJson = False,
) -> int:
    """Measure Get_Time on this machine (with PyTorch): products, attention and, over several GPUs, collectives.

    The table is what --gemm-table and --comm-table read.
    """
    start = time.monotonic()
    check_file(out, "--output")
    unknown = next((name for name in dtype if name not in DTYPES), None)
    if unknown is not None:
        raise InputError("--dtype", unknown, f"one of {', '.join(DTYPES)}")
    from planner.profile.device import find_device
    from planner.profile.measure import measure
    from planner.profile.table import write_table
    from planner.profile.timing import Effort

    place = find_device(device.value if device else None)
    asked = _shapes(place, plan, shapes, dtype or ["bf16"], at_most, sets)
    progress = Progress("profile")
    try:
        found = measure(place, asked, Effort(repeats, seconds), progress)
    finally:
        progress.done()
    if not found.rows:
        why = ", ".join(f"{count} {reason}" for reason, count in found.left_out.items())
        raise InputError("shapes", asked.count, f"one that can be measured here ({why})")
    write_table(out, found.rows)
    told = {
        "schema": SCHEMA, "device": found.device, "torch": str(place.torch.__version__), "rows": len(found.rows),
        "left_out": dict(sorted(found.left_out.items())), "output": str(out), "runtime_s": round(time.monotonic() - start, 3),
    }  # fmt: skip
    if json_ or format_ == Format.json:
        say_json(told)
    else:
        left = "".join(f"; {count} left out: {reason}" for reason, count in sorted(found.left_out.items()))
        say(f"{len(found.rows)} rows measured on {found.device} with PyTorch {told['torch']}{left}\nwritten to {out}")
    return 0


def _shapes(device: Device, plan: str | None, path: Path | None, dtypes: list[str], most: int, sets: list[str]) -> Shapes:
    """The shapes that are asked for: of a file, of a problem, or the grid."""
    from planner.profile.shapes import Shapes, at_most, grid, messages, shapes_in

    gpus = device.count if device.kind == "cuda" else 1
    if path is not None:
        if plan is not None:
            raise InputError("--shapes", str(path), "given without a PROBLEM")
        return at_most(shapes_in(path), most)
    if plan is None:
        return at_most(grid(dtypes, gpus), most)
    from planner.api import named_space
    from planner.profile.wanted import wanted

    problem, space, _ = named_space(plan, sets)
    needed = at_most(wanted(problem, space), most)
    return Shapes(needed.products, needed.attention, messages(gpus))
