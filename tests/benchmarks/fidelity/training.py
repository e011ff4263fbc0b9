"""Training rows: the seam where the planner's training prices come in."""

from __future__ import annotations

from dataclasses import dataclass

from tests.benchmarks.fidelity.clusters import Machines
from tests.benchmarks.fidelity.rows import Row, Unusable


@dataclass(frozen=True, slots=True)
class Prediction:
    """The price of one training step: seconds of the whole step, bytes of the fullest GPU, an 80 % interval (low, high) of
    the seconds, whether the plan fits its GPUs (None: nothing is said), and whether constants have seen the row's model.
    """

    step_time_s: float
    memory_bytes: float | None = None
    interval: tuple[float, float] | None = None
    fits: bool | None = None
    fitted: bool = False


def predict_training(row: Row, machines: Machines) -> Prediction | Unusable:
    """The price of the plan in a row of `training.csv`; `machines` turns its GPU into a cluster."""
    return Unusable("training is not priced yet")
