"""Anytime: an interrupt or the time limit leaves the best plan so far with an honest bound; nothing else depends on time."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from tempfile import TemporaryFile
from typing import IO

import pytest

from planner.problem import Problem, load_problem
from planner.report import markdown_report, search_report
from planner.search import Result, search
from planner.solve.answer import Limits
from planner.solve.apart import ApartSpace
from planner.solve.cp import PipelineModel
from planner.solve.optimum import SpaceSearch
from search_spaces.space import SearchSpace
from tests.oracle_problems import random_case

LONG = ("--model", "llama-3.1-405b", "--cluster", "8x8-h100", "--workload", "prefill:batch=64,prompt=4096")
SLACK = 1 + 1e-9


def begun(*arguments: str, out: IO[str]) -> subprocess.Popen[str]:
    """A search whose answer goes to a file, so that nobody has to read it while it runs."""
    command = [sys.executable, "-u", "-m", "planner", "search", *arguments]
    return subprocess.Popen(command, stdout=out, stderr=subprocess.PIPE, text=True, preexec_fn=heeding)


def heeding() -> None:
    """Ctrl-C is heard, also where the tests run in the background of a shell that has them ignore it."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


def interrupted_at(pattern: str, *arguments: str) -> tuple[int, str, str]:
    """A search that gets Ctrl-C when standard error matches; exit code and both streams."""
    with TemporaryFile("w+") as answer:
        process, told = begun(*arguments, out=answer), ""
        assert process.stderr is not None
        while not re.search(pattern, told):
            letter = process.stderr.read(1)
            assert letter, told
            told += letter
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=120)
        answer.seek(0)
        return process.returncode, answer.read(), told + err


def test_ctrl_c_leaves_the_best_plan_so_far(tmp_path: Path) -> None:
    """A real process: exit code 130, the plan with its gap on standard output and in the run folder, a word on stderr."""
    code, out, err = interrupted_at("incumbent [0-9]", *LONG, "--json", "--out", str(tmp_path))
    assert code == 130, err
    assert err.strip().endswith("interrupted")
    told = json.loads(out)
    assert (told["status"], told["interrupted"]) == ("feasible", True)
    assert told["plan"]["stages"]
    assert 0 <= told["objective"]["bound"] <= told["objective"]["value"]
    assert 0 <= told["objective"]["gap"] <= 1
    (stored,) = tmp_path.glob("*/result.json")
    kept = json.loads(stored.read_text())
    assert kept["plan"] == told["plan"]
    assert kept["interrupted"]
    assert (stored.parent / "report.md").exists()


def test_ctrl_c_before_there_is_a_plan() -> None:
    with TemporaryFile("w+") as answer:
        process = begun(*LONG, "--json", out=answer)
        time.sleep(0.3)
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=120)
        answer.seek(0)
        out = answer.read()
    assert process.returncode in (130, -signal.SIGINT), err  # the latter while Python itself still starts
    assert out == "" or json.loads(out)["interrupted"]


Place = tuple[type, str, int]
"""A method, and which of its calls an interrupt comes in."""
PLACES: list[Place] = [
    (SpaceSearch, "_linear", 1), (SpaceSearch, "_linear", 2), (SpaceSearch, "_with_experts_apart", 1),
    (SpaceSearch, "_with_experts_apart", 2), (SpaceSearch, "_preferred", 1), (SpaceSearch, "_prove", 1),
    (PipelineModel, "solve", 1), (ApartSpace, "best", 2),
]  # fmt: skip


def interrupting(monkeypatch: pytest.MonkeyPatch, place: Place) -> Callable[[], bool]:
    """Raise an interrupt in one call of a method; tells whether it came."""
    kind, name, number = place
    whole, calls = getattr(kind, name), [0]

    def counted(self: object, *args: object, **kwargs: object) -> object:
        calls[0] += 1
        if calls[0] == number:
            raise KeyboardInterrupt
        return whole(self, *args, **kwargs)

    monkeypatch.setattr(kind, name, counted)
    return lambda: calls[0] >= number


@lru_cache(maxsize=1)
def open_cases() -> tuple[tuple[Problem, Result], ...]:
    """Small problems with experts apart in their spaces, some with the best plan there, and their answers."""
    apart, others = [], []
    for seed in range(120):
        problem = random_case(seed)
        if problem.sizes.moe and len(problem.space.branches) > 1:
            answer = search(problem, details=False)
            if answer.status == "optimal" and answer.choice is not None:
                (apart if answer.choice.stages[0].separate else others).append((problem, answer))
    return (*apart[:5], *others[:5])


