"""Where a search placed the experts: the fullest GPU in load and in time, beside consecutive experts and the bounds."""

from __future__ import annotations

from planner.report.document import Block, Text, table
from planner.report.show import count, seconds
from planner.search import Result
from planner.units import show_bytes

NOTE = (
    "Load is that of the fullest GPU over the mean, time that of a mixture for one micro-batch on the slowest GPU, each in the "
    "worst layer; no placement with as many slots goes below the bounds."
)


def expert_blocks(result: Result) -> tuple[Block, ...]:
    """One row for each stage whose GPUs share experts under unequal loads; nothing where there is none."""
    if not result.experts:
        return ()
    header = (
        "stage",
        "load",
        "consecutive",
        "bound",
        "gap",
        "time",
        "consecutive ",
        "bound ",
        "gap ",
        "copies",
        "memory for them",
    )
    rows = [
        (
            str(s.stage), f"{s.load:.3f}", f"{s.consecutive_load:.3f}", f"{s.load_bound:.3f}", f"{s.load_gap:.2%}",
            seconds(s.seconds), seconds(s.consecutive_s), seconds(s.seconds_bound), f"{s.time_gap:.2%}",
            count(s.copies, "expert"), f"{show_bytes(s.extra_bytes)} a layer" if s.copies else "-",
        )
        for s in result.experts
    ]  # fmt: skip
    return Text(NOTE), table(header, rows, header)
