"""Training stacks: what a training framework makes of the operators of the graph.

The default prices are those of operators measured one by one in a tight loop. In a training run the same kernels cost
more or less: attention and element-wise kernels come in other fusions, products run at the clock that the power limit
leaves them, collectives share the GPU with compute, and the host issues every operator. Each of these is one constant of a
stack or of a GPU generation, with its source in `training.yaml`; they are fitted by tests/benchmarks/fit_training.py.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from planner.graph.ops import COLLECTIVES, Kind, Op

Array = NDArray[np.float64]
FILE = Path(__file__).parent / "training.yaml"
DEFAULT = "megatron-core"
CLASSES = ("gemm", "moe", "attention", "memory", "loss", "communication")
"""Classes of operators; those of `planner/costs/intervals.py` besides the host."""
CORE = ("scores", "softmax", "attention_value")
"""Operators of an attention that is not one kernel, and what their gradients' names begin with."""


@dataclass(frozen=True, slots=True)
class Stack:
    """A training framework.

    `host_s`: seconds of the host to issue one operator of the graph; a pass takes at least that for each of its operators.
    `gemm`, `moe`, `attention`, `memory`, `communication`: seconds of an operator of that class over its lone price.
    `gradients`: the same for the exchange of gradients and weights between data-parallel copies.
    `overlap`: share of the communication inside a stage that runs beside compute.
    `step_s`: seconds of a step in which no pass runs: data, logging, the launch of the optimizer.
    """

    name: str
    source: str
    host_s: float = 0.0
    gemm: float = 1.0
    moe: float = 1.0
    attention: float = 1.0
    memory: float = 1.0
    communication: float = 1.0
    gradients: float = 1.0
    step_s: float = 0.0

    def factor(self, op: Op) -> float:
        """Seconds of an operator over its lone price."""
        return float(getattr(self, class_of(op)))


PLAIN = Stack("plain", "operators one by one, nothing fitted")
"""The stack of the uncalibrated prices."""


def class_of(op: Op) -> str:
    """The class of an operator."""
    if op.kind in COLLECTIVES:
        return "communication"
    if op.attention is not None or op.name.startswith(CORE):
        return "attention"
    if op.name.startswith("loss") and op.kind == Kind.ELEMENTWISE:
        return "loss"
    return {Kind.MATMUL: "gemm", Kind.GROUPED: "moe"}.get(op.kind, "memory")
