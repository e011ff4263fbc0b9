"""Refit the constants of planner/costs to published measurements and print their errors.

    python -m tests.benchmarks.fit_costs --truth DIR [--write]

Each constant has a meaning (see planner/costs); all are fitted together for one GPU kind, operator and dtype by robust
least squares on the logarithm of time, from a few starts. `--write` replaces planner/costs/calibration.yaml.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
from scipy.optimize import least_squares

from planner.clusters import load_gpu
from planner.costs import attention as fused
from planner.costs import formulas as base
from planner.costs.calibration import FILE
from planner.costs.collectives import InsideConstants, NetworkConstants, inside_seconds
from planner.costs.get_time import Roofline
from planner.units import dtype_bytes
from tests.benchmarks import cost_errors
from tests.benchmarks.cost_errors import collective_price
from tests.benchmarks.truth_rows import Rows, attention_rows, collective_rows, flops, gemm_rows, moe_rows, sound

Predict = Callable[[np.ndarray], np.ndarray]
STREAM = {"launch_s": 3e-6, "memory": 0.8}  # aiconfigurator: memory bandwidth x 0.8 + 3 us for every other operator
# Kinds that were not measured; shares of the data-sheet peak from ml-engineering's table of achievable FLOP/s.
ADJUST = {"mi300x": {family: {"compute": 0.511} for family in ("gemm", "grouped")}}
# Bus bandwidths without a table of message sizes: MI300X 313 GB/s (ml-engineering), PCIe 5 switches 24.7 (RTX PRO 6000,
# aiconfigurator); their latencies are borrowed.
BUS = {"mi300x": ("h100", 313e9), "h100-pcie": ("h100", 24.7e9)}
# Large-message copies between two GPUs of a domain: nvbandwidth in ml-engineering (A100 by its share of the line rate).
COPY = {"h100": 376e9, "a100-80gb": 245e9, "gb200": 770e9, "l40s": 20e9}
ALL_TO_ALL_SHARE = 0.65  # of an adapter: NCCL reached 0.44-0.74 on two B200 nodes, DeepEP 0.86-1.0 on H100

FAMILIES = {
    "context_attention": "prefill",
    "context_mla": "mla_prefill",
    "generation_attention": "decode",
    "generation_mla": "mla_decode",
}


def fit(
    names: tuple[str, ...], start: dict[str, tuple[float, float, float]], predict: Predict, seconds: np.ndarray, **options: Any
) -> dict[str, float]:
    """Constants (start, lowest, highest) that minimise the robust error of log time."""
    first, low, high = (np.log([start[name][i] for name in names]) for i in range(3))
    weight = options.get("weight", 1.0)

    def residuals(x: np.ndarray) -> np.ndarray:
        return np.asarray(weight * np.log(predict(np.exp(x)) / seconds))

    best = None
    for seed in range(options.get("starts", 5)):
        noise = np.random.default_rng(seed).normal(0.0, 0.3 * (seed > 0), len(first))
        begin = np.clip(first + noise, low + 1e-3, high - 1e-3)
        found = least_squares(residuals, begin, bounds=(low, high), loss="soft_l1", f_scale=0.05, diff_step=3e-3)
        best = found if best is None or found.cost < best.cost else best
    assert best is not None
    return {name: float(f"{value:.4g}") for name, value in zip(names, np.exp(best.x), strict=True)}


def names_of(constants: type) -> tuple[str, ...]:
    """Names of the constants of a formula."""
    return tuple(field.name for field in fields(constants))


GEMM = {
    "launch_s": (3e-6, 0.5e-6, 3e-5), "compute": (0.8, 0.2, 1.1), "medium": (0.8, 0.2, 1.3), "small": (0.4, 0.05, 1.3),
    "depth": (64.0, 1.0, 2000.0), "memory": (0.8, 0.3, 1.1), "rounding": (0.2, 1e-3, 1.0), "quantize": (4.0, 0.01, 30.0),
}  # fmt: skip
PREFILL = {
    "launch_s": (8e-6, 1e-6, 5e-5),
    "compute": (0.5, 0.1, 1.0),
    "depth": (100.0, 5.0, 3000.0),
    "memory": (0.5, 0.05, 2.0),
    "lone": (0.6, 0.2, 2.0),
}
DECODE = {
    "launch_s": (6e-6, 1e-6, 5e-5), "memory": (0.8, 0.2, 1.05), "compute": (0.3, 0.02, 1.5), "block_s": (1e-6, 1e-9, 2e-5),
    "key_s": (1e-10, 1e-13, 1e-6), "row_s": (1e-7, 1e-10, 5e-6),
}  # fmt: skip
INSIDE = {
    "start_s": (4e-6, 1e-7, 5e-5), "step_s": (1e-6, 1e-8, 2e-5), "bus2": (2e11, 1e9, 9e11), "bus4": (2e11, 1e9, 9e11),
    "bus8": (2e11, 1e8, 1.1e12), "ramp_s": (3e-5, 1e-7, 1e-2), "ramp_bytes": (5e6, 1e4, 3e9),
}  # fmt: skip


def machine(kind: str, dtype: str) -> base.Machine:
    """A catalog GPU as the formulas see it."""
    gpu = load_gpu(kind)
    return base.Machine(gpu.peak_flops.get(dtype, gpu.peak_flops["bf16"]), gpu.memory_bandwidth, gpu.sm_count)


def fit_gemm(kind: str, dtype: str, data: Rows) -> dict[str, float]:
    """Constants of matrix products; products above 10 GFLOP count one and a half times."""
    names = tuple(name for name in names_of(base.GemmConstants) if name != "quantize" or dtype != "bf16")
    gpu, width, one = machine(kind, dtype), dtype_bytes(dtype), np.ones(len(data))

    def predict(x: np.ndarray) -> np.ndarray:
        return base.gemm(base.GemmConstants(*x), gpu, data["m"], data["k"], data["n"], one, width, width)

    return fit(names, GEMM, predict, data.seconds, weight=np.where(flops(data) > 1e10, 1.5, 1.0), starts=8)


def attention_sizes(operator: str, data: Rows) -> fused.AttentionSizes:
    """Sizes of a measured attention kernel; MLA is 192/128 wide expanded and 576/512 absorbed (DeepSeek-V3)."""
    widths = {"context_mla": (192.0, 128.0), "generation_mla": (576.0, 512.0)}.get(operator, (128.0, 128.0))
    qk, v = (np.full(len(data), width) for width in widths)
    queries = np.ones(len(data)) if operator.startswith("generation") else data["length"]
    return fused.AttentionSizes(
        data["batch"], data["heads"], data["kv_heads"], queries, data["length"], qk, v, True, operator == "generation_mla"
    )


def fit_attention(kind: str, operator: str, dtype: str, cache: str, data: Rows) -> dict[str, float]:
    """Constants of prefill or of decode."""
    gpu, sizes, act, width = machine(kind, dtype), attention_sizes(operator, data), dtype_bytes(dtype), dtype_bytes(cache)
    if operator.startswith("generation"):
        return fit(
            names_of(fused.DecodeConstants),
            DECODE,
            lambda x: fused.decode(fused.DecodeConstants(*x), gpu, sizes, act, width),
            data.seconds,
        )
    return fit(
        names_of(fused.PrefillConstants),
        PREFILL,
        lambda x: fused.prefill(fused.PrefillConstants(*x), gpu, sizes, act, width),
        data.seconds,
    )


def fit_moe(kind: str, dtype: str, data: Rows) -> dict[str, float]:
    """Constants of grouped products, from whole MoE kernels."""
    names = names_of(base.GemmConstants)[:-1]

    def predict(x: np.ndarray) -> np.ndarray:
        grouped = {dtype: dict(zip(names, x.tolist(), strict=True))}
        trial = {"gpus": {kind: {"grouped": grouped, "stream": {"bf16": STREAM}}}, "adjust": {}}
        return cost_errors.moe_price(Roofline(load_gpu(kind), trial), dtype, data)

    return fit(names, GEMM, predict, data.seconds)


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


def fit_all(folder: Path) -> dict[str, Any]:
    """The whole calibration."""
    gpus: dict[str, Any] = {}
    for (kind, dtype), rows in sorted(gemm_rows(folder).items()):
        gpus.setdefault(kind, {"stream": {"bf16": STREAM}}).setdefault("gemm", {})[dtype] = fit_gemm(kind, dtype, rows)
    for (kind, operator, dtype, cache), rows in sorted(attention_rows(folder).items()):
        family = FAMILIES[operator]
        kept = sound(operator, rows, dtype_bytes(cache), load_gpu(kind).memory_bandwidth)
        row = fit_attention(kind, operator, dtype, cache, rows.where(kept))
        gpus[kind].setdefault(family, {})[
            cache if family.endswith("decode") else dtype if dtype == cache else f"{dtype}-{cache}"
        ] = row
    for (kind, dtype, distribution), rows in sorted(moe_rows(folder).items()):
        if distribution == "balanced" or (kind == "a100-80gb" and distribution == "power_law_1.01"):
            gpus[kind].setdefault("grouped", {})[dtype] = fit_moe(kind, dtype, rows)
    narrow = gpus["b200"]["grouped"]["mxfp4"]  # its activations are fp8, so it runs at the fp8 rate, half of the fp4 peak
    gpus["b200"]["grouped"]["fp8"] = narrow | {"compute": round(2.0 * narrow["compute"], 4)}
    gpus["b200"]["grouped"]["bf16"] = gpus["b200"]["gemm"]["bf16"]  # not measured: the plain product's
    gpus["l40s"]["grouped"] = gpus["l40s"]["gemm"]
    found: dict[str, Any] = {"schema": "planner.calibration/1", "gpus": gpus, "adjust": ADJUST}
    found["collectives"] = fit_collectives(collective_rows(folder))
    found["network"] = fit_network(found, collective_rows(folder))
    return found


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


def as_yaml(found: dict[str, Any]) -> str:
    """The calibration as YAML, one line for each set of constants."""

    def flow(row: dict[str, float]) -> str:
        return (
            "{"
            + ", ".join(
                f"{name}: {np.format_float_positional(v, trim='0') if 1e-3 <= v < 1e5 else f'{v:.4e}'}"
                for name, v in row.items()
            )
            + "}"
        )

    lines = [
        "# Fitted constants; units and meaning stand in planner/costs (formulas, attention, collectives).",
        f"schema: {found['schema']}",
        "gpus:",
    ]
    for kind, families in found["gpus"].items():
        lines.append(f"  {kind}:")
        for family, rows in families.items():
            lines += [f"    {family}:", *(f"      {dtype}: {flow(row)}" for dtype, row in rows.items())]
    lines.append("collectives:")
    for kind, rows in found["collectives"].items():
        lines += [f"  {kind}:", *(f"    {operation}: {flow(row)}" for operation, row in rows.items())]
    lines += [f"network: {flow(found['network'])}", "# Kinds that borrow: what is known of them from elsewhere.", "adjust:"]
    for kind, rows in found["adjust"].items():
        lines += [f"  {kind}:", *(f"    {family}: {flow(row)}" for family, row in rows.items())]
    return "\n".join(lines) + "\n"


def main() -> None:
    """Fit, print the error tables, and write the constants if asked."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--truth", type=Path, required=True, help="folder with gemm.csv, kernels.csv and comm.csv")
    parser.add_argument("--write", action="store_true", help="replace planner/costs/calibration.yaml")
    options = parser.parse_args()
    found = fit_all(options.truth)
    print(cost_errors.table(cost_errors.errors(options.truth, found)))
    if options.write:
        FILE.write_text(as_yaml(found), encoding="utf-8")


if __name__ == "__main__":
    main()
