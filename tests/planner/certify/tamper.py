"""Certificates for tests, and ways to tamper with them."""

from __future__ import annotations

import copy
import random
from collections.abc import Iterator
from functools import cache
from typing import Any

from planner.certify.document import digests
from planner.certify.write import certificate
from planner.problem import load_problem
from planner.search import search
from planner.solve.answer import Limits
from planner.solve.objective import Caps

SMALL = {
    "schema": "planner.problem/1", "name": "small",
    "model": {
        "name": "small", "layers": 4, "hidden": 1024, "vocab": 1000,
        "attention": {"heads": 6, "kv_heads": 2, "head_dim": 64},
        "ffn": {"kind": "moe", "hidden": 512, "experts": 4, "top_k": 2},
    },
    "workload": {"phase": "prefill", "batch": 8, "prompt": 256}, "cluster": "2x2-h100", "space": {"replicas": [1, 2]},
}  # fmt: skip


@cache
def _written(objective: str, most_memory: float) -> dict[str, Any]:
    limits = Limits(caps=Caps(memory_bytes=most_memory))
    return certificate(search(load_problem(SMALL), objective=objective, limits=limits, details=False))  # type: ignore[arg-type]


def written(objective: str = "latency", most_memory: float = float("inf")) -> dict[str, Any]:
    """The certificate of the small problem, to be changed as one likes."""
    return copy.deepcopy(_written(objective, most_memory))


def signed(raw: dict[str, Any]) -> dict[str, Any]:
    """A certificate with the digests that its content has now: what a careful forger would hand in."""
    return {**raw, "digests": digests(raw)}


def leaves(value: object, path: tuple[object, ...] = ()) -> Iterator[tuple[tuple[object, ...], object]]:
    """Every plain value of a mapping with its path."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else None
    if items is None:
        yield path, value
        return
    for key, child in items:
        yield from leaves(child, (*path, key))


def change(raw: dict[str, Any], path: tuple[object, ...], value: object) -> dict[str, Any]:
    """A copy with the value at a path replaced."""
    found = copy.deepcopy(raw)
    place: Any = found
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    return found


def other_value(rng: random.Random, value: object) -> object:
    """A value of about the same kind that is not the same."""
    if isinstance(value, bool):
        return not value
    if isinstance(value, int):
        return value + rng.choice([-1, 1, 7])
    if isinstance(value, float):
        return value * rng.choice([0.5, 0.999, 1.001, 2.0]) if value else 1.0
    if isinstance(value, str):
        return value + "x" if rng.random() < 0.5 or not value else value[:-1]
    return 1
