"""How searches grow: ``python -m tests.benchmarks.scaling [--write] [--only WORDS]``, each search in a process of its own.

Seconds and peak memory against the GPUs (64 to 16,384), the layers of the model and the open decisions. `--write` puts the
tables and drawings into `results/scaling`. Seconds are those of the processor, of all threads, from the start of Python to the
answer with its evaluation; wall seconds are told beside them. Times differ between machines: compare ratios. `--only` takes
words separated by commas and runs the searches that have one of them; Ctrl-C writes those that have been finished.
"""

from __future__ import annotations

import argparse
import csv
import json
import resource
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from planner.model import ModelSpec
from planner.problem import Problem, load_problem, sizes_of
from planner.report.plot import Mark, axis, svg
from planner.search import search
from planner.solve.answer import Limits
from planner.solve.objective import Caps, Name

ROOT = Path(__file__).parent.parent.parent
RESULTS = ROOT / "results" / "scaling"
COMMAND = "python -m tests.benchmarks.scaling --write"
GPUS = (64, 256, 1024, 4096, 16_384)
MODELS = ("llama-3.1-405b", "deepseek-v3")
PHASES = {
    "decode": ("throughput", "decode:batch={},context=8192", 4),
    "prefill": ("latency", "prefill:batch={},prompt=4096", 1),
}
LAYERS = (16, 32, 64, 126)
LIMIT_MS = {
    ("llama-3.1-405b", "decode"): 80.0, ("llama-3.1-405b", "prefill"): 8000.0,
    ("deepseek-v3", "decode"): 40.0, ("deepseek-v3", "prefill"): 1000.0,
}  # fmt: skip
"""A limit on the latency above the least that the model can have, so that it binds on throughput or nearly so."""
OPEN = ("nothing", "stages", "micro-batches", "replicas", "attention", "feed-forward")
COLUMNS = ("axis", "model", "phase", "objective", "limit_ms", "gpus", "layers", "open", "plans", "status", "value", "gap",
           "branches", "models", "cpu_s", "wall_s", "peak_mb")  # fmt: skip


