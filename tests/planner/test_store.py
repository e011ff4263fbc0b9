import json
import math
from dataclasses import replace
from pathlib import Path

import pytest

import planner.store
from planner.errors import InputError
from planner.files import parse_yaml, read_json
from planner.problem import load_plan, load_problem
from planner.store import stable_json, stable_yaml, write_run
from tests.planner.report.small import infeasible_result, tiny_result

VIEWS = {"model": ("digraph {}\n", b"<svg/>"), "mha": ("digraph {}\n", b"")}


def contents(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def test_a_run_folder_holds_everything(tmp_path):
    folder = write_run(tiny_result(), tmp_path / "runs", VIEWS, {"runtime_s": 1.5, "python": "3.11"})
    assert folder == tmp_path / "runs" / "tiny"
    assert set(contents(folder)) == {
        "problem.yaml", "plan.yaml", "result.json", "evaluation.json", "report.md", "run.json",
        "dag/model.dot", "dag/model.svg", "dag/mha.dot",
    }  # fmt: skip
    assert read_json(folder / "run.json") == {"runtime_s": 1.5, "python": "3.11"}
    assert read_json(folder / "evaluation.json")["schema"] == "planner.evaluation/1"
    assert [p.name for p in (tmp_path / "runs").iterdir()] == ["tiny"]


@pytest.mark.parametrize("name", ["result.json", "plan.yaml"])
def test_what_is_written_is_a_plan(tmp_path, name):
    folder = write_run(tiny_result(), tmp_path, {}, {})
    problem, space, _ = load_plan(folder / name)
    assert list(space.choices()) == [tiny_result().choice] and problem.model == tiny_result().problem.model
    assert load_problem(folder / "problem.yaml").space == tiny_result().problem.space


def test_two_runs_write_the_same_bytes(tmp_path):
    first = contents(write_run(tiny_result(), tmp_path / "a", VIEWS, {"runtime_s": 1}))
    tiny_result.cache_clear()
    second = contents(write_run(tiny_result(), tmp_path / "b", VIEWS, {"runtime_s": 2}))
    assert {n: b for n, b in first.items() if n != "run.json"} == {n: b for n, b in second.items() if n != "run.json"}
    assert not any(str(tmp_path).encode() in data for data in first.values())


def test_an_older_run_is_replaced_whole(tmp_path):
    folder = write_run(tiny_result(), tmp_path, VIEWS, {})
    (folder / "stale.txt").write_text("old")
    write_run(tiny_result(), tmp_path, {}, {})
    assert not (folder / "stale.txt").exists() and not (folder / "dag").exists()
    assert [p.name for p in tmp_path.iterdir()] == ["tiny"]


@pytest.mark.parametrize("fails_at", ["_write", "_put"])
def test_an_error_leaves_the_older_run(tmp_path, monkeypatch, fails_at):
    before = contents(write_run(tiny_result(), tmp_path, VIEWS, {}))
    calls = []
    real = getattr(planner.store, fails_at)

    def failing(*arguments):
        calls.append(arguments)
        if fails_at == "_put" or len(calls) == 3:
            raise OSError(28, "No space left on device")
        return real(*arguments)

    monkeypatch.setattr(planner.store, fails_at, failing)
    with pytest.raises(InputError, match="No space left"):
        write_run(tiny_result(), tmp_path, {}, {})
    assert contents(tmp_path / "tiny") == before and [p.name for p in tmp_path.iterdir()] == ["tiny"]


def test_a_failed_rename_brings_the_older_run_back(tmp_path, monkeypatch):
    before = contents(write_run(tiny_result(), tmp_path, {}, {}))
    real = planner.store.os.rename

    def failing(source, target):
        if Path(target).name == "tiny" and str(source).endswith(".tmp"):
            raise OSError(5, "Input/output error")
        real(source, target)

    monkeypatch.setattr(planner.store.os, "rename", failing)
    with pytest.raises(InputError):
        write_run(tiny_result(), tmp_path, VIEWS, {})
    assert contents(tmp_path / "tiny") == before and [p.name for p in tmp_path.iterdir()] == ["tiny"]


@pytest.mark.parametrize("name", ["../../escape", "/etc/x", "..", ".hidden", "a/b", "x" * 300, "\x00", "ünï/\\"])
def test_a_name_never_leaves_the_folder(tmp_path, name):
    result = replace(tiny_result(), problem=replace(tiny_result().problem, name=name))
    folder = write_run(result, tmp_path / "out", {}, {})
    assert folder.parent == tmp_path / "out" and [p.name for p in tmp_path.iterdir()] == ["out"]
    assert not folder.name.startswith(".") and len(folder.name) <= 80


def test_a_place_that_is_no_folder_is_refused(tmp_path):
    (tmp_path / "tiny").write_text("mine")
    with pytest.raises(InputError):
        write_run(tiny_result(), tmp_path, {}, {})
    assert (tmp_path / "tiny").read_text() == "mine"
    with pytest.raises(InputError):
        write_run(tiny_result(), tmp_path / "tiny", {}, {})


def test_a_view_has_a_known_name(tmp_path):
    with pytest.raises(InputError, match="views"):
        write_run(tiny_result(), tmp_path, {"../x": ("digraph {}", b"")}, {})
    assert list(tmp_path.iterdir()) == []


def test_an_infeasible_run_has_no_plan(tmp_path):
    found = contents(write_run(infeasible_result(), tmp_path, {}, {}))
    assert set(found) == {"problem.yaml", "result.json", "report.md", "run.json"}
    assert json.loads(found["result.json"])["plan"] is None and json.loads(found["result.json"])["objective"]["value"] is None


def test_stable_json():
    data = {"b": 1 / 3, "a": (1, 2.0, 1e-20), "c": [math.nan, math.inf, None, True], "d": "é"}
    assert json.loads(stable_json(data)) == {"b": 0.3333333333, "a": [1, 2.0, 1e-20], "c": [None, None, None, True], "d": "é"}
    assert stable_json(data).index('"b"') < stable_json(data).index('"a"')
    with pytest.raises(TypeError):
        stable_json({"x": Path("/tmp")})
    with pytest.raises(TypeError):
        stable_json({"x": object()})


def test_stable_yaml_is_read_back():
    shared = [1, 2]
    data = {
        "name": "1e3",
        "on": "yes",
        "time": "1:30",
        "number": 1e-5,
        "one": shared,
        "two": shared,
        "text": "a: b #c",
        "n": None,
    }
    assert parse_yaml(stable_yaml(data), "here") == data
