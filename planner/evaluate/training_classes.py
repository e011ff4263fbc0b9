"""What a training step is made of: seconds by class of operators, of the host, of waiting."""

from __future__ import annotations

import numpy as np

from planner.costs.training import CLASSES, COUNTS
from planner.evaluate.training import Step


def class_seconds(step: Step, micro_batches: int) -> dict[str, float]:
    """Seconds of a step by what they go to: classes of operators (as in `planner/costs/intervals.py`) on its busiest stage, the
    `host`, `bubble`, and `exchange` between data-parallel copies.
    """
    busy = [sum(p.forward_s + p.inputs_s + p.weights_s for p in stage.chunks) for stage in step.stages]
    stage = step.stages[int(np.argmax(busy))]
    spent = micro_batches * sum((p.spent.sum(axis=0) for p in stage.chunks), np.zeros(len(CLASSES) + COUNTS))
    found = dict(zip(CLASSES, map(float, spent), strict=False))
    kernels, whole = sum(found.values()), micro_batches * max(busy)
    found["gemm"] += found.pop("narrow")
    found["memory"] += found.pop("loss") + step.optimizer_s
    found["communication"] += found.pop("dispatch")
    found |= {"host": max(whole - kernels, 0.0), "exchange": step.exchange_s, "bubble": max(step.pipeline_s - whole, 0.0)}
    return found
