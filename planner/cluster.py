"""Cluster: GPUs, NVLink domains and the network between them, as data with units and sources."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

from search_spaces.orders import Node


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
    `gpus` has for every rank the GPU of the cluster's list that it is, where ranks count them in another order; else it is
    empty.
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
    gpus: tuple[int, ...] = ()

    @property
    def size(self) -> int:
        """Number of GPUs."""
        return len(self.device_kinds)

    @property
    def neighbours(self) -> int:
        """GPUs of a scale-up domain, where there are several and all are as large; else 0."""
        sizes = {len(domain.ranks) for domain in self.domains}
        return sizes.pop() if len(sizes) == 1 and len(self.domains) > 1 else 0

    @cached_property
    def domain_of(self) -> tuple[int, ...]:
        """Index of the domain of each rank."""
        found = [0] * self.size
        for index, domain in enumerate(self.domains):
            for rank in domain.ranks:
                found[rank] = index
        return tuple(found)

    @cached_property
    def tiers(self) -> tuple[tuple[Link, str], ...]:
        """Link and GPU kind by which every domain is priced: of several kinds that of most of its GPUs, in whatever order."""
        found = []
        for domain in self.domains:
            counts = Counter(self.device_kinds[rank] for rank in domain.ranks)
            found.append((domain.link, min(counts, key=lambda kind: (-counts[kind], kind))))
        return tuple(found)

    @cached_property
    def nodes(self) -> tuple[Node, ...]:
        """The scale-up domains, whose GPUs stand together in every order."""
        kinds = self.device_kinds
        return tuple(Node(d.ranks, tuple(kinds[rank] for rank in d.ranks), d.link) for d in self.domains)

    def in_order(self, gpus: Sequence[int]) -> Cluster:
        """The same cluster with its GPUs counted in another order, in which every domain stays together; empty: as listed.

        `ValueError` for what is no such order.
        """
        listed = range(self.size)
        wanted = tuple(gpus) or tuple(listed)
        if sorted(wanted) != list(listed):
            raise ValueError(f"every GPU from 0 to {self.size - 1} once")
        rank_now = {gpu: rank for rank, gpu in enumerate(self.gpus or listed)}
        rank_then = {rank_now[gpu]: rank for rank, gpu in enumerate(wanted)}
        domains = [Domain(tuple(sorted(rank_then[rank] for rank in d.ranks)), d.link) for d in self.domains]
        if any(d.ranks[-1] - d.ranks[0] >= len(d.ranks) for d in domains):
            raise ValueError("the GPUs of a scale-up domain side by side")
        kinds = tuple(self.device_kinds[rank_now[gpu]] for gpu in wanted)
        ordered = tuple(sorted(domains, key=lambda d: d.ranks[0]))
        return replace(self, device_kinds=kinds, domains=ordered, gpus=() if wanted == tuple(listed) else wanted)

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
