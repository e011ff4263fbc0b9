"""What searches have in common: problems of one model on one cluster that differ in their batch or their objective.

What is kept are values of pure functions, so an answer is the same bytes with sharing as without.
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Hashable, Iterator
from contextvars import ContextVar
from dataclasses import fields, is_dataclass, replace
from typing import Any

import numpy as np

from planner.cluster import Cluster
from planner.model import ModelSpec
from planner.workload import Workload

MOST_BYTES = 1_000_000_000
"""Bytes of tables after which everything kept is dropped before the next problem."""
Family = tuple[ModelSpec, Workload, Cluster]


class Rooms:
    """What is kept for one family, by what it depends on besides."""

    def __init__(self) -> None:
        self._rooms: dict[Hashable, dict[Any, Any]] = {}
        self._counted: dict[int, int] = {}
        self._bytes = 0

    def room(self, key: Hashable) -> dict[Any, Any]:
        """A place to keep what depends on the family and the key alone."""
        return self._rooms.setdefault(key, {})

    def bytes(self) -> int:
        """Bytes of the arrays that are kept; what is new since the last time is counted."""
        stack = list(self._rooms.values())
        while stack:
            room = stack.pop()
            seen = self._counted.get(id(room), 0)
            for value in itertools.islice(room.values(), seen, None):
                if not isinstance(value, dict):
                    self._bytes += _bytes(value)
            self._counted[id(room)] = len(room)
            stack += [value for value in room.values() if isinstance(value, dict)]
        return self._bytes


class Shared:
    """What the problems of one family have in common; another family, or too much of it, empties it."""

    def __init__(self) -> None:
        self._family: Family | None = None
        self._rooms = Rooms()

    def enter(self, model: ModelSpec, workload: Workload, cluster: Cluster) -> Rooms:
        """What is kept for problems of this family; the batch does not count, nor the order of the cluster's GPUs."""
        family = (model, replace(workload, batch=1), cluster.in_order(()))
        if family != self._family or self._rooms.bytes() > MOST_BYTES:
            self._family, self._rooms = family, Rooms()
        return self._rooms


_current: ContextVar[Shared | None] = ContextVar("shared", default=None)
_sites: ContextVar[dict[Hashable, Any] | None] = ContextVar("sites", default=None)


@contextlib.contextmanager
def sharing(shared: Shared) -> Iterator[None]:
    """Searches inside this block keep what they find in `shared`, and use what earlier ones have found."""
    token = _current.set(shared)
    try:
        yield
    finally:
        _current.reset(token)


@contextlib.contextmanager
def sharing_sites() -> Iterator[None]:
    """Searches of one problem inside this block, each with the cluster's GPUs in another order, price alike sites once."""
    token = _sites.set({})
    try:
        yield
    finally:
        _sites.reset(token)


def shared_sites() -> dict[Hashable, Any] | None:
    """What is known of sites by what they look like; None outside a `sharing_sites` block."""
    return _sites.get()


def rooms_for(model: ModelSpec, workload: Workload, cluster: Cluster) -> Rooms | None:
    """What a problem shares with others; None outside a `sharing` block."""
    shared = _current.get()
    return None if shared is None else shared.enter(model, workload, cluster)


def _bytes(value: object) -> int:
    """Bytes of the arrays in a value."""
    if isinstance(value, np.ndarray):
        return int(value.nbytes)
    if isinstance(value, tuple | list):
        return sum(map(_bytes, value))
    if is_dataclass(value) and not isinstance(value, type):
        return sum(_bytes(getattr(value, field.name)) for field in fields(value))
    return 0
