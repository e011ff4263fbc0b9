"""How many pipelines there are whose stages may begin at any rank."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import comb


def pipelines(layers: int, kinds: Sequence[object], counts: Sequence[int], options: Mapping[int, int], *, use_all: bool) -> int:
    """The number of plans of linear pipelines on ranks of these GPU kinds, of which a stage has one: of as many stages as
    `counts` says, each with layers of its own, given the number of options of a stage of each width.
    """
    stride, allowed = len(kinds), frozenset(counts)
    room = [0] * (stride + 1)  # ranks of one kind from each rank on
    for first in range(stride - 1, -1, -1):
        room[first] = 1 + (room[first + 1] if first + 1 < stride and kinds[first] == kinds[first + 1] else 0)
    ends, total = {0: 1}, 0
    for stages in range(1, max(counts, default=0) + 1):
        following = [0] * (stride + 1)
        for first, ways in ends.items():
            for width in range(1, room[first] + 1):
                following[first + width] += ways * options[width]
        ends = {end: ways for end, ways in enumerate(following) if ways}
        if stages in allowed:
            covered = sum(ways for end, ways in ends.items() if end == stride or not use_all)
            total += comb(layers - 1, stages - 1) * covered
    return total
