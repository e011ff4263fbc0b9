"""Ctrl-C: heard at once, but never inside Python's import system, and after an answer that is there has been told.

What an interrupt cuts off inside an import keeps its locks, and the thread that loads OR-Tools waits for them for ever.
"""

from __future__ import annotations

import signal
import threading
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
    own = threading.current_thread() is threading.main_thread()
    if not own or signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        yield
        return
    before = signal.signal(signal.SIGINT, _interrupt), signal.signal(signal.SIGALRM, _interrupt)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGINT, before[0])
        signal.signal(signal.SIGALRM, before[1])


@contextmanager
def told_first() -> Iterator[None]:
    """Let an answer be written before Ctrl-C is heard, which then is raised; a second one is heard at once."""
    before, heard = signal.getsignal(signal.SIGINT), False

    def later(number: int, frame: FrameType | None) -> None:
        nonlocal heard
        heard = True
        signal.signal(signal.SIGINT, before)

    if before not in (_interrupt, signal.default_int_handler) or threading.current_thread() is not threading.main_thread():
        yield
        return
    signal.signal(signal.SIGINT, later)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
    if heard:
        raise KeyboardInterrupt


def _interrupt(number: int, frame: FrameType | None) -> None:
    """Interrupt what runs; `frame` is where it stands."""
    if frame is None or not frame.f_code.co_filename.startswith(IMPORTS):
        raise KeyboardInterrupt
    signal.setitimer(signal.ITIMER_REAL, AGAIN_S)
