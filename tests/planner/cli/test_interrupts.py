"""Ctrl-C does not reach into the import system, whose locks other threads wait for; it is heard right after."""

from __future__ import annotations

import importlib
import json
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import FrameType, ModuleType

import pytest

from planner.cli.interrupts import heard_between_imports, told_first
from planner.cli.output import warn
from planner.search import Result


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


@pytest.fixture
def heeding() -> Iterator[None]:
    """Ctrl-C as a terminal's process has it, wherever the tests run."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("heeding")
def test_an_answer_that_is_there_is_told_before_an_interrupt_is_heard() -> None:
    told: list[str] = []
    with pytest.raises(KeyboardInterrupt), told_first():
        signal.raise_signal(signal.SIGINT)
        told.append("the answer")
    assert told == ["the answer"]
    with pytest.raises(KeyboardInterrupt), told_first():
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)
        told.append("no more")
    assert told == ["the answer"]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


@pytest.mark.usefixtures("heeding")
@pytest.mark.parametrize(
    ("step", "arguments"),
    [
        ("report.search_report", ()),
        ("search.Result.to_dict", ("--json",)),
        ("store.write_run", ("--out", "{}")),
        ("certify.write.write_certificate", ("--certificate", "{}/c.json")),
    ],
)
def test_the_plan_is_not_lost_while_its_report_is_written(
    planner: Callable[..., tuple[int, str, str]],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    step: str,
    arguments: tuple[str, ...],
) -> None:
    """On a thousand GPUs that takes seconds, and the plan is proven already."""
    place, _, last = step.rpartition(".")
    owner = Result if place == "search.Result" else importlib.import_module(f"planner.{place}")
    monkeypatch.setattr(owner, last, interrupted_in(getattr(owner, last)))
    code, out, err = planner(
        "search", "--model", "gpt2", "--cluster", "1x1-h100", "--workload", "decode:batch=1,context=8",
        *(argument.format(tmp_path) for argument in arguments),
    )  # fmt: skip
    assert code == 130
    assert err.endswith("interrupted\n")
    assert json.loads(out)["status"] == "optimal" if "--json" in arguments else ", optimal (bound" in out
    assert (tmp_path / "c.json").exists() == ("--certificate" in arguments)
    assert len(list(tmp_path.glob("*/result.json"))) == ("--out" in arguments)


def interrupted_in(function: Callable[..., object]) -> Callable[..., object]:
    """The function, with Ctrl-C the first time it begins."""
    first = [True]

    def called(*given: object, **named: object) -> object:
        if first.pop() if first else False:
            signal.raise_signal(signal.SIGINT)
        return function(*given, **named)

    return called
