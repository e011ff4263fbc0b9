"""Progress on standard error: not at every message, but never silent about the step that takes long."""

from __future__ import annotations

import time

import pytest

from planner.cli import output
from planner.cli.output import Progress


def test_the_last_of_many_messages_is_shown_where_a_long_step_follows(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(output, "QUIET_S", 0.05)
    progress = Progress("helix")
    for number in range(100):
        progress(f"branch {number}")
    progress("enumerating decisions")
    time.sleep(0.3)
    progress.done()
    lines = capsys.readouterr().err.splitlines()
    assert lines[-1] == "helix: enumerating decisions"
    assert len(lines) < 5


def test_what_ends_soon_shows_nothing(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(output, "QUIET_S", 0.1)
    progress = Progress("helix")
    progress("branch 1")
    progress.done()
    time.sleep(0.2)
    assert capsys.readouterr().err == ""
