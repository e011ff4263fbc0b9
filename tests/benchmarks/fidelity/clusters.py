"""The machine of a truth row as a cluster: a GPU of our catalog, or one built from the row of `gpus.csv`."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

from planner.cluster import Cluster
from planner.clusters import load_cluster
from planner.clusters.kinds import gpu_from_fields, load_gpu
from planner.errors import InputError
from planner.fields import Fields
from tests.benchmarks.fidelity.rows import Row, Table, Unusable, positive, text, whole

# SMs (compute units) of GPUs that the catalog lacks, from data sheets; others are taken to be like their relative.
SMS = {"V100": 80, "H100-PCIE": 114, "H100-NVL": 132, "GH200": 132, "H800": 132, "MI250": 208, "MI325X": 304, "MI355X": 256,
       "RTX-PRO-6000": 188}  # fmt: skip
# The catalog kind whose fitted constants a generation borrows (its letters in `planner/costs/calibration.py`), and its SMs.
GENERATIONS = {"volta": ("ampere", 80), "ampere": ("ampere", 108), "ada": ("ada", 142), "hopper": ("hopper", 132),
               "blackwell": ("blackwell", 148), "blackwell ultra": ("blackwell", 148), "cdna2": ("cdna3", 208),
               "cdna3": ("cdna3", 304), "cdna4": ("cdna3", 256)}  # fmt: skip


class Machines:
    """Clusters by GPU name, with the hardware table of the truth directory for GPUs that the catalog does not know."""

    def __init__(self, gpus: Table) -> None:
        self._known = {name.lower(): row for row in gpus.rows for name in (text(row, "gpu"), text(row, "also_called")) if name}
        self._build = lru_cache(maxsize=1024)(self._cluster)
        self.networked: dict[tuple[str, int, str], Cluster] = {}  # by name, GPUs and the words for the network of a row

    def cluster(self, gpu: str, ranks: int, per_node: int) -> Cluster | Unusable:
        """`ranks` GPUs at least, in nodes of `per_node` (0: the usual)."""
        return self._build(gpu, ranks, per_node)

    def domain(self, gpu: str) -> int:
        """GPUs of the scale-up domain of a kind; 0 where it is unknown."""
        found = self._kind(gpu)
        return 0 if isinstance(found, Unusable) else max(found[2], 1)

    def _cluster(self, gpu: str, ranks: int, per_node: int) -> Cluster | Unusable:
        found = self._kind(gpu)
        if isinstance(found, Unusable):
            return found
        name, customs, domain, usual = found
        node = min(per_node or usual, max(domain, usual), ranks)
        nodes = {"kind": name, "count": -(-ranks // node), "gpus": node}
        if domain > usual and ranks > domain:  # jobs take as many GPUs of every rack: 64 of 72
            node = 1 << (domain.bit_length() - 1)
            nodes = {"kind": name, "count": -(-ranks // node), "gpus": node, "gpus_per_domain": node}
        mapping: dict[str, Any] = {"name": f"{nodes['count']}x{node}-{name}", "nodes": [nodes]}
        if customs:
            mapping["kinds"] = customs
        try:
            return load_cluster(mapping)
        except InputError as error:
            return Unusable(f"no cluster of {gpu}: {error.field}")

    def _kind(self, gpu: str) -> tuple[str, dict[str, Any], int, int] | Unusable:
        """Kind name, its mapping where it is not of the catalog, GPUs of a domain, GPUs of a node."""
        plain = gpu.removesuffix(" (not stated)").strip()
        try:
            kind = load_gpu(plain)
            return kind.name, {}, max(kind.domain_size, 1), kind.gpus_per_node
        except InputError:
            row = self._known.get(plain.lower())
        if not plain:
            return Unusable("GPU not stated")
        if row is None:
            return Unusable(f"GPU {plain}: neither in the catalog nor in gpus.csv")
        mapping = custom_kind(plain, row)
        if isinstance(mapping, Unusable):
            return mapping
        return mapping["name"], {mapping["name"]: mapping}, whole(row, "scaleup_domain_gpus", 1), mapping["gpus_per_node"]


def custom_kind(gpu: str, row: Row) -> dict[str, Any] | Unusable:
    """A GPU kind from its row of `gpus.csv`; constants are borrowed from its generation."""
    known = GENERATIONS.get(text(row, "generation").lower())
    peak, memory, bandwidth = (positive(row, name) for name in ("peak_bf16_dense_tflops", "hbm_gb", "hbm_tbs"))
    if known is None:
        return Unusable(f"GPU {gpu}: no price for its generation ({text(row, 'generation') or 'not stated'})")
    if peak is None or memory is None or bandwidth is None:
        return Unusable(f"GPU {gpu}: gpus.csv lacks its peak, memory or bandwidth")
    sms = next((count for name, count in SMS.items() if gpu.upper().startswith(name)), known[1])
    peaks = {"bf16": peak, "fp16": peak}
    for dtypes, column in ((("fp8", "int8"), "peak_fp8_dense_tflops"), (("nvfp4", "mxfp4"), "peak_fp4_dense_tflops")):
        narrow = positive(row, column)
        peaks |= dict.fromkeys(dtypes, narrow) if narrow else {}
    domain = whole(row, "scaleup_domain_gpus", 1)
    mapping = {
        "name": gpu.lower(),
        "generation": known[0],
        "memory_mib": int(memory * 1e9 / 2**20),
        "memory_tb_per_s": bandwidth,
        "peak_tflops": peaks,
        "sm_count": sms,
        "gpus_per_node": 4 if domain > 8 else 8,
        "scale_up": {"gb_per_s": positive(row, "scaleup_gbs_per_direction") or 25.0, "latency_us": 3.0, "gpus": max(domain, 8)},
        "network": {"gb_per_s": positive(row, "network_gbs_per_gpu") or 25.0, "latency_us": 5.0},
        "source": "gpus.csv",
    }
    gpu_from_fields(Fields(mapping, "gpus.csv", "kinds"))
    return mapping
