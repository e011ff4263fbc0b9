"""The shipped runs of the library problems are what the planner writes today."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from planner.cli import main
from planner.evaluate.setting import setting
from planner.problem import library_names, load_plan
from planner.solve.optimum import SpaceSearch

SHIPPED = Path(__file__).parent.parent / "results"
TEXT = re.compile(rb"<(?:title|text)[^>]*>([^<]*)<")


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All library problems searched and stored anew."""
    folder = tmp_path_factory.mktemp("results")
    assert main(["search", "--all", "--out", str(folder)]) == 0
    return folder


def files(folder: Path) -> dict[str, Path]:
    """The files of a problem's run that must not change; times and host facts are in run.json."""
    return {str(p.relative_to(folder)): p for p in folder.rglob("*") if p.is_file() and p.name != "run.json"}


@pytest.mark.parametrize("name", library_names())
def test_shipped_run_is_regenerated(written: Path, name: str) -> None:
    """Every file has the same bytes; drawings the same words (their coordinates depend on the fonts of the machine)."""
    shipped, new = files(SHIPPED / name), files(written / name)
    assert sorted(shipped) == sorted(new)
    for path, file in new.items():
        if path.endswith(".svg"):
            assert TEXT.findall(file.read_bytes()) == TEXT.findall(shipped[path].read_bytes()), path
        elif path == "result.json":
            old, now = (json.loads(f.read_text()) for f in (shipped[path], file))
            assert old.pop("versions").keys() == now.pop("versions").keys()  # versions are those of the installation
            assert old == now
        else:
            assert file.read_bytes() == shipped[path].read_bytes(), path


def test_shipped_verdicts_on_claims_are_regenerated(written: Path) -> None:
    """The page over all sources has the same bytes; every problem has its own page (compared with its run above)."""
    assert (written / "claims.md").read_bytes() == (SHIPPED / "claims.md").read_bytes()
    assert all((SHIPPED / name / "claims.md").is_file() for name in library_names())


@pytest.mark.parametrize("name", library_names())
def test_shipped_result_is_a_plan(name: str) -> None:
    """`result.json` can be given wherever a plan is asked for, and holds the proven value."""
    path = SHIPPED / name / "result.json"
    problem, space, _ = load_plan(path)
    told = json.loads(path.read_text())
    assert told["status"] == "optimal" and told["objective"]["gap"] <= 1e-6
    assert space.size() == 1
    found = SpaceSearch(setting(problem.model, problem.workload, problem.cluster), space).run()
    assert found.value == pytest.approx(told["objective"]["value"], rel=1e-9)
