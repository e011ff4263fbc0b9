"""What leaves the command: text or JSON on standard output, progress and warnings on standard error."""

from __future__ import annotations

import contextlib
import json
import os
import sys
import time
from collections.abc import Mapping, Sequence
from enum import StrEnum
from typing import Any

QUIET_S = 2.0
"""A search that ends within this time shows no progress, except on a terminal."""


class Format(StrEnum):
    """How an answer is written."""

    table = "table"
    json = "json"


def say(text: str) -> None:
    """Print to standard output; a reader who has left is no error."""
    try:
        print(text, flush=True)
    except BrokenPipeError:
        close_quietly()


def close_quietly() -> None:
    """Let whatever is still to be written to a closed pipe vanish."""
    with contextlib.suppress(OSError, ValueError):  # standard output has no file behind it, or is closed
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def say_json(value: object) -> None:
    """Print a value as JSON, the keys in the order of the value."""
    say(json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False, default=str))


def warn(text: str) -> None:
    """Print one line to standard error, without signs that could steer a terminal."""
    with contextlib.suppress(OSError, ValueError):  # nobody listens
        print("".join(c if c.isprintable() else "?" for c in text), file=sys.stderr, flush=True)


def table(headers: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """Rows as aligned text; numbers to the right, long text on several lines."""
    from tabulate import tabulate

    widest = max(20, 150 // max(1, len(headers)))
    return str(tabulate(rows, headers=headers, tablefmt="simple", intfmt=",", maxcolwidths=[widest] * len(headers)))


def fields(values: Mapping[str, Any]) -> str:
    """Names and values in two columns."""
    width = max(map(len, values), default=0)
    return "\n".join(f"{name:<{width}}  {value}" for name, value in values.items())


class Progress:
    """Shows where a search stands: at once on a terminal (one line, rewritten), else after a while and now and then."""

    def __init__(self, label: str = "") -> None:
        self.label = f"{label}: " if label else ""
        self.terminal = sys.stderr.isatty()
        self.next_at = time.monotonic() + (0.1 if self.terminal else QUIET_S)
        self.shown = False

    def __call__(self, text: str) -> None:
        """Take the next message."""
        now = time.monotonic()
        if now < self.next_at:
            return
        self.next_at = now + (0.1 if self.terminal else QUIET_S)
        if self.terminal:
            self.shown = True
            print(f"\r\033[K{self.label}{text}"[:160], end="", file=sys.stderr, flush=True)
        else:
            warn(f"{self.label}{text}")

    def done(self) -> None:
        """Clear the line."""
        if self.shown:
            print("\r\033[K", end="", file=sys.stderr, flush=True)
