"""What a GPU's experts cost in seconds: the price of the mixture's own role, tabulated by experts read and pairs routed."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from planner.costs.pricer import Sites
from planner.evaluate.setting import LayerKind, MixtureCase, Setting
from planner.evaluate.tables import expand_cases
from planner.graph.experts import MoeTable, moe_rows, moe_table
from planner.graph.flows import Floor, Flows, chance, smallest_block
from planner.graph.moe import dispatch_role, local_role
from planner.graph.ops import Role
from planner.graph.rows import MoeRows
from search_spaces.experts import ExpertPlacement, Form

Array = NDArray[np.float64]
Ints = NDArray[np.int64]
Placement = tuple[tuple[int, ...], ...]

POINTS = 1024
"""Most different numbers of routed pairs in a table; between them a price is taken from its neighbours."""
CLEAR = 1e-6
"""Part of a pair or of an expert that rounding up to whole ones forgives."""


@dataclass(frozen=True)
class Mixture:
    """A layer of experts where it runs: form, tensor ways and GPUs of the stage, tokens and residual split of a micro-batch;
    copies serve the tokens of each `within` GPUs around them first (0: they take turns).
    """

    env: Setting
    layer: LayerKind
    form: Form
    tensor_ways: int
    devices: tuple[int, ...]
    tokens: int
    shards: int = 1
    within: int = 0

    @property
    def groups(self) -> int:
        """Groups of GPUs that hold experts."""
        return len(self.devices) // self.tensor_ways

    @property
    def case(self) -> MixtureCase:
        """What the price of a placement depends on: mixtures where this is the same cost the same."""
        look = self.env.pricer.places.look(self.devices)
        return MixtureCase(self.layer, self.form, self.tensor_ways, self.tokens, self.shards, self.kind, look)

    @property
    def pairs(self) -> float:
        """Token-expert pairs of the micro-batch."""
        return float(self.tokens * self.layer.layer.ffn.top_k)

    def copy_weights(self, shares: Array, copies: Ints) -> Array:
        """(pairs routed to, chance of being read) [2, ...] of one of several copies of experts with `shares` of all pairs."""
        each = shares / copies
        read = 1.0 - (1.0 - np.minimum(each * self.layer.layer.ffn.top_k, 1.0)) ** self.tokens
        return np.stack([each * self.pairs, read])

    def reach(self, share: float) -> float:
        """Least chance that a token goes to a group with this share of all pairs: they may all come from the smallest block."""
        part = self._part
        return part * float(chance(np.array(share / part), self.layer.layer.ffn.top_k))

    @property
    def _part(self) -> float:
        """What part of all tokens the smallest block of GPUs has whose copies serve it first."""
        ways = len(self.devices)
        return float(smallest_block(np.array(ways), np.array(self.within))) / ways if self.within else 1.0

    def floor(self, shares: Array, slots: int, spread: float, reach: float) -> Floor:
        """What the flow of any placement of experts with these shares [E] has, where a token goes to so many groups at least,
        and to the fullest with such a chance.
        """
        kept, spare = (0.0, *np.cumsum(-np.sort(-shares)).tolist()), self.groups * slots - shares.size
        busiest = self.tensor_ways * max(spread, self.groups * reach)
        return Floor(kept, self.layer.layer.ffn.top_k, spare, self.within, self.tensor_ways, busiest)

    def seconds(self, active: Ints, routed: Ints, spread: float, reach: float, floor: Floor | None = None) -> Array:
        """Seconds of the role on GPUs that read `active` experts for `routed` pairs, its all-to-all included [rows]: an even
        one, or with a `floor` no more than that of any placement.
        """
        rows = self._rows(active, active, routed, spread, reach)
        if floor is not None:  # the last GPU has the fewest columns of a shared expert
            rows = replace(rows, flows=Flows((floor,), np.zeros_like(active)), first=rows.ways - 1)
        return self._price(rows)

    def _rows(self, experts: Ints, active: Ints, routed: Ints, spread: float, reach: float) -> MoeRows:
        """Rows of the role, one per GPU."""
        ways, zero = np.full(active.shape, len(self.devices)), np.zeros(active.shape, dtype=np.int64)
        return MoeRows(
            zero + self.tokens, ways, zero + self.shards, ways, zero + self.tensor_ways, experts, active, routed,
            np.full(active.shape, float(spread)), np.full(active.shape, float(reach)), zero, zero, zero,
        )  # fmt: skip

    def _price(self, rows: MoeRows) -> Array:
        seconds = self.env.pricer.role_seconds(self._role(rows), self._sites(rows))
        return np.asarray(np.broadcast_to(seconds, rows.tokens.shape))

    def _role(self, rows: MoeRows) -> Role:
        build = dispatch_role if self.form == "dispatch" else local_role
        return build(self.env.context, self.layer.layer, rows)

    def _sites(self, rows: MoeRows) -> Sites:
        return Sites((self.devices,), np.zeros(rows.tokens.shape, dtype=np.int64), self.kind)

    @property
    def kind(self) -> str:
        """GPU kind of the stage."""
        return self.env.cluster.device_kinds[self.devices[0]]

    def placed_load(self, placements: list[Placement], loads: list[tuple[float, ...]]) -> Array:
        """Load of the fullest group over the mean, of each placement under its loads [n]."""
        tables = [self._table(placement, load) for placement, load in zip(placements, loads, strict=True)]
        return np.array([float(table.shares.sum(axis=1).max()) * self.groups for table in tables])

    def _table(self, placement: Placement, load: tuple[float, ...]) -> MoeTable:
        option = ExpertPlacement(self.form, self.tensor_ways, 0, placement, serve_within=self.within)
        return moe_table(self.layer.layer.ffn, [(option, len(self.devices))], load)

    def placed_seconds(self, placements: list[Placement], loads: list[tuple[float, ...]]) -> Array:
        """Seconds of the slowest GPU of each placement under its loads [n], as the planner prices a plan."""
        found = []
        for placement, load in zip(placements, loads, strict=True):
            table = self._table(placement, load)
            _, entry, _ = expand_cases(table.owner, np.zeros(1, dtype=np.int64))
            tokens, ways, shards = (np.full(entry.shape, x) for x in (self.tokens, len(self.devices), self.shards))
            found.append(float(self._price(moe_rows(table, entry, tokens, ways, shards, self.layer.layer.ffn.top_k)).max()))
        return np.array(found)

    def expert_bytes(self) -> float:
        """Bytes of one expert's weights on one GPU."""
        held, one = np.array([1, 2], dtype=np.int64), np.ones(2, dtype=np.int64)
        rows = self._rows(held, one, one, 1.0, 1.0)
        found = self.env.pricer.bill(self._role(rows), self._sites(rows)).weight_bytes
        return float(found[1] - found[0])


