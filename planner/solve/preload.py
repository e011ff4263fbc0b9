"""OR-Tools takes up to a second to import: load it beside the work that comes before it is needed."""

from __future__ import annotations

import contextlib
import importlib
import threading


def preload() -> None:
    """Start to import CP-SAT in a thread; a later import of it waits for that thread."""
    threading.Thread(target=_load, name="preload").start()


def _load() -> None:
    with contextlib.suppress(RuntimeError):  # the process ends before the import does: nobody needs it any more
        importlib.import_module("ortools.sat.python.cp_model")
