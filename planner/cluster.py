"""Cluster: GPUs, NVLink domains and the network between them, as data with units and sources."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property


@dataclass(frozen=True, slots=True)
class GpuKind:
    """One kind of GPU.

    `peak_flops` is the dense peak per dtype in FLOP/s, `memory_bytes` what a program can address,
    `memory_bandwidth` in bytes/s. `price_per_hour` is in US dollars, an assumption unless its source says otherwise.
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


@dataclass(frozen=True, slots=True)
class Link:
    """A link as one GPU sees it: bytes/s in one direction and start-up latency in seconds."""

    name: str
    bandwidth: float
    latency_s: float
    source: str


@dataclass(frozen=True, slots=True)
class Domain:
    """GPUs that reach each other over one scale-up fabric (NVLink, Infinity Fabric, or PCIe inside a server)."""

    ranks: tuple[int, ...]
    link: Link


@dataclass(frozen=True)
class Cluster:
    """All GPUs by rank: `device_kinds[rank]` names the GPU kind; every rank is in exactly one domain.

    Two tiers: inside a domain its link, between domains `network` (per GPU).
    """

    name: str
    kinds: dict[str, GpuKind]
    device_kinds: tuple[str, ...]
    domains: tuple[Domain, ...]
    network: Link
    gpus_per_node: int = 8
    sources: tuple[str, ...] = field(default=())

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
