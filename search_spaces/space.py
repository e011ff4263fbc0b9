"""SearchSpace: the open decisions of a problem, the rules between them, and the plans they allow."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import cache, cached_property, partial
from itertools import accumulate

from search_spaces.attention import AttentionDomain, AttentionPartition
from search_spaces.attention import nested as nested
from search_spaces.attention import residual_shards as residual_shards
from search_spaces.attention import token_split as token_split
from search_spaces.counts import pipelines
from search_spaces.experts import ExpertDomain, ExpertPlacement
from search_spaces.large import Ground, runs_of
from search_spaces.sizes import LARGE_CLUSTER, Sizes, divisors
from search_spaces.stages import Choice, StageChoice, micro_batch_counts, replica_counts, replica_stride

RULES = (
    "stages take consecutive ranks in rank order; ranks left idle come last",
    "the GPUs of a stage are of one kind",
    "replicas are blocks of ranks that look alike: same GPU kinds, cut by scale-up domains at the same places",
    "replicas divide the batch, micro-batches the replica's batch, batch parts the micro-batch, context parts the prompt",
    "heads, head dims (in RoPE pairs), FFN columns, experts and vocabulary are split as evenly as can be, larger parts first",
    "heads are also split with KV groups left whole, where that is another split",
    "batch or context parts lie on neighbouring ranks, and the tokens of the FFN with them, in stages of more GPUs than the "
    "smallest domain on up to 64 GPUs: inside a domain no order costs less",
    "the GPUs that share an expert are neighbours",
    "within a stage one token split divides the other (attention's and the FFN's), and no part is empty",
    "experts on GPUs of their own: one stage per replica, attention on its first ranks (on clusters of several kinds of GPU "
    "also on its last)",
)
PipelineShape = tuple[tuple[int, tuple[int, ...]], ...]
"""(layers, ranks) of every stage."""


@dataclass(frozen=True, slots=True)
class StageOption:
    """One way to run a stage of a given width."""

    attention: AttentionPartition
    mlp_ways: int
    experts: ExpertPlacement | None


@dataclass(frozen=True, slots=True)
class StagePin:
    """A stage that the space fixes: its layers and ranks, and what stays open inside it."""

    layers: int
    devices: tuple[int, ...]
    attention: AttentionDomain = field(default_factory=AttentionDomain)
    mlp_ways: tuple[int, ...] | None = None
    experts: ExpertDomain = field(default_factory=ExpertDomain)


@dataclass(frozen=True)
class SearchSpace:
    """Every open decision with the values it may take; None means every legal value.

    `stages` are stage counts; `layout`, when given, fixes the stages themselves. `use_all` forbids idle GPUs. On more than
    `large` GPUs the rules of `search_spaces/large.py` hold besides. The plans are those of one order of the GPUs; `any_order`
    says that a search may go through others, too (see `search_spaces/orders.py`).
    """

    sizes: Sizes
    replicas: tuple[int, ...] | None = None
    stages: tuple[int, ...] | None = None
    micro_batches: tuple[int, ...] | None = None
    in_flight: tuple[int, ...] | None = None
    attention: AttentionDomain = field(default_factory=AttentionDomain)
    mlp_ways: tuple[int, ...] | None = None
    experts: ExpertDomain = field(default_factory=ExpertDomain)
    layout: tuple[StagePin, ...] = ()
    use_all: bool = False
    large: int = LARGE_CLUSTER
    any_order: bool = True

    @property
    def regular(self) -> bool:
        """Whether the rules of large clusters hold."""
        return not self.layout and self.sizes.devices > self.large

    @cached_property
    def ground(self) -> Ground:
        """Where the stages of a large cluster may stand."""
        return Ground(self.sizes)

    @cached_property
    def branches(self) -> tuple[tuple[int, int], ...]:
        """Every (replicas, micro_batches), ascending."""
        counts = replica_counts(self.sizes, self.replicas)
        return tuple((r, m) for r in counts for m in micro_batch_counts(self.sizes, r, self.micro_batches))

    def sequences(self, replicas: int, micro_batches: int) -> int:
        """Sequences in one micro-batch."""
        return self.sizes.batch // replicas // micro_batches

    def stride(self, replicas: int) -> int:
        """Ranks that one replica may use."""
        stride = self._strides(replicas)
        if stride is None:
            raise ValueError(f"no block of ranks serves {replicas} replicas alike")
        return stride

    @cached_property
    def _strides(self) -> Callable[[int], int | None]:
        return cache(partial(replica_stride, self.sizes))

    def widths(self, stride: int) -> tuple[int, ...]:
        """GPU counts that a stage may have."""
        if self.layout:
            return tuple(sorted({len(pin.devices) for pin in self.layout if len(pin.devices) <= stride}))
        return self.ground.widths(stride) if self.regular else tuple(range(1, stride + 1))

    def placed(self, first: int, width: int) -> bool:
        """Whether a stage (or one side of it) may stand on `width` ranks from `first`."""
        return self.ground.placed(first, width) if self.regular else self.one_kind(tuple(range(first, first + width)))

    def one_kind(self, devices: tuple[int, ...]) -> bool:
        """Whether ranks are all of one GPU kind."""
        return len({self.sizes.kind_of_device[d] for d in devices}) == 1

    def stage_counts(self, stride: int) -> tuple[int, ...]:
        """Pipeline lengths that the space allows on `stride` ranks."""
        most = min(stride, self.sizes.layers)
        return tuple(s for s in range(1, most + 1) if self.stages is None or s in self.stages)

    def pinned(self, index: int | None) -> SearchSpace:
        """The space as stage `index` of the layout sees it."""
        if index is None or not self.layout:
            return self
        pin = self.layout[index]
        return replace(self, attention=pin.attention, mlp_ways=pin.mlp_ways, experts=pin.experts)

    def options(self, ways: int, index: int | None = None) -> tuple[StageOption, ...]:
        """Every option of a stage of `ways` GPUs that computes attention and FFN both, micro-batch rules apart."""
        own = self.pinned(index)
        experts = list(own.experts.shared(self.sizes, ways)) if self.sizes.moe else [None]
        return tuple(
            StageOption(partition, mlp, placement)
            for partition in own.attention.partitions(self.sizes, ways)
            for mlp in own.mlp_choices(ways)
            for placement in experts
            if nested(residual_shards(self.sizes, partition), ways // mlp)
        )

    def separate_options(self, attention_ways: int, expert_ways: int, index: int | None = None) -> tuple[StageOption, ...]:
        """Every option of a stage whose experts have `expert_ways` GPUs of their own."""
        own = self.pinned(index)
        return tuple(
            StageOption(partition, mlp, placement)
            for partition in own.attention.partitions(self.sizes, attention_ways)
            for mlp in own.mlp_choices(attention_ways)
            for placement in own.experts.separate(self.sizes, expert_ways)
            if nested(residual_shards(self.sizes, partition), attention_ways // mlp)
        )

    def separate_splits(self, stride: int) -> tuple[tuple[int, int], ...]:
        """(attention GPUs, expert GPUs) pairs for experts on GPUs of their own."""
        if not self.sizes.moe or (self.stages is not None and 1 not in self.stages) or len(self.layout) > 1:
            return ()
        if self.layout:
            total = len(self.layout[0].devices)
            return tuple((total - e, e) for e in range(1, total)) if total <= stride else ()
        wide = self.widths(stride)
        some = self.experts.devices or wide
        pairs = ((a, e) for a in wide for e in wide if a + e <= stride and (a + e == stride or not self.use_all) and e in some)
        return tuple(pairs)

    def sides(self, attention: int, experts: int) -> tuple[tuple[tuple[int, ...], tuple[int, ...]], ...]:
        """(attention ranks, expert ranks) where experts may be apart: attention first, among several kinds of GPU also last."""
        devices = self.layout[0].devices if self.layout else tuple(range(attention + experts))
        found = [(devices[:attention], devices[attention:])]
        if self.regular:
            return tuple(found) if self.placed(0, attention) and self.placed(attention, experts) else ()
        if not self.layout and len(set(self.sizes.kind_of_device)) > 1:
            found.append((devices[experts:], devices[:experts]))
        return tuple((near, far) for near, far in found if self.one_kind(near) and self.one_kind(far))

    def _count_sides(self, attention: int, experts: int) -> int:
        """How many `sides` there are."""
        if self.regular:
            return int(self.placed(0, attention) and self.placed(attention, experts))
        return len(self.sides(attention, experts))

    def mlp_choices(self, ways: int) -> tuple[int, ...]:
        """MLP ways on `ways` GPUs; where no layer has a dense FFN only the full width is told apart."""
        if not self.sizes.dense:
            return (ways,)
        legal = [w for w in divisors(ways) if w <= self.sizes.ffn_hidden]
        return tuple(w for w in legal if self.mlp_ways is None or w in self.mlp_ways)

    def fits_micro_batch(self, option: StageOption, ways: int, sequences: int) -> bool:
        """Whether a micro-batch of `sequences` can be split as the option says (`ways`: the attention GPUs)."""
        return self._splits(self._needs(option, ways), sequences)

    def _needs(self, option: StageOption, ways: int) -> tuple[int, int]:
        """(batch parts, token shards) that an option splits a micro-batch into."""
        shards = max(residual_shards(self.sizes, option.attention), ways // option.mlp_ways)
        if option.experts is not None and option.experts.form != "local":
            shards = ways
        return option.attention.batch_parts, shards

    def _splits(self, needs: tuple[int, int], sequences: int) -> bool:
        return sequences % needs[0] == 0 and needs[1] <= sequences * self.sizes.query_length

    def waves(self, micro_batches: int) -> tuple[int, ...]:
        """Micro-batches in flight that experts on their own GPUs may use: divisors of the count, at most 16."""
        return tuple(w for w in divisors(micro_batches) if w <= 16 and (self.in_flight is None or w in self.in_flight))

    def contains(self, choice: Choice) -> bool:
        """Whether a choice is in the space."""
        if (choice.replicas, choice.micro_batches) not in self.branches:
            return False
        sequences = self.sequences(choice.replicas, choice.micro_batches)
        if any(stage.separate for stage in choice.stages):
            return any(choice == other for other in self._apart(choice.replicas, choice.micro_batches, sequences, choice))
        shape = tuple((stage.layers, stage.devices) for stage in choice.stages)
        if choice.in_flight != 1 or not self._has_shape(shape, self.stride(choice.replicas)):
            return False
        return all(
            option in self.options(len(stage.devices), index) and self.fits_micro_batch(option, len(stage.devices), sequences)
            for index, stage in enumerate(choice.stages)
            for option in [StageOption(stage.attention, stage.mlp_ways, stage.experts)]
        )

    def choices(self) -> Iterator[Choice]:
        """Every plan of the space in a fixed order; for small spaces."""
        for replicas, micro_batches in self.branches:
            yield from self._of_branch(replicas, micro_batches, self.sequences(replicas, micro_batches))

    def _of_branch(self, replicas: int, micro: int, sequences: int) -> Iterator[Choice]:
        for shape in self._shapes(self.stride(replicas)):
            for stages in self._fill(shape, sequences, ()):
                yield Choice(replicas, micro, stages)
        yield from self._apart(replicas, micro, sequences, None)

    def _apart(self, replicas: int, micro: int, sequences: int, like: Choice | None) -> Iterator[Choice]:
        """Plans whose experts have GPUs of their own; with `like` only those on as many GPUs."""
        for attention, experts in self.separate_splits(self.stride(replicas)):
            if like is not None and (len(like.stages) != 1 or len(like.stages[0].devices) != attention + experts):
                continue
            for near, far in self.sides(attention, experts):
                for option in self.separate_options(attention, experts, 0):
                    if self.fits_micro_batch(option, attention, sequences):
                        stage = StageChoice(self.sizes.layers, near + far, option.attention, option.mlp_ways, option.experts)
                        yield from (Choice(replicas, micro, (stage,), w) for w in self.waves(micro))

    def _has_shape(self, shape: PipelineShape, stride: int) -> bool:
        """Whether (layers, devices) of the stages of a linear pipeline are in the space."""
        if self.layout:
            return shape in self._shapes(stride)
        ends = [0, *(devices[-1] + 1 for _, devices in shape if devices)]
        blocks = all(d == tuple(range(first, first + len(d))) for first, (_, d) in zip(ends, shape, strict=False))
        widths = self.widths(stride)
        return (
            len(ends) == len(shape) + 1
            and blocks
            and ends[-1] <= stride
            and (ends[-1] == stride or not self.use_all)
            and len(shape) in self.stage_counts(stride)
            and sum(layers for layers, _ in shape) == self.sizes.layers
            and all(n > 0 and len(d) in widths and self.placed(d[0], len(d)) for n, d in shape)
            and (not self.regular or len(runs_of(tuple((n, len(d)) for n, d in shape))) <= 2)
        )

    def _shapes(self, stride: int) -> Iterator[PipelineShape]:
        """Every (layers, devices) sequence of a pipeline."""
        if self.layout:
            if all(max(pin.devices) < stride and self.one_kind(pin.devices) for pin in self.layout):
                yield tuple((pin.layers, pin.devices) for pin in self.layout)
            return
        counts, widths = self.stage_counts(stride), self.widths(stride)
        if self.regular:
            for runs in self.ground.shapes(stride, counts, use_all=self.use_all):
                stages = [(layers, width) for n, layers, width in runs for _ in range(n)]
                ends = list(accumulate(width for _, width in stages))
                yield tuple((n, tuple(range(end - w, end))) for (n, w), end in zip(stages, ends, strict=True))
            return

        def extend(done: PipelineShape, left: int, first: int) -> Iterator[PipelineShape]:
            if left == 0:
                if len(done) in counts and (first == stride or not self.use_all):
                    yield done
                return
            if len(done) == max(counts, default=0):
                return
            for layers in range(1, left + 1):
                for width in widths:
                    devices = tuple(range(first, first + width))
                    if first + width <= stride and self.one_kind(devices):
                        yield from extend((*done, (layers, devices)), left - layers, first + width)

        yield from extend((), self.sizes.layers, 0)

    def _fill(self, shape: PipelineShape, sequences: int, done: tuple[StageChoice, ...]) -> Iterator[tuple[StageChoice, ...]]:
        if len(done) == len(shape):
            yield done
            return
        layers, devices = shape[len(done)]
        for option in self.options(len(devices), len(done)):
            if self.fits_micro_batch(option, len(devices), sequences):
                stage = StageChoice(layers, devices, option.attention, option.mlp_ways, option.experts)
                yield from self._fill(shape, sequences, (*done, stage))

    def size(self) -> int:
        """The number of plans, exactly, without listing them."""
        return sum(
            self._count_pipelines(self.stride(r), self.sequences(r, m))
            + self._count_separate(self.stride(r), self.sequences(r, m), m)
            for r, m in self.branches
        )

    def _count_options(self, ways: int, sequences: int, index: int | None = None) -> int:
        key = (ways, 0, index if self.layout else None)
        if key not in self._needed:
            self._needed[key] = self._count_needs(ways, key[2], apart=False)
        return sum(count for needs, count in self._needed[key].items() if self._splits(needs, sequences))

    def _count_needs(self, ways: int, index: int | None, *, apart: bool) -> Counter[tuple[int, int]]:
        """How many options of a stage need which parts (see `_needs`); `apart`: of its attention GPUs, experts elsewhere."""
        own, found = self.pinned(index), Counter[tuple[int, int]]()
        forms = Counter({"separate" if apart else "local": 1})
        if self.sizes.moe and not apart:
            forms = Counter(placement.form for placement in own.experts.shared(self.sizes, ways))
        splits = self._partition_needs(ways, index)
        for mlp in own.mlp_choices(ways):
            for (parts, shards), count in splits.items():
                if nested(shards, ways // mlp):
                    found[parts, max(shards, ways // mlp)] += count * forms["local"]
                    found[parts, ways] += count * (forms["dispatch"] + forms["separate"])
        return found

    def _partition_needs(self, ways: int, index: int | None) -> Counter[tuple[int, int]]:
        """How many partitions have which (batch parts, residual shards)."""
        key = (ways, -1, index)
        if key not in self._needed:
            self._needed[key] = Counter((p.batch_parts, residual_shards(self.sizes, p)) for p in self.partitions(ways, index))
        return self._needed[key]

    @cached_property
    def partitions(self) -> Callable[[int, int | None], tuple[AttentionPartition, ...]]:
        """Every attention partition of a stage of some GPUs (of a fixed stage), in order; listed once."""
        return cache(lambda ways, index: tuple(self.pinned(index).attention.partitions(self.sizes, ways)))

    @cached_property
    def _needed(self) -> dict[tuple[int, int, int | None], Counter[tuple[int, int]]]:
        """How many options of (attention GPUs, kind of table, pinned stage) split a micro-batch alike; kinds: 0 whole
        stages, 1 attention GPUs whose experts are elsewhere, -1 partitions alone.
        """
        return {}

    def _count_pipelines(self, stride: int, sequences: int) -> int:
        if self.layout:
            total = 1 if all(max(p.devices) < stride and self.one_kind(p.devices) for p in self.layout) else 0
            for index, pin in enumerate(self.layout):
                total *= self._count_options(len(pin.devices), sequences, index)
            return total
        counts, widths = self.stage_counts(stride), self.widths(stride)
        options = {w: self._count_options(w, sequences) for w in widths}
        if self.regular:
            return self.ground.count(stride, counts, options, use_all=self.use_all)
        key = (stride, tuple(options.values()))
        if key not in self._counted:
            kinds = self.sizes.kind_of_device[:stride]
            self._counted[key] = pipelines(self.sizes.layers, kinds, counts, options, use_all=self.use_all)
        return self._counted[key]

    @cached_property
    def _counted(self) -> dict[tuple[int, tuple[int, ...]], int]:
        """Pipelines on so many ranks with so many options of every width."""
        return {}

    def _count_separate(self, stride: int, sequences: int, micro: int) -> int:
        total = 0
        for attention, placements in self._count_placements(stride).items():
            key = (attention, 1, 0)
            if key not in self._needed:
                self._needed[key] = self._count_needs(attention, 0, apart=True)
            total += placements * sum(n for needs, n in self._needed[key].items() if self._splits(needs, sequences))
        return total * len(self.waves(micro))

    def _count_placements(self, stride: int) -> dict[int, int]:
        """How many placements the experts may have on GPUs of their own, for each number of attention GPUs."""
        if stride not in self._placements:
            found: dict[int, int] = {}
            some = {experts for _, experts in self.separate_splits(stride)}
            ways = {e: sum(1 for _ in self.pinned(0).experts.separate(self.sizes, e)) for e in some}
            for attention, experts in self.separate_splits(stride):
                if ways[experts]:
                    found[attention] = found.get(attention, 0) + ways[experts] * self._count_sides(attention, experts)
            self._placements[stride] = found
        return self._placements[stride]

    @cached_property
    def _placements(self) -> dict[int, dict[int, int]]:
        return {}
