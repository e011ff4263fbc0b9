"""Reading published measurements (gemm.csv, kernels.csv, comm.csv) into NumPy columns, and which rows are left out."""

from __future__ import annotations

import csv
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from planner.clusters import load_gpu
from planner.errors import InputError

DTYPES = {
    "bfloat16": "bf16", "float16": "bf16", "fp16": "bf16", "fp8": "fp8", "nvfp4": "nvfp4", "w4a8_mxfp4_mxfp8": "mxfp4",
    "w4a16_mxfp4": "mxfp4",
}  # fmt: skip
ATTENTION = ("context_attention", "context_mla", "generation_attention", "generation_mla")
COLLECTIVES = ("all_reduce", "all_gather", "reduce_scatter", "all_to_all", "broadcast", "send_recv")
L2_BYTES = {"l40s": 96e6}  # its GEMM table repeats one shape with warm operands; data sheet: 96 MB

# What was left out of the fit and of the error tables, and why.
EXCLUSIONS = {
    "l40s gemm": "operands fit in the 96 MB L2 cache and product below 10 GFLOP: faster than its memory could deliver them",
    "generation attention, groups": "more than 16 query heads for a KV head: no grouped kernel there (20-100x slower)",
    "generation attention, bandwidth": "over 105% of the data-sheet bandwidth (A100 table): less was read than stated",
    "collectives, int8": "NCCL's in-switch reduction does not serve it, and models exchange 16-bit numbers",
    "collectives": "rows marked suspect, TensorRT-LLM's own all-reduce, CollNet (needs a plug-in), forced Tree",
    "fp8_block": "block-scaled fp8 GEMMs and MoE are not priced apart",
}


Pair = tuple[tuple[float, ...], float]


def kind_of(gpu: str) -> str | None:
    """The catalog's name of a GPU as sources write it; None for one that it lacks."""
    try:
        return load_gpu(gpu.removesuffix(" (not stated)")).name
    except InputError:
        return None


@dataclass(frozen=True)
class Rows:
    """Columns of equal length; `seconds` is the median of the rows that share all sizes."""

    columns: dict[str, np.ndarray]
    seconds: np.ndarray

    def __getitem__(self, name: str) -> np.ndarray:
        return self.columns[name]

    def where(self, keep: np.ndarray) -> Rows:
        """The rows for which `keep` is true."""
        return Rows({name: column[keep] for name, column in self.columns.items()}, self.seconds[keep])

    def __len__(self) -> int:
        return len(self.seconds)


def gather(names: str, rows: Iterable[tuple[tuple[float, ...], float]]) -> Rows:
    """Rows with equal sizes become one, with the median time."""
    found: dict[tuple[float, ...], list[float]] = defaultdict(list)
    for key, seconds in rows:
        found[key].append(seconds)
    table = np.array(list(found), dtype=float).reshape(len(found), len(names.split()))
    return Rows(dict(zip(names.split(), table.T, strict=True)), np.array([np.median(v) for v in found.values()]))


def timed(rows: Iterable[dict[str, str]], sizes: Callable[[dict[str, str]], tuple[float, ...]], column: str) -> Iterator[Pair]:
    """(sizes, seconds) of rows whose microseconds stand in `column`; rows without sound numbers are left out."""
    for row in rows:
        try:
            pair = sizes(row), float(row[column]) * 1e-6
        except (ValueError, ArithmeticError):
            continue
        if all(0.0 < value < 1e18 for value in (*pair[0], pair[1])):
            yield pair


def read(path: Path, group: Callable[[dict[str, str]], tuple[str, ...] | None]) -> dict[tuple[str, ...], list[dict[str, str]]]:
    """The rows of a CSV by `group` (None: not used)."""
    found: dict[tuple[str, ...], list[dict[str, str]]] = defaultdict(list)
    with path.open(encoding="utf-8", newline="") as stream:
        for row in csv.DictReader(stream):
            key = group(row)
            if key is not None:
                found[key].append(row)
    return dict(found)


def gemm_rows(folder: Path, layers: bool = False) -> dict[tuple[str, str], Rows]:
    """Measured products by (GPU kind, dtype): m, k, n. With `layers`, those of whole models' layers instead of tables.

    Tables are aiconfigurator's and others of bare products. Vidur timed the linear layers of whole models in steps of 1 us,
    overhead of the module included: not fitted to, so an independent test of the A100's constants.
    """

    def group(row: dict[str, str]) -> tuple[str, ...] | None:
        tabled = row["group"].startswith("vidur") == layers
        kind = kind_of(row["gpu"])
        return (kind, DTYPES[row["dtype"]]) if tabled and row["dtype"] in DTYPES and kind is not None else None

    found = {}
    for (kind, dtype), rows in read(folder / "gemm.csv", group).items():
        data = gather("m k n", timed(rows, lambda r: (float(r["m"]), float(r["k"]), float(r["n"])), "time_us"))
        warm = (data["m"] * data["k"] + data["k"] * data["n"]) * 2.0 < L2_BYTES.get(kind, 0.0)
        found[kind, dtype] = data.where(~warm | (flops(data) > 1e10))
    return found


