"""What binds: for every operator the resource that would still take most of its time if all others were free.

The parts come from the price source itself, asked again with everything but one resource free; no formula is repeated.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np

from planner.costs.pricer import Pricer, Sites
from planner.evaluate.devices import StageRoles
from planner.evaluate.evaluation import Evaluation
from planner.evaluate.setting import Setting
from planner.evaluate.term import evaluate_expression
from planner.evaluate.timeline import Item
from planner.graph.ops import Op
from planner.insight.classes import Class, item_class
from planner.insight.resources import TIMED, Resource, alone
from planner.insight.waiting import NOTHING
from search_spaces.sizes import Sizes
from search_spaces.stages import Choice

Seconds = dict[Resource, float]


@dataclass(frozen=True, slots=True)
class BoundOp:
    """An operator of the critical path, its layers and micro-batches added up, and what binds it."""

    op: str
    kind: Class
    resource: Resource
    seconds: float
    count: int


@dataclass(frozen=True, slots=True)
class BusyGpu:
    """The GPU that works and communicates longest: its seconds by resource, and those in which it waits; they add up to
    the latency.
    """

    rank: int
    seconds: Seconds
    waiting_s: float


class Parts:
    """The price sources that know one resource each."""

    def __init__(self, env: Setting) -> None:
        self.pricers: dict[Resource, Pricer] = {resource: alone(env, resource).pricer for resource in TIMED}
        self._terms: dict[str, Resource] = {}

    def of_term(self, term: str) -> Resource:
        """The resource that binds a term of the critical path."""
        if term not in self._terms:
            self._terms[term] = _largest({r: evaluate_expression(term, pricer) for r, pricer in self.pricers.items()})
        return self._terms[term]

    def of_op(self, op: Op, sites: Sites, row: int) -> Resource:
        """The resource that binds an operator on the GPU of one row."""
        return _largest({r: _at(pricer.seconds(op, sites), row) for r, pricer in self.pricers.items()})


def _largest(parts: Mapping[Resource, float]) -> Resource:
    """The resource with the largest part; the first in the order of `Resource` where some are equal."""
    return max(parts, key=lambda resource: parts[resource])


def _at(seconds: object, row: int) -> float:
    array = np.asarray(seconds)
    return float(array if array.ndim == 0 else array[row if array.size > 1 else 0])


def path_binding(parts: Parts, items: Iterable[Item], classes: Mapping[str, Class]) -> tuple[Seconds, tuple[BoundOp, ...]]:
    """Seconds of a critical path by the resource that binds them, and its operators, longest first."""
    groups: dict[tuple[str, Class, Resource], list[Item]] = {}
    for item in items:
        groups.setdefault((item.op, item_class(item, classes), parts.of_term(item.term)), []).append(item)
    ops = [
        BoundOp(*key, math.fsum(item.seconds for item in group), sum(item.count for item in group))
        for key, group in groups.items()
    ]
    by_resource = {r: math.fsum(op.seconds for op in ops if op.resource is r) for r in TIMED}
    return by_resource, tuple(sorted(ops, key=lambda op: -op.seconds))


def busiest_gpu(env: Setting, sizes: Sizes, choice: Choice, parts: Parts, evaluation: Evaluation) -> BusyGpu:
    """The busiest GPU of the first replica by what binds each of its own operators; sends beside the work not counted."""
    own = {rank for stage in choice.stages for rank in stage.devices}
    reports = [report for report in evaluation.devices if report.rank in own]
    rank = max(reports, key=lambda report: (report.busy_s + report.communication_s, -report.rank)).rank
    index = next(i for i, stage in enumerate(choice.stages) if rank in stage.devices)
    stage, build = choice.stages[index], StageRoles(env, sizes, choice, index)
    far = rank not in stage.attention_devices
    devices = stage.expert_devices if far else stage.attention_devices
    sites = Sites((devices,), np.zeros(len(devices), dtype=np.int64), env.cluster.device_kinds[rank])
    row, spent = devices.index(rank), {resource: [0.0] for resource in TIMED}
    for role, count in build.far() if far else build.near():
        for op in role.ops:
            seconds = _at(env.pricer.seconds(op, sites), row) * count * choice.micro_batches
            if seconds > 0 and (op.group is None or op.stream == "compute"):
                spent[parts.of_op(op, sites, row)].append(seconds)
    found = {resource: math.fsum(seconds) for resource, seconds in spent.items()}
    left = evaluation.latency_s - math.fsum(found.values())
    return BusyGpu(rank, found, 0.0 if abs(left) <= NOTHING * evaluation.latency_s else left)
