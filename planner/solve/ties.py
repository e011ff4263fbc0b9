"""Ties: candidate plans, and what settles which of two equally good ones is the answer."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

from planner.evaluate.capacity import stage_table
from planner.evaluate.pipeline import transfer_bytes
from planner.evaluate.setting import Setting
from planner.evaluate.stage import intervals, stage_price, view
from planner.solve.candidates import ApartFound
from planner.solve.dp import Path
from search_spaces.sizes import Sizes
from search_spaces.stages import Choice


@dataclass(frozen=True)
class Found:
    """A candidate plan: its value, the least value of any plan that it ties with, GPUs in use, and the pipeline or the stage
    with experts apart; `weight` is what its seconds are multiplied by.
    """

    value: float
    least: float
    gpus: int
    replicas: int
    micro_batches: int
    path: Path | None
    apart: ApartFound | None
    weight: float = 1.0

    @property
    def simplicity(self) -> tuple[int, int, int]:
        """Fewer stages first, then fewer micro-batches, then fewer replicas."""
        return len(self.path.legs) if self.path else 1, self.micro_batches, self.replicas


def sent_bytes(env: Setting, sizes: Sizes, choice: Choice, apart: ApartFound | None = None) -> float:
    """Bytes that all GPUs send in one pass, each at the largest share of its stage: collectives and hand-overs."""
    passes, sequences = choice.replicas * choice.micro_batches, sizes.batch // choice.replicas // choice.micro_batches
    if apart is not None:
        return passes * apart.ranks * apart.sent
    sent, start = 0.0, 0
    for stage in choice.stages:
        v = view(env, sizes, stage_table(env, sizes, stage, sequences), 0, 0, sequences * choice.micro_batches)
        price = stage_price(v, intervals(env, [(start, start + stage.layers)]))
        sent += len(stage.devices) * float(price.sent[0, 0, 0])
        start += stage.layers
    for source, target in pairwise(stage.devices for stage in choice.stages):
        sent += len(source) * transfer_bytes(env, source, target, sequences)[0]
    return passes * sent