@dataclass(frozen=True)
class CostTable:
    """Seconds [slots + 1, points] of a GPU by experts read (rows) and pairs routed (columns, `grid` ascending)."""

    seconds: Array
    grid: Ints

    @cached_property
    def below(self) -> Ints:
        """For every number of pairs up to the last point the column of the point at or below it."""
        return np.repeat(np.arange(self.grid.size), np.diff(np.append(self.grid, self.grid[-1] + 1)))

    @cached_property
    def least(self) -> Array:
        """Lower envelope: no GPU that reads at least as many experts for at least as many pairs is faster."""
        falling = np.minimum.accumulate(self.seconds[::-1], axis=0)[::-1]
        return np.asarray(np.minimum.accumulate(falling[:, ::-1], axis=1)[:, ::-1])

    def blended(self, weights: Array) -> Array:
        """Seconds between the entries of the table, [2, ...] -> [...]; smooth, to steer a search by."""
        routed, active = np.clip(weights[0], 0.0, self.grid[-1]), np.clip(weights[1], 0.0, self.seconds.shape[0] - 1)
        column = np.minimum(self.below[routed.astype(np.int64)], self.grid.size - 2)
        row = np.minimum(active.astype(np.int64), self.seconds.shape[0] - 2)
        along = (routed - self.grid[column]) / (self.grid[column + 1] - self.grid[column])
        up, flat = active - row, self.smooth.ravel()
        at = row * self.grid.size + column
        low = flat[at] + along * (flat[at + 1] - flat[at])
        high = flat[at + self.grid.size] + along * (flat[at + self.grid.size + 1] - flat[at + self.grid.size])
        return np.asarray(low + up * (high - low) + weights[0] * self._tilt)

    @cached_property
    def smooth(self) -> Array:
        """The table made non-decreasing both ways."""
        rising = np.maximum.accumulate(self.seconds, axis=0)
        return np.asarray(np.maximum.accumulate(rising, axis=1))

    @property
    def _tilt(self) -> float:
        return float(self.seconds.max() * 1e-9 / max(int(self.grid[-1]), 1))

    def whole(self, weights: Array) -> Array:
        """Seconds with whole experts and pairs, as the role is priced (between points: of the next more pairs)."""
        routed = np.minimum(np.ceil(weights[0] - CLEAR).astype(np.int64), self.grid[-1])
        active = np.minimum(np.ceil(weights[1] - CLEAR).astype(np.int64), self.seconds.shape[0] - 1)
        column = self.below[routed]
        column = np.where(self.grid[column] < routed, column + 1, column)
        return np.asarray(self.seconds[active, column] + weights[0] * self._tilt)


def cost_table(
    mixture: Mixture, slots: int, most_share: float, spread: float, reach: float, floor: Floor | None = None
) -> CostTable:
    """The table of GPUs with up to `slots` experts and up to `most_share` of all pairs, at one size of the all-to-all.

    An expert that is read has a pair, and a pair is for an expert that is read: entries that say otherwise hold the price
    of the least that makes them possible.
    """
    top = max(2, int(np.ceil(most_share * mixture.pairs)) + 1)
    grid = np.unique(np.linspace(0, top, min(top + 1, POINTS)).round().astype(np.int64))
    active, routed = (x.ravel() for x in np.meshgrid(np.arange(slots + 1), grid, indexing="ij"))
    routed, active = np.maximum(routed, active), np.maximum(active, (routed > 0).astype(np.int64))
    return CostTable(mixture.seconds(active, routed, spread, reach, floor).reshape(slots + 1, grid.size), grid)
