"""Software stacks: what of an operator's measured time a runtime really pays, and what it adds to every step.

The default prices are those of operators measured one by one. A runtime that replays a recorded graph of kernels pays
little of their launches; what its scheduler and sampler do between two steps comes on top. The constants and their
sources stand in `stacks.yaml`; without a stack no price changes.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from planner.cluster import Cluster
from planner.costs.calibration import calibration
from planner.costs.collectives import Collectives
from planner.costs.get_time import Roofline
from planner.costs.pricer import Pricer
from planner.errors import unknown_name
from planner.files import read_yaml

FILE = Path(__file__).parent / "stacks.yaml"


@dataclass(frozen=True, slots=True)
class Mechanisms:
    """What runtimes of one design have in common; all are shares.

    `launch`: of a lone kernel's start, what remains where kernels follow each other, recorded or fused with their neighbours;
    `collective`: of the start and the steps of a collective. `request`: of the time between steps, what each request of the
    batch adds to it (0 where the scheduler works beside the GPU).
    """

    launch: float
    collective: float
    request: float


@dataclass(frozen=True, slots=True)
class Stack:
    """A runtime of a design that schedules prompts in a way (`schedule`), as it was `before` a date (ISO; empty: today) on GPUs
    whose names begin with one of `gpus` (empty: all others). `step_s` is its one constant: the time between two passes in
    which no GPU computes.
    """

    name: str
    called: tuple[str, ...]
    design: str
    schedule: str
    before: str
    gpus: tuple[str, ...]
    step_s: float
    source: str

    def host_s(self, requests: int, shared: Mechanisms | None = None) -> float:
        """Seconds between two passes with so many requests in the batch."""
        return self.step_s * (1.0 + (shared or mechanisms()[self.design]).request * requests)


@lru_cache(maxsize=1)
def _file() -> dict[str, Any]:
    return dict(read_yaml(FILE))


@lru_cache(maxsize=1)
def mechanisms() -> dict[str, Mechanisms]:
    """The constants of each design: `synchronous` (schedules between steps) and `overlapped` (schedules beside them)."""
    found = _file()["designs"].items()
    return {name: Mechanisms(**{key: float(value) for key, value in row.items()}) for name, row in found}


def schedules() -> dict[str, dict[str, float]]:
    """How prompts mix with tokens by schedule (the fields of `planner.evaluate.serving.Mixing`): `chunked` into the steps of
    others, or `prefill_first`, all that wait before any token.
    """
    return {name: {key: float(value) for key, value in row.items()} for name, row in _file()["schedules"].items()}


@lru_cache(maxsize=1)
def stacks() -> dict[str, Stack]:
    """All stacks by name."""
    return {name: _stack(name, row) for name, row in _file()["stacks"].items()}


def _stack(name: str, row: dict[str, Any]) -> Stack:
    called, gpus = tuple(row.get("called", ())), tuple(row.get("gpus", ()))
    before, step_s = str(row.get("before", "")), float(row["step_ms"]) * 1e-3
    return Stack(name, called, row["design"], row.get("schedule", "chunked"), before, gpus, step_s, row["source"])


def fitted_models() -> frozenset[str]:
    """Names of the models whose measured runs the constants were fitted to; all others test them."""
    return frozenset(str(name) for name in _file().get("fitted_models", ()))


def find_stack(written: str, date: str = "", gpu: str = "") -> Stack | None:
    """The stack that a source calls `written`, at an ISO date (empty: today), on a GPU; None for one that is not known."""
    word, machine = written.strip().lower(), gpu.strip().lower()
    found = [stack for stack in stacks().values() if word == stack.name or word in stack.called]
    special = [stack for stack in found if stack.gpus and machine.startswith(stack.gpus)]
    usual = [stack for stack in found if not stack.gpus or word == stack.name]
    early = sorted((stack for stack in usual if stack.before and date and date < stack.before), key=lambda stack: stack.before)
    today = [stack for stack in usual if not stack.before or word == stack.name]
    return next(iter([*special, *early, *today]), None)


def load_stack(name: str) -> Stack:
    """The stack of that name; `InputError` where there is none."""
    found = find_stack(name)
    if found is None:
        raise unknown_name("stack", name, stacks())
    return found


def scaled(data: dict[str, Any], shared: Mechanisms) -> dict[str, Any]:
    """A calibration in which starts cost what a design pays of them; everything else is as it was measured."""
    found = copy.deepcopy(data)
    for families in found["gpus"].values():
        for table in families.values():
            for row in table.values():
                row["launch_s"] *= shared.launch
    for table in found["collectives"].values():
        for row in table.values():
            row["start_s"] *= shared.collective
            row["step_s"] *= shared.collective
    return found


@lru_cache(maxsize=8)
def _scaled(design: str) -> dict[str, Any]:
    return scaled(calibration(), mechanisms()[design])


def stack_pricer(cluster: Cluster, stack: Stack, kv_dtype: str | None = None) -> Pricer:
    """The prices of a cluster under a stack, with a KV cache of `kv_dtype` (None: that of the activations)."""
    return pricer_with(cluster, _scaled(stack.design), kv_dtype)


def pricer_with(cluster: Cluster, data: dict[str, Any], kv_dtype: str | None = None) -> Pricer:
    """The prices of a cluster under another calibration."""
    pricer = Pricer(cluster, {name: Roofline(kind, data, kv_dtype) for name, kind in cluster.kinds.items()})
    pricer.collectives = Collectives(cluster, data)
    return pricer
