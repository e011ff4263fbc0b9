"""`planner inspect` and `planner dag --view full` on the command line: exit codes, JSON alone on standard output."""

from __future__ import annotations

import json

import pytest

from planner.cli.app import main
from planner.inspect.parse import MOST_BYTES
from tests.planner.inspect.foreign import BROKEN, HELIX

SMALL = ["--set", "plan.micro_batches=2", "--micro-batches", "1", "--layer", "0"]


@pytest.fixture
def run(capsys):
    def found(*arguments: object) -> tuple[int, str, str]:
        code = main([str(argument) for argument in arguments])
        return code, *capsys.readouterr()

    return found


@pytest.fixture
def write(tmp_path):
    def found(content: str | bytes, name: str = "a.dot"):
        path = tmp_path / name
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path

    return found


def test_sound_graphs_end_with_0_and_others_with_1(run, write):
    code, out, err = run("inspect", write(HELIX))
    assert code == 0 and "acyclic, no mismatch" in " ".join(out.split()) and not err
    code, out, err = run("inspect", write(BROKEN))
    assert code == 1 and "CYCLE of 3 nodes" in out and not err


def test_json_stands_alone(run, write):
    for asked in (["--json"], ["--format", "json"]):
        code, out, err = run("inspect", write(BROKEN), *asked)
        found = json.loads(out)
        assert code == 1 and not err and found["schema"] == "planner.inspection/1" and found["acyclic"] is False
        assert found["longest_path"]["seconds"] is None and found["cycle"][0] == found["cycle"][-1]


def test_the_cluster_is_named(run, write):
    code, out, _ = run("inspect", write(HELIX), "--cluster", "1x4-a100-80gb", "--json")
    assert code == 0 and json.loads(out)["longest_path"]["cluster"] == "1x4-a100-80gb"
    code, out, err = run("inspect", write(HELIX), "--cluster", "nonsense")
    assert code == 2 and not out and err.startswith("error: ") and "nonsense" in err


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "line 1 is 'end of file'; allowed: `digraph` or `graph`"),
        (b"hello, world", "line 1 is 'hello'; allowed: `digraph` or `graph`"),
        (b"digraph {\n a -> \n}", "line 3 is '}'; allowed: a node or a subgraph behind the arrow"),
        (b"\x7fELF\x00\xff\xfe", "UTF-8"),
        (b"digraph {" + b"{" * 100_000, "at most 64 levels"),
        (b'digraph { schema="planner.graph/9" }', "planner.graph/1"),
    ],
)
def test_what_is_not_dot_ends_with_2_and_one_line(run, write, content, message):
    code, out, err = run("inspect", write(content))
    assert code == 2 and not out and message in err and err.count("\n") == 1 and "Traceback" not in err


def test_missing_and_huge_files_end_with_2(run, write, tmp_path):
    assert run("inspect", tmp_path / "no.dot")[0] == run("inspect", tmp_path)[0] == run("inspect")[0] == 2
    huge = write("digraph {")
    with huge.open("r+b") as stream:
        stream.truncate(MOST_BYTES + 1)
    code, _, err = run("inspect", huge)
    assert code == 2 and f"at most {MOST_BYTES} bytes" in err


def test_a_whole_graph_is_written_and_inspected(run, tmp_path):
    path = tmp_path / "full.dot"
    assert run("dag", "helix:m4n4_exact", "--view", "full", *SMALL, "-o", path)[0] == 0
    code, out, _ = run("inspect", path, "--json")
    found = json.loads(out)
    assert code == 0 and found["written_by"] == "planner (graph)" and not found["unread"] and not found["findings"]
    code, out, _ = run("dag", "helix:m4n4_exact", "--view", "full", *SMALL, "--as", "json")
    data = json.loads(out)
    assert code == 0 and len(data["nodes"]) == found["nodes"] and len(data["edges"]) == found["edges"]
    assert data["latency_s"] == pytest.approx(found["longest_path"]["seconds"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--view", "full", "--as", "svg"], "the full view is no drawing"),
        (["--micro-batches", "2"], "drawings show one micro-batch"),
        (["--view", "full", "--micro-batches", "0"], "--micro-batches"),
    ],
)
def test_what_the_full_view_cannot_do_is_refused(run, arguments, message):
    code, out, err = run("dag", "helix:m4n4_exact", *arguments)
    assert code == 2 and not out and message in err
