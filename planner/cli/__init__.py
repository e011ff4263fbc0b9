"""The command `planner`: reads arguments, calls the rooms below, prints what they say."""

from __future__ import annotations

from planner.cli.app import main

__all__ = ["main"]
