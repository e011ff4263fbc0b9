"""Kill a sweep at random moments, resume it, and hold the store against that of an undisturbed serial run.

    python -m tests.benchmarks.kill_batch [--kills 100] [--problems 200] [--engine serial|process|both] [--seed 0]

Each trial begins with an empty store: the batch is killed (SIGKILL), then the same command with --resume finishes it. The
moment is drawn evenly from the seconds that the sweep takes (--moments time), or it is a few milliseconds after a number of
finished runs that is drawn evenly (--moments runs), which also on a busy machine is in the midst of the work. A trial is
equal when the index, every file but the times, and the summaries are those of the undisturbed run, nothing half-written is
left, and no run that was finished was made again.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from planner.batch.folders import FACTS
from tests.planner.batch.stores import ROOT, command, contents, planner, tiny_sweep, write_sweep

Wait = Callable[["subprocess.Popen[bytes]", Path], None]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--problems", type=int, default=200)
    parser.add_argument("--engine", choices=("serial", "process", "both"), default="both")
    parser.add_argument("--moments", choices=("time", "runs"), default="time")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    engines = ("serial", "process") if given.engine == "both" else (given.engine,)
    draw = random.Random(given.seed)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        rows = [*range(1, given.problems // 2 + 1)]
        sweep = write_sweep(folder, tiny_sweep(rows, (16, 32)))
        start = time.monotonic()
        done = planner("batch", sweep, "--engine", "serial", "--out", folder / "undisturbed")
        assert done.returncode == 0, done.stderr
        expected = contents(folder / "undisturbed")
        print(f"{len(expected['runs'])} problems, undisturbed and serial: {time.monotonic() - start:.1f} s", flush=True)
        lengths = {engine: _length(engine, sweep, folder) for engine in engines} if given.moments == "time" else {}
        equal, made = 0, []
        for trial in range(given.kills):
            engine = engines[trial % len(engines)]
            wait = _after_seconds(draw, lengths[engine]) if lengths else _after_runs(draw, len(rows) * 2)
            found, finished = _trial(engine, sweep, folder / f"trial-{trial}", wait, expected)
            equal += found
            made.append(finished)
            print(f"{trial + 1}: {engine}, killed with {finished} finished: {'equal' if found else 'DIFFERENT'}", flush=True)
        print(f"{equal} of {given.kills} equal; finished when killed: {min(made)} to {max(made)}, "
              f"median {sorted(made)[len(made) // 2]}")  # fmt: skip
    return 0 if equal == given.kills else 1


def _length(engine: str, sweep: Path, folder: Path) -> float:
    """Seconds that the sweep takes on an engine."""
    start = time.monotonic()
    planner("batch", sweep, "--engine", engine, "--workers", 2, "--out", folder / f"timed-{engine}")
    return time.monotonic() - start


def _after_seconds(draw: random.Random, length: float) -> Wait:
    moment = draw.uniform(0, length)
    return lambda begun, root: time.sleep(moment)


def _after_runs(draw: random.Random, problems: int) -> Wait:
    wanted, more = draw.randrange(problems), draw.uniform(0, 0.2)

    def wait(begun: subprocess.Popen[bytes], root: Path) -> None:
        while begun.poll() is None and len(_finished(root)) < wanted:
            time.sleep(0.01)
        time.sleep(more)

    return wait


def _finished(root: Path) -> list[Path]:
    return sorted(root.glob(f"runs/*/*/{FACTS}"))


def _trial(engine: str, sweep: Path, root: Path, wait: Wait, expected: dict[str, object]) -> tuple[bool, int]:
    """Whether a killed and resumed batch ends like the undisturbed one, and how many runs were finished at the kill."""
    arguments = ("batch", sweep, "--engine", engine, "--workers", 2, "--out", root)
    begun = subprocess.Popen(command(*arguments), cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    wait(begun, root)
    if begun.poll() is None:
        os.kill(begun.pid, signal.SIGKILL)
    begun.wait()
    finished = {path: path.read_bytes() for path in _finished(root)}
    resumed = planner(*arguments, "--json", *(["--resume"] if (root / "runs").is_dir() else []))
    if resumed.returncode != 0:
        print(resumed.stderr)
        return False, len(finished)
    end = json.loads(resumed.stdout.splitlines()[-1])
    kept = all(path.read_bytes() == data for path, data in finished.items())
    same = contents(root) == expected and kept and end["reused"] == len(finished)
    left = [path.name for path in (root / "tmp").iterdir()]
    if not same or left:
        print(f"kept {kept}, reused {end['reused']} of {len(finished)}, left behind {left}")
    return same and not left, len(finished)


if __name__ == "__main__":
    raise SystemExit(main())
