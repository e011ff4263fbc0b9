"""The critical path where attention and experts are apart: waves of micro-batches over four machines."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from planner.evaluate.pipeline import crossing_fraction
from planner.evaluate.runs import RoleRun, StageRuns
from planner.evaluate.setting import Setting
from planner.evaluate.term import sum_terms, times, transfer_term
from planner.evaluate.timeline import CriticalPath, Item, items_of, transfer_item
from planner.graph.moe import transfer_bytes
from search_spaces.sizes import Sizes
from search_spaces.stages import Choice

NAMES = ("attention", "dispatch", "experts", "combine")


@dataclass(frozen=True)
class Task:
    """What one machine does for one micro-batch at one position: seconds, term, items."""

    machine: int
    position: int
    seconds: float
    term: str
    items: tuple[Item, ...]


def waves_path(env: Setting, sizes: Sizes, choice: Choice) -> CriticalPath:
    """Critical path of a plan with one stage whose experts have GPUs of their own."""
    sequences = sizes.batch // choice.replicas // choice.micro_batches
    tasks = wave_tasks(env, sizes, choice, sequences)
    latency, counts, loads = _longest(tasks, choice.micro_batches, choice.in_flight)
    items: list[Item] = []
    terms: list[str] = []
    for position in range(len(tasks[0])):
        for machine in range(4):
            count = counts.get((machine, position), 0)
            if count:
                task = tasks[machine][position]
                items += [
                    Item(i.op, i.layer, i.stage, i.device, i.term, i.count * count, i.seconds * count, i.source)
                    for i in task.items
                ]
                terms.append(times(count, task.term))
    slack = tuple((f"{NAMES[m]} GPUs", latency - load) for m, load in enumerate(loads))
    return CriticalPath(latency, tuple(items), " + ".join(_merge(terms)), slack)


def _merge(terms: list[str]) -> list[str]:
    return [term for term in terms if term != "0"]


def wave_tasks(env: Setting, sizes: Sizes, choice: Choice, sequences: int) -> tuple[list[Task], ...]:
    """Tasks [machine][position] of one micro-batch."""
    runs = StageRuns(env, sizes, choice.stages[0], sequences)
    cache: dict[int, tuple[RoleRun, ...]] = {}
    near: list[list[tuple[RoleRun, str]]] = [[(runs.embedding(), "embedding")] if env.has_embedding else []]
    rest: tuple[list[Task], ...] = ([], [], [])
    for index, kind in enumerate(env.kind_of_layer):
        layer = env.kinds[kind]
        if kind not in cache:
            own = (runs.route(layer), runs.experts(layer), runs.finish(layer)) if layer.moe else (runs.ffn(layer),)
            cache[kind] = (runs.attention(layer), *own)
        attention, *others = cache[kind]
        near[-1].append((attention, str(index)))
        if not layer.moe:
            near[-1].append((others[0], str(index)))
            continue
        near[-1].append((others[0], str(index)))
        position = len(rest[0])
        rest[1].append(Task(2, position, others[1].seconds, others[1].expression, tuple(items_of(others[1], 0, str(index), 1))))
        for machine, task in zip((0, 2), _transfers(env, runs, kind, position), strict=True):
            rest[machine].append(task)
        near.append([(others[2], str(index))])
    if env.has_head:
        near[-1].append((runs.head(), "head"))
    attention_tasks = []
    for position, group in enumerate(near):
        term = sum_terms(run.expression for run, _ in group if run.expression != "0")
        items = tuple(item for run, where in group for item in items_of(run, 0, where, 1))
        attention_tasks.append(Task(0, position, sum(run.seconds for run, _ in group), term, items))
    return attention_tasks, rest[0], rest[1], rest[2]


def _transfers(env: Setting, runs: StageRuns, kind: int, position: int) -> tuple[Task, Task]:
    """Dispatch to the experts and the way back."""
    rows = runs.moe_rows(env.kinds[kind])
    sent, received = (float(np.max(x)) for x in transfer_bytes(env.context, rows, runs.attention_router))
    back_sent, back_received = (float(np.max(x)) for x in transfer_bytes(env.context, rows, True))
    crossing = crossing_fraction(env.cluster.domain_of, runs.near, runs.far)
    source = env.pricer.collectives.sources[env.cluster.device_kinds[runs.near[0]]]
    found = []
    ways = (len(runs.near), len(runs.far))
    for machine, name, a, b, (left, right) in (
        (1, "dispatch", sent, received, ways),
        (3, "combine", back_received, back_sent, ways[::-1]),
    ):
        seconds = float(env.pricer.collectives.m2n_time(a, b, left, right, crossing))
        term = transfer_term(a, b, left, right, crossing)
        devices = runs.near if machine == 1 else runs.far
        found.append(Task(machine, position, seconds, term, (transfer_item(name, 0, devices, term, seconds, 1, source),)))
    return found[0], found[1]


def _longest(
    tasks: tuple[list[Task], ...], micro_batches: int, in_flight: int
) -> tuple[float, dict[tuple[int, int], int], list[float]]:
    """Latency, how often each (machine, position) is on the longest path, and the load of each machine."""
    free: list[tuple[float, int]] = [(0.0, -1)] * 4
    nodes: list[tuple[int, int, int]] = []  # machine, position, predecessor
    for _ in range(micro_batches // in_flight):
        ready: list[tuple[float, int]] = [(0.0, -1)] * in_flight
        for position in range(len(tasks[0])):
            for micro in range(in_flight):
                at = ready[micro]
                for machine in range(4 if position < len(tasks[1]) else 1):
                    start = max(free[machine], at, key=lambda pair: pair[0])
                    nodes.append((machine, position, start[1]))
                    at = free[machine] = (start[0] + tasks[machine][position].seconds, len(nodes) - 1)
                ready[micro] = at
    counts: dict[tuple[int, int], int] = {}
    here = free[0][1]
    while here >= 0:
        machine, position, before = nodes[here]
        counts[machine, position] = counts.get((machine, position), 0) + 1
        here = before
    loads = [micro_batches * sum(task.seconds for task in machine) for machine in tasks]
    return free[0][0], counts, loads
