"""SearchSpace: the open decisions of a problem, the rules between them, and the plans they allow."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import cached_property
from math import comb

from search_spaces.attention import AttentionDomain, AttentionPartition
from search_spaces.experts import ExpertDomain, ExpertPlacement
from search_spaces.sizes import Sizes, divisors
from search_spaces.stages import Choice, StageChoice, micro_batch_counts, replica_counts, replica_stride

RULES = (
    "stages take consecutive ranks in rank order; ranks left idle come last",
    "the GPUs of a stage are of one kind",
    "replicas are blocks of ranks that look alike: same GPU kinds, cut by scale-up domains at the same places",
    "replicas divide the batch, micro-batches the replica's batch, batch parts the micro-batch, context parts the prompt",
    "heads, head dims (in RoPE pairs), FFN columns, experts and vocabulary are split as evenly as can be, larger parts first",
    "within a stage one token split divides the other (attention's and the FFN's), and no part is empty",
    "experts on GPUs of their own: one stage per replica",
)
LARGE_CLUSTER = 64


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

    `stages` are stage counts; `layout`, when given, fixes the stages themselves. `use_all` forbids idle GPUs.
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
        stride = replica_stride(self.sizes, replicas)
        if stride is None:
            raise ValueError(f"no block of ranks serves {replicas} replicas alike")
        return stride

    def widths(self, stride: int) -> tuple[int, ...]:
        """GPU counts that a stage may have. Above 64 GPUs: divisors of a domain, or whole domains."""
        if self.layout:
            return tuple(sorted({len(pin.devices) for pin in self.layout if len(pin.devices) <= stride}))
        if self.sizes.devices <= LARGE_CLUSTER:
            return tuple(range(1, stride + 1))
        node = min(self.sizes.domain_of_device.count(d) for d in set(self.sizes.domain_of_device[:stride]))
        return tuple(sorted({d for d in divisors(node) if d <= stride} | set(range(node, stride + 1, node))))

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
        return tuple((a, e) for a in wide for e in wide if a + e <= stride and (a + e == stride or not self.use_all))

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
        return any(choice == other for other in self._of_branch(choice.replicas, choice.micro_batches, sequences, choice))

    def choices(self) -> Iterator[Choice]:
        """Every plan of the space in a fixed order; for small spaces."""
        for replicas, micro_batches in self.branches:
            yield from self._of_branch(replicas, micro_batches, self.sequences(replicas, micro_batches), None)

    def _of_branch(self, replicas: int, micro: int, sequences: int, like: Choice | None) -> Iterator[Choice]:
        stride = self.stride(replicas)
        for stages in self._pipelines(stride, sequences, like):
            yield Choice(replicas, micro, stages)
        for attention, experts in self.separate_splits(stride):
            if like is not None and (len(like.stages) != 1 or len(like.stages[0].devices) != attention + experts):
                continue
            devices = self.layout[0].devices if self.layout else tuple(range(attention + experts))
            if not (self.one_kind(devices[:attention]) and self.one_kind(devices[attention:])):
                continue
            for option in self.separate_options(attention, experts, 0):
                if self.fits_micro_batch(option, attention, sequences):
                    stage = StageChoice(self.sizes.layers, devices, option.attention, option.mlp_ways, option.experts)
                    yield from (Choice(replicas, micro, (stage,), w) for w in self.waves(micro))

    def _pipelines(self, stride: int, sequences: int, like: Choice | None) -> Iterator[tuple[StageChoice, ...]]:
        for shape in self._shapes(stride):
            if like is None or shape == tuple((s.layers, s.devices) for s in like.stages):
                yield from self._fill(shape, sequences, ())

    def _shapes(self, stride: int) -> Iterator[tuple[tuple[int, tuple[int, ...]], ...]]:
        """Every (layers, devices) sequence of a pipeline."""
        if self.layout:
            if all(max(pin.devices) < stride and self.one_kind(pin.devices) for pin in self.layout):
                yield tuple((pin.layers, pin.devices) for pin in self.layout)
            return
        counts, widths = self.stage_counts(stride), self.widths(stride)

        def extend(done: tuple[tuple[int, tuple[int, ...]], ...], left: int, first: int) -> Iterator[tuple]:  # type: ignore[type-arg]
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

    def _fill(
        self, shape: tuple[tuple[int, tuple[int, ...]], ...], sequences: int, done: tuple[StageChoice, ...]
    ) -> Iterator[tuple[StageChoice, ...]]:
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
            self._needed[key] = Counter(self._needs(option, ways) for option in self.options(ways, key[2]))
        return sum(count for needs, count in self._needed[key].items() if self._splits(needs, sequences))

    def _count_apart(self, attention: int, experts: int, sequences: int) -> int:
        key = (attention, experts, 0)
        if key not in self._needed:
            self._needed[key] = Counter(
                self._needs(option, attention) for option in self.separate_options(attention, experts, 0)
            )
        return sum(count for needs, count in self._needed[key].items() if self._splits(needs, sequences))

    @cached_property
    def _needed(self) -> dict[tuple[int, int, int | None], Counter[tuple[int, int]]]:
        """How many options of (attention GPUs, expert GPUs apart, pinned stage) split a micro-batch alike."""
        return {}

    def _count_pipelines(self, stride: int, sequences: int) -> int:
        if self.layout:
            total = 1 if all(max(p.devices) < stride and self.one_kind(p.devices) for p in self.layout) else 0
            for index, pin in enumerate(self.layout):
                total *= self._count_options(len(pin.devices), sequences, index)
            return total
        counts, widths = self.stage_counts(stride), self.widths(stride)
        options = {w: self._count_options(w, sequences) for w in widths}
        ends, total = {0: 1}, 0
        for stages in range(1, max(counts, default=0) + 1):
            following: dict[int, int] = {}
            for first, ways in ends.items():
                for width in widths:
                    if first + width <= stride and options[width] and self.one_kind(tuple(range(first, first + width))):
                        following[first + width] = following.get(first + width, 0) + ways * options[width]
            ends = following
            if stages in counts:
                covered = sum(n for end, n in ends.items() if end == stride or not self.use_all)
                total += comb(self.sizes.layers - 1, stages - 1) * covered
        return total

    def _count_separate(self, stride: int, sequences: int, micro: int) -> int:
        total = 0
        for attention, experts in self.separate_splits(stride):
            devices = self.layout[0].devices if self.layout else tuple(range(attention + experts))
            if self.one_kind(devices[:attention]) and self.one_kind(devices[attention:]):
                total += self._count_apart(attention, experts, sequences)
        return total * len(self.waves(micro))


def residual_shards(sizes: Sizes, partition: AttentionPartition) -> int:
    """Parts that the residual stream's tokens are split into over the GPUs of a stage."""
    if partition.sequence_parallel:
        return partition.ways
    return partition.batch_parts * (partition.context_parts if sizes.phase == "prefill" else 1)


def nested(first: int, second: int) -> bool:
    """Whether one number of token shards divides the other."""
    return first % second == 0 or second % first == 0
