"""Errors of single operators (products, kernels, collectives) as sections of the report."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import fmean
from typing import Any

from planner.errors import PlannerError
from tests.benchmarks import cost_errors
from tests.benchmarks.cost_errors import Error
from tests.benchmarks.fidelity.rows import read_table

Family = Callable[[Path, dict[str, Any] | None], Iterator[Error]]
# Section: file, columns without which it is left out, error tables, and the groups that its own median is over.
SECTIONS: dict[str, tuple[str, str, tuple[Family, ...], str]] = {
    "gemm": ("gemm.csv", "gpu dtype group m n k time_us", (cost_errors.gemm_errors,), "> 1 GFLOP"),
    "kernels": (
        "kernels.csv",
        "gpu op dtype kv_dtype batch isl step num_heads kv_heads num_tokens hidden inter topk n_experts moe_tp moe_ep "
        "distribution latency_us",
        (cost_errors.attention_errors, cost_errors.moe_errors),
        "",
    ),
    "comm": (
        "comm.csv",
        "gpu op impl algo dtype n_gpus n_nodes internode message_bytes time_us status",
        (cost_errors.collective_errors,),
        "> 1 MB",
    ),
}


def operator_sections(folder: Path, data: dict[str, Any] | None = None) -> tuple[dict[str, dict[str, Any]], list[str]]:
    """(sections, what is missing): of each section its groups, and median and p90 averaged over its groups of large sizes."""
    found: dict[str, dict[str, Any]] = {}
    missing: list[str] = []
    for name, (file, columns, families, large) in SECTIONS.items():
        table = read_table(folder, file, columns.split())
        missing += table.missing
        try:
            errors = [] if table.missing else [error for family in families for error in family(folder, data)]
        except (PlannerError, ValueError, LookupError) as error:
            errors = []
            missing.append(f"{file}: not readable as measurements: {error}"[:200])
        found[name] = section(errors, large)
    return found, missing


def section(errors: list[Error], large: str) -> dict[str, Any]:
    """Groups by name, and the averages over those whose name holds `large`."""
    groups = {
        " ".join(part for part in (e.kind, e.operator, e.dtype) if part): {
            "rows": e.rows, "median": e.median, "p90": e.p90, "bias": e.bias,
        }
        for e in errors
    }  # fmt: skip
    chosen = [e for e in errors if large in e.operator]
    return {
        "groups": groups,
        "median": fmean(e.median for e in chosen) if chosen else None,
        "p90": fmean(e.p90 for e in chosen) if chosen else None,
    }
