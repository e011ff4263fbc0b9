"""Batches: the same store from every engine, whatever happens on the way."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import random
import signal
import subprocess
import time
from pathlib import Path

import pytest

from planner.batch import folders, work
from planner.batch.drive import Batch
from planner.batch.engines import ProcessEngine, SerialEngine
from planner.batch.engines.process import _Worker
from planner.batch.folders import FACTS, UnwritableError, run_folders
from planner.batch.index import NAME
from planner.batch.rebuild import rebuild
from planner.batch.sweep import read_sweep
from planner.cli.app import main
from tests.planner.batch.stores import ROOT, command, contents, planner, run_sweep, tiny_sweep, write_sweep
from tests.planner.cli.test_anytime import heeding

BAD = {"name": "no such model", "model": "gpt-17"}
HUGE = {"name": "does not fit", "set": {"model.hidden": 131072, "model.ffn.hidden": 2**22}}
ALIKE = {"name": "the same again", "set": {"workload.batch": 2}}


@pytest.fixture(scope="module")
def sweep(tmp_path_factory):
    """Six problems, of them two equal ones, one that nothing fits and one that is wrong."""
    entries = [{"name": "plain"}, ALIKE, BAD, HUGE]
    content = tiny_sweep((2,), (16, 32), problems=entries, exclude=[{"model": "gpt-17", "workload.prompt": 32}])
    return write_sweep(tmp_path_factory.mktemp("sweep"), content)


@pytest.fixture(scope="module")
def expected(sweep, tmp_path_factory):
    """What an undisturbed serial run of the sweep stores."""
    root = tmp_path_factory.mktemp("undisturbed")
    tally = run_sweep(sweep, root)
    assert (tally.total, tally.done, tally.reused, tally.infeasible, tally.failed) == (7, 6, 2, 2, {"bad_input": 1})
    return contents(root)


def test_equal_work_is_done_once(expected):
    assert len(expected["runs"]) == 5
    assert len({key for _, _, _, key, _ in expected["points"]}) == 5
    assert len(expected["points"]) == 7


def test_processes_give_the_same_bytes(sweep, expected, tmp_path):
    tally = run_sweep(sweep, tmp_path, ProcessEngine(2))
    assert tally.failures == 1
    assert contents(tmp_path) == expected


def test_a_second_run_finds_everything(sweep, expected, tmp_path):
    run_sweep(sweep, tmp_path)
    times = {path: path.read_bytes() for path in tmp_path.rglob(FACTS)}
    tally = run_sweep(sweep, tmp_path)
    assert (tally.reused, tally.failures) == (7, 1)
    assert {path: path.read_bytes() for path in tmp_path.rglob(FACTS)} == times
    assert contents(tmp_path) == expected


def test_another_sweep_shares_the_runs(sweep, expected, tmp_path):
    run_sweep(sweep, tmp_path)
    other = tiny_sweep((2, 4), (16,)) | {"name": "other"}
    tally = run_sweep(write_sweep(tmp_path, other, "other.yaml"), tmp_path)
    assert (tally.total, tally.reused) == (2, 1)


def test_failed_problems_are_tried_again_when_asked(sweep, expected, tmp_path, monkeypatch):
    with monkeypatch.context() as broken:
        broken.setattr(work, "run_files", lambda result: 1 / 0)
        tally = run_sweep(sweep, tmp_path)
    assert tally.failed == {"bad_input": 1, "crash": 6}
    crashed = [tmp_path / folder for folder in run_folders(tmp_path) if (tmp_path / folder / "traceback.txt").exists()]
    told = (crashed[0] / "traceback.txt").read_text()
    assert 'File "planner/batch/work.py"' in told and told.endswith("ZeroDivisionError: division by zero\n")
    assert str(ROOT) not in told
    assert run_sweep(sweep, tmp_path).failures == 7
    assert run_sweep(sweep, tmp_path, retry_failed=True).failures == 1
    assert contents(tmp_path) == expected


@pytest.mark.parametrize("victim", ["index", "folder", "both"])
def test_what_is_lost_is_made_again(sweep, expected, tmp_path, victim):
    run_sweep(sweep, tmp_path)
    if victim in ("index", "both"):
        (tmp_path / NAME).write_bytes(b"SQLite format 3\0" + os.urandom(5000))
    if victim in ("folder", "both"):
        some = tmp_path / next(iter(run_folders(tmp_path)))
        for path in some.iterdir():
            path.unlink()
        some.rmdir()
    run_sweep(sweep, tmp_path)
    assert contents(tmp_path) == expected


def test_an_index_is_rebuilt_from_the_folders(sweep, expected, tmp_path):
    run_sweep(sweep, tmp_path)
    (tmp_path / NAME).unlink()
    assert rebuild(tmp_path) == []
    assert contents(tmp_path) == expected


def test_a_run_that_was_changed_is_noticed_and_made_again(sweep, expected, tmp_path):
    run_sweep(sweep, tmp_path)
    path = next(path for path in sorted(tmp_path.rglob("plan.yaml")))
    path.write_text(path.read_text().replace("replicas: 1", "replicas: 7"))
    (tmp_path / NAME).unlink()
    (wrong,) = rebuild(tmp_path)
    assert "files.plan.yaml" in wrong
    run_sweep(sweep, tmp_path)
    assert contents(tmp_path) == expected


def test_a_run_whose_file_is_a_link_is_no_run(sweep, tmp_path):
    run_sweep(sweep, tmp_path)
    path = next(path for path in sorted(tmp_path.rglob("plan.yaml")))
    path.unlink()
    path.symlink_to("/dev/zero")
    with pytest.raises(folders.InputError, match=r"files.plan.yaml is 'missing'"):
        folders.read_run(tmp_path, path.parent.relative_to(tmp_path).as_posix())


def test_killed_at_any_moment_and_resumed(tmp_path):
    sweep = write_sweep(tmp_path, tiny_sweep(range(1, 13), (16, 32)))
    run_sweep(sweep, tmp_path / "undisturbed")
    expected, draw = contents(tmp_path / "undisturbed"), random.Random(1)
    root = tmp_path / "killed"
    arguments = ("batch", sweep, "--out", root, "--workers", 2)
    begun = subprocess.Popen(command(*arguments), cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    wanted = draw.randrange(1, 12)
    while len(list(root.glob(f"runs/*/*/{FACTS}"))) < wanted and begun.poll() is None:
        time.sleep(0.01)
    os.kill(begun.pid, signal.SIGKILL)
    begun.wait()
    finished = {path: path.read_bytes() for path in root.glob(f"runs/*/*/{FACTS}")}
    assert wanted <= len(finished) < 24
    resumed = planner("batch", "--out", root, "--resume", "--json")
    assert resumed.returncode == 0, resumed.stderr
    assert json.loads(resumed.stdout.splitlines()[-1])["reused"] == len(finished)
    assert contents(root) == expected
    assert all(path.read_bytes() == data for path, data in finished.items())
    assert list((root / "tmp").iterdir()) == []


def test_two_batches_share_one_store(tmp_path):
    sweep = write_sweep(tmp_path, tiny_sweep(range(1, 13), (16, 32)))
    run_sweep(sweep, tmp_path / "undisturbed")
    both = [
        subprocess.Popen(
            command("batch", sweep, "--out", tmp_path / "shared", "--engine", "serial", "--json"),
            cwd=ROOT, stdout=subprocess.PIPE, text=True,
        )
        for _ in range(2)
    ]  # fmt: skip
    ends = [json.loads(one.communicate(timeout=120)[0].splitlines()[-1]) for one in both]
    assert [one.returncode for one in both] == [0, 0]
    assert contents(tmp_path / "shared") == contents(tmp_path / "undisturbed")
    assert all(end["done"] == 24 for end in ends)
    assert sum(24 - end["reused"] for end in ends) == 24, "every problem was solved once, by one of them"


def test_a_batch_takes_over_what_a_dead_one_had_claimed(sweep, expected, tmp_path):
    class GoneError(Exception):
        pass

    class Dies(SerialEngine):
        def run(self, tasks):
            next(tasks)
            raise GoneError

    batch = Batch(read_sweep(sweep), tmp_path, Dies())
    batch._flush = lambda: None  # a killed batch gives nothing back
    with pytest.raises(GoneError):
        batch.run()
    run_sweep(sweep, tmp_path)
    assert contents(tmp_path) == expected


@pytest.mark.parametrize("after", range(0, 24, 5))
def test_a_full_disk_stops_a_batch_and_loses_nothing(sweep, expected, tmp_path, monkeypatch, after):
    calls = iter(range(10**9))

    def write_bytes(path, data, real=Path.write_bytes):
        if next(calls) >= after:
            real(path, data[: len(data) // 2])
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(path, data)

    with monkeypatch.context() as full:
        full.setattr(Path, "write_bytes", write_bytes)
        with pytest.raises(UnwritableError, match="free space; what is finished is kept"):
            run_sweep(sweep, tmp_path)
    assert all(folders.read_run(tmp_path, folder) for folder in run_folders(tmp_path))
    run_sweep(sweep, tmp_path)
    assert contents(tmp_path) == expected
    assert list((tmp_path / "tmp").iterdir()) == []


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can mount a small disk")
def test_a_small_disk_fills_up_and_is_emptied(tmp_path):
    sweep = write_sweep(tmp_path, tiny_sweep(range(1, 11), (16, 32)))
    run_sweep(sweep, tmp_path / "undisturbed")
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=512k", "none", str(disk)], capture_output=True).returncode:
        pytest.skip("no right to mount")
    try:
        full = planner("batch", sweep, "--out", disk / "store", "--engine", "serial")
        assert full.returncode == 2 and "free space" in full.stderr and "Traceback" not in full.stderr
        kept = len(list(run_folders(disk / "store")))
        assert 0 < kept < 20
        subprocess.run(["mount", "-o", "remount,size=16m", str(disk)], check=True)
        resumed = planner("batch", sweep, "--out", disk / "store", "--engine", "serial", "--resume", "--json")
        assert json.loads(resumed.stdout.splitlines()[-1])["reused"] == kept
        assert contents(disk / "store") == contents(tmp_path / "undisturbed")
    finally:
        subprocess.run(["umount", str(disk)], check=True)


@contextlib.contextmanager
def for_reading_only(folder):
    """A folder that cannot be written: by its modes, or for root by a mount."""
    if os.geteuid() != 0:
        places = [folder, *folder.rglob("*")]
        for place in places:
            place.chmod(0o555 if place.is_dir() else 0o444)
        yield
        for place in places:
            place.chmod(0o755 if place.is_dir() else 0o644)
        return
    if subprocess.run(["mount", "--bind", str(folder), str(folder)], capture_output=True).returncode:
        pytest.skip("no right to mount")
    try:
        subprocess.run(["mount", "-o", "remount,ro,bind", str(folder)], check=True)
        yield
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def test_a_folder_for_reading_only_is_refused_before_any_work(sweep, expected, tmp_path):
    run_sweep(sweep, tmp_path)
    with for_reading_only(tmp_path):
        done = planner("batch", sweep, "--out", tmp_path, "--engine", "serial")
        assert done.returncode == 2
        assert "a folder that can be written" in done.stderr and done.stderr.count("\n") == 1
        asked = planner("results", tmp_path, "--json")
        assert asked.returncode == 0 and len(json.loads(asked.stdout)["rows"]) == 7
    assert contents(tmp_path) == expected


def test_links_lead_nowhere(sweep, tmp_path):
    outside = tmp_path / "outside"
    outside.mkdir()
    for name in ("runs", "tmp", "sweeps"):
        root = tmp_path / f"store-{name}"
        root.mkdir()
        (root / name).symlink_to(outside)
        with pytest.raises(folders.InputError, match="not a link"):
            run_sweep(sweep, root)
    root = tmp_path / "store-index"
    root.mkdir()
    (root / NAME).symlink_to(outside / "index")
    with pytest.raises(folders.InputError, match="not a link"):
        run_sweep(sweep, root)
    assert list(outside.iterdir()) == []


class Deadly(ProcessEngine):
    """Workers that are killed whenever they are at a batch of 4."""

    killed = 0

    def _hear(self, worker, crew, again, attempts):
        if worker.left[0].head["batch"] == 4:
            Deadly.killed += 1
            worker.process.kill()
            worker.process.join()
            with contextlib.suppress(EOFError, OSError):
                while True:
                    worker.line.recv_bytes()
        yield from super()._hear(worker, crew, again, attempts)


def test_a_worker_that_dies_is_replaced_and_its_problem_recorded(tmp_path):
    sweep = write_sweep(tmp_path, tiny_sweep((1, 2, 4, 8), (16, 32)))
    Deadly.killed = 0
    tally = run_sweep(sweep, tmp_path / "store", Deadly(2))
    assert tally.failed == {"crash": 2} and tally.done == 6
    assert Deadly.killed == 6, "three attempts for each of the two"
    assert run_sweep(sweep, tmp_path / "store", ProcessEngine(1), retry_failed=True).failures == 0
    run_sweep(sweep, tmp_path / "undisturbed")
    assert contents(tmp_path / "store") == contents(tmp_path / "undisturbed")


def test_json_events_and_exit_code(sweep, tmp_path):
    done = planner("batch", sweep, "--out", tmp_path, "--engine", "serial", "--json")
    assert done.returncode == 4 and done.stderr == ""
    events = [json.loads(line) for line in done.stdout.splitlines()]
    assert [event["event"] for event in events] == ["start", *["run"] * 7, "end"]
    assert events[-1]["failures"] == {"bad_input": 1} and events[-1]["left"] == 0
    runs = events[1:-1]
    assert [event["left"] for event in runs] == [6, 5, 4, 3, 2, 1, 0] and runs[-1]["left_s"] == 0
    assert all(event["rate"] > 0 for event in runs) and runs[-1]["best"]["latency"] == events[-1]["best"]["latency"]["value"]
    (failed,) = [event for event in events if event["event"] == "run" and event["status"] == "bad_input"]
    assert "gpt-17" in failed["error"] and failed["label"].startswith("no such model")


def test_nothing_but_events_goes_to_standard_output(tmp_path, monkeypatch, capsys):
    """Ray prints to standard output when a node is lost."""
    monkeypatch.setattr(work, "run_files", lambda result, real=work.run_files: print("a node is lost") or real(result))
    sweep = write_sweep(tmp_path, tiny_sweep((1, 2), (16,)))
    assert main(["batch", str(sweep), "--out", str(tmp_path / "store"), "--engine", "serial", "--json"]) == 0
    told = capsys.readouterr()
    assert [json.loads(line)["event"] for line in told.out.splitlines()] == ["start", "run", "run", "end"]
    assert told.err == "a node is lost\n" * 2


def test_there_must_be_something_to_resume(sweep, tmp_path):
    for arguments in (["--out", tmp_path], [sweep, "--out", tmp_path], []):
        done = planner("batch", *arguments, "--resume")
        assert done.returncode == 2 and "--resume" in done.stderr and done.stderr.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_quiet_in_a_pipe_and_a_table_at_the_end(sweep, tmp_path):
    done = planner("batch", sweep, "--out", tmp_path, "--engine", "serial")
    assert done.returncode == 4 and done.stderr == ""
    assert "7: 6 done (2 infeasible), 1 failed" in done.stdout and "gpt-17" in done.stdout
    hint = done.stdout.splitlines()[-1].partition("--where ")[2].strip('"')
    asked = planner("results", tmp_path, "--where", hint, "--json")
    assert [row["status"] for row in json.loads(asked.stdout)["rows"]] == ["bad_input"]


def test_equal_failures_are_told_once(tmp_path):
    sweep = write_sweep(tmp_path, tiny_sweep(range(1, 40), (16,), model="gpt-17"))
    done = planner("batch", sweep, "--out", tmp_path / "store", "--engine", "serial")
    assert done.returncode == 4 and done.stdout.count("gpt-17") == 1 and len(done.stdout.splitlines()) < 16
    assert "39" in done.stdout.split("bad_input")[1]


def test_an_interrupt_keeps_what_is_finished(tmp_path):
    sweep = write_sweep(tmp_path, tiny_sweep(range(1, 41), (16, 32)))
    root = tmp_path / "store"
    begun = subprocess.Popen(
        command("batch", sweep, "--out", root, "--engine", "serial"), cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        preexec_fn=heeding,
    )  # fmt: skip
    while len(list(root.glob(f"runs/*/*/{FACTS}"))) < 2 and begun.poll() is None:
        time.sleep(0.01)
    begun.send_signal(signal.SIGINT)
    _, told = begun.communicate(timeout=60)
    assert begun.returncode == 130 and told.decode().strip() == "interrupted"
    finished = list(run_folders(root))
    assert 2 <= len(finished) < 80
    assert all(folders.read_run(root, folder)[0]["status"] == "optimal" for folder in finished)


def test_a_worker_that_still_starts_does_not_hear_ctrl_c() -> None:
    """A terminal sends it to all processes: the parent says when to stop, and one line is all that is to be read."""
    worker = _Worker()
    try:
        assert worker.process.pid is not None
        os.kill(worker.process.pid, signal.SIGINT)
        worker.process.join(1.5)
        assert worker.process.is_alive()
    finally:
        worker.stop()
    assert signal.SIGINT not in signal.pthread_sigmask(signal.SIG_BLOCK, ())
