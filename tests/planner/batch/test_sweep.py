"""Sweeps and tables: which problems they name, and what they refuse."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from planner.batch.points import load_point, spec_of
from planner.batch.sweep import MOST_PROBLEMS, read_sweep, read_table
from planner.batch.work import ask
from planner.errors import InputError
from tests.planner.batch.stores import ROOT, TINY, planner, tiny_sweep, write_sweep


def labels(folder, **content):
    return [point.label for point in read_sweep(write_sweep(folder, content)).points()]


def test_a_cross_product_in_the_order_of_the_file(tmp_path):
    found = labels(tmp_path, problem="helix", sweep={"cluster": ["2x8-h100", "2x8-h200"], "workload.batch": [64, 32]})
    assert found == [
        "2x8-h100, workload.batch=64", "2x8-h100, workload.batch=32",
        "2x8-h200, workload.batch=64", "2x8-h200, workload.batch=32",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("given", "values"),
    [
        ({"from": 1, "to": 4}, [1, 2, 3, 4]),
        ({"from": 8, "to": 20, "step": 5}, [8, 13, 18]),
        ({"from": 8, "to": 64, "times": 2}, [8, 16, 32, 64]),
        ({"from": 0.5, "to": 1.0, "step": 0.25}, [0.5, 0.75, 1.0]),
        ({"from": 0.1, "to": 0.3, "step": 0.1}, [0.1, 0.2, 0.1 + 2 * 0.1]),
        ({"from": 7, "to": 7}, [7]),
        ([3, 1], [3, 1]),
        (5, [5]),
        ([{"from": 1, "to": 4}], [{"from": 1, "to": 4}]),
    ],
)
def test_lists_and_ranges(tmp_path, given, values):
    sweep = read_sweep(write_sweep(tmp_path, {"problem": "helix", "sweep": {"space.micro_batches": given}}))
    assert [point.varied["space.micro_batches"] for point in sweep.points()] == values
    assert sweep.count() == len(values)


def test_zipped_lists_vary_together(tmp_path):
    found = labels(
        tmp_path, problem="helix", sweep={"objective": ["latency", "cost"]},
        zip=[{"workload.batch": [64, 32], "workload.prompt": [100, 200]}],
    )  # fmt: skip
    assert found == [
        "latency, workload.batch=64, workload.prompt=100", "latency, workload.batch=32, workload.prompt=200",
        "cost, workload.batch=64, workload.prompt=100", "cost, workload.batch=32, workload.prompt=200",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("rule", "left"),
    [
        ({"workload.batch": 2}, 4),
        ({"workload.batch": [1, 2]}, 2),
        ({"workload.batch": {"above": 1}, "workload.prompt": 32}, 4),
        ({"workload.batch": {"at_least": 1, "at_most": 2}}, 2),
        ({"workload.batch": {"below": 4}, "objective": "cost"}, 6),
        ({"cluster": "1x1-h100", "workload.batch": 4}, 4),
    ],
)
def test_excluded_combinations(tmp_path, rule, left):
    content = tiny_sweep(exclude=[rule], options={"objective": "latency"})
    sweep = read_sweep(write_sweep(tmp_path, content))
    assert sweep.count() == len(list(sweep.points())) == left


def test_named_problems_and_their_own_fields(tmp_path):
    content = tiny_sweep((1, 2), (16,), problems=["helix", {"name": "big", "cluster": "1x2-h100", "options": {"seed": 3}}])
    points = list(read_sweep(write_sweep(tmp_path, content)).points())
    assert [point.label.split(",")[0] for point in points] == ["helix", "helix", "big", "big"]
    problem, options = load_point(spec_of(points[-1]))
    assert (problem.cluster.size, problem.workload.batch, options.seed) == (2, 2, 3)


def test_a_sweep_of_one_problem_lends_it_its_name(tmp_path):
    alone = {"problem": "helix", "name": "mine"}
    write_sweep(tmp_path, alone, "inner.yaml")
    assert labels(tmp_path, **alone) == ["mine"]
    assert labels(tmp_path, include=["inner.yaml"], problem="helix", sweep={"objective": ["cost"]}) == ["mine", "cost"]


def test_included_sweeps_and_problem_files(tmp_path):
    (tmp_path / "deep").mkdir()
    write_sweep(tmp_path / "deep", {**tiny_sweep((1,), (16,)), "name": "inner"}, "inner.yaml")
    problem = {"schema": "planner.problem/1", "model": "model.yaml", "cluster": "1x1-h100",
               "workload": {"phase": "prefill", "batch": 3, "prompt": 8, "logits": "none"}}  # fmt: skip
    write_sweep(tmp_path / "deep", problem, "mine.yaml")
    write_sweep(tmp_path / "deep", TINY, "model.yaml")
    sweep = read_sweep(
        write_sweep(tmp_path, {"include": ["deep/inner.yaml", "deep/mine.yaml"], "sweep": {"objective": ["cost"]}})
    )
    points = list(sweep.points())
    assert [point.label for point in points] == ["workload.batch=1, workload.prompt=16", "mine, cost"]
    found, options = load_point(spec_of(points[1]))
    assert (found.model.name, found.workload.batch, options.objective) == ("tiny", 3, "cost")


def test_a_file_is_carried_along(tmp_path):
    """A worker elsewhere has no files of ours: what they say travels with the problem."""
    write_sweep(tmp_path, TINY, "model.yaml")
    write_sweep(tmp_path, {"nodes": [{"kind": "h100", "gpus": 2}]}, "pool.yaml")
    content = tiny_sweep((1,), (16,)) | {"model": "model.yaml", "cluster": "pool.yaml"}
    (point,) = read_sweep(write_sweep(tmp_path, content)).points()
    spec = json.loads(json.dumps(spec_of(point)))
    (tmp_path / "model.yaml").unlink()
    (tmp_path / "pool.yaml").unlink()
    problem, _ = load_point(spec)
    assert (problem.model.name, problem.cluster.size) == ("tiny", 2)


def test_a_problem_is_the_same_however_its_file_is_written(tmp_path, monkeypatch):
    """A path may be absolute or not, and the folder may move: that is not another problem."""
    keys = set()
    for folder in (tmp_path / "a", tmp_path / "b"):
        folder.mkdir()
        write_sweep(folder, TINY, "model.yaml")
        path = write_sweep(folder, tiny_sweep((1,), (16,)) | {"model": "model.yaml"})
        monkeypatch.chdir(folder)
        for one in (path, Path(path.name), Path("..") / folder.name / path.name):
            (point,) = read_sweep(one).points()
            keys.add(ask(spec_of(point))[0].key)
    assert len(keys) == 1


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ({"sweep": {"model": []}}, "at least one value"),
        ({"sweep": {"wrkload.batch": [1]}}, "sweep is 'wrkload.batch'"),
        ({"problem": "helix", "sweep": {"workload.batch": {"from": 1, "to": 9, "by": 2}}}, "no field of this name"),
        ({"problem": "helix", "sweep": {"workload.batch": {"from": 1, "to": 1e15}}}, "steps"),
        ({"problem": "helix", "sweep": {"workload.batch": {"from": 9, "to": 1}}}, "at least `from`"),
        ({"problem": "helix", "sweep": {"workload.batch": {"from": 0, "to": 8, "times": 2}}}, "a factor above 1"),
        ({"problem": "helix", "sweep": {"workload.batch": {"from": 1, "to": 8, "step": 0}}}, "above 0"),
        ({"problem": "helix", "zip": [{"workload.batch": [1, 2], "objective": ["cost"]}]}, "the same length"),
        ({"problem": "helix", "sweep": {"objective": ["cost"]}, "zip": [{"objective": ["cost"]}]}, "each field on one axis"),
        ({"problem": "helix", "exclude": [{"workload.batch": 1}]}, "exclude[0] is 'workload.batch'"),
        ({"problem": "helix", "exclude": [{}]}, "at least one field"),
        ({"problem": "helix", "options": {"sed": 1}}, "did you mean seed"),
        ({"problem": "helix", "options": {"objective": "speed"}}, "one of cost, latency, throughput"),
        ({"problem": "helix", "extra": 1}, "no field of this name"),
        ({"problem": "helix", "output": {"summary": ["pdf"]}}, "md, csv"),
        ({"schema": "planner.sweep/2", "problem": "helix"}, "planner.sweep/1"),
        ({"include": ["sweep.yaml"]}, "without a circle"),
        ({"include": ["none.yaml"]}, "a file that exists"),
        ({"name": "nothing"}, "0 problems"),
        ({"problem": "helix", "sweep": {f"model.f{i}": list(range(9)) for i in range(9)}}, f"{MOST_PROBLEMS:,} problems"),
    ],
)  # fmt: skip
def test_a_wrong_sweep_is_refused_with_its_field(tmp_path, content, told):
    with pytest.raises(InputError) as refused:
        read_sweep(write_sweep(tmp_path, content))
    assert told in str(refused.value) and "sweep.yaml" in str(refused.value)


def test_a_table_has_one_problem_a_row(tmp_path):
    path = tmp_path / "plans.csv"
    path.write_text(
        "name,model,cluster,workload,workload.batch,objective\n"
        'first,llama-3.1-70b,2x8-h100,"prefill:batch=8,prompt=128",,\n'
        "\n"
        'second,mixtral-8x7b,"1x8-h100+1x8-a100-80gb","decode:batch=8,context=128",16,cost\n'
    )
    sweep = read_table(path)
    points = list(sweep.points())
    assert (sweep.name, [point.label for point in points]) == ("plans", ["first", "second"])
    problem, options = load_point(spec_of(points[1]))
    assert (problem.workload.batch, options.objective, len(problem.cluster.kinds)) == (16, "cost", 2)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", "header"), ("model,model\na,b", "different names"), ("model\n", "at least one row"), ("model\na,b", "at most 1"),
        ("speed\n1", "column is 'speed'"), ('model\n"a', "well-formed CSV"), ('space\n"{a: *b}"', "without aliases"),
        ("model,\na,b", "different names"),
    ],
)  # fmt: skip
def test_a_wrong_table_is_refused(tmp_path, text, told):
    path = tmp_path / "t.csv"
    path.write_text(text)
    with pytest.raises(InputError) as refused:
        read_table(path)
    assert told in str(refused.value)


def test_the_sweep_of_the_readme(tmp_path):
    text = (ROOT / "README.md").read_text()
    found = re.search(r"```yaml\n(schema: planner.sweep/1\n.*?)```", text, re.DOTALL)
    (tmp_path / "sweep.yaml").write_text(found[1])
    points = list(read_sweep(tmp_path / "sweep.yaml").points())
    assert len(points) == 10 and "the ten problems" in text
    assert all(load_point(spec_of(point)) for point in points)


def test_a_table_in_the_place_of_a_sweep_is_told_so(tmp_path):
    (tmp_path / "t.csv").write_text("model\ngpt2\n")
    done = planner("batch", tmp_path / "t.csv", "--dry-run")
    assert done.returncode == 2 and "--from" in done.stderr


def test_a_dry_run_solves_nothing(tmp_path):
    path = write_sweep(tmp_path, tiny_sweep(range(1, 101), (16, 32)))
    done = planner("batch", path, "--dry-run")
    assert done.returncode == 0 and "tiny: 200 problems" in done.stdout and "and 190 more" in done.stdout
    assert json.loads(planner("batch", path, "--dry-run", "--json").stdout)["problems"] == 200
    assert [place.name for place in tmp_path.iterdir()] == ["sweep.yaml"]
