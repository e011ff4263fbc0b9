"""Attention of one batch part for all: parts that lie alike in their nodes do the same, and are priced once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from operator import attrgetter

import numpy as np

from planner.cluster import Cluster
from planner.costs.pricer import Site
from planner.graph.rows import Ints
from search_spaces.attention import AttentionPartition

_REST = attrgetter(*(field.name for field in fields(AttentionPartition) if field.name != "batch_parts"))
"""All fields of a partition but its batch parts."""


@dataclass(frozen=True)
class Attentions:
    """The different cases of attention [N]: place, sequences of a micro-batch, partition; `of` [cases] is the one of each."""

    site: Ints
    sequences: Ints
    option: Ints
    of: Ints
    places: tuple[Site, ...]
    partitions: tuple[AttentionPartition, ...]


def node_size(cluster: Cluster) -> int:
    """GPUs of a node where all nodes are alike, else 0."""
    first = cluster.domains[0]
    alike = all(len(d.ranks) == len(first.ranks) and d.link == first.link for d in cluster.domains)
    return len(first.ranks) if alike and len(cluster.kinds) == 1 else 0


def attentions(
    cluster: Cluster,
    places: tuple[Site, ...],
    partitions: Sequence[AttentionPartition],
    site: Ints,
    sequences: Ints,
    option: Ints,
) -> Attentions:
    """The different ones of some cases [cases], each of which its partition can split.

    No group of attention has ranks of two batch parts. On a range of ranks from the beginning of a node a part that is whole
    nodes, or a divisor of one, costs what it would alone on the first ranks; so would the whole stage.
    """
    every, all_places, node = list(partitions), places, node_size(cluster)
    whole = np.array([isinstance(p, range) and node > 0 and p.start % min(node, len(p)) == 0 for p in places], dtype=bool)
    if whole.any():
        alone = _alone(every)
        parts = np.array([p.batch_parts for p in every], dtype=np.int64)[option]
        ways = np.array([len(p) for p in places], dtype=np.int64)[site] // parts
        swap = whole[site] & ((ways % node == 0) | (node % np.maximum(ways, 1) == 0))
        widths = np.unique(ways[swap])
        number = np.searchsorted(widths, ways)
        site, sequences = np.where(swap, len(places) + number, site), np.where(swap, sequences // parts, sequences)
        option, all_places = np.where(swap, alone[option], option), (*places, *(range(width) for width in widths.tolist()))
    sizes, count = int(sequences.max(initial=0)) + 1, len(every)
    first, of = np.unique((site * sizes + sequences) * count + option, return_index=True, return_inverse=True)[1:]
    return Attentions(site[first], sequences[first], option[first], of.ravel(), all_places, tuple(every))


def _alone(partitions: list[AttentionPartition]) -> Ints:
    """Of each partition the number of that of one of its batch parts; those that are new are added to the list."""
    number, found = {_REST(p): i for i, p in enumerate(partitions) if p.batch_parts == 1}, []
    for p in list(partitions):
        rest = _REST(p)
        if rest not in number:
            number[rest] = len(partitions)
            partitions.append(replace(p, batch_parts=1))
        found.append(number[rest])
    return np.array(found + list(range(len(found), len(partitions))), dtype=np.int64)
