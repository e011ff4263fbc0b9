"""Plans drawn at random from a space: none of them may be better than what a certificate calls the best."""

from __future__ import annotations

import random
from functools import cached_property
from itertools import pairwise

import numpy as np

from planner.certify.options import Options, attention_options, stage_options
from planner.certify.question import Question
from planner.evaluate.measures import measures
from planner.evaluate.pipeline import feedback_seconds, send_seconds
from planner.evaluate.setting import Setting
from planner.evaluate.stage import intervals, stage_price, view
from planner.evaluate.tables import Block, FfnOption, StageTable, price_blocks
from search_spaces.attention import AttentionPartition
from search_spaces.sizes import Sizes
from search_spaces.space import SearchSpace, token_split
from search_spaces.stages import Choice, StageChoice

Ranks = tuple[int, ...]
Chosen = tuple[AttentionPartition, FfnOption]
StageKey = tuple[Ranks, int, AttentionPartition, FfnOption]

APART = 0.25
"""Share of plans with experts on GPUs of their own, where there are any."""
TRIES = 100
"""Draws that are given up before a plan is found, for every plan asked for."""


class Sampler:
    """Draws plans of a space: a branch, then a pipeline or a split, then an option for every stage."""

    def __init__(self, space: SearchSpace, seed: int) -> None:
        self.space, self.sizes, self.random = space, space.sizes, random.Random(seed)

    def draw(self) -> Choice | None:
        """A plan of the space, or None where the draw led to none."""
        if not self.space.branches:
            return None
        replicas, micro_batches = self.random.choice(self.space.branches)
        splits = self._splits(self.space.stride(replicas))
        if splits and self.random.random() < APART:
            return self._apart(replicas, micro_batches, *self.random.choice(splits))
        return self._pipeline(replicas, micro_batches)

    def draws(self, count: int) -> list[Choice]:
        """Up to `count` plans; fewer where the space hardly has any."""
        found: list[Choice] = []
        for _ in range(count * TRIES):
            if len(found) == count:
                break
            choice = self.draw()
            found += [] if choice is None else [choice]
        return found

    def _splits(self, stride: int) -> list[tuple[Ranks, Ranks]]:
        if stride not in self._known_splits:
            splits = self.space.separate_splits(stride)
            self._known_splits[stride] = [side for split in splits for side in self.space.sides(*split)]
        return self._known_splits[stride]

    @cached_property
    def _known_splits(self) -> dict[int, list[tuple[Ranks, Ranks]]]:
        return {}

    def _apart(self, replicas: int, micro_batches: int, near: Ranks, far: Ranks) -> Choice | None:
        option = self._option(len(near), 0, self.space.sequences(replicas, micro_batches), apart=True)
        placements = list(self.space.pinned(0).experts.separate(self.sizes, len(far)))
        waves = self.space.waves(micro_batches)
        if option is None or not waves or not placements:
            return None
        stage = StageChoice(self.sizes.layers, near + far, option[0], option[1].mlp_ways, self.random.choice(placements))
        return Choice(replicas, micro_batches, (stage,), self.random.choice(waves))

    def _pipeline(self, replicas: int, micro_batches: int) -> Choice | None:
        shape = self._shape(self.space.stride(replicas))
        if shape is None:
            return None
        stages = []
        for index, (layers, devices) in enumerate(shape):
            sequences = self.space.sequences(replicas, micro_batches)
            option = self._option(len(devices), index if self.space.layout else None, sequences, apart=False)
            if option is None:
                return None
            stages.append(StageChoice(layers, devices, option[0], option[1].mlp_ways, option[1].experts))
        return Choice(replicas, micro_batches, tuple(stages))

    def _shape(self, stride: int) -> list[tuple[int, tuple[int, ...]]] | None:
        """Layers and ranks of the stages of a pipeline."""
        space = self.space
        if space.layout:
            there = all(max(pin.devices) < stride and space.one_kind(pin.devices) for pin in space.layout)
            return [(pin.layers, pin.devices) for pin in space.layout] if there else None
        counts, widths = space.stage_counts(stride), space.widths(stride)
        if not counts or not widths:
            return None
        count = self.random.choice(counts)
        layers, wide = self._runs(count, widths) if space.regular else self._any(count, widths)
        if sum(wide) > stride or (space.use_all and sum(wide) != stride) or sum(layers) != self.sizes.layers:
            return None
        ends = [sum(wide[: i + 1]) for i in range(count)]
        if not all(space.placed(end - w, w) for end, w in zip(ends, wide, strict=True)):
            return None
        return [(n, tuple(range(end - w, end))) for n, w, end in zip(layers, wide, ends, strict=True)]

    def _any(self, count: int, widths: tuple[int, ...]) -> tuple[list[int], list[int]]:
        """Layers cut anywhere, any widths that leave room."""
        cuts = [0, *sorted(self.random.sample(range(1, self.sizes.layers), count - 1)), self.sizes.layers]
        most = max(1, max(widths) // count) if self.random.random() < 0.7 else max(widths)
        narrow = [w for w in widths if w <= most] or [min(widths)]
        return [b - a for a, b in pairwise(cuts)], self.random.choices(narrow, k=count)

    def _runs(self, count: int, widths: tuple[int, ...]) -> tuple[list[int], list[int]]:
        """Two runs of equal stages (one, if they come out alike)."""
        first, most = self.random.randint(1, count), max(1, max(widths) // count)
        narrow = [w for w in widths if w <= most] or [min(widths)]
        some = self.random.randint(1, max(1, self.sizes.layers // count * 2))
        rest = count - first
        other = (self.sizes.layers - first * some) // rest if rest else 0
        pair = self.random.choice(narrow), self.random.choice(narrow)
        return [some] * first + [max(other, 1)] * rest, [pair[0]] * first + [pair[1]] * rest

    def _option(
        self, ways: int, index: int | None, sequences: int, *, apart: bool
    ) -> tuple[AttentionPartition, FfnOption] | None:
        """Attention and FFN of a stage (or of the attention GPUs alone) that split a micro-batch of so many sequences."""
        known = (ways, index, apart)
        if known not in self._options:
            self._options[known] = attention_options(self.space, ways) if apart else stage_options(self.space, ways, index)
        own = self._options[known]
        at = np.zeros(0) if own is None else np.flatnonzero(own.usable(self.sizes, sequences))
        if own is None or not at.size:
            return None
        a, f = divmod(int(at[self.random.randrange(at.size)]), len(own.ffns))
        return own.partitions[a], own.ffns[f]

    @cached_property
    def _options(self) -> dict[tuple[int, int | None, bool], Options | None]:
        return {}


def values(env: Setting, question: Question, sizes: Sizes, choices: list[Choice]) -> list[float]:
    """The value of every plan, memory apart; the stages of all of them are priced together."""
    keys = [_stage_key(sizes, choice, stage) for choice in choices if not choice.stages[0].separate for stage in choice.stages]
    distinct = list(dict.fromkeys(keys))
    blocks = [
        Block(
            env.cluster.device_kinds[ranks[0]],
            (ranks,),
            (sequences,),
            (partition,),
            (ffn,),
            (token_split(sizes, partition),),
        )
        for ranks, sequences, partition, ffn in distinct
    ]
    tables = dict(zip(distinct, price_blocks(env, blocks), strict=True)) if blocks else {}
    return [_value(env, question, sizes, choice, tables) for choice in choices]


def _stage_key(sizes: Sizes, choice: Choice, stage: StageChoice) -> StageKey:
    """Ranks, sequences of a micro-batch and option of a stage."""
    sequences = sizes.batch // choice.replicas // choice.micro_batches
    return stage.devices, sequences, stage.attention, FfnOption(stage.mlp_ways, stage.experts)


def _value(env: Setting, question: Question, sizes: Sizes, choice: Choice, tables: dict[StageKey, StageTable]) -> float:
    if choice.stages[0].separate:
        return question.of_plan(measures(env, sizes, choice))
    sequences, start, seconds = sizes.batch // choice.replicas // choice.micro_batches, 0, []
    for stage in choice.stages:
        v = view(env, sizes, tables[_stage_key(sizes, choice, stage)], 0, 0, sequences * choice.micro_batches)
        seconds.append(float(stage_price(v, intervals(env, [(start, start + stage.layers)])).seconds[0, 0, 0]))
        start += stage.layers
    places = [stage.devices for stage in choice.stages]
    sends = [send_seconds(env, a, b, sequences) for a, b in pairwise(places)]
    if sizes.phase == "decode" and len(places) > 1:
        sends.append(feedback_seconds(env, places[-1], places[0], sequences))
    used = [rank for place in places for rank in place]
    chain, slowest = sum(seconds) + sum(sends), max((*seconds, *sends))
    return question.of_places(choice.replicas, choice.micro_batches, used, chain, slowest)
