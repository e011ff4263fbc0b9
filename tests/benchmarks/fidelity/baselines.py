"""Two simple predictions to beat: a constant rate for each GPU and precision, and the roofline of the data sheets."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import lru_cache
from statistics import median
from typing import Any

from planner.cluster import Cluster
from planner.clusters import load_gpu
from planner.costs.calibration import calibration
from planner.costs.pricer import Pricer
from planner.costs.stacks import pricer_with
from tests.benchmarks.fidelity.rows import Row, text
from tests.benchmarks.fidelity.score import Scored

IDEAL = {
    "launch_s": 0.0, "compute": 1.0, "medium": 1.0, "small": 1.0, "depth": 0.0, "memory": 1.0, "rounding": 0.0, "quantize": 0.0,
    "lone": 0.0, "block_s": 0.0, "key_s": 0.0, "row_s": 0.0,
}  # fmt: skip


@lru_cache(maxsize=1)
def ideal() -> dict[str, Any]:
    """A calibration of peaks: every kernel at the data sheet's rates at once, every collective at the line rate."""
    data = copy.deepcopy(calibration())
    for families in data["gpus"].values():
        for table in families.values():
            for row in table.values():
                row |= {name: value for name, value in IDEAL.items() if name in row}
    for kind, table in data["collectives"].items():
        link = load_gpu(kind).scale_up
        for row in table.values():
            row |= {"start_s": 0.0, "step_s": 0.0, "ramp_s": 0.0}
            row |= dict.fromkeys(("bus2", "bus4", "bus8"), link.bandwidth if link else row["bus8"])
    data["network"] |= {"share": 1.0, "all_to_all_share": 1.0, "start_s": 0.0, "hops": 0.0, "ramp_s": 0.0}
    return data


def roofline_pricer(cluster: Cluster, kv_dtype: str | None) -> Pricer:
    """Prices at the peak rates of the data sheets; nothing is fitted."""
    return pricer_with(cluster, ideal(), kv_dtype)


def constant_rate(rows: Sequence[tuple[Scored, Row]], work: Callable[[Row], float | None]) -> list[Scored]:
    """Predictions by the median rate of the file for each GPU and precision; `work` is what a row's GPU does in the measured
    time (in throughput: for each token). Rows without work are left out.
    """
    amounts = [(one, row, amount) for one, row in rows for amount in [work(row)] if amount]
    rates: dict[tuple[str, str], list[float]] = {}
    for one, row, amount in amounts:
        rates.setdefault(_kind(row), []).append(amount * one.measured if one.more_is_better else amount / one.measured)
    typical = {kind: median(values) for kind, values in rates.items()}
    return [
        replace(
            one, predicted=typical[_kind(row)] / amount if one.more_is_better else amount / typical[_kind(row)], interval=None
        )
        for one, row, amount in amounts
    ]


def _kind(row: Row) -> tuple[str, str]:
    return text(row, "gpu"), text(row, "precision").lower()
