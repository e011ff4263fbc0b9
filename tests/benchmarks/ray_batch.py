"""Kill a node of a two-node Ray cluster in the midst of a sweep, and hold the store against that of a serial run.

    python -m tests.benchmarks.ray_batch [--kills 3] [--problems 100] [--seed 0]

Both nodes are on this machine, one CPU each. Each trial begins with an empty store; after a number of answers that is drawn
evenly the processes of the second node are killed (SIGKILL). It is equal when the batch ends by itself with exit code 0, every
problem was solved once, and the store is that of an undisturbed serial run.
"""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

from tests.planner.batch.stores import ROOT, command, contents, planner, tiny_sweep, write_sweep


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=3)
    parser.add_argument("--problems", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    draw, equal = random.Random(given.seed), 0
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        sweep = write_sweep(folder, tiny_sweep(range(1, given.problems // 2 + 1), (16, 32)))
        done = planner("batch", sweep, "--engine", "serial", "--out", folder / "serial")
        assert done.returncode == 0, done.stderr
        expected = contents(folder / "serial")
        for trial in range(given.kills):
            found, told = _trial(sweep, folder / f"trial-{trial}", draw.randrange(1, given.problems * 9 // 10), expected)
            equal += found
            print(f"{trial + 1}: {told}: {'equal' if found else 'DIFFERENT'}", flush=True)
    print(f"{equal} of {given.kills} equal")
    return 0 if equal == given.kills else 1


def _trial(sweep: Path, root: Path, after: int, expected: dict[str, object]) -> tuple[bool, str]:
    """Whether a batch whose cluster loses a node after so many answers ends like the serial one, and what happened."""
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
    try:
        second, start, killed = cluster.add_node(num_cpus=1), time.monotonic(), 0
        arguments = ("batch", sweep, "--engine", "ray", "--address", cluster.address, "--out", root, "--json")
        begun = subprocess.Popen(command(*arguments), cwd=ROOT, stdout=subprocess.PIPE, text=True)
        end: dict[str, Any] = {}
        for line in begun.stdout or ():
            end = json.loads(line)
            if not killed and end["event"] == "run" and end["done"] >= after:
                cluster.remove_node(second, allow_graceful=False)
                killed = end["done"]
        code, seconds = begun.wait(), time.monotonic() - start
    finally:
        cluster.shutdown()
    same = code == 0 and bool(killed) and end["reused"] == 0 and contents(root) == expected
    return same, f"second node killed after {killed} of {end.get('total')} answers, ended in {seconds:.0f} s"


if __name__ == "__main__":
    raise SystemExit(main())
