"""Large clusters: stages are parts of a node or whole nodes, of at most two kinds, the stages of a kind side by side.

With thousands of GPUs most pipelines differ only in ways that cost the same. This rule keeps those that people build: every
stage on like ground, one kind of stage, or two (the remainder of the layers, a lighter end, a second kind of GPU).
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cached_property, lru_cache
from itertools import accumulate, repeat
from math import gcd
from operator import add, itemgetter, mul

from search_spaces.sizes import Sizes, divisors

Shape = tuple[tuple[int, int, int], ...]
"""Runs of equal stages: (stages, layers of each, GPUs of each)."""

LARGE_RULES = (
    "a stage has a divisor of a node's GPUs and lies inside a node at a multiple of them, or it has whole nodes: any number "
    "up to 16 or all of a replica, beyond 16 those with three significant binary digits after the first",
    "the stages of a pipeline are of at most two kinds (layers, GPUs), those of a kind side by side",
)
EVERY_NODE_COUNT, STEPS = 16, 8


def node_counts(most: int) -> tuple[int, ...]:
    """Numbers of nodes that a stage may have, up to `most`: all up to 16, then eight in every octave, and `most` itself."""
    found, count, step = [], 1, 1
    while count <= most:
        found.append(count)
        count += step
        if count == 2 * STEPS * step and count >= EVERY_NODE_COUNT:
            step *= 2
    return tuple(sorted({*found, most})) if most > 0 else ()


class Ground:
    """Where the stages of a large cluster may stand; a node is a scale-up domain."""

    def __init__(self, sizes: Sizes) -> None:
        self.sizes = sizes
        self._first, self._end = _runs(sizes.domain_of_device)
        self._kind_end = _runs(sizes.kind_of_device)[1]
        self._reach: dict[tuple[int, int], int] = {}

    @cached_property
    def nodes(self) -> tuple[int, ...]:
        """The different sizes of a node, ascending."""
        return tuple(sorted({end - first for first, end in zip(self._first, self._end, strict=True)}))

    @cached_property
    def uniform(self) -> bool:
        """Whether all nodes are alike, so that a place matters only by where it lies in its node."""
        return len(self.nodes) == 1 and self._kind_end[0] == self.sizes.devices and not self.sizes.link_of_device

    def widths(self, stride: int) -> tuple[int, ...]:
        """GPU counts that a stage may have among the first `stride` ranks."""
        found: set[int] = set()
        for node in self.nodes:
            found.update(width for width in divisors(node) if width <= stride)
            found.update(node * count for count in node_counts(stride // node))
        return tuple(sorted(found))

    def placed(self, first: int, width: int) -> bool:
        """Whether a stage may stand on `width` ranks from `first`: GPUs of one kind, a part of a node or whole nodes."""
        last = first + width - 1
        if last >= self.sizes.devices or self._kind_end[first] <= last:
            return False
        start, end = self._first[first], self._end[first]
        if width < end - start:
            return (first - start) % width == 0 and (end - start) % width == 0
        return first == start and self._end[last] == last + 1

    def reach(self, first: int, width: int, stride: int) -> int:
        """How many stages of `width` may stand side by side from rank `first` on, within the first `stride` ranks."""
        if self.uniform:
            return (stride - first) // width if first + width <= stride and self.placed(first, width) else 0
        key = (first, width)
        if key not in self._reach:  # from here to the end of the cluster
            count = 0
            while first + (count + 1) * width <= self.sizes.devices and self.placed(first + count * width, width):
                count += 1
            self._reach[key] = count
        return min(self._reach[key], max(stride - first, 0) // width)

    def shapes(self, stride: int, counts: tuple[int, ...], *, use_all: bool) -> Iterator[Shape]:
        """Every pipeline on the first `stride` ranks as runs of equal stages, in a fixed order."""
        layers, widths, allowed = self.sizes.layers, self.widths(stride), frozenset(counts)
        for n in divisors(layers):
            for w in widths if n in allowed else ():
                if n <= self.reach(0, w, stride) and (n * w == stride or not use_all):
                    yield ((n, layers // n, w),)
        for (n, m), pairs in layer_splits(layers, max(counts, default=0)).items():
            for w in widths if n + m in allowed else ():
                for v in widths if n <= self.reach(0, w, stride) else ():
                    if m <= self.reach(n * w, v, stride) and (n * w + m * v == stride or not use_all):
                        yield from (((n, a, w), (m, b, v)) for a, b in pairs if (a, w) != (b, v))

    def count(self, stride: int, counts: tuple[int, ...], options: Mapping[int, int], *, use_all: bool) -> int:
        """The number of plans of linear pipelines, given the number of options of a stage of each width."""
        widths = tuple(w for w in self.widths(stride) if options[w])
        key = (stride, counts, use_all, widths, tuple(options[w] for w in widths))
        if key not in self._counted:
            self._counted[key] = self._count(stride, counts, dict(zip(widths, key[4], strict=True)), use_all)
        return self._counted[key]

    @cached_property
    def _counted(self) -> dict[tuple[object, ...], int]:
        return {}

    def _count(self, stride: int, counts: tuple[int, ...], options: dict[int, int], use_all: bool) -> int:
        layers, allowed, powers = self.sizes.layers, frozenset(counts), _Powers(list(options), options)
        some = {pair: len(each) for pair, each in layer_splits(layers, max(counts, default=0)).items() if sum(pair) in allowed}
        alike = self.uniform and not use_all
        total = self._two_runs_alike(stride, some, powers) if alike else self._two_runs(stride, some, powers, use_all)
        for n in divisors(layers):  # pipelines of one kind; as two runs of that kind they have been counted n - 1 times
            if n in allowed:
                total += (2 - n) * self._one_run(stride, n, powers, use_all)
        return total

    def _one_run(self, stride: int, stages: int, powers: _Powers, use_all: bool) -> int:
        """Ways to fill a run of equal stages, whatever their layers."""
        return sum(
            ways
            for w, ways in zip(powers.widths, powers.of(stages), strict=True)
            if stages <= self.reach(0, w, stride) and (stages * w == stride or not use_all)
        )

    def _two_runs(self, stride: int, splits: Mapping[tuple[int, int], int], powers: _Powers, use_all: bool) -> int:
        """Ways to fill two runs of n and m stages, for each (n, m) as often as it splits the layers."""
        key, total = (stride, tuple(splits), tuple(powers.widths), use_all), 0
        if key not in self._standing:
            self._standing[key] = [list(self._pairs(stride, n, m, powers.widths, use_all)) for n, m in splits]
        for ((n, m), often), pairs in zip(splits.items(), self._standing[key], strict=True):
            heads, tails = powers.of(n), powers.of(m)
            total += often * sum(heads[i] * sum(map(tails.__getitem__, behind)) for i, behind in pairs)
        return total

    def _pairs(self, stride: int, n: int, m: int, widths: list[int], use_all: bool) -> Iterator[tuple[int, list[int]]]:
        """The numbers of the widths that a run of n stages may have, each with those that a run of m behind it may have."""
        for i, w in enumerate(widths):
            if n <= self.reach(0, w, stride):
                some = enumerate(widths[: bisect_right(widths, (stride - n * w) // m)])
                ends = ((j, v) for j, v in some if n * w + m * v == stride or not use_all)
                yield i, [j for j, v in ends if m <= self.reach(n * w, v, stride)]

    @cached_property
    def _standing(self) -> dict[tuple[object, ...], list[list[tuple[int, list[int]]]]]:
        return {}

    def _two_runs_alike(self, stride: int, splits: Mapping[tuple[int, int], int], powers: _Powers) -> int:
        """The same on uniform ground: the second run may have every width that its place and the room left allow."""
        node, widths, total = self.nodes[0], powers.widths, 0
        key = (stride, tuple(splits), tuple(widths))
        if key not in self._rooms:
            self._rooms[key] = _Rooms(node, widths, stride)
        rooms = self._rooms[key]
        narrow = bisect_left(widths, node)
        tails: dict[int, tuple[list[int], list[int]]] = {}
        for (n, m), often in splits.items():
            stages, each = tails.setdefault(n, ([], []))
            stages.append(m)
            each.append(often)
        for n, (stages, each) in tails.items():
            heads, sums = powers.of(n), dict[int, list[list[int]]]()
            for w, ways in zip(widths[:narrow], heads[:narrow], strict=True):
                if n * w < stride:
                    place = gcd(n * w, node) % node
                    if place not in sums:
                        sums[place] = [powers.sums(m, place) for m in stages]
                    found = map(list[int].__getitem__, sums[place], rooms.behind(n, w, stages))
                    total += ways * sum(map(mul, each, found))
            behind: Iterable[int] = repeat(0)
            for m, often in zip(stages, each, strict=True):  # behind whole nodes any width may follow
                found = rooms.of(n, m)(powers.sums(m, 0))
                behind = list(map(add, behind, found if often == 1 else map(mul, repeat(often), found)))
            total += sum(map(mul, heads[narrow:], behind))
        return total

    @cached_property
    def _rooms(self) -> dict[tuple[object, ...], _Rooms]:
        return {}


class _Rooms:
    """How many widths fit behind runs of equal stages on the first `stride` ranks of uniform ground."""

    def __init__(self, node: int, widths: Sequence[int], stride: int) -> None:
        self._node, self._widths, self._stride = node, widths, stride
        self._fitting = {place: list(accumulate(self._there(place))) for place in (0, *divisors(node)[:-1])}
        self._of: dict[tuple[int, int], itemgetter[tuple[int, ...]]] = {}
        self._behind: dict[tuple[int, int], list[int]] = {}

    def _there(self, place: int) -> list[int]:
        """Which of 0 to `stride` GPUs are a width that may stand `place` GPUs into a node (at 0 every one)."""
        found = [0] * (self._stride + 1)
        for width in self._widths:
            found[width] = int(place % width == 0)
        return found

    def of(self, n: int, m: int) -> itemgetter[tuple[int, ...]]:
        """How many fit m times behind n stages of each number of whole nodes that leaves room, as a getter of sums by that."""
        if (n, m) not in self._of:
            left = (self._stride - n * w for w in self._widths[bisect_left(self._widths, self._node) :] if n * w < self._stride)
            self._of[n, m] = itemgetter(*(self._fitting[0][room // m] for room in left), 0, 0)
        return self._of[n, m]

    def behind(self, n: int, width: int, stages: Iterable[int]) -> list[int]:
        """How many fit behind n stages of a part of a node, for each number of stages."""
        if (n, width) not in self._behind:
            fitting, left = self._fitting[gcd(n * width, self._node) % self._node], self._stride - n * width
            self._behind[n, width] = [fitting[left // m] for m in stages]
        return self._behind[n, width]


class _Powers:
    """Powers of the number of options of a stage of each width, and their sums."""

    def __init__(self, widths: list[int], options: Mapping[int, int]) -> None:
        self.widths = widths
        self._powers = [[1] * len(widths), [options[w] for w in widths]]
        self._sums: dict[tuple[int, int], list[int]] = {}

    def of(self, stages: int) -> list[int]:
        """Ways to fill `stages` stages, for each width."""
        while len(self._powers) <= stages:
            self._powers.append(list(map(mul, self._powers[-1], self._powers[1])))
        return self._powers[stages]

    def sums(self, stages: int, place: int) -> list[int]:
        """Sums of the powers of the first widths that may stand `place` GPUs into a node, a divisor of it or 0."""
        key = (stages, place)
        if key not in self._sums:
            some = (p for w, p in zip(self.widths, self.of(stages), strict=True) if place % w == 0)
            self._sums[key] = list(accumulate(some, initial=0))
        return self._sums[key]


@lru_cache(maxsize=256)
def layer_splits(layers: int, most: int) -> dict[tuple[int, int], list[tuple[int, int]]]:
    """For every (n, m) of at most `most` stages in all: the (a, b) with n runs of a and m of b layers making `layers`."""
    found: dict[tuple[int, int], list[tuple[int, int]]] = {}
    for before in range(1, layers):
        for n in divisors(before):
            for m in divisors(layers - before):
                if n + m <= most:
                    found.setdefault((n, m), []).append((before // n, (layers - before) // m))
    return dict(sorted(found.items()))


def runs_of(stages: tuple[tuple[int, int], ...]) -> Shape:
    """Stages (layers, GPUs) as runs of equal neighbours."""
    found: list[tuple[int, int, int]] = []
    for layers, width in stages:
        if found and found[-1][1:] == (layers, width):
            found[-1] = (found[-1][0] + 1, layers, width)
        else:
            found.append((1, layers, width))
    return tuple(found)


def _runs(values: tuple[int, ...]) -> tuple[list[int], list[int]]:
    """For every position where its run of equal values begins, and where it ends."""
    first, end = [0] * len(values), [0] * len(values)
    start = 0
    for at in range(1, len(values) + 1):
        if at == len(values) or values[at] != values[start]:
            first[start:at], end[start:at] = [start] * (at - start), [at] * (at - start)
            start = at
    return first, end
