"""World: everything a virtual cluster needs to know besides its graph: twin, weights, tokens, and where tokens stand."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from planner.check.reference import Gradients, Tokens, Trace, targets_of
from planner.check.run.twin import Twin
from search_spaces.sizes import share
from search_spaces.space import residual_shards
from search_spaces.stages import StageChoice

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]
Weights = Mapping[tuple[int | None, str], Floats]


@dataclass(frozen=True)
class World:
    """A twin with its weights, its tokens, and what the unsplit model makes of them.

    Tokens are numbered sequence x length + index, over all micro-batches of the replica. `routes` forces the experts of
    every token (by layer, [tokens, top_k]) where it is given, `gradients` are those of the unsplit model's loss.
    """

    twin: Twin
    weights: Weights
    tokens: Tokens
    trace: Trace
    routes: Mapping[int, Ints] | None = None
    gradients: Gradients | None = None
    _flat: dict[tuple[int | None, str], Floats] = field(default_factory=dict)

    @property
    def length(self) -> int:
        """Tokens of a sequence in the reference: the prompt, or the context and the new token."""
        return int(self.tokens.ids.shape[1])

    @cached_property
    def positions(self) -> Ints:
        """Absolute position of every token, flat."""
        return self.tokens.positions.reshape(-1)

    @cached_property
    def valid(self) -> NDArray[np.bool_]:
        """Whether a token is one (False: padding), flat."""
        return self.tokens.valid.reshape(-1)

    @cached_property
    def targets(self) -> Ints:
        """The token of the vocabulary after every token, flat."""
        return np.asarray(targets_of(self.tokens).reshape(-1), dtype=np.int64)

    @cached_property
    def last(self) -> Ints:
        """The last token of every sequence."""
        lengths = self.tokens.valid.sum(axis=1)
        return np.asarray(np.arange(len(lengths)) * self.length + lengths - 1, dtype=np.int64)

    @cached_property
    def is_last(self) -> NDArray[np.bool_]:
        """Whether a token is the last of its sequence, flat."""
        found = np.zeros(self.valid.shape, dtype=np.bool_)
        found[self.last] = True
        return found

    def expected(self, layer: int | None, name: str) -> Floats:
        """A tensor of the unsplit model as a matrix: one row a token."""
        key = (layer, name)
        if key not in self._flat:
            found = self.trace.values[key]
            self._flat[key] = found.reshape(found.shape[0] * found.shape[1], -1)
        return self._flat[key]


@dataclass(frozen=True)
class StageTokens:
    """Where the tokens of one micro-batch stand in a stage; all answers are token numbers, in the order they are held.

    The stage's own order: batch parts, in them context parts, sequences, positions. A context part of a causal prompt is
    an early and a late piece of it, so that the parts are equal work.
    """

    world: World
    stage: StageChoice
    micro_batch: int

    @property
    def ways(self) -> int:
        """GPUs of the stage that hold tokens."""
        return len(self.stage.attention_devices)

    @property
    def decode(self) -> bool:
        """Whether each sequence has one new token."""
        return self.world.twin.workload.phase == "decode"

    @property
    def context_parts(self) -> int:
        """Parts that a prompt is cut into; the tokens of a decode step are not."""
        return 1 if self.decode else self.stage.attention.context_parts

    @cached_property
    def sequences(self) -> Ints:
        """Sequences of the micro-batch."""
        each = self.world.twin.sequences
        return np.arange(self.micro_batch * each, (self.micro_batch + 1) * each)

    @cached_property
    def order(self) -> Ints:
        """All tokens of the micro-batch."""
        parts = self.stage.attention.batch_parts
        found = [self._grid(sequences, c).reshape(-1) for sequences in np.split(self.sequences, parts)
                 for c in range(self.context_parts)]  # fmt: skip
        return np.concatenate(found)

    def attention(self, place: int) -> Ints:
        """Tokens whose queries a GPU computes, [sequences, queries]."""
        p = self.stage.attention
        part = place // (p.head_groups * p.dimension_segments)
        batch, context = part // p.context_parts, part % p.context_parts
        return self._grid(np.split(self.sequences, p.batch_parts)[batch], 0 if self.decode else context)

    def block(self, place: int, context: int) -> Ints:
        """The keys of context part `context` for the sequences of a GPU, [sequences, keys]."""
        sequences = self.attention(place)[:, 0] // self.world.length
        return self._grid(sequences, context)

    def cached(self, place: int, context: int) -> Ints:
        """Tokens whose keys a GPU has in its cache when a decode step begins, [sequences, keys]; -1 from the new one on."""
        new = self.attention(place)
        index = cut(self.world.length - 1, self.stage.attention.context_parts, context)
        tokens = new // self.world.length * self.world.length + index[None, :]
        return np.where(tokens < new, tokens, -1)

    def residual(self, place: int) -> Ints:
        """Tokens of the residual stream on a GPU."""
        return self._shard(residual_shards(self.world.twin.sizes, self.stage.attention), place)

    def network(self, place: int) -> Ints:
        """Tokens that a GPU's columns of a dense FFN see."""
        return self._shard(self.ways // self.stage.mlp_ways, place)

    def own(self, place: int) -> Ints:
        """A GPU's part when every GPU of the stage has tokens of its own."""
        return self._shard(self.ways, place)

    def head(self, tokens: Ints) -> Ints:
        """Those of some tokens that need logits."""
        if self.world.twin.workload.logits == "all":
            return tokens
        return tokens[self.world.is_last[tokens]]

    @property
    def vocab_ways(self) -> int:
        """GPUs that share one copy of embedding and head: the whole stage, in training those that share heads."""
        p = self.stage.attention
        return self.ways if self.world.twin.choice.training is None else p.head_groups * p.dimension_segments

    def vocab_tokens(self, place: int) -> Ints:
        """Tokens that a GPU's part of the vocabulary sees."""
        return self.order if self.world.twin.choice.training is None else self.attention(place).reshape(-1)

    def gathered_head(self, place: int) -> Ints:
        """Tokens with logits in the order in which the residual shards bring them together on a GPU."""
        if self.world.twin.choice.training is not None:
            return self.vocab_tokens(place)
        shards = residual_shards(self.world.twin.sizes, self.stage.attention)
        return np.concatenate([self.head(self._shard(shards, i * (self.ways // shards))) for i in range(shards)])

    def _shard(self, shards: int, place: int) -> Ints:
        index, size = place // (self.ways // shards), len(self.order)
        return self.order[-(-size * index // shards) : -(-size * (index + 1) // shards)]

    def _grid(self, sequences: Ints, context: int) -> Ints:
        """Tokens of some sequences in one context part, [sequences, tokens]."""
        world = self.world
        if self.decode:
            return world.last[sequences][:, None]
        each, parts = world.length // self.context_parts, self.context_parts
        late = each // 2
        early = each - late
        start, end = context * early, parts * early + (parts - 1 - context) * late
        index = np.concatenate([np.arange(start, start + early), np.arange(end, end + late)])
        return np.asarray(sequences[:, None] * world.length + index[None, :], dtype=np.int64)


def cut(total: int, parts: int, index: int) -> Ints:
    """The indices of part `index` when a range is cut into even consecutive parts, the larger ones first."""
    first = sum(share(total, parts, i) for i in range(index))
    return np.arange(first, first + share(total, parts, index))
