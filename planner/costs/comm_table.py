"""Collectives from measured rows, by operation, ranks and nodes, over the bytes of the message."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import ArrayLike

from planner.cluster import Cluster
from planner.costs.collectives import Array, Collectives
from planner.costs.groups import GroupShape
from planner.costs.held import Held
from planner.costs.rows import Sample
from planner.costs.table import EXTRAPOLATED, MEASURED


class MeasuredCollectives(Collectives):
    """The collectives of a cluster, those of measured groups from rows (see `Held`: never faster for more bytes).

    A row says how many ranks take part and over how many nodes (domains of the scale-up link) they spread evenly. Groups
    of other shapes, and all-to-alls over nodes of unequal parts, keep the formula's price. Where several groups leave a domain
    at once the price is the formula's for them, and no less than the row's for one alone: what was measured had the network to
    itself.
    """

    def __init__(self, cluster: Cluster, rows: Mapping[str, Sample]) -> None:
        super().__init__(cluster)
        self._held = {
            (operation, int(ranks), int(nodes)): self._of(operation, sample, ranks, nodes)
            for operation, sample in rows.items()
            for ranks, nodes in np.unique(sample.points[:, :2], axis=0)
        }

    def _of(self, operation: str, sample: Sample, ranks: float, nodes: float) -> Held:
        """The rows of one shape over bytes."""
        mine = np.all(sample.points[:, :2] == (ranks, nodes), axis=1)
        moved, seconds = sample.points[mine, 2], sample.seconds[mine]
        return Held(moved[:, None], seconds, super().time(operation, moved, _alone(int(ranks), int(nodes))))

    def time(self, op: str, moved_bytes: ArrayLike, shape: GroupShape) -> Array:
        """Seconds of one collective (see `Collectives.time`)."""
        guess = super().time(op, moved_bytes, shape)
        fields = (moved_bytes, shape.ranks, shape.domains, shape.crossing, shape.outside, guess)
        arrays = (np.asarray(x, dtype=np.float64) for x in fields)
        moved, ranks, domains, crossing, outside, guess = np.broadcast_arrays(*arrays)
        found = guess
        for (operation, many, nodes), held in self._held.items():
            here = (ranks == many) & (domains == nodes) & (moved > 0) & (outside < 0)
            if operation != op or not np.any(here):
                continue
            plain = super().time(op, moved, _alone(many, nodes))
            row = held.price(np.ravel(moved)[:, None], np.ravel(plain)).reshape(moved.shape)
            shared = (domains > 1) & (crossing > 1)
            found = np.where(here, np.where(shared, np.maximum(guess, row), row), found)
        return np.asarray(found)

    def source_of(self, op: str, moved_bytes: float, shape: GroupShape, kind: str) -> str:
        """The tag of one collective on a GPU kind."""
        held = self._held.get((op, int(np.max(shape.ranks)), int(np.max(shape.domains))))
        if held is None or np.max(shape.outside) >= 0:
            return super().source_of(op, moved_bytes, shape, kind)
        alone = int(np.max(shape.domains)) == 1 or int(np.max(shape.crossing)) <= 1
        return MEASURED if alone and bool(held.inside(np.array([[moved_bytes]]))[0]) else EXTRAPOLATED


def _alone(ranks: int, nodes: int) -> GroupShape:
    """A group spread evenly over nodes with nothing beside it."""
    return GroupShape(ranks, nodes, -(-ranks // nodes))
