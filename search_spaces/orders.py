"""Orders of a cluster's GPUs: ranks may count nodes that differ in any order, since stages stand on consecutive ranks.

Nodes that look alike may change places without a difference, so a cluster of equal nodes has one order. Where there are too
many, those are kept in which nodes of a make stand side by side, once or in equal blocks one after another (one block for
each replica).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, islice, permutations, product
from math import factorial, gcd, prod
from typing import TypeVar

from search_spaces.sizes import LARGE_CLUSTER, divisors

MOST_ORDERS, MOST_LARGE_ORDERS = 24, 8
"""Orders of a cluster's GPUs that a search goes through, at most: on small clusters, and on large ones."""
Ranks = tuple[int, ...]
Item = TypeVar("Item")


@dataclass(frozen=True, slots=True)
class Node:
    """GPUs that stand together whatever the order: their numbers in the cluster's list, the kind of each, and what else tells
    the node apart (its link).
    """

    gpus: Ranks
    kinds: tuple[Hashable, ...]
    link: Hashable = None

    @property
    def look(self) -> Hashable:
        """What a plan sees of the node where its GPUs stand as listed."""
        return self.link, self.kinds

    @property
    def make(self) -> Hashable:
        """What a plan sees of the node, the order of its GPUs apart."""
        return self.link, frozenset(Counter(self.kinds).items())

    def turned(self) -> tuple[Node, ...]:
        """The node with its GPUs as listed, and with those of a kind side by side, once or in equal blocks."""
        groups: dict[Hashable, list[int]] = {}
        for gpu, kind in zip(self.gpus, self.kinds, strict=True):
            groups.setdefault(kind, []).append(gpu)
        kind_of, found = dict(zip(self.gpus, self.kinds, strict=True)), {self.look: self}
        for gpus in _blocks(groups):
            node = Node(gpus, tuple(kind_of[gpu] for gpu in gpus), self.link)
            found.setdefault(node.look, node)
        return tuple(found.values())


@dataclass(frozen=True, slots=True)
class Orders:
    """The orders that a search goes through, each as the cluster's GPUs rank by rank (that of the cluster's list comes first
    and is empty), and whether they are all there are.
    """

    gpus: tuple[Ranks, ...] = ((),)
    every: bool = True


COUNTED = "ranks count the cluster's GPUs node by node (a scale-up domain each)"
LISTED_RULE = f"{COUNTED} as it lists them; nodes that differ were not tried in another order"
"""What is said where other orders would be possible and were not searched."""
FRONT_RULE = f"{COUNTED} in the order of the best plan for the first objective; others were tried for that objective alone"
"""What is said of a front, whose other points are those of one order."""


def order_rule(orders: Orders, searched: int) -> tuple[str, ...]:
    """What is left out of the orders of the GPUs, in words; nothing where there is one."""
    total = len(orders.gpus)
    if total == 1:
        return ()
    if searched == 1:
        return (LISTED_RULE,)
    if searched < total:
        return (f"{COUNTED} in {searched} of {total} orders; the time was over before the others",)
    if orders.every:
        return (
            f"{COUNTED} in any order, in a node of several kinds of GPU as listed, or those of a kind side by side, once or in "
            f"equal blocks: all {total} such orders that differ are searched, and of those that tie the first counts",
        )
    return (
        f"{COUNTED} in {total} orders: as it lists them, and with nodes that are alike side by side, once or in equal blocks; "
        "others are not searched, and of those that tie the first counts",
    )


def orders_of(nodes: Sequence[Node]) -> Orders:
    """The different orders of a cluster's nodes, or a choice of them where they are many."""
    makes = Counter(node.make for node in nodes)
    if len(makes) == 1 and len(set(nodes[0].kinds)) == 1:
        return Orders()
    turned = {node: node.turned() for node in nodes if len(set(node.kinds)) > 1}
    total = factorial(len(nodes)) // prod(map(factorial, makes.values())) * prod(map(len, turned.values()))
    most = MOST_LARGE_ORDERS if sum(len(node.gpus) for node in nodes) > LARGE_CLUSTER else MOST_ORDERS
    every = total <= most
    if every:
        found = (order for line in _lines(nodes) for order in product(*(turned.get(node, (node,)) for node in line)))
    else:
        ways = max(map(len, turned.values()), default=1)
        found = (
            tuple(_turn(turned.get(node, (node,)), way) for node in line)
            for line in _blocks(_by_make(nodes))
            for way in range(ways)
        )
    own = tuple(nodes)
    distinct = {tuple(node.look for node in own): own}
    for order in found:
        distinct.setdefault(tuple(node.look for node in order), order)
        if len(distinct) == most:
            break
    some = islice(distinct.values(), 1, None)
    return Orders(((), *(tuple(chain.from_iterable(node.gpus for node in order)) for order in some)), every)


def _lines(nodes: Sequence[Node]) -> Iterator[tuple[Node, ...]]:
    """Every different sequence of the nodes; those of a make come in the order of the list."""

    def extend(done: tuple[Node, ...], left: dict[Hashable, tuple[Node, ...]]) -> Iterator[tuple[Node, ...]]:
        if not left:
            yield done
        for make, (first, *rest) in left.items():
            others = {m: some for m, some in left.items() if m != make or rest}
            yield from extend((*done, first), others | ({make: tuple(rest)} if rest else {}))

    yield from extend((), _by_make(nodes))


def _blocks(groups: Mapping[Hashable, Sequence[Item]]) -> Iterator[tuple[Item, ...]]:
    """Things in one block or in several equal ones, in each those of a group side by side, the groups in every order."""
    counts = divisors(gcd(*map(len, groups.values())))
    for blocks in chain.from_iterable(zip(counts, reversed(counts), strict=True)):  # the fewest, the most, and so on
        for order in islice(permutations(groups), MOST_ORDERS):
            cuts = {name: len(groups[name]) // blocks for name in order}
            yield tuple(
                item for b in range(blocks) for name in order for item in groups[name][b * cuts[name] : (b + 1) * cuts[name]]
            )


def _turn(turned: tuple[Node, ...], way: int) -> Node:
    """One of the ways in which a node may be turned."""
    return turned[min(way, len(turned) - 1)]


def _by_make(nodes: Sequence[Node]) -> dict[Hashable, tuple[Node, ...]]:
    """The nodes of every make."""
    found: dict[Hashable, list[Node]] = {}
    for node in nodes:
        found.setdefault(node.make, []).append(node)
    return {make: tuple(some) for make, some in found.items()}


def in_ranges(numbers: Sequence[int]) -> str:
    """Numbers in their order, those that follow each other as a range: `0-7, 16-23, 8`."""
    parts: list[list[int]] = []
    for number in numbers:
        if parts and number == parts[-1][1] + 1:
            parts[-1][1] = number
        else:
            parts.append([number, number])
    return ", ".join(str(a) if a == b else f"{a}-{b}" for a, b in parts)
