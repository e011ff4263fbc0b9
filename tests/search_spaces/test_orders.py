"""Orders of a cluster's GPUs: every one that differs, once; few of them where there are many."""

from __future__ import annotations

from itertools import permutations

import pytest

from search_spaces.orders import MOST_LARGE_ORDERS, MOST_ORDERS, Node, in_ranges, order_rule, orders_of


def nodes(*kinds: str, links: str = "") -> list[Node]:
    """Nodes of GPUs by their kinds: `"ffs"` is a node of two fast GPUs and a slow one."""
    found, start = [], 0
    for at, each in enumerate(kinds):
        found.append(Node(tuple(range(start, start + len(each))), tuple(each), links[at] if links else ""))
        start += len(each)
    return found


def looks(some: list[Node], gpus: tuple[int, ...]) -> tuple[object, ...]:
    """What a cluster looks like rank by rank in an order."""
    home = {gpu: (node, kind) for node in some for gpu, kind in zip(node.gpus, node.kinds, strict=True)}
    ranks = [home[gpu] for gpu in gpus or range(len(home))]
    first = [at for at, (node, _) in enumerate(ranks) if at == 0 or ranks[at - 1][0] is not node]
    return tuple((kind, node.link, at in first) for at, (node, kind) in enumerate(ranks))


@pytest.mark.parametrize(
    ("some", "count"),
    [
        (nodes("ff", "ff", "ff"), 1),
        (nodes("ff", "ff", "ff", "ss"), 4),
        (nodes("ff", "ss", "ll"), 6),
        (nodes("ff", "ff", "f"), 3),
        (nodes("ff", "ff", links="ab"), 2),
        (nodes("fff", "ffs"), 4),
        (nodes("fsf"), 3),
    ],
)
def test_every_order_that_differs_comes_once_and_that_of_the_list_first(some: list[Node], count: int) -> None:
    found = orders_of(some)
    assert found.every
    assert found.gpus[0] == ()
    assert len(found.gpus) == count
    assert len({looks(some, gpus) for gpus in found.gpus}) == count
    whole = set(range(sum(len(node.gpus) for node in some)))
    assert all(set(gpus) == whole for gpus in found.gpus[1:])


def test_no_order_of_the_nodes_is_missing() -> None:
    some = nodes("ff", "ff", "ss", "s")
    every = {looks(some, tuple(gpu for node in line for gpu in node.gpus)) for line in permutations(some)}
    assert {looks(some, gpus) for gpus in orders_of(some).gpus} == every


def test_of_many_orders_those_with_like_nodes_together_are_kept() -> None:
    some = nodes(*["ff"] * 4, *["ss"] * 4)
    found = orders_of(some)
    assert not found.every
    text = {"".join("fs"[gpu > 7] for gpu in gpus[::2]) for gpus in found.gpus[1:]}
    assert text == {"ssssffff", "ffssffss", "ssffssff", "fsfsfsfs", "sfsfsfsf"}
    assert "others are not searched" in order_rule(found, len(found.gpus))[0]


def test_the_number_of_orders_is_bounded_and_lower_on_large_clusters() -> None:
    six = nodes(*("ab", "cd", "ef", "gh", "ij", "kl"))
    assert len(orders_of(six).gpus) == MOST_ORDERS
    large = nodes(*["f" * 8] * 24, *["s" * 8] * 24)
    assert len(orders_of(large).gpus) == MOST_LARGE_ORDERS
    assert len(orders_of(nodes(*["f" * 8] * 2048)).gpus) == 1


def test_what_was_not_searched_is_said() -> None:
    found = orders_of(nodes("ff", "ff", "ss"))
    assert order_rule(orders_of(nodes("ff", "ff")), 1) == ()
    assert "all 3 such orders" in order_rule(found, 3)[0]
    assert "2 of 3 orders" in order_rule(found, 2)[0]
    assert "not tried in another order" in order_rule(found, 1)[0]


def test_numbers_are_written_as_ranges_in_their_order() -> None:
    assert in_ranges((8, 9, 10, 0, 1, 5)) == "8-10, 0-1, 5"
    assert in_ranges(()) == ""
