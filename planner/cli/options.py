"""The options that several verbs share."""

from __future__ import annotations

import json
import math
import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from planner.cli.output import Format
from planner.errors import InputError

if TYPE_CHECKING:
    from planner.solve.answer import Limits
    from planner.solve.objective import Caps

KIND = re.compile(r"[A-Za-z0-9-]{1,60}")
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
MaxLatency = Annotated[
    float | None,
    typer.Option("--max-latency-ms", metavar="MS", help="Most latency: of the batch, or per output token.", show_default=False),
]
MaxMemory = Annotated[
    float | None, typer.Option("--max-memory-gb", metavar="GB", help="Most memory used on a GPU.", show_default=False)
]
GpusAtMost = Annotated[
    int | None, typer.Option("--gpus-at-most", metavar="N", help="Most GPUs used, over all replicas.", show_default=False)
]

GemmTable = Annotated[
    list[str],
    typer.Option(
        "--gemm-table",
        metavar="[KIND=]TABLE",
        help="Measured products and attention: a CSV (see planner profile), or silicon[:SYSTEM[/BACKEND]]. With KIND= of one "
        "GPU kind of a mixed cluster.",
        show_default=False,
    ),
]
CommTable = Annotated[
    str | None,
    typer.Option("--comm-table", metavar="TABLE", help="Measured collectives: a CSV, or silicon[:SYSTEM].", show_default=False),
]
CertificateFile = Annotated[
    Path | None,
    typer.Option("--certificate", metavar="FILE", help="Write the proof, for planner verify.", show_default=False),
]


def limits_of(time_limit: float | None, workers: int, seed: int, caps: Caps) -> Limits:
    """What a search may spend, and the caps on its plans; raises `InputError` for a time that is no number above 0."""
    from planner.solve.answer import Limits

    if time_limit is not None and not 0 < time_limit < math.inf:
        raise InputError("--time-limit", time_limit, "a number of seconds above 0")
    return Limits(seconds=time_limit or math.inf, workers=workers, seed=seed, caps=caps)


def caps_of(max_latency_ms: float | None, max_memory_gb: float | None, gpus_at_most: int | None) -> Caps:
    """The caps that the options ask for; raises `InputError` for one that is no number above 0."""
    from planner.solve.objective import Caps

    numbers = (("--max-latency-ms", max_latency_ms, "milliseconds"), ("--max-memory-gb", max_memory_gb, "GB"))
    for option, value, unit in numbers:
        if value is not None and not 0 < value < math.inf:
            raise InputError(option, value, f"a number of {unit} above 0")
    if gpus_at_most is not None and gpus_at_most < 1:
        raise InputError("--gpus-at-most", gpus_at_most, "a whole number of at least 1")
    return Caps(
        latency_s=math.inf if max_latency_ms is None else max_latency_ms / 1e3,
        memory_bytes=math.inf if max_memory_gb is None else max_memory_gb * 1e9,
        gpus=math.inf if gpus_at_most is None else gpus_at_most,
    )


def check_file(path: Path | None, option: str) -> None:
    """Refuse a file that cannot be written before time is spent on its content."""
    if path is None:
        return
    if path.is_dir() or not path.parent.is_dir():
        raise InputError(option, str(path), "a file in a folder that exists")
    if not os.access(path if path.exists() and not path.is_file() else path.parent, os.W_OK):
        raise InputError(option, str(path), "a file in a folder that you may write to")


def check_folder(path: Path | None, option: str) -> None:
    """Refuse a folder that cannot be written or made before time is spent on its content."""
    if path is None:
        return
    there = next(place for place in (path, *path.absolute().parents) if place.exists())
    if not there.is_dir():
        raise InputError(option, str(path), "a folder, or a path where one can be made")
    if not os.access(there, os.W_OK):
        raise InputError(option, str(path), "a folder that you may write to")


def with_tables(sets: list[str], gemm: list[str], comm: str | None) -> list[str]:
    """The changes with those that lay measured tables over the prices of the cluster."""
    found = list(sets)
    for text in gemm:
        kind, equals, path = text.partition("=")
        own = bool(equals) and KIND.fullmatch(kind) is not None
        found.append(f"cluster.gemm_table{f'.{kind}' if own else ''}={json.dumps(path if own else text)}")
    return found if comm is None else [*found, f"cluster.comm_table={json.dumps(comm)}"]
