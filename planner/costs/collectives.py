"""Collectives: seconds over the actual set of devices, alpha-beta on two tiers, constants fitted to nccl-tests.

Inside one domain: start + step x (hops) + volume / bus bandwidth + a ramp that short messages have not yet paid off.
Across domains a group with g ranks in each drives g network adapters at once (NCCL's rings do, one channel per
adapter), so its volume crosses at g x adapter bandwidth while the scale-up fabric carries the rest.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from planner.cluster import Cluster
from planner.clusters import load_gpu
from planner.costs.calibration import calibration, collective_owner, collectives_measured
from planner.costs.groups import GroupShape, cluster_links
from planner.errors import unknown_name

Array = NDArray[np.float64]
OPERATIONS = ("all_reduce", "all_gather", "reduce_scatter", "all_to_all", "broadcast", "send_recv")


@dataclass(frozen=True, slots=True)
class InsideConstants:
    """One operation inside a domain: `start_s` + `step_s` for every further rank, `bus2`, `bus4`, `bus8` the bus
    bandwidth in bytes/s at 2, 4 and at least 8 ranks, and up to `ramp_s` more, half of it at `ramp_bytes`, which is the
    time that short messages lose to protocols below the full rate.
    """

    start_s: float
    step_s: float
    bus2: float
    bus4: float
    bus8: float
    ramp_s: float
    ramp_bytes: float

    @classmethod
    def of(cls, row: dict[str, Any]) -> InsideConstants:
        """The constants in a row of the calibration file."""
        return cls(**{name: float(value) for name, value in row.items()})


@dataclass(frozen=True, slots=True)
class NetworkConstants:
    """The network: `share` of an adapter's line rate reached (`all_to_all_share` by all-to-all), `start_s`, `hops` link
    latencies for each doubling of the domains, and a ramp as inside.
    """

    share: float
    all_to_all_share: float
    start_s: float
    hops: float
    ramp_s: float
    ramp_bytes: float


def hops(ranks: Array) -> Array:
    """Latency steps: a ring's up to eight ranks, growing with the logarithm beyond (trees)."""
    return np.asarray(np.where(ranks <= 8, ranks - 1.0, 7.0 * np.log2(np.maximum(ranks, 1.0)) / 3.0))


def factor(operation: str, ranks: Array) -> Array:
    """Bytes that cross a link for each byte of the buffer (nccl-tests, PERFORMANCE.md)."""
    if operation == "all_reduce":
        return np.asarray(2.0 * (ranks - 1.0) / ranks)
    if operation in ("broadcast", "send_recv"):
        return np.ones_like(ranks)
    return np.asarray((ranks - 1.0) / ranks)


def inside_seconds(c: InsideConstants, operation: str, moved: Array, ranks: Array, faster: float = 1.0) -> Array:
    """Seconds inside one domain; `faster` is how much faster the link is than the one the constants were fitted on."""
    bus = np.interp(np.log2(np.maximum(ranks, 1.0)), [1.0, 2.0, 3.0], [c.bus2, c.bus4, c.bus8]) * faster
    ramp = c.ramp_s * moved / (moved + c.ramp_bytes)
    return np.asarray(c.start_s + c.step_s * hops(ranks) + factor(operation, ranks) * moved / bus + ramp)


