"""StageSplit: which layers and GPUs form each pipeline stage, how many replicas and micro-batches there are."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from search_spaces.attention import AttentionPartition
from search_spaces.experts import ExpertPlacement
from search_spaces.sizes import Sizes, divisors
from search_spaces.training import TrainingChoice


@dataclass(frozen=True, slots=True)
class StageChoice:
    """One pipeline stage: how many layers, which ranks of the first replica (attention GPUs before expert GPUs).

    `devices` are the ranks as the stage got them; everything that a GPU holds goes by its place in the grid, which is the
    order of `attention_devices` and `expert_devices`.
    """

    layers: int
    devices: tuple[int, ...]
    attention: AttentionPartition = field(default_factory=AttentionPartition)
    mlp_ways: int = 1
    experts: ExpertPlacement | None = None

    def at(self, row: int) -> StageChoice:
        """The stage with the placement that its experts have in the `row`-th layer with experts of the model."""
        return replace(self, experts=self.experts.at(row)) if self.experts is not None and self.experts.by_layer else self

    @property
    def separate(self) -> bool:
        """Whether the experts have GPUs of their own."""
        return self.experts is not None and self.experts.form == "separate"

    @property
    def attention_devices(self) -> tuple[int, ...]:
        """Ranks that compute attention (and everything but the experts, where those are apart), in the order of the grid."""
        return self.attention.laid(self.attention_ranks)

    @property
    def attention_ranks(self) -> tuple[int, ...]:
        """The same ranks as the stage got them."""
        return self.devices[: len(self.devices) - self._apart]

    @property
    def expert_devices(self) -> tuple[int, ...]:
        """Ranks that hold experts."""
        return self.devices[len(self.devices) - self._apart :] if self.separate else self.attention_devices

    @property
    def _apart(self) -> int:
        return self.experts.devices if self.experts is not None and self.separate else 0


@dataclass(frozen=True, slots=True)
class Choice:
    """A point of a space. Replica r uses the ranks of replica 0 plus r times the replica stride.

    `in_flight` is the number of micro-batches in one wave where attention and experts are apart (1 otherwise). `training`
    is there if and only if the workload is training.
    """

    replicas: int
    micro_batches: int
    stages: tuple[StageChoice, ...]
    in_flight: int = 1
    training: TrainingChoice | None = None


def replica_stride(sizes: Sizes, replicas: int) -> int | None:
    """Ranks from one replica's block to the next: the most that lets all blocks look alike, None where none does.

    Blocks look alike when each has the same GPU kinds and links and is cut by scale-up domains at the same places.
    """
    node = _node(sizes)
    for stride in range(sizes.devices // replicas, 0, -1):
        if node:  # equal nodes: blocks are cut alike if the first node boundary inside lies at the same place
            alike = len({min(node - first % node, stride) for first in range(0, replicas * stride, stride)}) == 1
        else:
            own = block_pattern(sizes, 0, stride)
            alike = all(block_pattern(sizes, r * stride, stride) == own for r in range(1, replicas))
        if alike:
            return stride
    return None


def _node(sizes: Sizes) -> int:
    """GPUs of a node where all GPUs and all scale-up domains are alike, else 0."""
    domains = sizes.domain_of_device
    node = domains.count(domains[0])
    looks = sizes.looks
    alike = looks.count(looks[0]) == len(domains)
    return node if alike and all(d == rank // node for rank, d in enumerate(domains)) else 0


def block_pattern(sizes: Sizes, first: int, width: int) -> tuple[tuple[object, ...], tuple[int, ...]]:
    """What a block of consecutive ranks looks like from inside: GPU kinds (and links), and domains renumbered from zero."""
    domains = sizes.domain_of_device[first : first + width]
    renumbered = {d: i for i, d in enumerate(dict.fromkeys(domains))}
    return sizes.looks[first : first + width], tuple(renumbered[d] for d in domains)


def replica_counts(sizes: Sizes, allowed: tuple[int, ...] | None) -> tuple[int, ...]:
    """Replica counts that divide the batch and leave a GPU for each replica."""
    return tuple(
        r
        for r in divisors(sizes.batch)
        if r <= sizes.devices and (allowed is None or r in allowed) and replica_stride(sizes, r) is not None
    )


def micro_batch_counts(sizes: Sizes, replicas: int, allowed: tuple[int, ...] | None) -> tuple[int, ...]:
    """Micro-batch counts that divide the batch of one replica."""
    return tuple(m for m in divisors(sizes.batch // replicas) if allowed is None or m in allowed)
