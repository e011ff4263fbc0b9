"""Spots: the different places where a stage of a large cluster may stand, each priced once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from planner.evaluate.pipeline import crossing_fraction
from planner.evaluate.setting import Setting
from search_spaces.sizes import divisors
from search_spaces.space import SearchSpace
from search_spaces.stages import block_pattern

Array = NDArray[np.float64]
Ints = NDArray[np.int64]


@dataclass(frozen=True)
class Runs:
    """Runs of equal stages [P]: first and last layer, number of stages, and the interval rows of all their stages in turn."""

    start: Ints
    stop: Ints
    stages: Ints
    rows: Ints
    begin: Ints

    @classmethod
    def of(cls, bounds: list[tuple[int, int]], rows: Ints) -> Runs:
        """Every run on each of the layer intervals."""
        found = [(a, b, n) for a, b in bounds for n in divisors(b - a)]
        start, stop, stages = np.array(found, dtype=np.int64).reshape(-1, 3).T
        each = [rows[a + k * ((b - a) // n), a + (k + 1) * ((b - a) // n)] for a, b, n in found for k in range(n)]
        return cls(start, stop, stages, np.array(each, dtype=np.int64), np.cumsum(stages) - stages)


@dataclass(frozen=True)
class Spots:
    """For each width the GPU kind and first rank of its different places, and which of them a first rank is.

    `of` [widths, ranks]: the number of the place among those of the width, -1 where no stage of that width may begin.
    """

    env: Setting
    space: SearchSpace
    widths: tuple[int, ...]
    places: tuple[tuple[tuple[str, int], ...], ...]
    of: NDArray[np.int16]

    @classmethod
    def build(cls, env: Setting, space: SearchSpace) -> Spots:
        """The spots of all branches. Places whose nodes, links and GPU kind are alike are one spot."""
        strides, ground = {space.stride(r) for r, _ in space.branches}, space.ground
        widths, stride = tuple(sorted({w for s in strides for w in ground.widths(s)})), max(strides, default=0)
        of = np.full((len(widths), stride), -1, dtype=np.int16)
        places: list[tuple[tuple[str, int], ...]] = []
        for at, width in enumerate(widths):
            if ground.uniform:
                node = ground.nodes[0]
                of[at, 0 : stride - width + 1 : min(width, node)] = 0
                places.append(((env.cluster.device_kinds[0], 0),))
                continue
            known: dict[tuple[object, ...], tuple[int, str, int]] = {}
            for first in range(stride - width + 1):
                if ground.placed(first, width):
                    kind = env.cluster.device_kinds[first]
                    key = (*_pattern(env, space, first, width), kind)
                    of[at, first] = known.setdefault(key, (len(known), kind, first))[0]
            places.append(tuple((kind, first) for _, kind, first in known.values()))
        return cls(env, space, widths, tuple(places), of)

    @cached_property
    def most(self) -> int:
        """The most spots of any width."""
        return max((len(places) for places in self.places), default=0)

    def sends(self, before: Ints, after: Ints, first: Ints, sequences: int) -> Array:
        """Hand-over seconds [N] from a stage of width index `before` that ends at rank `first` to one of `after` from there."""
        table = self._send_tables(sequences)
        if self.space.ground.uniform:  # the stages share a node, or meet at the boundary of two
            return np.asarray(table[(first % self.space.ground.nodes[0] == 0).astype(np.int64), before, after])
        keys, inverse = np.unique(np.stack([before, after, first]), axis=1, return_inverse=True)
        fraction = np.array([self._crossing(*key) for key in keys.T.tolist()])
        return np.asarray(self._send_seconds(keys[0], keys[1], fraction, sequences)[inverse.ravel()])

    def least_sends(self, sequences: int) -> Array:
        """Lower bound of the hand-over seconds [widths, widths]."""
        if not self.space.ground.uniform:
            return np.zeros((len(self.widths), len(self.widths)))
        return np.asarray(self._send_tables(sequences).min(axis=0))

    def _send_tables(self, sequences: int) -> Array:
        """Hand-over seconds [crossing or not, widths, widths]."""
        if sequences not in self._sent:
            grid = np.meshgrid(np.arange(2), np.arange(len(self.widths)), np.arange(len(self.widths)), indexing="ij")
            crossing, before, after = (axis.ravel() for axis in grid)
            found = self._send_seconds(before, after, crossing.astype(np.float64), sequences)
            self._sent[sequences] = found.reshape(grid[0].shape)
        return self._sent[sequences]

    @cached_property
    def _sent(self) -> dict[int, Array]:
        return {}

    def _send_seconds(self, before: Ints, after: Ints, crossing: Array, sequences: int) -> Array:
        """As `planner.evaluate.pipeline.send_seconds`, for many pairs."""
        widths = np.array(self.widths, dtype=np.int64)
        left, right = widths[before], widths[after]
        slices = np.minimum(left, right)
        amount = self.env.context.tensor("", -(-sequences * self.env.query_length // slices), self.env.model.hidden).bytes
        total = np.asarray(amount) * slices
        return np.asarray(self.env.pricer.collectives.m2n_time(total / left, total / right, left, right, crossing))

    def _crossing(self, before: int, after: int, first: int) -> float:
        key = (before, after, first)
        if key not in self._fractions:
            source = tuple(range(first - self.widths[before], first))
            target = tuple(range(first, first + self.widths[after]))
            self._fractions[key] = crossing_fraction(self.env.cluster.domain_of, source, target)
        return self._fractions[key]

    @cached_property
    def _fractions(self) -> dict[tuple[int, int, int], float]:
        return {}


def _pattern(env: Setting, space: SearchSpace, first: int, width: int) -> tuple[object, ...]:
    """What tells places apart: how nodes cut them, and the links inside those."""
    ranks: Sequence[int] = range(first, first + width)
    domains = dict.fromkeys(env.cluster.domain_of[rank] for rank in ranks)
    return block_pattern(space.sizes, first, width), tuple(env.cluster.domains[index].link for index in domains)
