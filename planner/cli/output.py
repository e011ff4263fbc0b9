"""What leaves the command: text or JSON on standard output, progress and warnings on standard error."""

from __future__ import annotations

import contextlib
import json
import math
import os
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from enum import StrEnum
from typing import Any, TextIO

QUIET_S = 2.0
"""A search that ends within this time shows no progress, except on a terminal."""


class Format(StrEnum):
    """How an answer is written."""

    table = "table"
    json = "json"


def say(text: str, stream: TextIO | None = None) -> None:
    """Print to standard output, or to a stream that was; a reader who has left is no error."""
    try:
        print(text, file=stream or sys.stdout, flush=True)
    except BrokenPipeError:
        close_quietly(stream)


def close_quietly(stream: TextIO | None = None) -> None:
    """Let whatever is still to be written to a closed pipe vanish."""
    with contextlib.suppress(OSError, ValueError):  # standard output has no file behind it, or is closed
        os.dup2(os.open(os.devnull, os.O_WRONLY), (stream or sys.stdout).fileno())


def say_json(value: object) -> None:
    """Print a value as JSON, the keys in the order of the value."""
    say(json.dumps(_finite(value), indent=2, ensure_ascii=False, allow_nan=False, default=str))


def _finite(value: object) -> object:
    """A value with None for what JSON has no number for."""
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def warn(text: str) -> None:
    """Print one line to standard error, without signs that could steer a terminal."""
    with contextlib.suppress(OSError, ValueError):  # nobody listens
        print("".join(c if c.isprintable() else "?" for c in text), file=sys.stderr, flush=True)


def table(headers: Sequence[str], rows: Sequence[Sequence[object]], widths: Sequence[int | None] | None = None) -> str:
    """Rows as aligned text; numbers to the right, text wider than its column on several lines."""
    import textwrap

    from tabulate import tabulate

    def wrapped(text: str, width: int | None) -> str:
        lines = [textwrap.wrap(line, width) if width else [line] for line in text.splitlines()]
        return "\n".join(part for parts in lines for part in parts)

    whole = {at for at, column in enumerate(zip(*rows, strict=True)) if all(isinstance(cell, int) for cell in column)}
    widest = widths or [max(36, 150 // max(1, len(headers)))] * len(headers)
    cells = [[f"{cell:,}" if at in whole else wrapped(str(cell), widest[at]) for at, cell in enumerate(row)] for row in rows]
    aligned = ["right" if at in whole else "left" for at in range(len(headers))]
    return str(tabulate(cells, headers, "simple", disable_numparse=True, colalign=aligned if rows else None))


def fields(values: Mapping[str, Any]) -> str:
    """Names and values in two columns."""
    width = max(map(len, values), default=0)
    return "\n".join(f"{name:<{width}}  {value}" for name, value in values.items())


class Progress:
    """Shows where a search stands: at once on a terminal (one line, rewritten), else after a while and now and then.

    Of messages that follow each other faster the last one is shown, too: a long step may come after it.
    """

    def __init__(self, label: str = "") -> None:
        self.label = f"{label}: " if label else ""
        self.terminal = sys.stderr.isatty()
        self.every_s = 0.1 if self.terminal else QUIET_S
        self.next_at = time.monotonic() + self.every_s
        self.shown = False
        self.last = ""
        self.later: threading.Timer | None = None

    def __call__(self, text: str) -> None:
        """Take the next message."""
        self.last, wait = text, self.next_at - time.monotonic()
        if wait <= 0:
            self._show()
        elif self.later is None:
            self.later = threading.Timer(wait, self._show)
            self.later.daemon = True
            self.later.start()

    def _show(self) -> None:
        self._forget()
        self.next_at = time.monotonic() + self.every_s
        if self.terminal:
            self.shown = True
            print(f"\r\033[K{self.label}{self.last}"[:160], end="", file=sys.stderr, flush=True)
        else:
            warn(f"{self.label}{self.last}")

    def _forget(self) -> None:
        if self.later is not None:
            self.later.cancel()
            self.later = None

    def done(self) -> None:
        """Clear the line."""
        self._forget()
        if self.shown:
            print("\r\033[K", end="", file=sys.stderr, flush=True)
