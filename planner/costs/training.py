"""Training stacks: what a training framework makes of the operators of the graph.

The default prices are those of operators measured one by one in a tight loop. In a training run the same kernels cost
more or less: attention and element-wise kernels come in other fusions, products run at the clock that the power limit
leaves them, collectives share the GPU with compute, and the host issues every operator. Each of these is a constant of a
stack or of a GPU kind; values and sources stand in `training.yaml`, tests/benchmarks/fit_training.py fits them.
Every price stays a constant of its operator, or of one pass of one chunk.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from planner.cluster import Cluster, GpuKind
from planner.costs.get_time import GetTime
from planner.costs.pricer import Pricer, Sites
from planner.errors import unknown_name
from planner.files import read_yaml
from planner.graph.ops import COLLECTIVES, Kind, Op
from planner.units import DTYPE_BITS
from planner.workload import TRAINING_STACK

Array = NDArray[np.float64]
FILE = Path(__file__).parent / "training.yaml"
CLASSES = ("gemm", "narrow", "moe", "attention", "memory", "loss", "communication", "dispatch")
"""Classes of operators; `narrow` are products of 8 bits and fewer, `loss` the element-wise kernels over the logits, `dispatch`
the all-to-alls of mixtures."""
COUNTS = 2
"""How many counts follow the classes in what a pass spends: operators of dense roles, and of mixtures."""
LINE = 64
"""Elements of a row of an operand that products are written for: tensor cores read cache lines of 128 bytes."""
CORE = ("scores", "softmax", "attention_value")
"""Operators of an attention that is not one kernel; the names of their gradients begin alike. Selective recomputation makes
them again (Korthikanti et al., arXiv:2205.05198); a fused kernel keeps no scores and computes them again by itself."""


@dataclass(frozen=True, slots=True)
class Stack:
    """A training framework.

    Host: `host_s` seconds to issue one operator of the graph, `mixture_s` one of a mixture of experts. Host and GPU work side
    by side: a pass takes the `blend`-norm of both, nearly the longer one.
    Factors on lone prices: `gemm` (the one plain factor), `moe`, `memory` (kernels that are fused, or that the graph does not
    show), `loss` (passes over the logits), `communication` (tensor and context parallel; below 1 where products run
    beside it), `dispatch` (all-to-alls of mixtures), `attention` by GPU generation, `gradients` (exchange between data-parallel
    copies).
    `exposed`: share of an overlapped exchange that nothing hides. `accumulate_bytes`: moved for each parameter in every
    micro-batch to add its gradient to a buffer of a wider dtype; 0 where the product adds it itself. `blocking`: share of
    the time that every GPU needs to hand a micro-batch over, unsliced, for which it computes nothing; 0: slices beside
    compute. `step_s`: seconds of a step without any pass: data, logging, the optimizer's launch. `fused`: whether attention
    is one kernel that keeps no scores.
    """

    name: str
    source: str
    called: tuple[str, ...] = ()
    fused: bool = True
    host_s: float = 0.0
    mixture_s: float = 0.0
    blend: float = 4.0
    gemm: float = 1.0
    moe: float = 1.0
    memory: float = 1.0
    loss: float = 1.0
    communication: float = 1.0
    dispatch: float = 1.0
    gradients: float = 1.0
    exposed: float = 0.0
    accumulate_bytes: float = 0.0
    blocking: float = 0.0
    step_s: float = 0.0
    attention: Mapping[str, float] | None = None

    def factors(self, kind: GpuKind) -> dict[str, float]:
        """Seconds of an operator over its lone price by class on a GPU kind."""
        found = {name: float(getattr(self, name, self.gemm)) for name in CLASSES if name != "attention"}
        own = self.attention or {}
        found["attention"] = float(own.get(kind.generation, own.get("other", 1.0)))
        return found

    def pass_seconds(self, gpu_s: float, host_s: float) -> float:
        """Seconds of a pass that keeps the GPU busy for `gpu_s` and the host for `host_s`."""
        if host_s <= 0.0:
            return gpu_s
        longer, shorter = max(gpu_s, host_s), min(gpu_s, host_s)
        return float(longer * (1.0 + (shorter / longer) ** self.blend) ** (1.0 / self.blend))


PLAIN = Stack("plain", "operators one by one, nothing fitted")
"""The stack of the uncalibrated prices."""


@lru_cache(maxsize=1)
def calibrated() -> dict[str, Any]:
    """The calibration file: `sustained`, `stacks`, `spreads` (see `planner/costs/intervals.py`) and `fitted_models`."""
    return dict(read_yaml(FILE))


def fitted_models() -> frozenset[str]:
    """Names of the models whose measured runs the constants were fitted to; all others test them."""
    return frozenset(str(name) for name in calibrated().get("fitted_models", ()))


def training_spreads() -> dict[str, float]:
    """Standard deviations of the logarithm of a step's time by what it goes to, and `run`."""
    return {name: float(value) for name, value in calibrated()["spreads"].items()}