class Collectives:
    """Prices of the collectives of one cluster, in seconds."""

    def __init__(self, cluster: Cluster, data: dict[str, Any] | None = None) -> None:
        self.cluster = cluster
        self._data = calibration() if data is None else data
        self._net = NetworkConstants(**self._data["network"])
        self._links = [self._tier(link.bandwidth, kind) for link, kind in cluster_links(cluster)]
        nodes = max(1, min(len(domain.ranks) for domain in cluster.domains) // cluster.gpus_per_node)
        self._adapters = float(cluster.nics_per_node * nodes)
        self.sources = {
            name: "fitted" if collectives_measured(kind, self._data) else "roofline" for name, kind in cluster.kinds.items()
        }

    def _owner(self, name: str) -> str:
        return collective_owner(self.cluster.kinds[name], self._data)

    def _tier(self, bandwidth: float, name: str) -> tuple[dict[str, InsideConstants], float]:
        """Constants of a scale-up tier, and how much faster it is than the link they were fitted on."""
        owner = self._owner(name)
        usual = load_gpu(owner).scale_up
        table = {op: InsideConstants.of(row) for op, row in self._data["collectives"][owner].items()}
        table.setdefault("broadcast", table["all_gather"])
        return table, bandwidth / usual.bandwidth if usual else 1.0

    def time(self, op: str, moved_bytes: ArrayLike, shape: GroupShape) -> Array:
        """Seconds of one collective; `moved_bytes` is the full buffer as nccl-tests counts it.

        all_reduce and broadcast: the buffer each rank holds; all_gather: the gathered size; reduce_scatter: the input;
        all_to_all: what each rank holds, its own part included (of unequal parts the busiest rank); send_recv: what crosses
        one link.
        """
        if op not in OPERATIONS:
            raise unknown_name("operation", op, OPERATIONS)
        fields = (shape.ranks, shape.domains, shape.per_domain, shape.crossing, shape.narrowest, shape.link)
        arrays = [np.asarray(value, dtype=np.float64) for value in (moved_bytes, *fields)]
        moved, ranks, domains, widest, crossing, narrowest, link = np.broadcast_arrays(*arrays)
        widest = np.where(domains > 1, np.maximum(widest, 1.0), ranks)
        narrowest = np.where(narrowest > 0, narrowest, widest)
        local = self._inside(op, moved, ranks, link)
        if np.any(domains > 1):
            if op == "all_to_all":
                wide = self._exchange(moved, ranks, domains, widest, narrowest, crossing, link, shape)
            else:
                wide = self._across(op, moved, ranks, domains, widest, narrowest, crossing, link)
            local = np.where(domains > 1, wide, local)
        return np.asarray(np.where((ranks > 1) & (moved > 0), local, 0.0))

    def source_of(self, op: str, moved_bytes: float, shape: GroupShape, kind: str) -> str:
        """Where the price of a collective on a GPU kind comes from: `fitted`, or `roofline` (borrowed from another kind)."""
        return self.sources.get(kind, "roofline")

    def _inside(self, op: str, moved: Array, ranks: Array, link: Array) -> Array:
        """Seconds inside a domain, by the scale-up link of each group."""
        first, faster = self._links[0]
        found = inside_seconds(first[op], op, moved, ranks, faster)
        for index, (table, speed) in enumerate(self._links[1:], start=1):
            found = np.where(link == index, inside_seconds(table[op], op, moved, ranks, speed), found)
        return found

    def _adapter_bandwidth(self, used: Array, share: float) -> Array:
        """Bytes/s of one GPU's adapter when `used` GPUs of a domain send at once."""
        shared = np.minimum(1.0, self._adapters / used) if self._adapters else 1.0
        return np.asarray(self.cluster.network.bandwidth * share * shared)

    def _across(
        self, op: str, moved: Array, ranks: Array, domains: Array, widest: Array, narrowest: Array, crossing: Array, link: Array
    ) -> Array:
        """Seconds of a group that spans domains: the network's latency and volume, never less than the fabric inside."""
        net = self._net
        adapter = self._adapter_bandwidth(narrowest * crossing, net.share)
        if op == "send_recv":
            return np.asarray(net.start_s + net.hops * self.cluster.network.latency_s + moved / adapter)
        start = self._network_start(moved, domains)
        local = self._inside(op, moved, np.maximum(widest, 1.0), link)
        ring = factor(op, ranks) * moved / (narrowest * adapter)
        if op == "all_reduce":  # two domains exchange once (NCCL's tree of two) instead of going round a ring
            ring = np.where(domains == 2, moved / (narrowest * adapter), ring)
        return np.asarray(start + np.maximum(ring, np.where(widest > 1, local, 0.0)))

    def _network_start(self, moved: Array, domains: Array) -> Array:
        """Seconds before the volume of a collective over the network counts: its start, its hops, and the ramp."""
        net = self._net
        ramp = net.ramp_s * moved / (moved + net.ramp_bytes)
        return np.asarray(net.start_s + net.hops * self.cluster.network.latency_s * np.log2(domains) + ramp)

    def _exchange(
        self, moved: Array, ranks: Array, domains: Array, widest: Array, narrowest: Array, crossing: Array, link: Array,
        shape: GroupShape,
    ) -> Array:  # fmt: skip
        """Seconds of an all-to-all that spans domains: each rank sends what is not for its own domain over its own adapter, the
        rest inside.
        """
        adapter = self._adapter_bandwidth(narrowest * crossing, self._net.all_to_all_share)
        leaving, staying = np.asarray(shape.outside), np.asarray(shape.inside)
        leaving = np.where(leaving >= 0, leaving, (ranks - narrowest) / ranks) * moved
        staying = np.where(staying >= 0, staying * moved, moved * widest / ranks)
        own = self._inside("all_to_all", staying, widest, link)
        return np.asarray(self._network_start(moved, domains) + np.maximum(leaving / adapter, np.where(widest > 1, own, 0.0)))

    def m2n_time(
        self,
        bytes_per_sender: ArrayLike,
        bytes_per_receiver: ArrayLike,
        senders: ArrayLike,
        receivers: ArrayLike,
        crossing_fraction: ArrayLike,
    ) -> Array:
        """Seconds for disjoint sets of GPUs to send to each other: the slowest sender or receiver decides.

        `crossing_fraction` of each one's bytes leaves its domain over its adapter, the rest stays on the scale-up link.
        """
        values = (bytes_per_sender, bytes_per_receiver, senders, receivers, crossing_fraction)
        sent, received, left, right, crossing = np.broadcast_arrays(*(np.asarray(value, dtype=np.float64) for value in values))
        busiest = np.maximum(sent, received)
        table, faster = self._links[0]
        inside = inside_seconds(table["send_recv"], "send_recv", busiest * (1.0 - crossing), np.full_like(busiest, 2.0), faster)
        peers = table["all_to_all"].step_s * hops(np.maximum(left, right))
        adapter = self.cluster.network.bandwidth * self._net.share * self.cluster.adapters_per_gpu
        wire = self._net.start_s + self._net.hops * self.cluster.network.latency_s + busiest * crossing / adapter
        total = peers + np.maximum(inside, np.where(crossing > 0, wire, 0.0))
        return np.asarray(np.where((busiest > 0) & (left > 0) & (right > 0), total, 0.0))
