"""Questions to a store: filters, orders, formats, and stores that others have filled."""

from __future__ import annotations

import csv
import io
import json
import shutil
import sqlite3

import pytest

from planner.batch.index import NAME
from planner.batch.query import Question, answer
from planner.batch.rebuild import rebuild
from planner.batch.summary import to_parquet
from planner.batch.where import parse_where
from planner.errors import InputError
from planner.report.batch import results_csv, summary_markdown
from tests.planner.batch.stores import contents, planner, run_sweep, tiny_sweep, write_sweep


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    folder = tmp_path_factory.mktemp("store")
    problems = [{"name": "one"}, {"name": "two", "cluster": "1x2-h100"}, {"name": "bad", "model": "none such"}]
    content = tiny_sweep((1, 2), (16,), problems=problems) | {"name": "s"}
    content["sweep"]["objective"] = ["latency", "throughput"]
    run_sweep(write_sweep(folder, content), folder / "store")
    return folder / "store"


def found(store, where="", **more):
    rows, wrong = answer(store, Question(where=where, **more))
    assert wrong == []
    return [row["label"] for row in rows]


@pytest.mark.parametrize(
    ("where", "count"),
    [
        ("", 12), ("status = optimal", 8), ("status != optimal", 4), ("error is not null", 4), ("error is null", 8),
        ("batch >= 2 and objective = latency", 2), ("workload.batch >= 2 and objective = latency", 3),
        ("batch in (1, 2) or status = bad_input", 12), ("not (batch = 1 or status = bad_input)", 4),
        ("label ~ TWO and gpus = 2", 4), ("name = 'x' or name = \"y\"", 0), ("value < 1e300 and batch = 1.0", 4),
    ],
)  # fmt: skip
def test_filters(store, where, count):
    assert len(found(store, where)) == count


@pytest.mark.parametrize(
    "where",
    [
        "speed > 1", "batch", "batch >", "batch = ", "(batch = 1", "batch = 1)", "batch = 1 batch = 2", "1 = 1", "batch = 'a",
        "batch = 1; DROP TABLE runs", "batch = 1 -- x", "batch in ()", "batch in 1", "batch is 1",
        "(" * 60 + "batch = 1" + ")" * 60, "batch = 1 or " * 600 + "batch = 1", "batch in (" + "1," * 600 + "1)",
        "'batch' = 1", "batch = batch()", "", "  ",
    ],
)  # fmt: skip
def test_what_is_no_filter_is_refused(where):
    def column(name):
        if name != "batch":
            raise InputError("--where", name, "batch")
        return "r.batch", []

    with pytest.raises(InputError):
        parse_where(where, column)


def test_many_conditions_are_no_trouble(store):
    assert len(found(store, "batch = 1 or " * 400 + "batch = 2")) == 12 - 4


def test_nothing_of_a_filter_gets_into_the_sql():
    sql, values = parse_where("batch = 'x; DROP' or not batch ~ Y", lambda name: ("r.batch", []))
    assert (sql, values) == ("(r.batch = ? OR (NOT instr(lower(r.batch), ?) > 0))", ["x; DROP", "y"])


def test_orders(store):
    for name, falling in (("value", False), ("-value", True)):
        rows, _ = answer(store, Question(where="objective = latency and status = optimal", sort=(name,)))
        values = [row["value"] for row in rows]
        assert values == sorted(values, reverse=falling) and len(values) == 4
    assert found(store, sort=("-workload.batch", "label"), limit=2) == sorted(found(store, "workload.batch = 2"))[:2]
    with pytest.raises(InputError, match="--sort"):
        found(store, sort=("speed",))


def test_best_of_each(store):
    rows, _ = answer(store, Question(best_by="cluster"))
    assert [(row["cluster"], row["objective"]) for row in rows] == [
        ("1x1-h100", "latency"), ("1x1-h100", "throughput"), ("1x2-h100", "latency"), ("1x2-h100", "throughput"),
    ]  # fmt: skip
    every, _ = answer(store, Question(where="status = optimal"))
    for row in rows:
        values = [one["value"] for one in every if (one["cluster"], one["objective"]) == (row["cluster"], row["objective"])]
        assert row["value"] == (max(values) if row["objective"] == "throughput" else min(values))


