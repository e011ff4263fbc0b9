"""A sweep of 500 library problems on each engine, against as many separate searches.

    python -m tests.benchmarks.batch [--engines serial,process,ray] [--separate N] [--batches 50]

The five library problems with batches of 32, 64, ... sequences, for latency and for throughput. Each engine begins with an
empty store; the stores are compared. `--separate` solves N of the problems, evenly spread, without sharing anything. Processor
seconds are those of this process and its children; on a machine that others use they tell more than wall seconds.
"""

from __future__ import annotations

import argparse
import os
import resource
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from planner.batch.drive import Batch
from planner.batch.engines import ProcessEngine, RayEngine, SerialEngine
from planner.batch.points import load_point, spec_of
from planner.batch.summary import write_summaries
from planner.batch.sweep import read_sweep
from planner.problem import library_names
from planner.store import run_files
from tests.planner.batch.stores import contents, write_sweep


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--engines", default="serial,process")
    parser.add_argument("--separate", type=int, default=0, metavar="N")
    parser.add_argument("--batches", type=int, default=50)
    given = parser.parse_args()
    axes = {
        "workload.batch": {"from": 32, "to": 32 * given.batches, "step": 32},
        "objective": ["latency", "throughput"],
    }
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        path = write_sweep(folder, {"schema": "planner.sweep/1", "name": "library", "problems": library_names(), "sweep": axes})
        sweep = read_sweep(path)
        print(f"{sweep.count()} problems, {os.cpu_count()} CPUs, load {os.getloadavg()[0]:.1f}", flush=True)
        expected = None
        for engine in filter(None, given.engines.split(",")):
            made = {"serial": SerialEngine(), "process": ProcessEngine(2), "ray": RayEngine(None, 2)}[engine]
            root = folder / engine
            tally = _timed(engine, lambda made=made, root=root: Batch(sweep, root, made).run())
            write_summaries(root, sweep.summaries)
            found = contents(root)
            same = "" if expected is None else f", {'equal' if found == expected else 'DIFFERENT'}"
            expected = expected or found
            print(f"    {tally.done} done, {tally.infeasible} infeasible, {tally.failures} failed{same}", flush=True)
        if given.separate:
            some = list(sweep.points())[:: max(1, sweep.count() // given.separate)]
            _timed(f"{len(some)} separate searches", lambda: [_alone(point) for point in some])
    return 0


def _alone(point: object) -> None:
    problem, options = load_point(spec_of(point))
    run_files(options.search(problem))


def _timed(name: str, work: Callable[[], object]) -> object:
    start, before = time.monotonic(), _cpu()
    found = work()
    print(f"{name}: {time.monotonic() - start:.1f} s, {_cpu() - before:.1f} processor seconds", flush=True)
    return found


def _cpu() -> float:
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(one.ru_utime + one.ru_stime for one in used)


if __name__ == "__main__":
    raise SystemExit(main())