@pytest.mark.parametrize("place", PLACES, ids=lambda place: f"{place[1]}-{place[2]}")
def test_an_interrupt_anywhere_leaves_a_plan_or_none_and_a_bound_that_holds(place: Place) -> None:
    """Also of the plans with experts apart that were not searched yet."""
    came = 0
    for problem, whole in open_cases():
        with pytest.MonkeyPatch.context() as patch:
            here = interrupting(patch, place)
            found = search(problem, details=False)
            if not here():
                continue
        came += 1
        assert found.interrupted
        assert found.status in ("feasible", "timeout")
        assert whole.value is not None
        assert found.optimum.bound <= whole.value * SLACK
        if found.value is not None:
            assert found.value >= whole.value / SLACK
            assert "interrupted" in search_report(found).splitlines()[0]
            assert markdown_report(found)
    assert came > 0


def test_some_of_these_problems_have_their_best_plan_apart() -> None:
    assert any(whole.choice is not None and whole.choice.stages[0].separate for _, whole in open_cases())


def test_an_interrupt_in_the_tables_keeps_the_proof(monkeypatch: pytest.MonkeyPatch) -> None:
    interrupting(monkeypatch, (SpaceSearch, "pinned_value", 3))
    found = search(load_problem("helix"))
    assert (found.status, found.interrupted, found.decisions) == ("optimal", True, ())


def test_an_interrupt_while_the_plans_are_counted_keeps_the_proof(monkeypatch: pytest.MonkeyPatch) -> None:
    """Which takes two seconds for 16,384 GPUs, after the search."""
    problem = load_problem("helix")
    interrupting(monkeypatch, (SearchSpace, "size", 1))
    found = search(problem)
    assert (found.status, found.interrupted, found.decisions) == ("optimal", True, ())
    assert int(found.space_size) > 0


@pytest.mark.parametrize("call", [1, 2])
def test_an_interrupt_while_experts_are_placed_keeps_the_plan(call: int, monkeypatch: pytest.MonkeyPatch) -> None:
    from tests.planner.solve.experts.test_search import problem as skewed

    whole = search(skewed(), details=False)
    interrupting(monkeypatch, (SpaceSearch, "run", 1 + call))
    found = search(skewed(), details=False)
    assert found.interrupted
    assert (found.status, found.choice is None) == ("feasible", False)
    assert whole.bound is not None
    assert found.bound is not None
    assert 0 < found.bound <= whole.bound * SLACK


def test_the_time_limit_leaves_what_was_found_or_nothing(planner: Callable[..., tuple[int, str, str]]) -> None:
    code, out, _ = planner("search", "helix", "--time-limit", 1e-6, "--json")
    assert (code, json.loads(out)["status"], json.loads(out)["plan"]) == (3, "timeout", None)


def test_the_time_limit_between_branches_says_how_much_could_be_left(monkeypatch: pytest.MonkeyPatch) -> None:
    """The clock jumps after the first branch: the plan of that branch, a bound that holds, exit code 0 by its status."""
    for problem, whole in open_cases()[:12]:
        with pytest.MonkeyPatch.context() as patch:
            linear, late = SpaceSearch._linear, [0.0]

            def slow(self: SpaceSearch, *args: object, of: object = linear, at: list[float] = late, **kwargs: object) -> object:
                at[0] = 1e6
                return of(self, *args, **kwargs)  # type: ignore[operator]

            clock = time.monotonic
            patch.setattr(SpaceSearch, "_linear", slow)
            patch.setattr("planner.solve.optimum.time.monotonic", lambda at=late, now=clock: now() + at[0])
            found = search(problem, details=False, limits=Limits(seconds=1e3))
        assert not found.interrupted
        assert found.status in ("optimal", "feasible", "timeout")
        assert whole.value is not None
        assert found.optimum.bound <= whole.value * SLACK


@pytest.mark.parametrize("workers", [1, 2])
def test_a_slow_machine_gives_the_same_bytes(workers: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a time limit no clock decides anything, CP-SAT's effort included, which is cut short here."""
    limits = Limits(workers=workers, seed=7, effort=0.02)

    def answer() -> str:
        return json.dumps(search(load_problem("helix"), limits=limits, details=False).to_dict())

    fast = answer()
    burners = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(2)]
    linear = SpaceSearch._linear

    def slow(self: SpaceSearch, *args: object, **kwargs: object) -> object:
        time.sleep(0.02)
        return linear(self, *args, **kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr(SpaceSearch, "_linear", slow)
    try:
        again = answer()
    finally:
        for burner in burners:
            burner.kill()
    assert again == fast