def test_formats(store, tmp_path):
    whole = json.loads(planner("results", store, "--json").stdout)["rows"]
    text = planner("results", store, "--format", "csv").stdout
    assert [row["label"] for row in csv.DictReader(io.StringIO(text))] == [row["label"] for row in whole]
    table = planner("results", store, "--where", "status = optimal", "--best-by", "model").stdout
    assert len(table.splitlines()) == 4 and "tiny" in table
    assert planner("results", store, "--where", "nothing = 1").returncode == 2
    done = planner("results", store, "--format", "parquet", "-o", tmp_path / "x.parquet")
    try:
        import pyarrow.parquet
    except ImportError:
        assert done.returncode == 2 and "pyarrow is not installed" in done.stderr
    else:
        read = pyarrow.parquet.read_table(tmp_path / "x.parquet").to_pylist()
        assert [row["value"] for row in read] == [row["value"] for row in whole]


def test_parquet_is_asked_for_by_name(monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(InputError, match=r"parallelism-planner\[parquet\]"):
        to_parquet([], (), {})


def test_a_folder_without_a_store_is_refused(tmp_path):
    for folder in (tmp_path, tmp_path / "none"):
        with pytest.raises(InputError, match="a folder that holds a batch"):
            answer(folder, Question())
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "hostile",
    [
        "CREATE VIEW runs AS WITH RECURSIVE c(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM c) SELECT n AS key FROM c",
        "CREATE TABLE runs (key TEXT)",
        "CREATE TABLE other (x)",
    ],
)
def test_an_index_from_elsewhere_is_not_believed(store, tmp_path, hostile):
    copy = tmp_path / "store"
    copy.mkdir()
    for name in ("runs", "sweeps"):
        (copy / name).symlink_to(store / name)
    database = sqlite3.connect(copy / NAME)
    database.execute(hostile)
    database.commit()
    database.close()
    rows, wrong = answer(copy, Question())
    assert len(rows) == 12 and "other tables" in wrong[0]


@pytest.mark.parametrize(("old", "new"), [(b"CREATE TABLE runs", b"CREATE TABLE r\xd8ns"), (b'{"objective"', b'{"obj\xfectiv"'),
                                         (b'{"objective"', b'["objective"')])  # fmt: skip
def test_an_index_with_changed_bytes_is_made_anew(store, tmp_path, old, new):
    copy = tmp_path / "store"
    shutil.copytree(store, copy)
    data = (copy / NAME).read_bytes()
    assert old in data
    (copy / NAME).write_bytes(data.replace(old, new))
    assert len(answer(copy, Question(sort=("workload.batch",)))[0]) == 12
    run_sweep(store.parent / "sweep.yaml", copy)
    assert contents(copy) == contents(store)
    (copy / NAME).write_bytes(data.replace(old, new))
    rebuild(copy)
    assert contents(copy) == contents(store)


def test_a_trigger_in_an_index_is_noticed(store, tmp_path):
    copy = tmp_path / "store"
    copy.mkdir()
    for name in ("runs", "sweeps"):
        (copy / name).symlink_to(store / name)
    (copy / NAME).write_bytes((store / NAME).read_bytes())
    database = sqlite3.connect(copy / NAME)
    database.execute("CREATE TRIGGER t AFTER INSERT ON runs BEGIN DELETE FROM times; END")
    database.commit()
    database.close()
    assert "other tables" in answer(copy, Question())[1][0]


EVIL = {
    "label": '=HYPERLINK("http://x")', "name": "<img src=x onerror=alert(1)>", "model": "| a | b |\n# x", "status": "optimal",
    "objective": "latency", "value": 1.0, "gap": 0.0, "cluster": "@SUM(1)",
    "plan": "[x](javascript:alert(1)) `y` \x1b[2J \u202e",
}  # fmt: skip


def test_names_do_no_harm_in_a_summary():
    text = summary_markdown([EVIL], "<script>")
    assert "<img" not in text and "<script" not in text.replace("\\<script", "") and "\x1b" not in text and "\u202e" not in text
    row = text.splitlines()[-1]
    assert row.replace("\\|", "").count("|") == 12
    first = results_csv([EVIL], ("label", "cluster", "value", "model")).splitlines()[1]
    assert first.startswith("\"'=HYPERLINK") and ",'@SUM(1),1.0,| a | b | # x" in first
