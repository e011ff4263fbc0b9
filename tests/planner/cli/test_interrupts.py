"""Ctrl-C does not reach into the import system, whose locks other threads wait for; it is heard right after."""

from __future__ import annotations

import importlib
import signal
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from types import FrameType, ModuleType

import pytest

from planner.cli.interrupts import heard_between_imports
from planner.cli.output import warn


class Finder:
    """Finds nothing, and sends Ctrl-C from the frame of the import system that asks."""

    def __init__(self) -> None:
        self.after: list[str] = []

    def find_spec(self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None) -> None:
        handler, frame = signal.getsignal(signal.SIGINT), sys._getframe(1)
        assert "importlib" in frame.f_code.co_filename
        assert callable(handler)
        handler(signal.SIGINT, frame)
        self.after.append(name)


@pytest.fixture
def finder() -> Iterator[Finder]:
    added = Finder()
    sys.meta_path.insert(0, added)  # type: ignore[arg-type]
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield added
    signal.signal(signal.SIGINT, before)
    sys.meta_path.remove(added)  # type: ignore[arg-type]


def test_an_interrupt_inside_the_import_system_is_heard_after_it(finder: Finder) -> None:
    ended = False
    with pytest.raises(KeyboardInterrupt), heard_between_imports():
        with pytest.raises(ModuleNotFoundError):
            importlib.import_module("no_such_module_of_ours")
        ended = True
        time.sleep(5)
    assert ended and finder.after == ["no_such_module_of_ours"]
    assert signal.getitimer(signal.ITIMER_REAL) == (0, 0)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_an_interrupt_anywhere_else_is_heard_at_once() -> None:
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt), heard_between_imports():
            signal.raise_signal(signal.SIGINT)
            time.sleep(5)
    finally:
        signal.signal(signal.SIGINT, before)


def test_what_ctrl_c_means_elsewhere_is_kept() -> None:
    def other(number: int, frame: FrameType | None) -> None:
        warn("not for us")

    before = signal.signal(signal.SIGINT, other)
    try:
        with heard_between_imports():
            assert signal.getsignal(signal.SIGINT) is other
    finally:
        signal.signal(signal.SIGINT, before)


def test_outside_the_main_thread_nothing_changes() -> None:
    found: list[object] = []

    def inside() -> None:
        with heard_between_imports():
            found.append(signal.getsignal(signal.SIGINT))

    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        thread = threading.Thread(target=inside)
        thread.start()
        thread.join()
    finally:
        signal.signal(signal.SIGINT, before)
    assert found == [signal.default_int_handler]
