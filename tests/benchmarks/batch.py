"""A sweep of 500 problems on each engine, and what it gains from what its problems share.

    python -m tests.benchmarks.batch [--sweep library|helix|mixtral] [--engines serial,process,ray] [--gain N] [--commands N]

`library`: the five library problems with batches of 32, 64, ... sequences, for latency and for throughput. `helix`, `mixtral`:
one model on one cluster, with batches, three objectives and limits on the number of GPUs. Each engine begins with an empty
store; the stores are compared. `--gain` solves the sweep in one process, sharing, and every N-th problem besides alone, right
after it: the seconds of both come from the same minutes. `--commands` gives every N-th problem to a `planner search` of its
own, as one would without a batch; that command also fills the tables of its report. Processor seconds are those of this
process and its children (Ray's are not among them); on a machine that others use they tell more than wall seconds.
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
from planner.batch.sweep import Sweep, read_sweep
from planner.evaluate.shared import Shared, sharing
from planner.problem import library_names
from planner.store import run_files
from tests.planner.batch.stores import contents, planner, write_sweep

LIMITS = {"objective": ["latency", "throughput", "cost"], "gpus_at_most": [2, 4, 8, 12, 16]}


def sweeps(size: int) -> dict[str, dict[str, object]]:
    """The sweeps by name; `size` is how many batches there are in the first, two thirds of that in the others."""
    some = max(1, size * 2 // 3)
    batches = {"from": 32, "to": 32 * size, "step": 32}
    fewer = {"from": 32, "to": 32 * some, "step": 32}
    decode = {"from": 8, "to": 8 * some, "step": 8}
    mixtral = {"model": "mixtral-8x7b", "cluster": "2x8-h100", "workload": {"phase": "decode", "context": 8192}}
    return {
        "library": {"problems": library_names(), "sweep": {"workload.batch": batches, "objective": ["latency", "throughput"]}},
        "helix": {"problem": "helix", "sweep": {"workload.batch": fewer, **LIMITS}},
        "mixtral": {**mixtral, "sweep": {"workload.batch": decode, **LIMITS}},
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sweep", default="library", choices=sorted(sweeps(1)))
    parser.add_argument("--engines", default="")
    parser.add_argument("--gain", type=int, default=0, metavar="N")
    parser.add_argument("--commands", type=int, default=0, metavar="N")
    parser.add_argument("--size", type=int, default=50)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        content = {"schema": "planner.sweep/1", "name": given.sweep, **sweeps(given.size)[given.sweep]}
        sweep = read_sweep(write_sweep(folder, content))
        print(f"{given.sweep}: {sweep.count()} problems, {os.cpu_count()} CPUs, load {os.getloadavg()[0]:.1f}", flush=True)
        expected = None
        for engine in filter(None, given.engines.split(",")):
            found = _run(sweep, engine, folder / engine)
            print(f"    {'first' if expected is None else 'equal' if found == expected else 'DIFFERENT'}", flush=True)
            expected = expected or found
        if given.gain:
            _gain(sweep, given.gain)
        if given.commands:
            _commands(sweep, given.commands, folder / "runs")
    return 0


def _run(sweep: Sweep, engine: str, root: Path) -> dict[str, object]:
    """Run the sweep on an engine and print how it went; returns what the store holds."""
    made = {"serial": SerialEngine(), "process": ProcessEngine(2), "ray": RayEngine(None, 2)}[engine]
    start, before = time.monotonic(), _cpu()
    tally = Batch(sweep, root, made).run()
    write_summaries(root, sweep.summaries)
    print(f"{engine}: {time.monotonic() - start:.1f} s, {_cpu() - before:.1f} processor seconds", flush=True)
    print(f"    {tally.done} done, {tally.infeasible} infeasible, {tally.failures} failed", flush=True)
    return contents(root)


def _gain(sweep: Sweep, every: int) -> None:
    """Solve the sweep with sharing, and every few problems alone; print the means."""
    shared, together, alone = Shared(), [], []
    for at, point in enumerate(sweep.points()):
        with sharing(shared):
            together.append(_seconds(lambda point=point: _solve(point)))
        if at % every == 0:
            alone.append(_seconds(lambda point=point: _solve(point)))
    means = [sum(times) / len(times) for times in (together, alone)]
    print(f"in one process: {len(together)} sharing {means[0]:.3f} s each, {len(alone)} of them alone {means[1]:.3f} s each "
          f"(processor), gain {means[1] / means[0]:.2f}, load {os.getloadavg()[0]:.1f}")  # fmt: skip


def _commands(sweep: Sweep, every: int, out: Path) -> None:
    """Give every few problems to a command of their own; print the mean."""
    points, before = list(sweep.points())[::every], _cpu()
    for point in points:
        parts = {name: point.values[name] for name in ("model", "cluster") if name in point.values}
        sets = [f"--set={name}={value}" for name, value in point.varied.items() if "." in name]
        named = [f"--{name.replace('_', '-')}={value}" for name, value in {**parts, **point.varied}.items() if "." not in name]
        done = planner("search", *filter(None, [point.values.get("problem")]), *named, *sets, "--workers", 1, "--out", out)
        assert done.returncode in (0, 1), done.stderr
    print(f"{len(points)} commands: {(_cpu() - before) / len(points):.3f} processor seconds each", flush=True)


def _solve(point: object) -> None:
    problem, options = load_point(spec_of(point))
    run_files(options.search(problem))


def _seconds(work: Callable[[], object]) -> float:
    before = time.process_time()
    work()
    return time.process_time() - before


def _cpu() -> float:
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(one.ru_utime + one.ru_stime for one in used)


if __name__ == "__main__":
    raise SystemExit(main())
