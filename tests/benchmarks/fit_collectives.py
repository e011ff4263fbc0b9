"""Refit the constants of the collectives: inside a domain by GPU kind and operation, and of the network once."""

from __future__ import annotations

from typing import Any

import numpy as np

from planner.costs.collectives import InsideConstants, NetworkConstants, inside_seconds
from tests.benchmarks.cost_errors import collective_price
from tests.benchmarks.least_squares import fit, names_of
from tests.benchmarks.truth_rows import Rows

# Bus bandwidths without a table of message sizes: MI300X 313 GB/s (ml-engineering), PCIe 5 switches 24.7 (RTX PRO 6000,
# aiconfigurator); their latencies are borrowed.
BUS = {"mi300x": ("h100", 313e9), "h100-pcie": ("h100", 24.7e9)}
# Large-message copies between two GPUs of a domain: nvbandwidth in ml-engineering (A100 by its share of the line rate).
COPY = {"h100": 376e9, "a100-80gb": 245e9, "gb200": 770e9, "l40s": 20e9}
ALL_TO_ALL_SHARE = 0.65  # of an adapter: NCCL reached 0.44-0.74 on two B200 nodes, DeepEP 0.86-1.0 on H100


INSIDE = {
    "start_s": (4e-6, 1e-7, 5e-5), "step_s": (1e-6, 1e-8, 2e-5), "bus2": (2e11, 1e9, 9e11), "bus4": (2e11, 1e9, 9e11),
    "bus8": (2e11, 1e8, 1.1e12), "ramp_s": (3e-5, 1e-7, 1e-2), "ramp_bytes": (5e6, 1e4, 3e9),
}  # fmt: skip


def fit_inside(operation: str, data: Rows) -> dict[str, float]:
    """Constants of a collective inside one domain."""
    return fit(
        names_of(InsideConstants),
        INSIDE,
        lambda x: inside_seconds(InsideConstants(*x), operation, data["bytes"], data["ranks"]),
        data.seconds,
    )


def copies(rows: dict[str, dict[str, float]], bandwidth: float) -> dict[str, float]:
    """Constants of a copy to a neighbour: latency and ramp of a two-rank all-gather, bandwidth as measured."""
    return rows["all_gather"] | {"bus2": bandwidth, "bus4": bandwidth, "bus8": bandwidth}


def fit_network(found: dict[str, Any], measured: dict[tuple[str, str, str], Rows]) -> dict[str, float]:
    """Constants of the network from all-reduces and all-gathers over 2 to 64 nodes of A100, H100 and B200."""
    used = {key: rows for key, rows in measured.items() if key[2] == "network" and key[1] != "send_recv"}
    start = {
        "share": (0.9, 0.5, 1.0),
        "start_s": (2e-5, 1e-6, 1e-4),
        "hops": (2.0, 0.1, 20.0),
        "ramp_s": (1e-4, 1e-6, 5e-3),
        "ramp_bytes": (1e7, 1e5, 1e9),
    }
    names = tuple(start)

    def predict(x: np.ndarray) -> np.ndarray:
        data = found | {"network": dict(zip(names, x.tolist(), strict=True)) | {"all_to_all_share": ALL_TO_ALL_SHARE}}
        return np.concatenate([collective_price(kind, op, rows, data) for (kind, op, _), rows in used.items()])

    seconds = np.concatenate([rows.seconds for rows in used.values()])
    best = fit(names, start, predict, seconds, starts=2) | {"all_to_all_share": ALL_TO_ALL_SHARE}
    return {name: best[name] for name in names_of(NetworkConstants)}


def fit_collectives(measured: dict[tuple[str, str, str], Rows]) -> dict[str, dict[str, dict[str, float]]]:
    """Constants of every operation inside a domain, by GPU kind."""
    found: dict[str, dict[str, dict[str, float]]] = {}
    for (kind, operation, tier), rows in sorted(measured.items()):
        if tier == "inside" and kind != "gb200" and operation in ("all_reduce", "all_gather", "reduce_scatter", "all_to_all"):
            found.setdefault(kind, {})[operation] = fit_inside(operation, rows)
    found["gb200"] = dict(found["b200"])
    rack = measured["gb200", "all_reduce", "inside"]
    names = ("bus8", "ramp_s", "ramp_bytes")  # 72 ranks only: the rest as on B200

    def predict(x: np.ndarray) -> np.ndarray:
        row = found["b200"]["all_reduce"] | dict(zip(names, x.tolist(), strict=True))
        return inside_seconds(InsideConstants.of(row), "all_reduce", rack["bytes"], rack["ranks"])

    found["gb200"]["all_reduce"] = found["b200"]["all_reduce"] | fit(names, INSIDE, predict, rack.seconds)
    for kind, (lender, bus) in BUS.items():
        wide = {"bus2": bus, "bus4": bus, "bus8": bus}
        found[kind] = {operation: row | wide for operation, row in found[lender].items()}
    rates = COPY | {"b200": 655e9, "mi300x": 47.7e9, "h100-pcie": 50e9}  # one pair of MI300X: a seventh of its links
    for kind, rows_of in found.items():
        rows_of["send_recv"] = copies(rows_of, rates[kind])
    return found
