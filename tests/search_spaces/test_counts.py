"""The number of pipelines against a listing of them."""

from __future__ import annotations

from itertools import combinations, product

import pytest

from search_spaces.counts import pipelines


def listed(layers: int, kinds: str, counts: tuple[int, ...], options: dict[int, int], use_all: bool) -> int:
    """The same by listing stages' layers and widths."""
    total = 0
    for stages in counts:
        splits = len(list(combinations(range(1, layers), stages - 1)))
        for widths in product(range(1, len(kinds) + 1), repeat=stages):
            firsts = [sum(widths[:at]) for at in range(stages)]
            end = sum(widths)
            alike = all(len(set(kinds[f : f + w])) == 1 for f, w in zip(firsts, widths, strict=True) if f + w <= len(kinds))
            if end <= len(kinds) and alike and (end == len(kinds) or not use_all):
                ways = 1
                for width in widths:
                    ways *= options[width]
                total += splits * ways
    return total


@pytest.mark.parametrize("use_all", [False, True])
@pytest.mark.parametrize("kinds", ["aaaaa", "aabbb", "abaab"])
def test_counts_what_a_listing_counts(kinds: str, use_all: bool) -> None:
    options = {1: 2, 2: 3, 3: 0, 4: 5, 5: 1}
    assert pipelines(4, kinds, (1, 3), options, use_all=use_all) == listed(4, kinds, (1, 3), options, use_all)
