"""Where the stages of a large cluster may stand: their least seconds by place, and the hand-overs between them, as arrays."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from planner.certify.branch import Branch
from planner.certify.stages import StageTimes
from planner.evaluate.pipeline import feedback_seconds
from planner.graph.handover import handover_bytes

Array = NDArray[np.float64]
Ints = NDArray[np.int64]


class Places:
    """The stages of a branch by width and place.

    `seconds` [widths, sites, rows]: least seconds of a stage at each of the sites of its width (see `StageTimes.site`), inf
    where none fits; `least` [widths, rows]: on the best site. `row` [start, stop]: the row of the layers between. `least_send`
    [widths, widths]: lower bound of a hand-over. `back` [ranks + 1]: seconds of the sampled tokens' way back from the last of
    so many ranks.
    """

    def __init__(self, times: StageTimes, branch: Branch, ranks: int) -> None:
        self.times, self.branch, self.ranks = times, branch, ranks
        self.ground = branch.space.ground
        self.widths = np.array(
            [w for w in branch.space.widths(branch.space.stride(branch.replicas)) if w <= ranks], dtype=np.int64
        )
        self.period = self.ground.nodes[0] if self.ground.uniform else ranks + 1
        self._site = np.full((self.widths.size, self.period), -1, dtype=np.int64)
        sites = [self._sites_of(index) for index in range(self.widths.size)]
        shape = (self.widths.size, max((len(each) for each in sites), default=0), times.rows[0].first.size)
        self.seconds = np.full(shape, np.inf)
        for index, each in enumerate(sites):
            for number, site in enumerate(each):
                self.seconds[index, number] = times.least(site, branch.sequences, branch.micro_batches)
        self.least = self.seconds.min(axis=1, initial=np.inf)
        self.row = np.full((times.sizes.layers + 1,) * 2, -1, dtype=np.int64)
        for (start, stop), row in times.rows[1].items():
            self.row[start, stop] = row
        self.sent, self.back = self._hand_overs(), self._ways_back()
        self.least_send = self.sent.min(axis=0) if self.ground.uniform else np.zeros((self.widths.size,) * 2)

    def _sites_of(self, index: int) -> list[object]:
        """The sites of a width, and which of them begins where."""
        width, known = int(self.widths[index]), dict[object, int]()
        last = self.period - 1 if self.ground.uniform else self.ranks - width
        for first in range(last + 1):
            site = self.times.site(first, width)
            if site is not None:
                self._site[index, first] = known.setdefault(site, len(known))
        return list(known)

    def stage(self, width: Ints, first: Ints, row: Ints) -> Array:
        """Least seconds of stages of width index `width` from rank `first` on; inf where none may stand."""
        room = first + self.widths[width] <= self.ranks
        site = self._site[width, np.where(room, first, 0) % self.period]
        return np.where(room & (site >= 0), self.seconds[width, site, row], np.inf)

    def send(self, at: Ints, before: Ints, after: Ints) -> Array:
        """Seconds from stages of width index `before` that end at rank `at` to those of `after` that begin there."""
        if self.ground.uniform:
            return np.asarray(self.sent[(at % self.period == 0).astype(np.int64), before, after])
        keys, inverse = np.unique(np.stack([at, before, after]), axis=1, return_inverse=True)
        found = [
            self.times.send(end, int(self.widths[i]), int(self.widths[j]), self.branch.sequences)
            if end > 0 and end + self.widths[j] <= self.ranks
            else np.inf
            for end, i, j in keys.T.tolist()
        ]
        return np.array(found)[inverse.ravel()].reshape(np.shape(at))

    def _hand_overs(self) -> Array:
        """Seconds of hand-overs [inside a node or between nodes, widths, widths], where all nodes are alike: stages that may
        stand there share a node, or meet where one ends and share none.
        """
        env, count = self.times.env, self.widths.size
        left, right = np.repeat(self.widths, count), np.tile(self.widths, count)
        tokens = self.branch.sequences * env.query_length
        pairs = zip(left.tolist(), right.tolist(), strict=True)
        amounts = np.array([handover_bytes(env.context, i, j, tokens) for i, j in pairs]).reshape(-1, 2)
        price = env.pricer.collectives.m2n_time
        found = [price(amounts[:, 0], amounts[:, 1], left, right, share) for share in (0.0, 1.0)]
        return np.stack(found).reshape(2, count, count)

    def _ways_back(self) -> Array:
        """Of decode: whether the first rank is in the last one's domain is all that the price depends on."""
        env = self.times.env
        if self.times.sizes.phase != "decode":
            return np.zeros(self.ranks + 1)
        domain = np.asarray(env.cluster.domain_of)
        other = domain[np.maximum(np.arange(self.ranks + 1) - 1, 0)] != domain[0]
        far = int(np.argmax(domain != domain[0]))
        near_s, far_s = (feedback_seconds(env, (rank,), (0,), self.branch.sequences) for rank in (0, far))
        return np.where(other, far_s, near_s)
