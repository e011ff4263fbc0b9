"""Pricer: seconds of every operator of the graph on a cluster, and of a whole role, elementwise over rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from planner.cluster import Cluster
from planner.costs.attention import backward_attention
from planner.costs.get_time import GetTime
from planner.costs.groups import GroupShape, Places, arrays_of
from planner.costs.sources import collectives_of, price_sources
from planner.graph.flows import Floor, Flow, Flows
from planner.graph.ops import COLLECTIVES, Group, Kind, Op, Role, Store

Array = NDArray[np.float64]
Ints = NDArray[np.int64]
Site = tuple[int, ...] | range
"""The ranks of a stage, in the order of its grid."""


@dataclass(frozen=True, slots=True)
class Sites:
    """Where rows live: row i runs on the GPUs `places[index[i]]`, all of GPU kind `kind`."""

    places: tuple[Site, ...]
    index: Ints
    kind: str


@dataclass(frozen=True, slots=True)
class RoleBill:
    """What a role costs per row: seconds, weight bytes, peak bytes of live tensors (`at_peak` by store), bytes sent."""

    seconds: Array
    weight_bytes: Array
    peak_bytes: Array
    at_peak: dict[Store, Array]
    sent_bytes: Array
    kv_bytes: Array


class Pricer:
    """Prices operators: compute by the GetTime of each GPU kind, collectives by the actual set of GPUs."""

    def __init__(self, cluster: Cluster, sources: dict[str, GetTime] | None = None) -> None:
        self.cluster = cluster
        self.collectives = collectives_of(cluster)
        self.sources = price_sources(cluster) | (sources or {})
        self.places = Places(cluster)
        self._shapes: dict[tuple[Site, int, int], GroupShape] = {}

    def shape(self, site: Site, stride: int, size: int) -> GroupShape:
        """Shape of the family of groups of `size` GPUs, `stride` places apart, in a stage."""
        key = (site, stride, size)
        if key not in self._shapes:
            self._shapes[key] = self.places.stage_shape(site, stride, size)
        return self._shapes[key]

    def copies_shape(self, devices: Site, replicas: int, stride: int, copies: int) -> GroupShape:
        """Shape of the groups that hold the same weights: every replica's GPU at a place, and in a stage those `tensor`
        places apart, where `copies` = replicas x GPUs of the stage / tensor.
        """
        key = (devices, -replicas, copies)
        if key not in self._shapes:
            inside = max(1, copies // replicas)
            apart = len(devices) // inside
            groups = [
                tuple(rank + r * stride for r in range(replicas) for rank in devices[place::apart]) for place in range(apart)
            ]
            self._shapes[key] = self.places.shape(arrays_of(groups))
        return self._shapes[key]

    def seconds(self, op: Op, sites: Sites) -> Array:
        """Seconds of one operator per row; 0 where it is absent."""
        source = self.sources[sites.kind]
        if op.kind in (Kind.MATMUL, Kind.GROUPED):
            price = source.get_time if op.kind == Kind.MATMUL else source.grouped
            found = price(op.m, op.k, op.n, op.batch, op.dtype)
        elif op.attention is not None:
            a = op.attention
            found = source.attention(
                a.batch, a.heads, a.kv_heads, a.q_len, a.kv_len, a.qk_dim, a.v_dim, a.causal, op.dtype, a.kv_dtype, a.shared_kv
            )
            if op.kind == Kind.ATTENTION_BACKWARD:
                found = backward_attention(found, a.qk_dim, a.v_dim)
        elif op.kind in COLLECTIVES:
            if op.group is None:
                raise ValueError(f"collective {op.name} has no group")
            name = op.kind.value
            found = self.collectives.time(name, op.bytes, self.op_shapes(op, op.group, sites))
        else:
            found = source.elementwise(op.bytes)
        return np.where(np.asarray(op.exists, dtype=bool), found, 0.0)

    def _each(self, role: Role, sites: Sites) -> list[Array]:
        """Seconds of every operator; those that are given the very same sizes, as the steps of a ring are, are priced once."""
        known: dict[tuple[object, ...], Array] = {}
        found = []
        for op in role.ops:
            same = (op.m, op.k, op.n, op.batch, op.attention, op.group, op.bytes, op.exists, op.flows)
            key = (op.kind, op.dtype, *map(id, same))
            if key not in known:
                known[key] = self.seconds(op, sites)
            found.append(known[key])
        return found

    def role_seconds(self, role: Role, sites: Sites) -> Array:
        """Seconds of a role per row: the longest path over both streams."""
        return longest_path(role, [np.broadcast_to(found, sites.index.shape) for found in self._each(role, sites)])

    def bill(self, role: Role, sites: Sites) -> RoleBill:
        """Seconds, memory and traffic of a role per row."""
        rows, seconds = sites.index.shape, self.role_seconds(role, sites)
        weights, sent = np.zeros(rows), np.zeros(rows)
        for op in role.ops:
            for shard in op.weights:
                weights = weights + shard.bytes
            if op.group is not None:
                size = np.asarray(op.group.size, dtype=np.float64)
                sent = sent + np.asarray(op.bytes) * np.asarray(op.exists) * (size > 1)
        peak, at_peak = live_peak(role, rows)
        return RoleBill(seconds, weights, peak, at_peak, np.broadcast_to(sent, rows), np.broadcast_to(role.kv_bytes, rows))

    def op_shapes(self, op: Op, group: Group, sites: Sites) -> GroupShape:
        """The shapes that price a collective over `group`, of all rows as arrays."""
        shapes = self.group_shapes(group, sites, op.kind == Kind.SEND)
        if op.flows is None:
            return shapes
        return self._with_parts(
            shapes, np.broadcast_to(np.asarray(op.bytes, dtype=np.float64), sites.index.shape), sites, op.flows
        )

    def group_shapes(self, group: Group, sites: Sites, pairwise: bool) -> GroupShape:
        """The group shapes of all rows as arrays; a pairwise transfer counts as two ranks."""
        rows = sites.index.shape
        stride, size = np.broadcast_to(group.stride, rows), np.broadcast_to(group.size, rows)
        base = 1 + int(max(stride.max(initial=1), size.max(initial=1)))
        keys, inverse = np.unique((sites.index * base + stride) * base + size, return_inverse=True)
        found = [self.shape(sites.places[int(k) // base // base], int(k) // base % base, int(k) % base) for k in keys]
        ranks, domains = [s.ranks for s in found], [s.domains for s in found]
        widest = [s.per_domain for s in found]
        if pairwise:
            ranks, domains, widest = [min(2, r) for r in ranks], [min(2, d) for d in domains], [1] * len(found)
        columns = (ranks, domains, widest, [s.crossing for s in found], [s.narrowest for s in found], [s.link for s in found])
        return GroupShape(*(np.asarray(column)[inverse] for column in columns))

    def _with_parts(self, shapes: GroupShape, moved: Array, sites: Sites, flows: Flows) -> GroupShape:
        """The shapes of all rows with what their flows send out of a domain and keep inside, as parts of the bytes `moved`."""
        across = np.nonzero((np.asarray(shapes.domains) > 1) & (moved > 0))[0]
        if not across.size:
            return shapes
        pairs, inverse = np.unique(np.stack([sites.index[across], flows.of[across]], axis=1), axis=0, return_inverse=True)
        found = np.array([self._parts(sites.places[site], flows.kinds[kind]) for site, kind in pairs.tolist()])[inverse.ravel()]
        parts = np.full((2, sites.index.size), -1.0)
        scale = flows.own_bytes[across] / moved[across]
        parts[:, across] = np.where(found < 0, -1.0, np.minimum(found * scale[:, None], 1.0)).T
        return replace(shapes, outside=parts[0], inside=parts[1])

    def _parts(self, site: Site, flow: Flow | Floor | None) -> tuple[float, float]:
        return (-1.0, -1.0) if flow is None else flow.parts(self.places.pattern(site))


def longest_path(role: Role, durations: Sequence[Array]) -> Array:
    """When the last operator of a role ends: streams run in order, and an operator waits for its inputs."""
    free: dict[str, Array] = {}
    ready: dict[str, Array] = {}
    for op, duration in zip(role.ops, durations, strict=True):
        start = free.get(op.stream, np.zeros(()))
        for name in op.inputs:
            if name in ready:
                start = np.maximum(start, ready[name])
        free[op.stream] = ready[op.output.name] = start + duration
    return np.asarray(np.maximum(free.get("compute", 0.0), free.get("transfer", 0.0)))


def live_peak(role: Role, rows: tuple[int, ...]) -> tuple[Array, dict[Store, Array]]:
    """Most bytes of tensors alive at once while a role runs, and what they are at that moment, per row.

    A tensor lives from its producer to its last reader; the residual input `x` lives throughout.
    """
    last: dict[str, int] = {name: at for at, op in enumerate(role.ops) for name in op.inputs}
    sizes: dict[str, tuple[Array, Store]] = {} if role.x is None else {role.x.name: (role.x.bytes, role.x.store)}
    alive = dict(sizes)
    peak = np.full(rows, -1.0)
    at_peak = {store: np.zeros(rows) for store in Store}
    for at, op in enumerate(role.ops):
        if op.output.store == Store.GRADIENT:  # accumulated where it stays
            continue
        present = np.asarray(op.exists, dtype=np.float64)
        if op.group is not None:
            present = present * (np.asarray(op.group.size) > 1)
        held = sizes.get(op.output.name, (np.zeros(()), op.output.store))[0]
        alive[op.output.name] = sizes[op.output.name] = (np.maximum(held, op.output.bytes * present), op.output.store)
        alive = {name: tensor for name, tensor in alive.items() if last.get(name, at) >= at}
        now: dict[Store, Array] = {}
        for amount, store in alive.values():
            now[store] = now.get(store, np.zeros(())) + amount
        total = np.broadcast_to(np.asarray(sum(now.values())), rows)
        higher = total > peak
        if higher.any():
            peak = np.where(higher, total, peak)
            at_peak = {store: np.where(higher, now.get(store, 0.0), at_peak[store]) for store in Store}
    return np.maximum(peak, 0.0), at_peak
