"""One (replicas, micro-batches) of a space, and the word for one that is too large to go through."""

from __future__ import annotations

from dataclasses import dataclass

from planner.certify.question import Question
from search_spaces.space import SearchSpace


class TooLargeError(Exception):
    """A branch has more to go through than the verifier takes on; what it says is told to the reader."""


@dataclass(frozen=True)
class Branch:
    """A (replicas, micro-batches) of a space, as far as a pipeline needs it."""

    space: SearchSpace
    replicas: int
    micro_batches: int

    @property
    def sequences(self) -> int:
        """Sequences of a micro-batch."""
        return self.space.sequences(self.replicas, self.micro_batches)

    def most_ranks(self, question: Question) -> int:
        """Ranks of a replica that a plan may use."""
        return int(min(self.space.stride(self.replicas), question.most.gpus // self.replicas))
