"""OR-Tools takes up to a second to import: load it beside the work that comes before it is needed."""

from __future__ import annotations

import contextlib
import importlib
import threading


def preload() -> None:
    """Start to import CP-SAT in a thread; a later import of it waits for that thread."""
    threading.Thread(target=_load, name="preload").start()


def _load() -> None:
    with contextlib.suppress(Exception):  # the process ends first, or an interrupt cut the import off; who needs it is told
        importlib.import_module("ortools.sat.python.cp_model")
