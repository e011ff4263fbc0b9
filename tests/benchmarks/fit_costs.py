"""Refit the constants of planner/costs to published measurements and print their errors.

    python -m tests.benchmarks.fit_costs --truth DIR [--write | --held-out]

Each constant has a meaning (see planner/costs); all are fitted together for one GPU kind, operator and dtype by robust
least squares on the logarithm of time, from a few starts. `--write` replaces planner/costs/calibration.yaml.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np

from planner.clusters import load_gpu
from planner.costs import attention as fused
from planner.costs import formulas as base
from planner.costs.calibration import FILE
from planner.costs.get_time import Roofline
from planner.units import dtype_bytes
from tests.benchmarks import cost_errors
from tests.benchmarks.fit_collectives import fit_collectives, fit_network
from tests.benchmarks.least_squares import fit, names_of
from tests.benchmarks.truth_rows import Rows, attention_rows, collective_rows, flops, gemm_rows, moe_rows, sound

STREAM = {"launch_s": 3e-6, "memory": 0.8}  # aiconfigurator: memory bandwidth x 0.8 + 3 us for every other operator
# Kinds that were not measured; shares of the data-sheet peak from ml-engineering's table of achievable FLOP/s.
COPIED = (
    "b200 grouped fp8", "b200 grouped bf16", "l40s grouped bf16", "l40s grouped fp8",
    "gb200 collectives", "mi300x collectives", "h100-pcie collectives",
)  # fmt: skip
ADJUST = {"mi300x": {family: {"compute": 0.511} for family in ("gemm", "grouped")}}

# MoE kernels that 16-row tiles describe better (A100 18.7 -> 12.5 %, B200 22.8 -> 21.6 %); on H100 they change nothing.
SKINNY = {("a100-80gb", "bf16"), ("b200", "mxfp4")}

FAMILIES = {
    "context_attention": "prefill",
    "context_mla": "mla_prefill",
    "generation_attention": "decode",
    "generation_mla": "mla_decode",
}


GEMM = {
    "launch_s": (3e-6, 0.5e-6, 3e-5), "compute": (0.8, 0.2, 1.1), "medium": (0.8, 0.2, 1.3), "small": (0.4, 0.05, 1.3),
    "depth": (64.0, 1.0, 2000.0), "memory": (0.8, 0.3, 1.1), "rounding": (0.2, 1e-3, 1.0), "quantize": (4.0, 0.01, 30.0),
    "skinny": (0.3, 0.01, 1.3),
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


def machine(kind: str, dtype: str) -> base.Machine:
    """A catalog GPU as the formulas see it."""
    gpu = load_gpu(kind)
    return base.Machine(gpu.peak_flops.get(dtype, gpu.peak_flops["bf16"]), gpu.memory_bandwidth, gpu.sm_count)


def fit_gemm(kind: str, dtype: str, data: Rows) -> dict[str, float]:
    """Constants of matrix products; products above 10 GFLOP count one and a half times."""
    names = tuple(name for name in names_of(base.GemmConstants)[:-1] if name != "quantize" or dtype != "bf16")
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
    """Constants of grouped products, from whole MoE kernels; `skinny` where it makes the fit better."""
    names = names_of(base.GemmConstants)[:-2] + (("skinny",) if (kind, dtype) in SKINNY else ())

    def predict(x: np.ndarray) -> np.ndarray:
        grouped = {dtype: dict(zip(names, x.tolist(), strict=True))}
        trial = {"gpus": {kind: {"grouped": grouped, "stream": {"bf16": STREAM}}}, "adjust": {}}
        return cost_errors.moe_price(Roofline(load_gpu(kind), trial), dtype, data)

    return fit(names, GEMM, predict, data.seconds)


def fit_stored(kind: str, dtype: str, native: dict[str, float], data: Rows) -> dict[str, float]:
    """Constants of grouped products whose weights are only stored in `dtype`: those of bf16, and skinny tiles of their own."""

    def predict(x: np.ndarray) -> np.ndarray:
        trial = {
            "gpus": {kind: {"grouped": {dtype: native | {"skinny": float(x[0])}, "bf16": native}, "stream": {"bf16": STREAM}}}
        }
        return cost_errors.moe_price(Roofline(load_gpu(kind), trial | {"adjust": {}}), dtype, data)

    return native | fit(("skinny",), GEMM, predict, data.seconds)


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
        if kind == "h100" and dtype == "mxfp4":
            stored = gpus[kind]["grouped"]["bf16"]
            if distribution == "balanced":
                gpus[kind]["grouped"][dtype] = fit_stored(kind, dtype, stored, rows)
        elif distribution == "balanced" or (kind == "a100-80gb" and distribution == "power_law_1.01"):
            gpus[kind].setdefault("grouped", {})[dtype] = fit_moe(kind, dtype, rows)
    narrow = gpus["b200"]["grouped"]["mxfp4"]  # its activations are fp8, so it runs at the fp8 rate, half of the fp4 peak
    gpus["b200"]["grouped"]["fp8"] = narrow | {"compute": round(2.0 * narrow["compute"], 4)}
    gpus["b200"]["grouped"]["bf16"] = gpus["b200"]["gemm"]["bf16"]  # not measured: the plain product's
    gpus["l40s"]["grouped"] = gpus["l40s"]["gemm"]
    found: dict[str, Any] = {"schema": "planner.calibration/1", "gpus": gpus, "adjust": ADJUST}
    found["collectives"] = fit_collectives(collective_rows(folder))
    found["network"] = fit_network(found, collective_rows(folder))
    return found


def held_out(folder: Path) -> list[cost_errors.Error]:
    """Errors of products on the half of the rows that a fit to the other half has not seen."""
    found: list[cost_errors.Error] = []
    for (kind, dtype), rows in sorted(gemm_rows(folder).items()):
        seen = np.random.default_rng(0).permutation(len(rows)) % 2 == 0
        constants = fit_gemm(kind, dtype, rows.where(seen))
        trial = {"gpus": {kind: {"gemm": {dtype: constants, "bf16": constants}}}, "adjust": {}}
        test = rows.where(~seen & (flops(rows) > 1e10))
        price = Roofline(load_gpu(kind), trial).get_time(test["m"], test["k"], test["n"], 1, dtype)
        found += cost_errors.error(kind, "gemm > 10 GFLOP, held out", dtype, price, test.seconds)
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
    lines += ["# Rows that are another's, or rest on a single figure.", f"copied: [{', '.join(COPIED)}]"]
    lines += [f"network: {flow(found['network'])}", "# Kinds that borrow: what is known of them from elsewhere.", "adjust:"]
    for kind, rows in found["adjust"].items():
        lines += [f"  {kind}:", *(f"    {family}: {flow(row)}" for family, row in rows.items())]
    return "\n".join(lines) + "\n"


def main() -> None:
    """Fit, print the error tables, and write the constants if asked."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--truth", type=Path, required=True, help="folder with gemm.csv, kernels.csv and comm.csv")
    parser.add_argument("--write", action="store_true", help="replace planner/costs/calibration.yaml")
    parser.add_argument("--held-out", action="store_true", help="only: fit products to half of the rows, test on the other")
    options = parser.parse_args()
    if options.held_out:
        print(cost_errors.table(held_out(options.truth)))
        return
    found = fit_all(options.truth)
    print(cost_errors.table(cost_errors.errors(options.truth, found)))
    if options.write:
        FILE.write_text(as_yaml(found), encoding="utf-8")


if __name__ == "__main__":
    main()
