"""Refit how wide intervals are: of operators from their own measurements, of whole runs from inference runs.

    python -m tests.benchmarks.fit_intervals --truth DIR [--write]

The spread of a class of operators is that of its measured kernels. What whole runs add to it (`run`, and `waiting` for the
time to the first token, where most of that is) is chosen so that 80 % of the runs of some models lie inside, none of which any
constant was fitted to (`models` in `planner/costs/intervals.yaml`); the share of all further models is printed.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from statistics import fmean
from typing import NamedTuple

import numpy as np

from planner.costs.intervals import COVERAGE, FILE, QUANTILE, relative_interval, width_models
from planner.costs.stacks import fitted_models
from planner.model import ModelSpec
from tests.benchmarks import cost_errors
from tests.benchmarks.cost_errors import Error
from tests.benchmarks.fidelity.clusters import Machines
from tests.benchmarks.fidelity.inference import Forecast, committed, impossible, measured, predict_inference
from tests.benchmarks.fidelity.models import model_of
from tests.benchmarks.fidelity.report import status_reason
from tests.benchmarks.fidelity.rows import read_table, text

NINETY = 1.6449  # of a normal distribution: 90 % lie within so many standard deviations
MEMORY = 0.2  # no table of kernels that only move bytes: assumed
CLASSES: dict[str, tuple[Callable[..., Iterator[Error]], str]] = {
    "gemm": (cost_errors.gemm_errors, "> 1 GFLOP"),
    "moe": (cost_errors.moe_errors, ""),
    "attention": (cost_errors.attention_errors, ""),
    "communication": (cost_errors.collective_errors, ""),
}


class Residual(NamedTuple):
    """A figure of a run: its metric, seconds by class, measured over predicted, and the use that is made of its model."""

    metric: str
    classes: dict[str, float]
    ratio: float
    use: str


def operator_spreads(folder: Path) -> dict[str, float]:
    """Standard deviation of log time by class, from the 90th percentile of its tables, averaged."""
    found = {"memory": MEMORY}
    for name, (family, large) in CLASSES.items():
        rows = [error for error in family(folder, None) if large in error.operator]
        found[name] = float(f"{fmean(np.log1p(error.p90) / NINETY for error in rows):.3g}")
    return found


def residuals(folder: Path) -> list[Residual]:
    """Every figure that the planner predicts."""
    runtime = committed(Machines(read_table(folder, "gpus.csv", ())))
    found = []
    for row in read_table(folder, "inference.csv", ()).rows:
        forecast = predict_inference(row, runtime) if status_reason(row) is None else None
        if not isinstance(forecast, Forecast) or impossible(row, forecast):
            continue
        model = model_of(text(row, "model"), text(row, "precision"), row)
        name = model.name if isinstance(model, ModelSpec) else ""
        use = "fitted" if name in fitted_models() else "widths" if name in width_models() else "other"
        for metric, value in measured(row).items():
            figure = forecast.figures.get(metric)
            if figure is not None and figure.value > 0:
                ratio = figure.value / value if metric == "throughput" else value / figure.value
                found.append(Residual(metric, figure.classes, ratio, use))
    return found


def share(rows: Sequence[Residual], spreads: dict[str, float]) -> float:
    """Share of the rows inside their intervals."""
    inside = []
    for row in rows:
        low, high = relative_interval(row.classes, spreads)
        inside.append(low <= row.ratio <= high)
    return fmean(inside) if inside else float("nan")


def widened(rows: Sequence[Residual], spreads: dict[str, float], name: str) -> float:
    """The least spread of `name` at which the wanted share of the rows lies inside."""
    for value in np.arange(0.01, 3.0, 0.01):
        if share(rows, spreads | {name: float(value)}) >= COVERAGE:
            return round(float(value), 2)
    return 3.0


def main() -> None:
    """Fit, print coverage, and write the spreads if asked."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--truth", type=Path, required=True, help="folder with all truth files")
    parser.add_argument("--write", action="store_true", help="replace planner/costs/intervals.yaml")
    options = parser.parse_args()
    spreads = operator_spreads(options.truth) | {"host": 0.5, "waiting": 0.0, "run": 0.0}
    rows = residuals(options.truth)
    steps = [row for row in rows if row.metric != "ttft"]
    first = [row for row in rows if row.metric == "ttft"]
    spreads["run"] = widened([row for row in steps if row.use == "widths"], spreads, "run")
    queued = [row for row in first if row.use == "widths" and 2.0 * row.classes.get("waiting", 0.0) > sum(row.classes.values())]
    spreads["waiting"] = widened(queued, spreads, "waiting")
    print(spreads)
    for title, part in (("TPOT and throughput", steps), ("TTFT", first), ("all", rows)):
        for use in ("fitted", "widths", "other"):
            chosen = [row for row in part if row.use == use]
            print(f"{title}, {use}: {share(chosen, spreads):.1%} of {len(chosen)}")
    if options.write:
        FILE.write_text(
            "# Spread of residuals by operator class (standard deviation of log time). Meaning: planner/costs/intervals.py,\n"
            f"# fit: tests/benchmarks/fit_intervals.py; {COVERAGE:.0%} lie within {QUANTILE} of them. memory, host: assumed.\n"
            "schema: planner.intervals/1\n"
            f"spreads: {{{', '.join(f'{name}: {value:g}' for name, value in spreads.items())}}}\n"
            f"models: [{', '.join(sorted(width_models()))}]\n",
            encoding="utf-8",
        )


if __name__ == "__main__":
    main()
