"""From the command line: a workload with unequal expert loads, its plan written, priced and validated."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from planner.cli import main
from tests.planner.solve.experts.test_search import LOAD, MODEL, ONE_STAGE


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """A problem with unequal loads."""
    path = tmp_path / "skewed.yaml"
    workload = {"phase": "prefill", "batch": 4, "prompt": 512, "expert_load": LOAD}
    path.write_text(
        yaml.safe_dump(
            {"model": MODEL, "workload": workload, "cluster": "1x4-h100", "space": {**ONE_STAGE, "experts": {"tensor_ways": 1}}}
        )
    )
    return path


def run(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str]:
    code = main([str(argument) for argument in arguments])
    return code, capsys.readouterr().out


def test_a_plan_with_searched_placements_is_told_stored_priced_and_valid(
    file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out = run(capsys, "search", file, "--json")
    found = json.loads(out)
    assert code == 0
    (told,) = found["experts"]
    assert told["load"] < told["consecutive_load"]
    assert told["seconds_bound"] <= told["seconds"]
    copies = found["plan"]["stages"][0]["experts"]["replicas"]
    assert sum(copies) - 8 == told["copies"] > 0
    assert found["objective"]["bound"] <= found["objective"]["value"]
    stored = tmp_path / "result.json"
    stored.write_text(json.dumps(found))
    code, out = run(capsys, "evaluate", stored, "--json")
    assert code == 0
    assert json.loads(out)["latency_s"] == pytest.approx(found["objective"]["value"], rel=1e-9)
    code, out = run(capsys, "validate", stored, "--json")
    assert code == 0
    checked = json.loads(out)
    assert checked["valid"]
    assert checked["run"]["matches_unsplit_model"]


def test_the_report_tells_load_time_and_what_the_bound_means(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out = run(capsys, "search", file)
    assert code == 0
    assert "WHERE THE EXPERTS ARE" in out
    assert "consecutive" in out
    assert "placement search found" in out
    code, out = run(capsys, "search", file, "--set", "space.experts.placement=consecutive")
    assert code == 0
    assert "optimal" in out.splitlines()[0]
    assert "placement search" not in out
