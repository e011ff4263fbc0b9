"""Search of plans whose experts have GPUs of their own: every candidate tabulated with its exact price, best bound first."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from planner.costs.pricer import Site
from planner.evaluate.separate import AttentionSide, Cases, expert_sides, separate_makespan, separate_price
from planner.evaluate.tables import Bill, StageTable
from planner.solve.apart_sides import ApartSides
from planner.solve.candidates import ApartAsked, ApartFound, Candidates, Rows
from planner.solve.objective import SAME
from planner.solve.pin import Pin, pinned
from search_spaces.attention import TokenSplit
from search_spaces.space import token_split
from search_spaces.stages import StageChoice

Array = NDArray[np.float64]
Ints = NDArray[np.int64]
CHUNK = 256


class ApartSpace(ApartSides):
    """The plans of a space whose experts are apart."""

    def best(
        self,
        replicas: int,
        micro_batches: int,
        cutoff: float,
        pin: Pin | None = None,
        weight: Callable[[int], float] | None = None,
        most: Callable[[int], float] | None = None,
    ) -> ApartFound | None:
        """The best plan of a branch below `cutoff`, among those that agree with the pin.

        Its value is seconds of the pass, times `weight` of the GPUs of a replica where one is given; `most` is what the
        seconds on so many GPUs may come to. Of equal values the one on fewer GPUs is taken, then the one that sends less.
        """
        ranks = self._ranks
        weights = np.ones(ranks.size) if weight is None else np.array([weight(count) for count in ranks.tolist()])
        least = {count: np.inf if most is None else most(count) for count in set(ranks.tolist())}
        limits = np.array([least[count] for count in ranks.tolist()])
        for experts in (False, True):  # the attention side first: mostly it is priced already
            floors = self.floors(replicas, micro_batches, experts=experts)
            floors = np.where(floors <= limits, floors * weights, np.inf)
            if floors.min(initial=np.inf) >= cutoff:
                return None
        asked = ApartAsked(replicas, micro_batches, pin, ranks, weights, limits, self._reachable(replicas), floors, cutoff)
        for candidates, agree in self._candidates(asked):
            self._weigh(candidates, agree, asked)
        return asked.found

    @cached_property
    def _ranks(self) -> Ints:
        """GPUs of every split."""
        return np.array([len(near) + len(far) for near, far in self.splits], dtype=np.int64)

    def _candidates(self, asked: ApartAsked) -> Iterator[tuple[Candidates, NDArray[np.bool_]]]:
        """What is to be weighed, and which of it agrees with the pin."""
        for candidates in self._branch(asked.replicas, asked.micro_batches):
            yield candidates, self._agree(candidates, asked.pin)

    def _weigh(self, candidates: Candidates, agree: NDArray[np.bool_], asked: ApartAsked) -> None:
        """Keep the best of some candidates if it is better than what was found before."""
        scale, limit = asked.weights[candidates.split], asked.limits[candidates.split]
        seconds = np.maximum(candidates.chain, asked.micro_batches * candidates.load)
        allowed = agree & asked.reachable[candidates.split] & (seconds <= limit)
        for wave in self.space.waves(asked.micro_batches):
            if asked.pin and asked.pin.get("in_flight", wave) != wave:
                continue
            # the attention GPUs begin a wave after the last one's chain: at the least so many chains one after another
            bound = np.maximum(seconds, asked.micro_batches // wave * candidates.chain) * scale
            fits = np.nonzero((bound < asked.cutoff) & allowed & (self._excess(candidates, wave) <= 0))[0]
            order = fits[np.argsort(bound[fits], kind="stable")]
            rows = Rows(bound, scale, limit, asked.ranks[candidates.split])
            asked.found = self._wave(candidates, rows, asked.micro_batches, wave, order, asked.cutoff, asked.found)
            asked.cutoff = min(asked.cutoff, np.inf if asked.found is None else asked.found.least * (1 + SAME))

    def least(self, replicas: int, micro_batches: int) -> tuple[float, float]:
        """(chain of one micro-batch, lower bound of the makespan) of a branch with the best candidate for each."""
        chain, bound = np.inf, np.inf
        for candidates in self._branch(replicas, micro_batches):
            at = self._reachable(replicas)[candidates.split]
            chain = min(chain, float(candidates.chain[at].min(initial=np.inf)))
            both = np.maximum(candidates.chain, micro_batches * candidates.load)[at]
            bound = min(bound, float(both.min(initial=np.inf)))
        return chain, bound

    def _agree(self, candidates: Candidates, pin: Pin | None) -> NDArray[np.bool_]:
        """Which candidates agree with a pin."""
        if not pin:
            return np.ones(candidates.split.shape, dtype=bool)
        key = tuple(pin.items())
        if key not in self._masks:
            self._masks[key] = tuple(pinned(options, pin) for options in self.options)
        masks = [mask[column] for mask, column in zip(self._masks[key], candidates.option, strict=True)]
        return np.asarray(np.logical_and.reduce(masks))

    @cached_property
    def _masks(self) -> dict[tuple[tuple[str, object], ...], tuple[NDArray[np.bool_], ...]]:
        return {}

    def least_excess(self, replicas: int, micro_batches: int, most_ranks: float = np.inf) -> float:
        """Fewest bytes by which a candidate on at most `most_ranks` GPUs exceeds the memory (inf without candidates)."""
        wave, least = min(self.space.waves(micro_batches), default=1), np.inf
        few = np.array([len(near) + len(far) <= most_ranks for near, far in self.splits], dtype=bool)
        for candidates in self._branch(replicas, micro_batches):
            excess = self._excess(candidates, wave)[(self._reachable(replicas) & few)[candidates.split]]
            least = min(least, float(excess.min(initial=np.inf)))
        return least

    def _excess(self, candidates: Candidates, wave: int) -> Array:
        """Bytes by which the fuller side exceeds its memory with `wave` micro-batches in flight [N]."""
        near = wave * candidates.price.held_bytes - candidates.spare
        return np.asarray(np.maximum(near, -candidates.expert_spare))

    def _wave(
        self,
        candidates: Candidates,
        rows: Rows,
        micro_batches: int,
        wave: int,
        order: Ints,
        cutoff: float,
        found: ApartFound | None,
    ) -> ApartFound | None:
        """The best of the plan found so far and the candidates of one wave, in the order of their bounds."""
        price = candidates.price
        for at in range(0, order.size, CHUNK):
            if rows.bound[order[at]] >= cutoff:
                break
            some = order[at : at + CHUNK]
            seconds = separate_makespan(price.times.take(some), micro_batches, wave)
            value = np.where(seconds <= rows.limit[some], seconds * rows.scale[some], np.inf)
            if value.min() >= cutoff:
                continue
            ties = some[value <= value.min() * (1 + SAME)]
            row = int(ties[np.lexsort((price.sent[ties], rows.ranks[ties]))[0]])
            own = float(value[some == row][0]), float(price.sent[row]), int(rows.ranks[row]), float(value.min())
            found = ApartFound(self._stage(candidates, row), wave, *own).or_better(found)
            cutoff = min(cutoff, found.least * (1 + SAME))
        return found

    def _stage(self, candidates: Candidates, row: int) -> StageChoice:
        near, far = self.splits[int(candidates.split[row])]
        block = self.near[near].block
        placement = self.placements(len(far))[int(candidates.placement[row])]
        mlp = block.ffns[int(candidates.mlp[row])].mlp_ways
        return StageChoice(self.sizes.layers, (*near, *far), block.partitions[int(candidates.partition[row])], mlp, placement)

    def _branch(self, replicas: int, micro_batches: int) -> tuple[Candidates, ...]:
        """Candidates of a branch; attention options that another one beats in everything are left out."""
        key = self._key(replicas, micro_batches)
        if key not in self._branches:
            self._branches[key] = self._tabulate(*key)
        return self._branches[key]

    def _key(self, replicas: int, micro_batches: int) -> tuple[int, int]:
        """Sequences of a micro-batch, and those whose cache a replica keeps."""
        kept = self.sizes.batch // replicas if self.env.context.keeps_cache else 0
        return self.space.sequences(replicas, micro_batches), kept

    @cached_property
    def _branches(self) -> dict[tuple[int, int], tuple[Candidates, ...]]:
        blocks = tuple(table.block.options for table in self.near.values())
        placements = tuple(self.placements(len(far)) for _, far in self.splits)
        return self.env.room(("experts apart", self.splits, blocks, placements, self._extra, self._most))

    def _tabulate(self, sequences: int, kept: int) -> tuple[Candidates, ...]:
        """One table per pair of GPU kinds; `kept` sequences stay in a replica's cache."""
        rows: dict[tuple[str, str], list[Ints]] = {}
        kinds = self.env.cluster.device_kinds
        for number, (near, far) in enumerate(self.splits):
            if near not in self.near or len(near) > sequences * self.sizes.query_length:
                continue
            pairs, placements = self._useful(near, sequences), len(self.placements(len(far)))
            block = np.full((4, pairs.shape[1] * placements), number, dtype=np.int64)
            block[1:3] = np.repeat(pairs, placements, axis=1)
            block[3] = np.tile(np.arange(placements), pairs.shape[1])
            rows.setdefault((kinds[near[0]], kinds[far[0]]), []).append(block)
        joined = {pair: np.concatenate(blocks, axis=1) for pair, blocks in rows.items()}
        return tuple(self._price(sequences, kept, pair, *block) for pair, block in joined.items() if block.size)

    def _price(
        self, sequences: int, kept: int, kinds: tuple[str, str], split: Ints, partition: Ints, mlp: Ints, placement: Ints
    ) -> Candidates:
        """Price all candidates of one pair of GPU kinds."""
        nears = tuple(self.near)
        fars = tuple(dict.fromkeys(far for _, far in self.splits))
        tables = list(self.near.values())
        number = {near: i for i, near in enumerate(nears)}
        near_of = np.array([number.get(near, -1) for near, _ in self.splits])[split]
        far_of = np.array([fars.index(far) for _, far in self.splits])[split]
        option = self._option_numbers(split, partition, mlp, placement)
        chosen = self.options[0]
        shard = np.array([token_split(self.sizes, p).shards for p in chosen])[option[0]]
        spreads = list(dict.fromkeys(p.spread for p in chosen))
        laid = near_of * len(spreads) + np.array([spreads.index(p.spread) for p in chosen])[option[0]]
        parts = np.array([p.batch_parts for p in chosen])[option[0]]
        batch = np.full(split.shape, sequences, dtype=np.int64)
        columns = (batch, shard, option[2], laid, far_of)
        alike = ((laid * len(fars) + far_of) * (self.sizes.devices + 1) + shard) * len(self.options[2]) + option[2]
        first, of_case = np.unique(alike, return_index=True, return_inverse=True)[1:]
        lists = (self.options[2], tuple(_laid(near, spread) for near in nears for spread in spreads), fars)
        few = Cases(batch[first], shard[first], option[2][first], laid[first], far_of[first], *lists, *kinds)
        near = self._near_side(tables, near_of, partition, mlp, sequences)
        layers = [(kind, layer) for kind, layer in enumerate(self.env.kinds) if layer.moe]
        sides = expert_sides(self.env, [layer for _, layer in layers], few)
        far = {kind: side.take(of_case) for (kind, _), side in zip(layers, sides, strict=True)}
        cases = Cases(*columns, *lists, *kinds)
        price = separate_price(self.env, near, far, cases, np.ceil(kept / parts))
        memory = [min(self.env.cluster.kinds[kind].memory_bytes, self._most) + self._extra for kind in kinds]
        chain, load = price.times.bound
        spare, far_spare = memory[0] - price.attention_bytes, memory[1] - price.expert_bytes
        return Candidates(split, partition, mlp, placement, option, price, chain, load, spare, far_spare)

    def _option_numbers(self, split: Ints, partition: Ints, mlp: Ints, placement: Ints) -> Ints:
        """Numbers [3, N] of each candidate's options in `options`."""
        found = np.zeros((3, split.size), dtype=np.int64)
        number = [{option: i for i, option in enumerate(options)} for options in self.options]
        for s, (near, far) in enumerate(self.splits):
            at = np.nonzero(split == s)[0]
            if at.size:
                block = self.near[near].block
                lists = (block.partitions, block.ffns, self.placements(len(far)))
                for row, (options, column) in enumerate(zip(lists, (partition, mlp, placement), strict=True)):
                    found[row, at] = np.array([number[row][option] for option in options])[column[at]]
        return found

    def _near_side(self, tables: list[StageTable], near: Ints, a: Ints, f: Ints, sequences: int) -> AttentionSide:
        """Bills of the attention GPUs for every candidate."""
        batch = self.sequences.index(sequences)
        r = np.zeros_like(near)
        for n, table in enumerate(tables):
            number = {split: i for i, split in enumerate(table.block.splits)}
            own_split = np.array([number[token_split(self.sizes, p)] for p in table.block.partitions], dtype=np.int64)
            r[near == n] = own_split[a[near == n]]

        def gather(pick: Callable[[StageTable], Bill | None], *index: Ints) -> Bill:
            columns = [np.zeros(near.shape) for _ in Bill.__slots__]
            for n, table in enumerate(tables):
                at, bill = np.nonzero(near == n)[0], pick(table)
                if bill is not None and at.size:
                    for column, name in zip(columns, Bill.__slots__, strict=True):
                        column[at] = getattr(bill, name)[0, batch][tuple(i[at] for i in index)]
            return Bill(*columns)

        kinds = range(len(self.env.kinds))
        attention = tuple(gather(lambda t, k=k: t.attention[k], a) for k in kinds)  # type: ignore[misc]
        first = np.cumsum([0, *(len(table.block.ffns) for table in tables)])
        own = [np.concatenate([table.own[k] for table in tables])[first[near] + f] for k in kinds]
        dense = tuple(None if self.env.kinds[k].moe else gather(lambda t, k=k: t.ffn[k], r, own[k]) for k in kinds)  # type: ignore[misc]
        return AttentionSide(attention, dense, gather(lambda t: t.embedding, r), gather(lambda t: t.head, r))


def _laid(near: Site, spread: tuple[int, int]) -> Site:
    """Attention ranks in the order of a grid; as they are where they form no such grid."""
    return TokenSplit(1, *spread).laid(near) if len(near) % (spread[0] * spread[1]) == 0 else near
