"""The shape of a group of ranks: all that the price of a collective depends on besides its bytes."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from planner.cluster import Cluster, Link

Array = NDArray[np.int64]
Ints = int | Array
Parts = float | NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class GroupShape:
    """Shape of a group, or of many (arrays that broadcast).

    `ranks` in the group; `domains` it spans; `per_domain` its ranks in the domain that holds most of them; `crossing`
    groups of the same role that leave one domain over the network at the same time (a static contention factor);
    `narrowest` its ranks in the domain that holds fewest, which drive as many network adapters (0: as `per_domain`);
    `link` the slowest scale-up link it touches, as an index of `cluster_links` (0 is the slowest of the cluster). Of an
    all-to-all that sends more to some than to others: `outside` is the most bytes that leave a rank's domain, or come from
    another, and `inside` the most that stay, both as parts of the bytes of the busiest rank (below 0: as many to every rank).
    """

    ranks: Ints
    domains: Ints = 1
    per_domain: Ints = 0
    crossing: Ints = 1
    narrowest: Ints = 0
    link: Ints = 0
    outside: Parts = -1.0
    inside: Parts = -1.0

    def at(self, row: int) -> GroupShape:
        """The shape of one row of many, in plain numbers."""
        counts = (self.ranks, self.domains, self.per_domain, self.crossing, self.narrowest, self.link)
        parts = (self.outside, self.inside)
        return GroupShape(*(int(_one(x, row)) for x in counts), *(float(_one(x, row)) for x in parts))


def _one(value: Ints | Parts, row: int) -> float:
    array = np.asarray(value)
    return float(array if array.ndim == 0 else array[row])


def cluster_links(cluster: Cluster) -> tuple[tuple[Link, str], ...]:
    """The different (scale-up link, GPU kind) pairs of a cluster, slowest first."""
    return tuple(sorted(set(cluster.tiers), key=lambda pair: (pair[0].bandwidth, -pair[0].latency_s, pair[1], pair[0].name)))


class Places:
    """Where the ranks of a cluster are: domain of each rank [ranks] and link of each domain [domains], as arrays."""

    def __init__(self, cluster: Cluster) -> None:
        order = {pair: index for index, pair in enumerate(cluster_links(cluster))}
        self.size, self.links = cluster.size, len(order)
        self.link_of = np.array([order[tier] for tier in cluster.tiers])
        self.domain_of = np.asarray(cluster.domain_of)

    def pattern(self, ranks: Sequence[int]) -> tuple[int, ...]:
        """Which of some ranks share a domain: their domains in turn, numbered as they appear."""
        number: dict[int, int] = {}
        return tuple(number.setdefault(domain, len(number)) for domain in self.domain_of[np.asarray(ranks)].tolist())

    def look(self, ranks: Sequence[int]) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """What the price of a stage of one GPU kind depends on: which of its ranks share a domain, and the domains' links."""
        domains = dict.fromkeys(self.domain_of[np.asarray(ranks)].tolist())
        return self.pattern(ranks), tuple(self.link_of[list(domains)].tolist())

    def shape(self, family: Sequence[Array]) -> GroupShape:
        """The shape that prices a family of same-role groups which run at once, given as arrays [groups, ranks of a group].

        Each field is that of its worst member: most ranks, most domains, most ranks in a domain, fewest in the narrowest
        domain, most groups leaving one domain, slowest link. So the price is that of the worst member, or above it where
        no single member is worst in everything.
        """
        leaving = np.zeros(self.link_of.size, dtype=np.int64)
        ranks = domains = widest = 1
        narrowest, link = self.size, self.links - 1
        for groups in family:
            inside = np.sort(self.domain_of[groups], axis=1)  # equal domains side by side, group after group
            first = np.ones(inside.shape, dtype=bool)
            first[:, 1:] = inside[:, 1:] != inside[:, :-1]
            begin = np.nonzero(first.ravel())[0]
            owner, found = begin // groups.shape[1], np.diff(np.append(begin, inside.size))  # of every (group, domain)
            spans = np.bincount(owner, minlength=len(groups))
            ranks, domains, widest = max(ranks, groups.shape[1]), max(domains, int(spans.max())), max(widest, int(found.max()))
            across = spans[owner] > 1
            leaving += np.bincount(inside.ravel()[begin[across]], minlength=leaving.size)
            narrowest = min(narrowest, int(found[across].min(initial=narrowest)))
            link = min(link, int(self.link_of[inside].min()))
        return GroupShape(ranks, domains, widest, max(1, int(leaving.max())), min(narrowest, widest), link)

    def stage_shape(self, site: Sequence[int], stride: int, size: int) -> GroupShape:
        """The shape of the groups of `size` places, `stride` apart, that partition the places of a stage."""
        places = np.arange(site.start, site.stop) if isinstance(site, range) else np.asarray(site, dtype=np.int64)
        block = stride * size
        whole = places.size - places.size % block
        family = [places[:whole].reshape(-1, size, stride).transpose(0, 2, 1).reshape(-1, size)]
        each, more = divmod(places.size - whole, stride)  # the first groups of the rest have one rank more than the others
        for first, count, length in ((0, more, each + 1), (more, stride - more, each)):
            at = whole + first + np.arange(count)[:, None] + stride * np.arange(length)[None, :]
            family.append(places[at])
        return self.shape([groups for groups in family if groups.size])


def group_shape(cluster: Cluster, family: Sequence[Sequence[int]]) -> GroupShape:
    """The shape that prices a family of same-role groups which run at once (see `Places.shape`)."""
    return Places(cluster).shape(arrays_of(family))


def arrays_of(family: Iterable[Sequence[int]]) -> list[Array]:
    """Groups of equal size as one array [groups, ranks of a group] each."""
    sizes: dict[int, list[Sequence[int]]] = {}
    for group in family:
        sizes.setdefault(len(group), []).append(group)
    return [np.array(groups, dtype=np.int64) for groups in sizes.values()]
