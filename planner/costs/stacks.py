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
    """What stacks have in common. `launch`: share of a lone kernel's start that remains where kernels follow each other
    from a recorded graph, fused with their neighbours; `collective`: the same of the start and the steps of a collective.
    """

    launch: float
    collective: float


@dataclass(frozen=True, slots=True)
class Stack:
    """A runtime: `step_s` is its one constant, the time between two passes through the model in which no GPU computes."""

    name: str
    called: tuple[str, ...]
    step_s: float
    source: str


@lru_cache(maxsize=1)
def _file() -> dict[str, Any]:
    return dict(read_yaml(FILE))


def mechanisms() -> Mechanisms:
    """The constants that all stacks share."""
    return Mechanisms(**{name: float(value) for name, value in _file()["shared"].items()})


@lru_cache(maxsize=1)
def stacks() -> dict[str, Stack]:
    """All stacks by name."""
    return {
        name: Stack(name, tuple(row["called"]), float(row["step_ms"]) * 1e-3, row["source"])
        for name, row in _file()["stacks"].items()
    }


def fitted_models() -> frozenset[str]:
    """Names of the models whose measured runs the constants were fitted to; all others test them."""
    return frozenset(str(name) for name in _file().get("fitted_models", ()))


def find_stack(written: str, version: str = "") -> Stack | None:
    """The stack that a source calls `written`, in `version`; None for one that nothing was fitted to.

    A stack named `NAME before N` holds for versions below N of what is called NAME.
    """
    word = written.strip().lower()
    found = [stack for stack in stacks().values() if word in stack.called or word == stack.name]
    for stack in found:
        limit = stack.name.partition(" before ")[2]
        if limit and version and _number(version) < _number(limit):
            return stack
    return next((stack for stack in found if " before " not in stack.name), None)


def load_stack(name: str) -> Stack:
    """The stack of that name; `InputError` where there is none."""
    found = find_stack(name)
    if found is None:
        raise unknown_name("stack", name, stacks())
    return found


def _number(version: str) -> float:
    """The first two numbers of a version as one: 0.8.1 -> 0.008."""
    parts = [int("".join(c for c in part if c.isdigit()) or 0) for part in version.split(".")[:2]]
    return parts[0] + (parts[1] if len(parts) > 1 else 0) * 1e-3


def scaled(data: dict[str, Any], shared: Mechanisms) -> dict[str, Any]:
    """A calibration in which starts cost what a stack pays of them; everything else is as it was measured."""
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


@lru_cache(maxsize=1)
def _scaled() -> dict[str, Any]:
    return scaled(calibration(), mechanisms())


def stack_pricer(cluster: Cluster, data: dict[str, Any] | None = None) -> Pricer:
    """The prices of a cluster under a stack; `data` is a calibration already `scaled`, by default the committed one."""
    own = _scaled() if data is None else data
    pricer = Pricer(cluster, {name: Roofline(kind, own) for name, kind in cluster.kinds.items()})
    pricer.collectives = Collectives(cluster, own)
    return pricer
