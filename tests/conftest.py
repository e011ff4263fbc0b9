"""Settings and fixtures shared by all tests."""

from __future__ import annotations

import os
from collections.abc import Callable

import pytest
from hypothesis import settings

from planner.cli import main

# A loaded two-core machine must not fail a property by the clock, and CI must test the same examples on every run.
settings.register_profile("house", deadline=None, derandomize=bool(os.environ.get("CI")))
settings.load_profile("house")


@pytest.fixture
def planner(capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """Runs the command; gives its exit code, standard output and standard error."""

    def run(*arguments: object) -> tuple[int, str, str]:
        code = main([str(argument) for argument in arguments])
        return (code, *capsys.readouterr())

    return run


@pytest.fixture
def refused(planner: Callable[..., tuple[int, str, str]]) -> Callable[..., str]:
    """Runs the command on wrong input: one line on standard error, nothing on standard output, exit code 2."""

    def run(*arguments: object) -> str:
        code, out, err = planner(*arguments)
        assert (code, out) == (2, "")
        assert err.startswith("error: ") and err.endswith("\n") and err.count("\n") == 1, err
        assert "Traceback" not in err
        return err

    return run
