"""Cluster: GPUs, NVLink domains and the network between them, as data with units and sources."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from functools import cached_property


@dataclass(frozen=True, slots=True)
class Link:
    """A link as one GPU sees it: bytes/s in one direction and start-up latency in seconds."""

    name: str
    bandwidth: float
    latency_s: float
    source: str


@dataclass(frozen=True, slots=True)
class GpuKind:
    """One kind of GPU.

    `peak_flops` is the dense peak per dtype in FLOP/s, `memory_bytes` what a program can address,
    `memory_bandwidth` in bytes/s. `price_per_hour` is in US dollars, an assumption unless its source says otherwise.
    `scale_up` and `network` are the links of its usual build: `domain_size` GPUs share one scale-up domain,
    `gpus_per_node` share a server (four of the 72 in an NVL72 rack).
    """

    name: str
    memory_bytes: int
    memory_bandwidth: float
    peak_flops: dict[str, float]
    sm_count: int
    source: str
    price_per_hour: float = 0.0
    also_called: tuple[str, ...] = ()
    price_source: str = "assumed"
    generation: str = ""
    scale_up: Link | None = None
    network: Link | None = None
    domain_size: int = 8
    gpus_per_node: int = 8


@dataclass(frozen=True, slots=True)
class Domain:
    """GPUs that reach each other over one scale-up fabric (NVLink, Infinity Fabric, or PCIe inside a server)."""

    ranks: tuple[int, ...]
    link: Link


@dataclass(frozen=True, slots=True)
class Measured:
    """A table of measured times: the text of a CSV, or of a package's own tables (`csv` is empty) the version.

    `name` is what messages call it: the file's name, or `silicon` with a system and a backend.
    """

    name: str
    csv: str = ""
    version: str = ""


@dataclass(frozen=True)
class Cluster:
    """All GPUs by rank: `device_kinds[rank]` names the GPU kind; every rank is in exactly one domain.

    Two tiers: inside a domain its link, between domains `network`: its bandwidth is that of one adapter, and a GPU
    drives one. `nics_per_node` = 0 means an adapter for every GPU; fewer are shared by the GPUs of a node.
    `gemm_tables` are measured times of matrix products and attention by GPU kind, `comm_table` those of collectives.
    """

    name: str
    kinds: dict[str, GpuKind]
    device_kinds: tuple[str, ...]
    domains: tuple[Domain, ...]
    network: Link
    gpus_per_node: int = 8
    sources: tuple[str, ...] = field(default=())
    nics_per_node: int = 0
    gemm_tables: dict[str, Measured] = field(default_factory=dict)
    comm_table: Measured | None = None

    @property
    def size(self) -> int:
        """Number of GPUs."""
        return len(self.device_kinds)

    @cached_property
    def domain_of(self) -> tuple[int, ...]:
        """Index of the domain of each rank."""
        found = [0] * self.size
        for index, domain in enumerate(self.domains):
            for rank in domain.ranks:
                found[rank] = index
        return tuple(found)

    def kind_of(self, rank: int) -> GpuKind:
        """The GPU kind of one rank."""
        return self.kinds[self.device_kinds[rank]]

    @property
    def adapters_per_gpu(self) -> float:
        """Network adapters for each GPU of a node: 1 unless a node has fewer adapters than GPUs."""
        return min(1.0, self.nics_per_node / self.gpus_per_node) if self.nics_per_node else 1.0

    def price_per_hour(self) -> float:
        """Price of all GPUs for one hour, in US dollars."""
        return sum(count * self.kinds[name].price_per_hour for name, count in Counter(self.device_kinds).items())