def flops(data: Rows) -> np.ndarray:
    """FLOPs of products."""
    return np.asarray(2.0 * data["m"] * data["k"] * data["n"])


def attention_rows(folder: Path) -> dict[tuple[str, str, str, str], Rows]:
    """Measured attention by (GPU kind, operator, dtype, cache dtype): batch, heads, kv_heads, length."""

    def group(row: dict[str, str]) -> tuple[str, ...] | None:
        kind = kind_of(row["gpu"])
        if row["op"] not in ATTENTION or kind is None or row["dtype"] not in DTYPES or row["kv_dtype"] not in DTYPES:
            return None
        return kind, row["op"], DTYPES[row["dtype"]], DTYPES[row["kv_dtype"]]

    def sizes(row: dict[str, str]) -> tuple[float, ...]:
        heads = float(row["num_heads"])
        kv_heads = float(row["kv_heads"]) if row["kv_heads"] else (1.0 if row["op"] == "generation_mla" else heads)
        length = float(row["step"]) + 1.0 if row["op"].startswith("generation") else float(row["isl"])
        return float(row["batch"]), heads, kv_heads, length

    found = {}
    for key, rows in read(folder / "kernels.csv", group).items():
        found[key] = gather("batch heads kv_heads length", timed(rows, sizes, "latency_us"))
    return found


def moe_rows(folder: Path) -> dict[tuple[str, str, str], Rows]:
    """Measured MoE kernels by (GPU kind, dtype, distribution): tokens, hidden, inter (this GPU's), topk, experts, ep."""

    def group(row: dict[str, str]) -> tuple[str, ...] | None:
        kind = kind_of(row["gpu"])
        used = row["op"] == "moe" and kind is not None and row["dtype"] in DTYPES
        return (kind, DTYPES[row["dtype"]], row["distribution"]) if used and kind is not None else None

    def sizes(row: dict[str, str]) -> tuple[float, ...]:
        inter = float(row["inter"]) / float(row["moe_tp"])
        return (
            float(row["num_tokens"]),
            float(row["hidden"]),
            inter,
            float(row["topk"]),
            float(row["n_experts"]),
            float(row["moe_ep"]),
        )

    found = {}
    for key, rows in read(folder / "kernels.csv", group).items():
        found[key] = gather("tokens hidden inter topk experts ep", timed(rows, sizes, "latency_us"))
    return found


def collective_rows(folder: Path) -> dict[tuple[str, str, str], Rows]:
    """Measured collectives by (GPU kind, operation, `inside`, `network` or `network, EFA`): ranks, domains, bytes, net_gbs."""

    def group(row: dict[str, str]) -> tuple[str, ...] | None:
        other = row["impl"].startswith(("TRT-LLM", "DeepEP")) or row["algo"] in ("CollNet (no SHARP)", "Tree")
        kind = kind_of(row["gpu"])
        if other or kind is None or row["status"] != "ok" or not row["message_bytes"] or row["op"] not in COLLECTIVES:
            return None
        if row["n_nodes"] == "1" or load_gpu(kind).domain_size > 8:
            return None if row["dtype"] == "int8" else (kind, row["op"], "inside")
        return kind, row["op"], "network, EFA" if row["internode"].startswith("EFA") else "network"

    def sizes(row: dict[str, str]) -> tuple[float, ...]:
        domains = 1.0 if load_gpu(kind_of(row["gpu"]) or "h100").domain_size > 8 else float(row["n_nodes"])
        wire = 12.5e9 if "A100" in row["gpu"] else 50e9  # bytes/s for each GPU; the A100 nodes have 800 Gb/s for eight
        return float(row["n_gpus"]), domains, float(row["message_bytes"]), wire

    found = {}
    for key, rows in read(folder / "comm.csv", group).items():
        best: dict[tuple[float, ...], float] = {}
        for size, seconds in timed((r for r in rows if r["algo"]), sizes, "time_us"):  # forced: NCCL would take the fastest
            best[size] = min(best.get(size, np.inf), seconds)
        plain = list(timed((r for r in rows if not r["algo"]), sizes, "time_us"))
        found[key] = gather("ranks domains bytes wire", plain + list(best.items()))
    return found


def sound(operator: str, data: Rows, cache_bytes: float, bandwidth: float) -> np.ndarray:
    """Which attention rows are kept (see EXCLUSIONS); `cache_bytes` of an element, `bandwidth` of the data sheet."""
    if operator != "generation_attention":
        return np.ones(len(data), dtype=bool)
    read = data["batch"] * data["kv_heads"] * data["length"] * 256.0 * cache_bytes / bandwidth
    return np.asarray((data["heads"] <= 16 * data["kv_heads"]) & (read < 1.05 * data.seconds))
