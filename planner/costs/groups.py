"""The shape of a group of ranks: all that the price of a collective depends on besides its bytes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from planner.cluster import Cluster, Link

Ints = int | NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class GroupShape:
    """Shape of a group, or of many (arrays that broadcast).

    `ranks` in the group; `domains` it spans; `per_domain` its ranks in the domain that holds most of them; `crossing`
    groups of the same role that leave one domain over the network at the same time (a static contention factor);
    `narrowest` its ranks in the domain that holds fewest, which drive as many network adapters (0: as `per_domain`);
    `link` the slowest scale-up link it touches, as an index of `cluster_links` (0 is the slowest of the cluster).
    """

    ranks: Ints
    domains: Ints = 1
    per_domain: Ints = 0
    crossing: Ints = 1
    narrowest: Ints = 0
    link: Ints = 0


def cluster_links(cluster: Cluster) -> tuple[tuple[Link, str], ...]:
    """The different (scale-up link, GPU kind) pairs of a cluster, slowest first."""
    pairs = {(domain.link, cluster.device_kinds[domain.ranks[0]]) for domain in cluster.domains}
    return tuple(sorted(pairs, key=lambda pair: (pair[0].bandwidth, -pair[0].latency_s, pair[1], pair[0].name)))


def group_shape(cluster: Cluster, family: Sequence[Sequence[int]]) -> GroupShape:
    """The shape that prices a family of same-role groups which run at once: each field is that of its worst member.

    Most ranks, most domains, most ranks in a domain, fewest in the narrowest domain, most groups leaving one domain,
    slowest link: the price is that of the worst member, or above it where no single member is worst in everything.
    """
    order = {pair: index for index, pair in enumerate(cluster_links(cluster))}
    leaving: Counter[int] = Counter()
    ranks = domains = widest = 1
    narrowest = cluster.size
    link = len(order) - 1
    for group in family:
        inside = Counter(cluster.domain_of[rank] for rank in group)
        ranks, domains = max(ranks, len(group)), max(domains, len(inside))
        widest = max(widest, *inside.values())
        if len(inside) > 1:
            leaving.update(inside.keys())
            narrowest = min(narrowest, *inside.values())
        pairs = (cluster.domains[index] for index in inside)
        link = min(link, *(order[(domain.link, cluster.device_kinds[domain.ranks[0]])] for domain in pairs))
    narrowest = min(narrowest, widest)
    return GroupShape(ranks, domains, widest, max(leaving.values(), default=1), narrowest, link)