def stack_of(name: str, data: Mapping[str, Any]) -> Stack:
    """The stack of that name in a calibration."""
    row = dict(data["stacks"][name])
    known = {f.name for f in fields(Stack)}
    called = tuple(str(word) for word in row.pop("called", ()))
    attention = {key: float(value) for key, value in row.pop("attention", {}).items()}
    return Stack(name, called=called, attention=attention, **{key: value for key, value in row.items() if key in known})


def stack_names() -> list[str]:
    """Names of the training stacks."""
    return sorted(calibrated()["stacks"])


def load_stack(name: str = TRAINING_STACK) -> Stack:
    """The training stack of that name; `InputError` where there is none."""
    if name == PLAIN.name:
        return PLAIN
    if name not in calibrated()["stacks"]:
        raise unknown_name("training stack", name, [*stack_names(), PLAIN.name])
    return stack_of(name, calibrated())


def sustained(kind: GpuKind, dtype: str, data: Mapping[str, Any]) -> float:
    """Seconds of products in a training run over those in a tight loop of their own: the clock that the power limit leaves."""
    table = data["sustained"]
    row = table["gpus"].get(kind.name) or table["gpus"].get(table["relatives"].get(kind.generation, ""), 1.0)
    return float(row) * float(table["dtypes"].get(f"{kind.generation} {dtype}", 1.0))


def class_of(op: Op) -> str:
    """The class of an operator."""
    if op.kind in COLLECTIVES:
        return "dispatch" if op.kind == Kind.ALL_TO_ALL else "communication"
    if op.attention is not None or op.name.startswith(CORE):
        return "attention"
    if op.name.startswith("loss") and op.kind == Kind.ELEMENTWISE:
        return "loss"
    if op.kind == Kind.MATMUL:
        return "gemm" if DTYPE_BITS[op.dtype] > 8 else "narrow"
    return "moe" if op.kind == Kind.GROUPED else "memory"


class TrainingPricer(Pricer):
    """Prices of a cluster under a training stack: lone prices times the factor of their class."""

    def __init__(
        self, cluster: Cluster, stack: Stack, sources: dict[str, GetTime] | None = None, data: Mapping[str, Any] | None = None
    ) -> None:
        super().__init__(cluster, sources)
        self.stack = stack
        self._data = {"sustained": {"gpus": {}, "relatives": {}, "dtypes": {}}} if stack is PLAIN else data or calibrated()
        self._factors = {name: stack.factors(kind) for name, kind in cluster.kinds.items()}

    def seconds(self, op: Op, sites: Sites) -> Array:
        """Seconds of one operator per row; 0 where it is absent."""
        own = class_of(op)
        found = super().seconds(op, sites) * self._factors[sites.kind][own]
        if own not in ("gemm", "narrow", "moe"):
            return np.asarray(found)
        kind = self.cluster.kinds[sites.kind]
        return np.asarray(found * sustained(kind, op.dtype, self._data) * self._aligned(op))

    def _aligned(self, op: Op) -> Array | float:
        """Seconds of a product over those of one whose rows are whole cache lines: `unaligned` where k or n are not."""
        penalty = float(self._data["sustained"].get("unaligned", 1.0))
        if penalty == 1.0 or op.kind != Kind.MATMUL:
            return 1.0
        odd = (np.asarray(op.k) % LINE != 0) | (np.asarray(op.n) % LINE != 0)
        return np.where(odd, penalty, 1.0)


def training_pricer(cluster: Cluster, stack: Stack, sources: dict[str, GetTime] | None = None) -> TrainingPricer:
    """The prices of a cluster under a training stack."""
    return TrainingPricer(cluster, stack, sources)


def stack_of_pricer(pricer: Pricer) -> Stack:
    """The stack that a pricer prices for; the plain one where it knows none."""
    return pricer.stack if isinstance(pricer, TrainingPricer) else PLAIN
