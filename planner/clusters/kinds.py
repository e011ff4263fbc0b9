"""The GPU kinds: one YAML file each in `gpus/`, with the source of every figure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

from planner.cluster import GpuKind, Link
from planner.clusters.reading import mapping, number, read_mapping, text, whole
from planner.errors import InputError, unknown_name
from planner.units import DTYPE_BITS

FOLDER = Path(__file__).parent / "gpus"
GIVEN_LINK = "the cluster file"

# Other words for a kind, so that a name resolves without opening every file (a test keeps them equal to `also_called`).
ALIASES = {
    "a100-sxm-40gb": "a100-40gb",
    "a100-sxm4-40gb": "a100-40gb",
    "a100": "a100-80gb",
    "a100-sxm": "a100-80gb",
    "a100-sxm-80gb": "a100-80gb",
    "a100-sxm4-80gb": "a100-80gb",
    "h100-sxm": "h100",
    "h100-80gb": "h100",
    "h100-sxm-80gb": "h100",
    "h100-sxm5-80gb": "h100",
    "h100-pcie-80gb": "h100-pcie",
    "h200-sxm": "h200",
    "h200-141gb": "h200",
    "h200-sxm-141gb": "h200",
    "h20-sxm": "h20",
    "h20-96gb": "h20",
    "h20-sxm-96gb": "h20",
    "b200-sxm": "b200",
    "b200-sxm-180gb": "b200",
    "b300-sxm": "b300",
    "gb200-nvl72": "gb200",
    "gb300-nvl72": "gb300",
    "l40s-48gb": "l40s",
    "mi300x-192gb": "mi300x",
}

GPU_KEYS = (
    "schema",
    "name",
    "like",
    "also_called",
    "generation",
    "memory_mib",
    "memory_tb_per_s",
    "peak_tflops",
    "sm_count",
    "gpus_per_node",
    "scale_up",
    "network",
    "price_per_gpu_hour",
    "price_source",
    "source",
)
LINK_KEYS = ("name", "gb_per_s", "latency_us", "source", "gpus", "nics_per_node")


def gpu_kinds() -> list[str]:
    """Names of the GPU kinds in the catalog."""
    return sorted(path.stem for path in FOLDER.glob("*.yaml"))


@lru_cache(maxsize=64)
def load_gpu(name: str, field: str = "kind", source: str = "") -> GpuKind:
    """The GPU kind of that name or other name, letter case aside."""
    key = name.strip().lower()
    key = ALIASES.get(key, key)
    if key not in gpu_kinds():
        raise unknown_name(field, name, [*gpu_kinds(), *ALIASES], source)
    path = FOLDER / f"{key}.yaml"
    return gpu_from_mapping(read_mapping(path), "", str(path))


def gpu_from_mapping(data: Mapping[str, Any], field: str, source: str) -> GpuKind:
    """A GPU kind from a mapping; with `like` only what differs from a catalog kind need be given."""
    mapping(data, field, source, GPU_KEYS)
    if "like" in data:
        merged = read_mapping(FOLDER / f"{load_gpu(text(data, 'like', field, source), f'{field}.like', source).name}.yaml")
        own = {key: value for key, value in data.items() if key != "like"}
        for key in ("scale_up", "network", "peak_tflops"):
            if key in own:
                own[key] = merged[key] | mapping(own[key], f"{field}.{key}", source)
        data = merged | {"source": f"like {merged['name']}, changed in {source or 'the cluster'}", "also_called": []} | own
    up = link_from_mapping(data.get("scale_up"), f"{field}.scale_up".lstrip("."), source)
    return GpuKind(
        name=text(data, "name", field, source),
        memory_bytes=whole(data, "memory_mib", field, source, low=1, high=2**40) * 2**20,
        memory_bandwidth=number(data, "memory_tb_per_s", field, source, high=1e6) * 1e12,
        peak_flops=_peaks(data, field, source),
        sm_count=whole(data, "sm_count", field, source, low=1, high=100_000),
        source=text(data, "source", field, source),
        price_per_hour=price(data, "price_per_gpu_hour", field, source),
        also_called=tuple(str(name) for name in data.get("also_called") or ()),
        price_source=text(data, "price_source", field, source, "assumed"),
        generation=text(data, "generation", field, source, ""),
        scale_up=up,
        network=link_from_mapping(data.get("network"), f"{field}.network".lstrip("."), source),
        domain_size=whole(data["scale_up"], "gpus", "scale_up", source, low=1, high=1_048_576, default=8),
        gpus_per_node=whole(data, "gpus_per_node", field, source, low=1, high=1_048_576, default=8),
    )


def price(data: Mapping[str, Any], key: str, field: str, source: str) -> float:
    """A price in US dollars for an hour; zero is allowed."""
    return 0.0 if data.get(key, 0) == 0 else number(data, key, field, source, high=1e6)


def link_from_mapping(value: object, field: str, source: str, base: Link | None = None) -> Link:
    """A link; what is not given is taken from `base`."""
    data = mapping(value, field, source, LINK_KEYS)
    if base is None:
        base = Link("link", number(data, "gb_per_s", field, source, high=1e6) * 1e9, 0.0, "not stated")
    bandwidth = number(data, "gb_per_s", field, source, high=1e6) * 1e9 if "gb_per_s" in data else base.bandwidth
    latency = base.latency_s
    if "latency_us" in data:
        latency = 0.0 if data["latency_us"] == 0 else number(data, "latency_us", field, source, high=1e7) * 1e-6
    changed = "gb_per_s" in data or "latency_us" in data
    origin = text(data, "source", field, source, (source or GIVEN_LINK) if changed else base.source)
    return replace(
        base, name=text(data, "name", field, source, base.name), bandwidth=bandwidth, latency_s=latency, source=origin
    )


def _peaks(data: Mapping[str, Any], field: str, source: str) -> dict[str, float]:
    place = f"{field}.peak_tflops".lstrip(".")
    table = mapping(data.get("peak_tflops"), place, source, DTYPE_BITS)
    if "bf16" not in table:
        raise InputError(place, table, "a mapping that has at least bf16", source)
    return {dtype: number(table, dtype, place, source, high=1e9) * 1e12 for dtype in table}
