"""The command: every verb once on something small, what ends it early, and what it loads."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from planner.cli.output import Progress
from planner.problem import library_names

SMALL = ("--set", "workload.batch=16", "--set", "workload.prompt=256")
TINY = ("--model", "gpt2", "--workload", "decode:batch=2,context=64", "--cluster", "1x2-h100")
PLAN = ("helix:m4n4_exact", *SMALL)


# Every verb


def test_search_tells_its_answer_and_how_to_draw_it(planner):
    code, out, _ = planner("search", "helix", *SMALL)
    assert code == 0
    assert "optimal (bound" in out.splitlines()[0]
    assert "planner dag" in out and "runtime_s" in out


def test_search_as_json_is_json_alone(planner):
    code, out, _ = planner("search", *TINY, "--json")
    found = json.loads(out)
    assert (code, found["schema"], found["status"]) == (0, "planner.result/1", "optimal")
    assert found["objective"]["gap"] <= 1e-6 and found["runtime_s"] >= 0
    assert found["evaluation"]["latency_s"] == pytest.approx(found["objective"]["value"])


def test_both_spellings_of_json_are_one(planner):
    answers = [json.loads(planner("search", *TINY, *how)[1]) for how in (["--json"], ["--format", "json"])]
    for answer in answers:
        del answer["runtime_s"]
    assert answers[0] == answers[1]


def test_several_plans_are_shown_on_demand(planner):
    _, out, _ = planner("search", *TINY, "--top", "3", "--objective", "throughput", "--json")
    found = json.loads(out)
    assert found["objective"]["name"] == "throughput" and 1 <= len(found["alternatives"]) <= 2


def test_a_run_folder_can_be_read_back(planner, tmp_path):
    code, out, _ = planner("search", *TINY, "--set", "model.layers=2", "--out", tmp_path)
    (folder,) = tmp_path.iterdir()
    assert code == 0 and str(folder) in out
    names = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    assert {"problem.yaml", "plan.yaml", "result.json", "evaluation.json", "report.md", "run.json"} <= names
    assert {
        f"dag/{view}.{form}" for view in ("model", "layer", "mha", "mlp", "communication") for form in ("dot", "svg")
    } <= names
    assert "runtime_s" not in (folder / "result.json").read_text()
    stored = json.loads((folder / "result.json").read_text())
    for plan in (folder / "result.json", folder / "plan.yaml"):
        code, out, err = planner("evaluate", plan, "--json")
        assert (code, err) == (0, "")
        assert json.loads(out)["latency_s"] == pytest.approx(stored["objective"]["value"])


def test_stored_files_are_the_same_from_run_to_run(planner, tmp_path):
    for name in ("a", "b"):
        assert planner("search", *TINY, "--set", "model.layers=2", "--out", tmp_path / name)[0] == 0
    for path in (tmp_path / "a").rglob("*.*"):
        if path.is_file() and path.name != "run.json":
            assert path.read_bytes() == (tmp_path / "b" / path.relative_to(tmp_path / "a")).read_bytes(), path.name


def test_nothing_fits_is_a_sound_no(planner, tmp_path):
    code, out, _ = planner("search", "--model", "llama-3.1-70b", "--workload", "decode:batch=1,context=64",
                           "--cluster", "1x1-h100", "--json", "--out", tmp_path)  # fmt: skip
    found = json.loads(out)
    assert (code, found["status"], found["plan"], found["objective"]["value"]) == (1, "infeasible", None, None)
    assert "memory" in found["infeasibility"]["constraint"]


def test_all_problems_in_one_table(planner, monkeypatch):
    monkeypatch.setattr("planner.problem.library_names", lambda: ["helix", "helix_two_stage"])
    code, out, _ = planner("search", "--all", *SMALL)
    assert code == 0 and "helix_two_stage" in out and out.count("optimal") == 2


def test_evaluate_prices_a_plan_and_says_that_it_was_completed(planner):
    code, out, err = planner("evaluate", *PLAN, "--json")
    found = json.loads(out)
    assert (code, found["schema"], found["name"], found["completed"]) == (0, "planner.evaluation/1", "m4n4_exact", True)
    assert "leaves decisions open" in err and err.count("\n") == 1
    assert len(found["devices"]) == 16 and found["latency_s"] > 0 and found["runtime_s"] >= 0
    assert "GB on the" in planner("evaluate", *PLAN)[1]


def test_a_plan_without_open_decisions_needs_no_search(planner, tmp_path):
    _, out, _ = planner("evaluate", *PLAN, "--json")
    plan = {"problem": "helix", **json.loads(out)["plan"]}
    path = tmp_path / "mine.yaml"
    path.write_text(json.dumps(plan))
    code, again, err = planner("evaluate", path, *SMALL, "--json")
    assert (code, err) == (0, "")
    assert json.loads(again)["latency_s"] == json.loads(out)["latency_s"]


def test_a_problem_stands_for_its_best_plan(planner):
    _, out, err = planner("evaluate", "helix", *SMALL, "--json")
    _, searched, _ = planner("search", "helix", *SMALL, "--json")
    assert json.loads(out)["plan"] == json.loads(searched)["plan"] and "best plan" in err


def test_validate_ends_with_one_for_a_plan_that_is_not_valid(planner):
    code, out, _ = planner("validate", *PLAN, "--json")
    assert (code, json.loads(out)["valid"]) == (0, True)
    code, out, _ = planner("validate", "helix:m4n4", *SMALL, "--json")
    found = json.loads(out)
    assert (code, found["valid"], found["schema"]) == (1, False, "planner.validation/1")
    assert {finding["code"] for finding in found["findings"] if finding["severity"] == "error"} == {"NUM001"}
    assert (found["run"]["executed"], found["run"]["matches_unsplit_model"]) == (True, False)
    code, out, _ = planner("validate", "helix:m4n4", *SMALL, "--no-run", "--json")
    assert code == 1 and not json.loads(out)["run"]["executed"]
    code, out, _ = planner("validate", "helix:m4n4", *SMALL)
    assert code == 1 and "NUM001" in out and "not valid" in out


@pytest.mark.parametrize("view", ["model", "layer", "mha", "mlp", "communication"])
def test_every_view_is_drawn(planner, tmp_path, view):
    code, out, _ = planner("dag", *PLAN, "--view", view)
    assert code == 0 and out.startswith("digraph")
    code, out, _ = planner("dag", *PLAN, "--view", view, "--as", "json")
    assert code == 0 and json.loads(out)["nodes"]
    code, out, err = planner("dag", *PLAN, "--view", view, "-o", tmp_path / "x.svg")
    assert (code, out) == (0, "") and "x.svg" in err
    assert "<svg" in (tmp_path / "x.svg").read_text()


def test_the_view_of_experts_finds_their_layer(planner):
    code, out, _ = planner("dag", "cross_node_ep:ep16", *SMALL, "--view", "moe")
    assert code == 0 and "all_to_all" in out


@pytest.mark.parametrize("catalog", ["models", "clusters", "problems", "plans", "findings"])
def test_list(planner, catalog):
    code, out, _ = planner("list", catalog)
    assert code == 0 and len(out.splitlines()) > 4
    code, out, _ = planner("list", catalog, "--json")
    assert code == 0 and all(isinstance(row, dict) for row in json.loads(out))


@pytest.mark.parametrize(
    ("name", "field"),
    [
        ("gpt2", "parameters"),
        ("meta-llama/Llama-3.1-8B-Instruct", "kv_cache_bytes_per_token"),
        ("2x8-h100", "tiers"),
        ("1x8-h100+1x8-a100-80gb", "devices"),
        ("h100", "kinds"),
        ("mixed-h100-a100", "devices"),
        ("helix", "plans"),
        ("helix:m4n4", "stages"),
        ("tests/golden/hf/gpt2.json", "layers"),
        ("search_spaces/library/helix.yaml", "assumptions"),
        ("planner/clusters/mixed-h100-a100.yaml", "tiers"),
    ],
)
def test_show(planner, name, field, monkeypatch):
    monkeypatch.chdir(Path(__file__).resolve().parents[2])
    code, out, _ = planner("show", name)
    assert code == 0 and field in out
    code, out, _ = planner("show", name, "--json")
    assert code == 0 and field in json.loads(out)


def test_show_counts_what_the_model_counts(planner):
    found = json.loads(planner("show", "gpt2", "--json")[1])
    assert found["parameters"] == 124_439_808 and len(found["layers"]) == 12


# The ends of the command


def test_a_fault_of_ours_is_one_line_with_a_hint(planner, monkeypatch):
    def broken() -> list[str]:
        raise RuntimeError("two\nlines")

    monkeypatch.setattr("planner.problem.library_names", broken)
    monkeypatch.delenv("PLANNER_DEBUG", raising=False)
    code, out, err = planner("list", "problems")
    assert (code, out, err.count("\n")) == (70, "", 1)
    assert "internal error: RuntimeError: two lines" in err and "PLANNER_DEBUG=1" in err
    monkeypatch.setenv("PLANNER_DEBUG", "1")
    with pytest.raises(RuntimeError):
        planner("list", "problems")


def test_an_interrupt_ends_with_130(planner, monkeypatch):
    def stopped() -> list[str]:
        raise KeyboardInterrupt

    monkeypatch.setattr("planner.problem.library_names", stopped)
    code, out, err = planner("list", "problems")
    assert (code, out, err) == (130, "", "interrupted\n")


@pytest.mark.parametrize(
    "arguments", [["--help"], *([verb, "--help"] for verb in ["search", "evaluate", "validate", "dag", "list", "show"])]
)
def test_help(planner, arguments):
    code, out, err = planner(*arguments)
    assert (code, err) == (0, "") and "Usage: planner" in out


def test_no_arguments_show_the_help(planner):
    code, out, _ = planner()
    assert code == 2 and "search" in out and "validate" in out


def test_progress_waits_before_it_speaks(capsys, monkeypatch):
    now = [0.0]
    monkeypatch.setattr("planner.cli.output.time.monotonic", lambda: now[0])
    progress = Progress("helix")
    for at in (0.5, 1.9, 2.5, 3.0, 4.6):
        now[0] = at
        progress(f"at {at}")
    progress.done()
    assert capsys.readouterr().err == "helix: at 2.5\nhelix: at 4.6\n"


def _run(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False)


def test_help_and_the_face_load_nothing_heavy():
    code = "import sys, planner, planner.cli; planner.cli.main(['search', '--help']); planner.library_names\n"
    code += "print({'numpy', 'ortools', 'networkx', 'pygraphviz', 'tabulate', 'rich'} & set(sys.modules), file=sys.stderr)"
    light = code.replace("; planner.library_names", "")
    assert _run(light).stderr == "set()\n"
    assert "Error" not in _run(code).stderr


def test_public_names_stay_callable_whatever_was_imported_before():
    code = (
        "import planner\n"
        "assert callable(planner.search) and callable(planner.evaluate)\n"
        "import planner.search, planner.evaluate.evaluation\n"
        "assert callable(planner.search) and callable(planner.evaluate) and planner.search.Result\n"
        "from planner import search, evaluate, validate, build_graph, load_problem\n"
        "small = ['workload.batch=16', 'workload.prompt=256']\n"
        "found = search(load_problem('helix', sets=small), details=False)\n"
        "assert found.status == 'optimal' and found.to_dict()['schema'] == 'planner.result/1'\n"
        "assert evaluate('helix', sets=small).latency_s == found.value\n"
        "assert not validate('helix:m4n4', sets=small).valid\n"
        "assert build_graph('helix:m4n4', sets=small, layers=[0], micro_batches=1).nodes\n"
    )
    ran = _run(code)
    assert (ran.returncode, ran.stderr) == (0, "")


def test_a_reader_who_leaves_is_no_error():
    command = [sys.executable, "-m", "planner", "show", "qwen3-8b", "--json"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None and process.stderr is not None
        process.stdout.close()
        err = process.stderr.read()
        assert (process.wait(timeout=120), err) == (0, b"")


def test_the_library_is_listed(planner):
    assert [row["name"] for row in json.loads(planner("list", "problems", "--json")[1])] == library_names()


def test_the_command_lists_every_verb_in_a_whole_line(planner):
    code, out, _ = planner("--help")
    lines = out.split("Commands:")[1].strip().splitlines()
    assert code == 0 and len(lines) == 14
    assert all(line.endswith(".") and not line.endswith("..") and len(line) <= 80 for line in lines)
