"""Published training runs as samples that a fit can price in microseconds: what each pass spends by class, times constants.

The same formulas as `planner/evaluate` under a stack, but for the schedule, which is a closed form here;
`fit_training` prints how far the two are apart.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from planner.cluster import GpuKind
from planner.costs.training import CLASSES, Stack, stack_of, sustained
from planner.errors import PlannerError
from planner.evaluate.pipeline import send_seconds
from planner.evaluate.training import StepPricing
from planner.units import dtype_bytes
from search_spaces.training import TrainingChoice
from tests.benchmarks.fidelity.rows import Row, Unusable, group_of, text
from tests.benchmarks.fidelity.training import TrainingPrices
from tests.benchmarks.fidelity.training_rows import Job

Array = NDArray[np.float64]
Constants = Mapping[str, Any]
RAW = Stack("raw", "lone prices, nothing weighed")


@dataclass(frozen=True, eq=False)
class Sample:
    """A measured step: `spent` of every stage [chunk, pass, class], seconds of exchanges by stage and of hand-overs between
    neighbours, both sliced and whole, with lone prices; `wider_s` to move one byte for each parameter of a stage.
    """

    row: Row
    job: Job
    measured: float
    kind: GpuKind
    spent: tuple[Array, ...]
    layers: tuple[int, ...]
    gradients: tuple[float, ...]
    weights: tuple[float, ...]
    optimizer: float
    sends: tuple[float, ...]
    slices: int
    wider_s: tuple[float, ...]
    run: TrainingChoice

    @property
    def training(self) -> TrainingChoice:
        """How the step runs."""
        return self.run

    @property
    def key(self) -> Hashable:
        """Samples of equal keys have equal prices."""
        job = self.job
        return (job.stack, job.fused, job.model, job.cluster.name, job.cluster.network, job.workload, job.choice, self.run)

    @property
    def group(self) -> str:
        """The group of the row."""
        return group_of(self.row)

    @property
    def name(self) -> str:
        """The model's name in the row."""
        return text(self.row, "model")


def raw_prices(data: Constants) -> TrainingPrices:
    """Lone prices; only the penalty of unaligned products is in them."""
    alone = {"gpus": {}, "relatives": {}, "dtypes": {}, "unaligned": data["sustained"].get("unaligned", 1.0)}
    return TrainingPrices(RAW, {"sustained": alone})


def sample_of(row: Row, job: Job, measured: float, prices: TrainingPrices) -> Sample | Unusable:
    """A row as a sample."""
    try:
        pricing = prices.pricing(job)
    except PlannerError as error:
        return Unusable(f"refused: {error}"[:100])
    lone = [exchange.lone() for exchange in pricing.exchanges]
    stages = job.choice.stages
    sequences = job.workload.batch // job.choice.replicas // job.choice.micro_batches
    sends = tuple(send_seconds(pricing.env, a.devices, b.devices, sequences) for a, b in pairwise(stages))
    attention = stages[0].attention
    return Sample(
        row, job, measured, job.cluster.kind_of(0),
        tuple(np.array([p.spent for p in stage.chunks]) for stage in pricing.stages),
        tuple(stage.layers for stage in stages), tuple(a for a, _ in lone), tuple(b for _, b in lone),
        max(exchange.optimizer_seconds() for exchange in pricing.exchanges), sends,
        1 if attention.sequence_parallel else attention.head_groups, _wider(pricing, job), pricing.training,
    )  # fmt: skip


def _wider(pricing: StepPricing, job: Job) -> tuple[float, ...]:
    """Seconds to move a byte for each parameter of a stage's chunk, where gradients are summed in a wider dtype."""
    own = job.workload.training
    if own is None or dtype_bytes(own.gradient_dtype) <= dtype_bytes(job.model.dtype):
        return (0.0,) * len(pricing.stages)
    source = pricing.env.pricer.sources[job.cluster.device_kinds[0]]
    return tuple(
        float(source.elementwise(sum(p.elements for p in stage.parameters) / len(stage.chunks))) for stage in pricing.stages
    )


def seconds(sample: Sample, data: Constants) -> float:
    """The price of a sample under a calibration."""
    stack = stack_of(sample.job.stack, data)
    passes = _passes(sample, stack, data)
    return _pipeline(sample, passes) + _exchange(sample, stack, passes) + sample.optimizer + stack.step_s


def shares(sample: Sample, data: Constants) -> dict[str, float]:
    """What a step goes to, as shares: `planner/evaluate/training_classes.py` in the closed form."""
    stack = stack_of(sample.job.stack, data)
    passes = _passes(sample, stack, data)
    micro, weights = sample.job.choice.micro_batches, _weights(sample, stack, data)
    busy = [float(a.sum() + b.sum()) for a, b in zip(passes.ahead, passes.back, strict=True)]
    most = int(np.argmax(busy))
    spent = micro * (sample.spent[most][:, :, : len(CLASSES)].sum(axis=(0, 1)) * weights)
    found = dict(zip(CLASSES, map(float, spent), strict=True))
    kernels, pipeline = sum(found.values()), _pipeline(sample, passes)
    exchange, rest = _exchange(sample, stack, passes), sample.optimizer + stack.step_s
    found["gemm"] += found.pop("narrow")
    found["memory"] += found.pop("loss") + rest
    found["communication"] += found.pop("dispatch")
    whole = micro * busy[most]
    found |= {"host": max(whole - kernels, 0.0), "exchange": exchange, "bubble": max(pipeline - whole, 0.0)}
    total = sum(found.values())
    return {name: value / total for name, value in found.items()}


