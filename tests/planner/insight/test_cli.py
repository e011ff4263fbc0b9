"""`planner compare` and `planner explain` as commands."""

from __future__ import annotations

import json

import pytest

import planner
from planner.cli import main

SMALL = ("--set", "workload.batch=16", "--set", "workload.prompt=256")


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    code = main(list(arguments))
    out, err = capsys.readouterr()
    return code, out, err


def test_compare(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys, "compare", "helix:m4n4_exact", "helix:m4n4", *SMALL)
    assert code == 0 and "is the fastest" in out and "attention core" in out and "FINDINGS" in out
    code, out, _ = run(capsys, "compare", "helix:m4n4_exact", "helix:m4n4", *SMALL, "--json")
    data = json.loads(out)
    assert (code, data["schema"], len(data["plans"])) == (0, "planner.comparison/1", 2)


def test_compare_of_nothing_that_has_a_price_is_a_no(capsys: pytest.CaptureFixture[str]) -> None:
    nothing = ("--set", "space.stages=2", "--set", "space.attention.head_groups=16")
    code, out, _ = run(capsys, "compare", "helix", "helix", *nothing)
    assert code == 1 and "none of these plans has a price" in out and "no plan obeys" in out


def test_explain(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys, "explain", "helix:m4n4_exact", *SMALL)
    assert code == 0 and out.startswith("helix:m4n4_exact takes ") and "WHAT TO CHANGE" in out
    code, out, _ = run(capsys, "explain", "helix:m4n4_exact", *SMALL, "--json")
    data = json.loads(out)
    assert (code, data["schema"]) == (0, "planner.explanation/1")
    assert data["summary"].startswith("helix:m4n4_exact takes ") and data["runtime_s"] >= 0


@pytest.mark.parametrize(
    "arguments",
    [
        ("compare", "helix:m4n4"),
        ("compare", "helix:m4n4", "nothing"),
        ("explain", "helix:nothing"),
        ("explain", "helix", "--time-limit", "0"),
        ("explain", "helix", "--time-limit", "nan"),
        ("explain", "helix", "--set", "nonsense"),
    ],
)
def test_wrong_input_is_one_line(capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...]) -> None:
    code, out, err = run(capsys, *arguments)
    assert (code, out) == (2, "") and err.startswith("error: ") and err.count("\n") == 1


def test_public_names() -> None:
    found = planner.compare(["helix:m4n4_exact", "helix:m4n4"], sets=SMALL[1::2])
    assert len(found.sides) == 2
    assert planner.explain("helix:m4n4_exact", sets=SMALL[1::2]).latency_s == found.sides[0].evaluation.latency_s
