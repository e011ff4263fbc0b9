"""OR-Tools takes up to a second to import: load it beside the work that comes before it is needed."""

from __future__ import annotations

import importlib
import threading


def preload() -> None:
    """Start to import CP-SAT in a thread; a later import of it waits for that thread."""
    threading.Thread(target=importlib.import_module, args=("ortools.sat.python.cp_model",), name="preload").start()
