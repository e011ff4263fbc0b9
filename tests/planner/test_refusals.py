"""Wrong input is refused in one message that names file, field, value and what is allowed; nothing is half-written."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from planner.files import write_text_atomic

Command = Callable[..., tuple[int, str, str]]
SMALL = ("--model", "qwen3-0.6b", "--cluster", "1x2-h100", "--workload", "prefill:batch=2,prompt=64")


@pytest.mark.parametrize(
    ("loads", "told"),
    [
        ("[1, 2, 3]", "w.yaml: workload.expert_load is '3 loads'; allowed: one for each of the 8 experts"),
        (
            "[[1, 2], [3, 4]]",
            "w.yaml: workload.expert_load is '2 rows'; allowed: one row, or one for each of the 32 MoE layers",
        ),
        ("[1, 1, 1, 1, 1, 1, 1, .nan]", "w.yaml: workload.expert_load[7] is '.nan'; allowed: a number from 0 to 1e15"),
        ("[[1, 1, -1]]", "w.yaml: workload.expert_load[0][2] is -1; allowed: a number from 0 to 1e15"),
        ("[0, 0]", "w.yaml: workload.expert_load is [0, 0]; allowed: loads that are not all zero"),
        ("[[]]", "w.yaml: workload.expert_load[0] is []; allowed: a list with one number for each expert"),
    ],
)
def test_loads_of_experts(planner: Command, tmp_path: Path, loads: str, told: str) -> None:
    (tmp_path / "w.yaml").write_text(f"phase: prefill\nbatch: 8\nprompt: 512\nexpert_load: {loads}\n")
    code, out, err = planner(
        "search", "--model", "mixtral-8x7b", "--cluster", "1x8-h100", "--workload", str(tmp_path / "w.yaml")
    )
    assert (code, out) == (2, "")
    assert told in err and err.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("search", "--model", "qwen3-0.6b"), "error: workload is missing; allowed: a workload, since no problem is named"),
        (("search", "nope"), "ma_separation, or a path to a problem file"),
        (("search", *SMALL[:3], "1x99999999-h100", *SMALL[4:]), "allowed: GPUS: an integer from 0 to 1048576"),
        (("search", *SMALL[:3], "0x2-h100", *SMALL[4:]), "allowed: NODES: an integer from 1 to 1048576"),
        (("batch",), "error: SWEEP is missing; allowed: a sweep's YAML file"),
    ],
)
def test_the_command_line(planner: Command, arguments: tuple[str, ...], told: str) -> None:
    code, out, err = planner(*arguments)
    assert (code, out) == (2, "")
    assert told in err and err.count("\n") == 1


def test_a_plan_of_an_unknown_problem_names_the_file(planner: Command, tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("problem: nope\nstages:\n  - {layers: 2, devices: [0]}\n")
    code, _, err = planner("validate", str(tmp_path / "mine.yaml"))
    assert code == 2
    assert f"{tmp_path / 'mine.yaml'}: problem is 'nope'" in err


@pytest.mark.parametrize(
    ("arguments", "instead"),
    [
        (("compare", "{}", "{}"), "planner evaluate prices each of them"),
        (("explain", "{}"), "planner search tells the best plan of every other decision"),
        (("search", "{}", "--certificate", "c.json"), "--out stores the plan with its bound"),
    ],
)
def test_what_training_plans_do_not_have_yet(
    planner: Command, tmp_path: Path, arguments: tuple[str, ...], instead: str
) -> None:
    model = {"name: m", "layers: 2", "hidden: 512", "vocab: 0", "attention: {heads: 4}", "ffn: {hidden: 2048}"}
    text = f"model: {{{', '.join(sorted(model))}}}\ncluster: 1x1-h100\n"
    place = tmp_path / "t.yaml"
    place.write_text(text + "workload: {phase: training, global_batch: 2, sequence: 256}\n")
    code, out, err = planner(*(argument.format(place) for argument in arguments))
    assert (code, out) == (2, "")
    assert "does not answer for training plans yet; " + instead in err


@pytest.mark.parametrize(
    "arguments",
    [
        ("search", *SMALL, "--certificate", "{}/c.json"),
        ("search", *SMALL, "--out", "{}/runs"),
        ("pareto", *SMALL, "--out", "{}/f.svg"),
        ("dag", "helix:m4n4", "-o", "{}/a.dot"),
    ],
)
def test_a_place_that_cannot_be_written_is_refused_before_the_search(
    planner: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...]
) -> None:
    """Whether a folder may be written to is asked of the system, which lets the root write anywhere."""
    monkeypatch.setattr(os, "access", lambda place, mode: Path(place) != tmp_path)
    monkeypatch.setattr("planner.search.search", None)
    code, out, err = planner(*(argument.format(tmp_path) for argument in arguments))
    assert (code, out) == (2, "")
    assert "that you may write to" in err
    assert not list(tmp_path.iterdir())


def test_a_pipe_is_written_to_and_stays_and_a_link_keeps_what_it_names(tmp_path: Path) -> None:
    """As root, a renamed file would take the place of `/dev/stdout`, or of `/dev/null` for the whole machine."""
    pipe, file, link = tmp_path / "pipe", tmp_path / "file", tmp_path / "link"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    write_text_atomic(pipe, "told")
    assert os.read(reader, 10) == b"told"
    os.close(reader)
    assert pipe.is_fifo()
    file.write_text("old")
    link.symlink_to(file)
    write_text_atomic(link, "new")
    assert link.is_symlink() and file.read_text() == "new"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "link", "pipe"]


def test_the_command_lists_every_verb_in_a_whole_line(planner: Command) -> None:
    code, out, _ = planner("--help")
    lines = out.split("Commands:")[1].strip().splitlines()
    assert code == 0 and len(lines) == 14
    assert all(line.endswith(".") and not line.endswith("..") and len(line) <= 80 for line in lines)
