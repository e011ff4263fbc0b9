"""Errors of the prices against published measurements, by GPU kind, operator and dtype.

    python -m tests.benchmarks.cost_errors --truth DIR

Every prediction goes through the public interface (`Roofline`, `Collectives`) with the committed constants.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from planner.clusters import load_cluster, load_gpu
from planner.costs import GroupShape, Roofline
from planner.costs.collectives import Collectives
from planner.units import dtype_bytes
from tests.benchmarks.truth_rows import Rows, attention_rows, collective_rows, flops, gemm_rows, moe_rows, sound

# Bytes a MoE kernel moves for each element of its tokens to route, gather, quantize, scatter and add them up. The models
# with 22 of 512 experts or hidden size 2688 (Nemotron 3) have no gate: one product less.
ROUTE_BYTES = 12.0


class Error(NamedTuple):
    """Relative errors |predicted / measured - 1| of one group of rows; `bias` is the median of predicted / measured."""

    kind: str
    operator: str
    dtype: str
    rows: int
    median: float
    p90: float
    bias: float


def error(kind: str, operator: str, dtype: str, predicted: np.ndarray, measured: np.ndarray) -> Iterator[Error]:
    """The error of a group, nothing if it has no rows."""
    if len(measured):
        ratio = predicted / measured
        off = np.abs(ratio - 1.0)
        yield Error(
            kind, operator, dtype, len(off), float(np.median(off)), float(np.quantile(off, 0.9)), float(np.median(ratio))
        )


def gemm_errors(folder: Path, data: dict[str, Any] | None) -> Iterator[Error]:
    """Matrix products: all, and those above 1 and 10 GFLOP; Vidur's apart."""
    tables = [(key, "gemm", rows) for key, rows in sorted(gemm_rows(folder).items())]
    tables += [(key, "gemm of Vidur (not fitted)", rows) for key, rows in gemm_rows(folder, layers=True).items()]
    for (kind, dtype), name, rows in tables:
        found = Roofline(load_gpu(kind), data).get_time(rows["m"], rows["k"], rows["n"], 1, dtype)
        yield from error(kind, name, dtype, found, rows.seconds)
        for size in (1, 10):
            big = flops(rows) > size * 1e9
            yield from error(kind, f"{name} > {size} GFLOP", dtype, found[big], rows.seconds[big])


def attention_price(kind: str, operator: str, dtype: str, cache: str, rows: Rows, data: dict[str, Any] | None) -> np.ndarray:
    """Seconds of measured attention kernels."""
    queries = np.ones(len(rows)) if operator.startswith("generation") else rows["length"]
    qk, v = {"context_mla": (192, 128), "generation_mla": (576, 512)}.get(operator, (128, 128))
    price = Roofline(load_gpu(kind), data).attention
    return price(
        rows["batch"],
        rows["heads"],
        rows["kv_heads"],
        queries,
        rows["length"],
        qk,
        v,
        True,
        dtype,
        cache,
        operator == "generation_mla",
    )


def attention_errors(folder: Path, data: dict[str, Any] | None) -> Iterator[Error]:
    """Prefill, decode and MLA kernels."""
    for (kind, operator, dtype, cache), every in sorted(attention_rows(folder).items()):
        rows = every.where(sound(operator, every, dtype_size(cache), load_gpu(kind).memory_bandwidth))
        found = attention_price(kind, operator, dtype, cache, rows, data)
        yield from error(kind, operator, f"{dtype}, cache {cache}", found, rows.seconds)
        slow = rows.seconds > 100e-6
        yield from error(kind, f"{operator} > 100 us", f"{dtype}, cache {cache}", found[slow], rows.seconds[slow])


def dtype_size(dtype: str) -> float:
    """Bytes of an element of a cache."""
    return dtype_bytes(dtype)


def moe_price(roofline: Roofline, dtype: str, rows: Rows) -> np.ndarray:
    """A MoE kernel with equal loads: two grouped products, the activation between them, the tokens' way in and out."""
    ungated = (rows["topk"] == 22) | (rows["hidden"] == 2688)
    copies = rows["tokens"] * rows["topk"] / rows["ep"]
    groups = np.minimum(rows["experts"] / rows["ep"], np.maximum(copies, 1.0))
    each = np.maximum(copies / groups, 1.0)
    first = roofline.grouped(each, rows["hidden"], np.where(ungated, 1.0, 2.0) * rows["inter"], groups, dtype)
    second = roofline.grouped(each, rows["inter"], rows["hidden"], groups, dtype)
    moved = copies * rows["inter"] * 6.0 + rows["tokens"] * rows["hidden"] * ROUTE_BYTES
    return np.asarray(first + second + roofline.elementwise(moved))


def moe_errors(folder: Path, data: dict[str, Any] | None) -> Iterator[Error]:
    """MoE kernels by distribution of the tokens; the price assumes equal loads."""
    for (kind, dtype, distribution), rows in sorted(moe_rows(folder).items()):
        yield from error(
            kind, f"moe, {distribution}", dtype, moe_price(Roofline(load_gpu(kind), data), dtype, rows), rows.seconds
        )


def collective_price(kind: str, operation: str, rows: Rows, data: dict[str, Any] | None) -> np.ndarray:
    """Collectives over full nodes, each measurement on the network it was made on."""
    out = np.zeros(len(rows))
    for wire in np.unique(rows["wire"]):
        part = rows["wire"] == wire
        cluster = load_cluster({"nodes": [{"kind": kind, "count": 2}], "network": {"gb_per_s": float(wire) / 1e9}})
        ranks, domains = rows["ranks"][part], rows["domains"][part]
        if operation == "send_recv":
            ranks, domains = np.full_like(ranks, 2.0), np.minimum(domains, 2.0)
        shape = GroupShape(ranks, domains, ranks / domains)
        out[part] = Collectives(cluster, data).time(operation, rows["bytes"][part], shape)
    return out


def collective_errors(folder: Path, data: dict[str, Any] | None) -> Iterator[Error]:
    """Collectives above 1 MB, and the smaller ones."""
    for (kind, operation, tier), rows in sorted(collective_rows(folder).items()):
        found = collective_price(kind, operation, rows, data)
        big = rows["bytes"] > 1e6
        where = "in a domain" if tier == "inside" else tier.replace("network", "over nodes")
        yield from error(kind, f"{operation} {where}, > 1 MB", "", found[big], rows.seconds[big])
        yield from error(kind, f"{operation} {where}, smaller", "", found[~big], rows.seconds[~big])


def errors(folder: Path, data: dict[str, Any] | None = None) -> list[Error]:
    """All errors; `data` is a calibration other than the committed one."""
    families = (gemm_errors, attention_errors, moe_errors, collective_errors)
    return [found for family in families for found in family(folder, data)]


def table(found: list[Error]) -> str:
    """The errors as a Markdown table."""
    lines = ["| GPU | operator | dtype | rows | median | p90 | bias |", "|---|---|---|---:|---:|---:|---:|"]
    lines += [
        f"| {e.kind} | {e.operator} | {e.dtype} | {e.rows} | {e.median:.1%} | {e.p90:.1%} | {e.bias:.2f} |" for e in found
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Errors of the committed prices.")
    parser.add_argument("--truth", type=Path, required=True, help="folder with gemm.csv, kernels.csv and comm.csv")
    print(table(errors(parser.parse_args().truth)))