@dataclass(frozen=True)
class Case:
    """One search: along which axis, model, phase, objective and limit on latency, GPUs, layers kept, decisions left open."""

    axis: str
    model: str
    phase: str
    objective: Name
    gpus: int
    limit_ms: float = 0.0
    layers: int = 0
    open: int = len(OPEN) - 1

    @property
    def words(self) -> str:
        """What `--only` looks in."""
        limit = f" under {self.limit_ms:g} ms" if self.limit_ms else " unlimited"
        return f"{self.axis} {self.model} {self.phase} {self.objective}{limit} {self.gpus}"

    def load(self) -> Problem:
        """The problem; the batch grows with the GPUs."""
        _, text, each = PHASES[self.phase]
        problem = load_problem(model=self.model, cluster=f"{self.gpus // 8}x8-h100", workload=text.format(each * self.gpus))
        if self.layers:
            model: ModelSpec = replace(problem.model, layers=problem.model.layers[: self.layers])
            space = replace(problem.space, sizes=sizes_of(model, problem.workload, problem.cluster))
            problem = replace(problem, model=model, space=space, unrestricted=space)
        space = replace(
            problem.space,
            stages=None if self.open >= 1 else (2,),
            micro_batches=None if self.open >= 2 else (2,),
            replicas=None if self.open >= 3 else (self.gpus // 16,),
            attention=problem.space.attention if self.open >= 4 else replace(problem.space.attention, batch_parts=(1,)),
            mlp_ways=None if self.open >= 5 else (8,),
        )
        return replace(problem, space=space, unrestricted=space)


def cases() -> Iterator[Case]:
    """All searches: the GPUs first, then the layers, then the open decisions."""
    for model in MODELS:
        for phase, (objective, _, _) in PHASES.items():
            yield from (Case("gpus", model, phase, objective, gpus) for gpus in GPUS)  # type: ignore[arg-type]
            other: Name = "latency" if objective == "throughput" else "throughput"
            yield from (Case("gpus", model, phase, other, gpus) for gpus in GPUS)
            yield from (Case("gpus", model, phase, "throughput", gpus, LIMIT_MS[model, phase]) for gpus in GPUS)
    yield from (Case("layers", "llama-3.1-405b", "decode", "throughput", 1024, layers=layers) for layers in LAYERS)
    yield from (Case("open", "llama-3.1-405b", "decode", "throughput", 1024, open=count) for count in range(len(OPEN)))


def solve(case: Case) -> dict[str, Any]:
    """The facts of one search in this process."""
    limits = Limits(caps=Caps(latency_s=case.limit_ms / 1e3) if case.limit_ms else Caps())
    found = search(case.load(), objective=case.objective, limits=limits, details=False)
    counts = found.optimum.counts
    return {
        **asdict(case), "open": OPEN[case.open], "layers": len(found.problem.model.layers), "plans": len(found.space_size),
        "status": found.status, "value": found.value, "gap": found.gap, "branches": counts.branches,
        "models": counts.iterations, "cpu_s": time.process_time(),
        "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024.0,
    }  # fmt: skip


def run(number: int) -> dict[str, Any]:
    """The facts of one search from a process of its own."""
    start = time.perf_counter()
    command = [sys.executable, "-m", "tests.benchmarks.scaling", "--case", str(number)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
    if done.returncode:
        raise RuntimeError(done.stderr.strip().splitlines()[-1] if done.stderr.strip() else "no message")
    return {**json.loads(done.stdout), "wall_s": time.perf_counter() - start}


def cells(facts: dict[str, Any]) -> tuple[str, ...]:
    """A row of the table."""
    told = {
        **facts, "gap": "" if facts["gap"] is None else f"{facts['gap']:.1e}", "plans": f"1e{facts['plans'] - 1}",
        "value": "" if facts["value"] is None else f"{facts['value']:.10g}",
        "limit_ms": f"{facts['limit_ms']:g}" if facts["limit_ms"] else "",
        "cpu_s": f"{facts['cpu_s']:.2f}", "wall_s": f"{facts['wall_s']:.2f}", "peak_mb": f"{facts['peak_mb']:.0f}",
    }  # fmt: skip
    return tuple(str(told[name]) for name in COLUMNS)


def ratios(rows: list[dict[str, Any]]) -> Iterator[str]:
    """How much longer and larger the largest cluster is than the smallest, for each question."""
    by_question: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for row in rows:
        if row["axis"] == "gpus":
            by_question.setdefault((row["model"], row["phase"], row["objective"], row["limit_ms"]), []).append(row)
    for (model, phase, objective, limit), some in by_question.items():
        first, last = (at(some, key=lambda row: row["gpus"]) for at in (min, max))
        asked = f"{objective} under {limit:g} ms" if limit else objective
        gpus, seconds, memory = (last[name] / first[name] for name in ("gpus", "cpu_s", "peak_mb"))
        yield f"- {model}, {phase}, {asked}: {gpus:g}x the GPUs, {seconds:.2f}x the seconds, {memory:.2f}x the memory"


def document(rows: list[dict[str, Any]]) -> str:
    """The table with its command and ratios."""
    lines = [" | ".join(row) for row in (COLUMNS, ("---",) * len(COLUMNS), *map(cells, rows))]
    return "\n".join([
        "# How searches grow", "", f"`{COMMAND}`", "",
        f"{len(rows)} of the {len(list(cases()))} searches of the benchmark. `value` is in tokens per second or seconds.",
        "`cpu_s` are processor seconds of all threads, the start of Python included; `wall_s` depends on what else runs.", "",
        *(f"| {line} |" for line in lines), "", *ratios(rows), "",
    ])  # fmt: skip


def write(rows: list[dict[str, Any]]) -> None:
    """Tables and drawings."""
    RESULTS.mkdir(parents=True, exist_ok=True)
    (RESULTS / "scaling.md").write_text(document(rows))
    with (RESULTS / "scaling.csv").open("w", newline="") as text:
        csv.writer(text, lineterminator="\n").writerows([COLUMNS, *map(cells, rows)])
    across = {"gpus": "GPUs", "layers": "layers", "open": "kinds of decisions open, plus one"}
    for name, title in across.items():
        for column, up in (("cpu_s", "processor seconds"), ("peak_mb", "peak memory, MB")):
            some = [row for row in rows if row["axis"] == name]
            if some:
                values = [float(OPEN.index(row["open"]) + 1 if name == "open" else row[name]) for row in some]
                marks = [
                    Mark(x, row[column], f"{row['model']}, {row['phase']}, {row['objective']}: {row[column]:.4g}")
                    for x, row in zip(values, some, strict=True)
                ]
                drawing = svg(f"{up} against {title}", axis(title, values), axis(up, [m.y for m in marks]), marks)
                (RESULTS / f"{name}-{column}.svg").write_text(drawing)


def main() -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--case", type=int)
    parser.add_argument("--only", default="")
    parser.add_argument("--write", action="store_true")
    given = parser.parse_args()
    every = list(cases())
    if given.case is not None:
        print(json.dumps(solve(every[given.case])))
        return
    rows = list[dict[str, Any]]()
    try:
        for number, case in enumerate(every):
            if any(word in case.words for word in given.only.split(",")):
                rows.append(run(number))
                print(" | ".join(cells(rows[-1])), flush=True)
    except KeyboardInterrupt:
        print(f"interrupted after {len(rows)} searches", file=sys.stderr)
    if given.write and rows:
        write(rows)


if __name__ == "__main__":
    main()
