"""The GPU kinds: one YAML file each in `gpus/`, with the source of every figure."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

from planner.cluster import GpuKind, Link
from planner.errors import unknown_name
from planner.fields import Fields
from planner.files import read_yaml
from planner.units import DTYPE_BITS

MOST_GPUS = 1_048_576
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
    return gpu_from_fields(Fields(read_yaml(path), str(path)))


def gpu_from_fields(data: Fields) -> GpuKind:
    """A GPU kind from a mapping; with `like` only what differs from a catalog kind need be given."""
    if data.has("like"):
        data = _merged(data)
    data.ignore(("schema", "like"))
    up, out = data.mapping("scale_up"), data.mapping("network")
    peaks = data.mapping("peak_tflops")
    kind = GpuKind(
        name=data.text("name"),
        memory_bytes=data.integer("memory_mib", low=1) * 2**20,
        memory_bandwidth=data.number("memory_tb_per_s", low=1e-6, high=1e6) * 1e12,
        peak_flops={dtype: peaks.number(dtype, low=1e-6, high=1e9) * 1e12 for dtype in DTYPE_BITS if peaks.has(dtype)},
        sm_count=data.integer("sm_count", low=1, high=100_000),
        source=data.text("source"),
        price_per_hour=data.number("price_per_gpu_hour", high=1e6, default=0.0),
        also_called=tuple(data.texts("also_called", default=())),
        price_source=data.text("price_source", default="assumed"),
        generation=data.text("generation", default=""),
        scale_up=link_from_fields(up),
        network=link_from_fields(out),
        domain_size=up.integer("gpus", low=1, high=MOST_GPUS, default=8),
        gpus_per_node=data.integer("gpus_per_node", low=1, high=MOST_GPUS, default=8),
    )
    if "bf16" not in kind.peak_flops:
        raise peaks.error("bf16", "the dense bf16 peak in TFLOP/s")
    for part in (data, up, out, peaks):
        part.done()
    return kind


def _merged(data: Fields) -> Fields:
    """The fields of the catalog kind that `like` names, overlaid with those given."""
    base = load_gpu(data.text("like"), data.at("like"), data.source).name
    merged = read_yaml(FOLDER / f"{base}.yaml") | {"source": f"like {base}, changed in {data.source or 'the cluster'}"}
    own = dict(data.values)
    for key in ("scale_up", "network", "peak_tflops"):
        nested, usual = data.maybe_mapping(key), merged[key]
        if nested is not None and isinstance(usual, dict):
            own[key] = usual | dict(nested.values)
    return Fields(merged | {"also_called": []} | own, data.source, data.path)


def link_from_fields(data: Fields, base: Link | None = None) -> Link:
    """A link; what is not given is taken from `base`."""
    slowest = 1e-6  # GB/s
    if base is None:
        base = Link("link", data.number("gb_per_s", low=slowest, high=1e6) * 1e9, 0.0, "not stated")
    changed = data.has("gb_per_s") or data.has("latency_us")
    return Link(
        name=data.text("name", default=base.name),
        bandwidth=data.number("gb_per_s", low=slowest, high=1e6) * 1e9 if data.has("gb_per_s") else base.bandwidth,
        latency_s=data.number("latency_us", high=1e7) * 1e-6 if data.has("latency_us") else base.latency_s,
        source=data.text("source", default=(data.source or GIVEN_LINK) if changed else base.source),
    )
