"""TrainingSpace: the plans of a training problem: pipelines of equal stages, and how a step runs them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property

from search_spaces.attention import AttentionDomain
from search_spaces.space import SearchSpace, StageOption
from search_spaces.stages import Choice, StageChoice
from search_spaces.training import TrainingChoice, TrainingDomain

TRAINING_RULES = (
    "all stages have as many GPUs and are split in the same way; they take consecutive ranks, and ranks left idle come last",
    "a stage has GPUs of one kind: a divisor of a node's GPUs, or whole nodes: any number up to 16 or all of a replica, beyond "
    "16 those with three significant binary digits after the first",
    "replicas are blocks of ranks that look alike: same GPU kinds, cut by scale-up domains at the same places",
    "replicas divide the batch, micro-batches the replica's batch, batch parts the micro-batch, context parts the sequence",
    "stages have as many layers, larger ones in the middle; the first and the last may have none and one, one and one, one and "
    "two, or two and two fewer (of two stages none and one, with interleaved chunks none)",
    "heads, FFN columns, experts and vocabulary are split as evenly as can be, larger parts first; heads also with KV groups "
    "left whole, where that is another split",
    "heads are not cut into segments, the output projection is row-split, context and batch parts are outermost",
    "the GPUs that share the heads of some tokens share their dense FFN, and no part of the tokens is empty",
    "experts are on the GPUs of attention, in order; the GPUs that share an expert are neighbours",
    "data-parallel copies are replicas; those inside a stage (batch parts) are for experts that spread over them, unless batch "
    "parts are asked for",
    "the chunks of interleaved stages divide the layers of the largest stage, micro-batches fill whole groups of stages",
    "selective recomputation, and exchange that runs beside nothing, must be asked for",
)
"""What a training space leaves out, whole: the rules of inference do not hold besides."""
ATTENTION = AttentionDomain(
    dimension_segments=(1,), order=("segments_inner",), score_reduce=(True,), softmax=("replicated",),
    output_projection=("row",),
)  # fmt: skip
"""What attention may be in training, before a problem or a plan says more."""
LIGHTER_ENDS = ((0, 0), (0, 1), (1, 1), (1, 2), (2, 2))
"""Layers that the first and the last stage have less than those between: they also embed tokens, or predict them."""


@dataclass(frozen=True)
class Frame:
    """Plans that differ in their layers and in how a step runs them: counts, ranks of each stage and its option."""

    replicas: int
    micro_batches: int
    devices: tuple[tuple[int, ...], ...]
    options: tuple[StageOption, ...]

    def choice(self, layers: tuple[int, ...], training: TrainingChoice) -> Choice:
        """One of its plans."""
        stages = tuple(
            StageChoice(count, ranks, option.attention, option.mlp_ways, option.experts)
            for count, ranks, option in zip(layers, self.devices, self.options, strict=True)
        )
        return Choice(self.replicas, self.micro_batches, stages, 1, training)


@dataclass(frozen=True)
class TrainingSpace(SearchSpace):
    """A search space whose plans also say how an optimizer step runs them (see `TRAINING_RULES`)."""

    attention: AttentionDomain = ATTENTION
    training: TrainingDomain = field(default_factory=TrainingDomain)

    def options(self, ways: int, index: int | None = None) -> tuple[StageOption, ...]:
        """Every option of a stage of `ways` GPUs that can be trained."""
        key = (ways, index if self.layout else None)
        if key not in self._known:
            found = super().options(ways, key[1])
            own = self.layout[index].attention if self.layout and index is not None else self.attention
            parted = own.batch_parts is not None
            self._known[key] = tuple(o for o in found if _trained(o, dense=self.sizes.dense, parted=parted))
        return self._known[key]

    @cached_property
    def _known(self) -> dict[tuple[int, int | None], tuple[StageOption, ...]]:
        return {}

    def frames(self) -> tuple[Frame, ...]:
        """Every frame in a fixed order; listed once, since the search and the size of the space both go through them."""
        return self._listed

    @cached_property
    def _listed(self) -> tuple[Frame, ...]:
        return tuple(self._frames())

    def _frames(self) -> Iterator[Frame]:
        for replicas, micro in self.branches:
            sequences = self.sequences(replicas, micro)
            for devices in self._places(self.stride(replicas)):
                for options in self._filled(devices, sequences):
                    yield Frame(replicas, micro, devices, options)

    def splits(self, stages: int, virtual: int) -> tuple[tuple[int, ...], ...]:
        """The layers of every stage, each way once."""
        if self.layout:
            return (tuple(pin.layers for pin in self.layout),)
        if (stages, virtual) not in self._cut:
            self._cut[stages, virtual] = self._all_splits(stages, virtual)
        return self._cut[stages, virtual]

    @cached_property
    def _cut(self) -> dict[tuple[int, int], tuple[tuple[int, ...], ...]]:
        return {}

    def _all_splits(self, stages: int, virtual: int) -> tuple[tuple[int, ...], ...]:
        many = 1 if virtual > 1 or stages == 1 else 2 if stages == 2 else len(LIGHTER_ENDS)
        ends = LIGHTER_ENDS[:many]
        found = (_split(self.sizes.layers, stages, *end) for end in ends)
        return tuple(dict.fromkeys(split for split in found if split and min(split) >= virtual))

    def runs(self, frame: Frame) -> Iterator[tuple[tuple[int, ...], TrainingChoice]]:
        """Layers and step of every plan of a frame."""
        stages, copies = len(frame.devices), self.copies(frame)
        for training in self.training.choices(self.sizes.layers, stages, frame.micro_batches, copies):
            for split in self.splits(stages, training.virtual_stages):
                yield split, training

    def copies(self, frame: Frame) -> int:
        """GPUs that hold the same weights of attention."""
        tensor = min(option.attention.head_groups for option in frame.options)
        return frame.replicas * max(len(ranks) for ranks in frame.devices) // tensor

    def choices(self) -> Iterator[Choice]:
        """Every plan of the space in a fixed order."""
        for frame in self.frames():
            for split, training in self.runs(frame):
                yield frame.choice(split, training)

    def contains(self, choice: Choice) -> bool:
        """Whether a choice is in the space."""
        if choice.training is None or (choice.replicas, choice.micro_batches) not in self.branches:
            return False
        stages = choice.stages
        options = tuple(StageOption(stage.attention, stage.mlp_ways, stage.experts) for stage in stages)
        frame = Frame(choice.replicas, choice.micro_batches, tuple(stage.devices for stage in stages), options)
        sequences = self.sequences(choice.replicas, choice.micro_batches)
        if frame.devices not in self._places(self.stride(choice.replicas)) or options not in self._filled(
            frame.devices, sequences
        ):
            return False
        return (tuple(stage.layers for stage in stages), choice.training) in self.runs(frame)

    def size(self) -> int:
        """The number of plans, exactly: frames of as many stages, micro-batches and copies run in as many ways."""
        known: dict[tuple[int, int, int], int] = {}
        total = 0
        for frame in self.frames():
            key = (len(frame.devices), frame.micro_batches, self.copies(frame))
            if key not in known:
                known[key] = sum(1 for _ in self.runs(frame))
            total += known[key]
        return total

    def _places(self, stride: int) -> tuple[tuple[tuple[int, ...], ...], ...]:
        """Ranks of the stages of every pipeline: equal blocks one after another, of one GPU kind each."""
        if stride not in self._placed:
            self._placed[stride] = self._all_places(stride)
        return self._placed[stride]

    @cached_property
    def _placed(self) -> dict[int, tuple[tuple[tuple[int, ...], ...], ...]]:
        return {}

    def _all_places(self, stride: int) -> tuple[tuple[tuple[int, ...], ...], ...]:
        if self.layout:
            places = tuple(pin.devices for pin in self.layout)
            return (places,) if all(max(ranks) < stride and self.one_kind(ranks) for ranks in places) else ()
        found = []
        for count in self.stage_counts(stride):
            for width in self.ground.widths(stride):
                if count * width > stride or (self.use_all and count * width < stride):
                    continue
                places = tuple(tuple(range(i * width, (i + 1) * width)) for i in range(count))
                if all(map(self.one_kind, places)):
                    found.append(places)
        return tuple(found)

    def _filled(self, devices: tuple[tuple[int, ...], ...], sequences: int) -> tuple[tuple[StageOption, ...], ...]:
        """The options of the stages: one for all, unless their widths differ or a plan writes them out."""
        if not self.layout:  # equal stages have equal options
            width = len(devices[0])
            return tuple((o,) * len(devices) for o in self.options(width) if self.fits_micro_batch(o, width, sequences))
        each = [
            tuple(o for o in self.options(len(ranks), index) if self.fits_micro_batch(o, len(ranks), sequences))
            for index, ranks in enumerate(devices)
        ]
        if len(set(map(len, devices))) == 1:
            common = [option for option in each[0] if all(option in others for others in each[1:])]
            if common:
                return tuple((option,) * len(devices) for option in common)
        return (tuple(options[0] for options in each),) if all(len(options) == 1 for options in each) else ()


def _trained(option: StageOption, *, dense: bool, parted: bool) -> bool:
    """Whether a stage option can be trained; `parted`: batch parts are asked for, so that they need no experts."""
    p = option.attention
    plain = p.dimension_segments == 1 and p.output_projection == "row" and p.order == "segments_inner"
    spread = option.experts is not None and option.experts.form == "dispatch"
    return plain and (option.mlp_ways == p.head_groups or not dense) and (p.batch_parts == 1 or spread or parted)


def _split(layers: int, stages: int, first: int, last: int) -> tuple[int, ...]:
    """Layers of each stage where the ends have fewer; empty where that leaves a stage without any."""
    whole, more = divmod(layers + first + last, stages)
    counts = [whole] * stages
    counts[0] -= first
    counts[-1] -= last
    middle = stages // 2
    order = sorted(range(stages), key=lambda i: (abs(i - middle), i))
    for stage in order[:more]:
        counts[stage] += 1
    return tuple(counts) if min(counts) > 0 else ()
