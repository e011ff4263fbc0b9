"""Ctrl-C: heard at once, but never inside Python's import system.

What an interrupt cuts off there keeps its locks, and the thread that loads OR-Tools waits for them for ever.
"""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

AGAIN_S = 0.02
IMPORTS = ("<frozen importlib", "<frozen zipimport")


@contextmanager
def heard_between_imports() -> Iterator[None]:
    """Raise `KeyboardInterrupt` at Ctrl-C, as Python does, or as soon as a running import has let go of its locks.

    Nothing changes where Ctrl-C means something else already, or outside the main thread, which alone hears signals.
    """
    if signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        yield
        return
    try:
        before = signal.signal(signal.SIGINT, _interrupt), signal.signal(signal.SIGALRM, _interrupt)
    except ValueError:  # not the main thread
        yield
        return
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGINT, before[0])
        signal.signal(signal.SIGALRM, before[1])


def _interrupt(number: int, frame: FrameType | None) -> None:
    """Interrupt what runs; `frame` is where it stands."""
    if frame is None or not frame.f_code.co_filename.startswith(IMPORTS):
        raise KeyboardInterrupt
    signal.setitimer(signal.ITIMER_REAL, AGAIN_S)