class _Passes(NamedTuple):
    """Seconds of the passes of every stage [chunk]: forward, backward as a whole, of which gradients of weights where those are
    passes of their own; hand-overs between neighbours.
    """

    ahead: list[Array]
    back: list[Array]
    last: list[Array]
    sends: Array


def _weights(sample: Sample, stack: Stack, data: Constants) -> Array:
    """Factor of every class."""
    factors, own = stack.factors(sample.kind), sample.job.workload.training
    factors["gemm"] *= sustained(sample.kind, "bf16", data)
    for name in ("narrow", "moe"):
        factors[name] *= sustained(sample.kind, own.precision if own else "bf16", data)
    return np.array([factors[name] for name in CLASSES])


def _passes(sample: Sample, stack: Stack, data: Constants) -> _Passes:
    weights, issue = _weights(sample, stack, data), np.array([stack.host_s, stack.mixture_s])
    apart = sample.training.schedule == "zb_h1"
    ahead, back, last = [], [], []
    for spent, wider in zip(sample.spent, sample.wider_s, strict=True):
        gpu, host = spent[:, :, : len(CLASSES)] @ weights, spent[:, :, len(CLASSES) :] @ issue
        gpu[:, 2] += stack.accumulate_bytes * wider
        ahead.append(blended(gpu[:, 0], host[:, 0], stack.blend))
        if apart:
            last.append(blended(gpu[:, 2], host[:, 2], stack.blend))
            back.append(blended(gpu[:, 1], host[:, 1], stack.blend) + last[-1])
        else:
            last.append(np.zeros(len(gpu)))
            back.append(blended(gpu[:, 1] + gpu[:, 2], host[:, 1] + host[:, 2], stack.blend))
    sends = np.array(sample.sends)
    if stack.blocking:
        held, sends = stack.blocking * sample.slices * sends, np.zeros_like(sends)
        for index, spent_s in enumerate(held):
            ahead[index], back[index + 1] = ahead[index] + spent_s, back[index + 1] + spent_s
    return _Passes(ahead, back, last, sends)


def blended(gpu: Array, host: Array, blend: float) -> Array:
    """`Stack.pass_seconds` of arrays."""
    longer, shorter = np.maximum(gpu, host), np.minimum(gpu, host)
    return np.asarray(longer * (1.0 + (shorter / np.maximum(longer, 1e-30)) ** blend) ** (1.0 / blend))


def _pipeline(sample: Sample, passes: _Passes) -> float:
    """Closed form: a stage's own work, behind the first micro-batch's way there and before the last one's way back."""
    ahead, back, last, sends = passes
    micro, chunks = sample.job.choice.micro_batches, sample.training.virtual_stages
    whole = np.array([a.sum() + b.sum() for a, b in zip(ahead, back, strict=True)])
    if sample.training.schedule == "zb_h1":  # weight gradients fill the way back: Qi et al. (arXiv:2401.10241), table 2
        spare = whole - 2.0 * np.array([c.sum() for c in last])
        return float(micro * whole.max() + max(spare.sum() - spare.max(), 0.0) + 2.0 * sends.sum())
    if chunks > 1:
        return float(micro * whole.max() + (whole.sum() - whole.max()) / chunks + 2.0 * sends.sum())
    way = np.concatenate([[0.0], np.cumsum(whole[:-1] + 2.0 * sends)])
    return float((way + micro * whole).max())


def _exchange(sample: Sample, stack: Stack, passes: _Passes) -> float:
    """What nothing hides of the exchanges of the slowest stage."""
    training, micro = sample.training, sample.job.choice.micro_batches
    most = 0.0
    for index, layers in enumerate(sample.layers):
        reduced, gathered = stack.gradients * sample.gradients[index], stack.gradients * sample.weights[index]
        forward, backward = float(passes.ahead[index].sum()), float(passes.back[index].sum())
        least = max(stack.exposed, 1.0 / max(layers, 1))

        def left(spent: float, compute: float, least: float = least) -> float:
            return max(spent - compute, spent * least) if training.overlap else spent

        if training.zero < 2:
            total = left(reduced, backward) + (left(gathered, forward) if training.zero else 0.0)
        else:
            again = gathered if training.zero == 3 else 0.0
            total = micro * (left(reduced + again, backward) + (left(again, forward) if again else 0.0))
            total += left(gathered, forward) if training.zero == 2 else 0.0
        most = max(most, total)
    return most
