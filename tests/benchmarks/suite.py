"""The suite: 40 problems from 4 to 16,384 GPUs, each solved in a process of its own.

``python -m tests.benchmarks.suite --label NAME --write`` runs all of them one after another, and writes the table into
`results/suite.md` and into the README beside this file, whose history gets a row: ratios to the run before. ``--only WORD``
runs those whose names have the word. "Solving" (wall seconds, and CPU seconds of all threads) is everything between a problem
that has been read and its proven answer: pricing, search, CP-SAT, the evaluation of the plan, and where nothing fits the
change that would help. The start of Python, imports and the reading of the problem are in the seconds of the process alone.
Times differ between machines: compare ratios.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import re
import resource
import subprocess
import sys
import time
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from planner.evaluate.setting import setting
from planner.problem import Problem, load_problem
from planner.search import search
from planner.solve.answer import Limits, Optimum
from planner.solve.blocks import PricedSpace
from planner.solve.objective import NO_CAPS, Caps, Name
from planner.solve.optimum import SpaceSearch

ROOT = Path(__file__).parent.parent.parent
README = Path(__file__).parent / "README.md"
RESULTS = ROOT / "results" / "suite.md"
HEAD = (
    "problem", "plans", "status", "optimum", "bound", "gap", "branches", "CP models", "cuts", "priced/s", "solving, s",
    "CPU, s", "process, s", "peak, MB",
)  # fmt: skip
LARGE = 64
"""GPUs above which a space has rules of its own, and the search alone is asked."""
MOST_SECONDS = 120
DECODE, PREFILL = "decode:batch=64,context=8192", "prefill:batch=16,prompt=4096"
MANY = "decode:batch=16384,context=4096"
SKEW = [40, 30, 20, 10, 5, 3, 1, 1]
SLOW = {
    "kinds": {"slow": {"like": "h100", "memory_tb_per_s": 1.675, "peak_tflops": {"bf16": 494.5}}},
    "nodes": [{"kind": "h100", "gpus": 8}, {"kind": "h100", "gpus": 7}, {"kind": "slow", "gpus": 1, "same_node": True}],
}


@dataclass(frozen=True)
class Case:
    """A problem of the suite: what `load_problem` is asked for, the objective and its caps."""

    name: str
    asked: dict[str, Any]
    objective: Name = "latency"
    caps: Caps = NO_CAPS
    sets: tuple[str, ...] = field(default=())

    def load(self) -> Problem:
        """The problem."""
        return load_problem(
            self.asked.get("problem"), sets=list(self.sets), **{k: v for k, v in self.asked.items() if k != "problem"}
        )


def _of(
    model: str, cluster: object, workload: object, objective: Name = "latency", caps: Caps = NO_CAPS, note: str = ""
) -> Case:
    """A problem of a catalog model with everything open."""
    phase = workload.split(":")[0] if isinstance(workload, str) else str(workload["phase"])  # type: ignore[index]
    where = cluster if isinstance(cluster, str) else "one slow GPU in 16"
    name = ", ".join(part for part in (model, where, phase, objective if objective != "latency" else "", note) if part)
    return Case(name, {"model": model, "cluster": cluster, "workload": workload}, objective, caps)


def cases() -> Iterator[Case]:
    """The suite, small problems first."""
    library = ("helix", "helix_two_stage", "layer_wise", "ma_separation", "cross_node_ep")
    yield from (Case(name, {"problem": name}) for name in library)
    yield Case("helix, throughput", {"problem": "helix"}, "throughput")
    yield Case("cross_node_ep, cost", {"problem": "cross_node_ep"}, "cost")
    yield _of("qwen3-0.6b", "1x4-h100", "prefill:batch=8,prompt=1024")
    for model, cluster, workload in (
        ("qwen2.5-7b", "1x8-h100", DECODE), ("llama-3.1-70b", "1x3-h200", DECODE),
        ("llama-3.1-70b", "1x3-h100", PREFILL), ("llama-3.1-70b", "1x7-h100", DECODE), ("llama-3.1-70b", "1x7-h100", PREFILL),
    ):  # fmt: skip
        yield _of(model, cluster, workload)
    for model in ("llama-3.1-70b", "mixtral-8x7b", "qwen3-235b-a22b", "deepseek-v3"):
        yield from (_of(model, "2x8-h100", workload) for workload in (PREFILL, DECODE))
    yield from (_of("llama-3.1-70b", "mixed-h100-a100", workload) for workload in (PREFILL, DECODE))
    yield _of("mixtral-8x7b", "1x8-h20+1x8-l40s", DECODE)
    yield from (_of("llama-3.1-70b", SLOW, workload) for workload in (PREFILL, DECODE))
    uneven = {"phase": "prefill", "batch": 16, "prompt": 2048}
    yield _of("mixtral-8x7b", "1x8-h100", {**uneven, "expert_load": SKEW}, note="unequal experts")
    load = [1.0 / (place + 10) for place in range(128)]
    yield _of("qwen3-30b-a3b", "2x8-h100", {**uneven, "expert_load": load}, note="unequal experts")
    yield _of("llama-3.1-70b", "1x2-h100", PREFILL, note="tight memory")
    yield _of("llama-3.1-405b", "2x8-h200", "decode:batch=32,context=8192", note="tight memory")
    yield _of("llama-3.1-70b", "1x1-h100", DECODE, note="nothing fits")
    yield _of("deepseek-v3", "1x8-h100", DECODE, note="nothing fits")
    yield _of("llama-3.1-70b", "2x8-h100", DECODE, "throughput", Caps(latency_s=0.025), "at most 25 ms")
    yield _of("llama-3.1-70b", "2x8-h100", PREFILL, "cost", Caps(gpus=8), "at most 8 GPUs")
    for model, cluster, workload in (
        ("llama-3.1-405b", "8x8-h100", DECODE), ("deepseek-v3", "32x8-h100", DECODE), ("llama-3.1-405b", "128x8-h100", MANY),
        ("deepseek-v3", "128x8-h100", "prefill:batch=1024,prompt=4096"), ("deepseek-v3", "512x8-h100", MANY),
        ("llama-3.1-405b", "2048x8-h100", MANY),
    ):  # fmt: skip
        yield _of(model, cluster, workload)


def solve(case: Case) -> dict[str, Any]:
    """The facts of one problem, solved in this process."""
    from ortools.sat.python import cp_model  # noqa: F401  # an import is not solving

    problem = case.load()
    limits = Limits(seconds=MOST_SECONDS, caps=case.caps)
    env = setting(problem.model, problem.workload, problem.cluster)
    start, busy, infeasible = time.perf_counter(), time.process_time(), None
    branches = len(problem.space.branches)
    if problem.cluster.size > LARGE:
        asked = SpaceSearch(env, problem.space, case.objective, limits)
        optimum, size = asked.run(), problem.space.size()
        status = _status(optimum)
    else:
        found = search(problem, objective=case.objective, limits=limits, details=False)
        optimum, size, status, infeasible = found.optimum, int(found.space_size), found.status, found.infeasibility
        branches = sum(len(order.closings) for order in found.orders)
    seconds, cpu = time.perf_counter() - start, time.process_time() - busy
    rate = None
    if problem.cluster.size <= LARGE:
        busy = time.process_time()
        rate = PricedSpace(env, problem.space).priced / (time.process_time() - busy)
    counts = optimum.counts
    return {
        "name": case.name, "size": str(size), "status": status, "objective": case.objective,
        "work": problem.workload.batch * problem.workload.query_length,
        "value": optimum.value if optimum.choice is not None else None, "bound": optimum.bound, "gap": optimum.gap,
        "opened": counts.branches, "branches": branches, "models": counts.iterations, "cuts": counts.cuts,
        "rate": rate, "seconds": seconds, "cpu": cpu, "change": "" if infeasible is None else infeasible.relaxation,
    }  # fmt: skip


def _status(optimum: Optimum) -> str:
    if optimum.choice is None:
        return "infeasible" if optimum.complete else "timeout"
    return "optimal" if optimum.complete and optimum.gap <= 1e-6 else "feasible"


def run(case: Case) -> dict[str, Any]:
    """The facts of one problem from a process of its own, with that process's seconds and peak memory."""
    start = time.perf_counter()
    command = [sys.executable, "-m", "tests.benchmarks.suite", "--case", case.name]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT) as process:
        out, err = process.communicate()
    wall = time.perf_counter() - start
    if process.returncode:
        last = (err.strip().splitlines() or ["no message"])[-1]
        return {"name": case.name, "status": "failed", "change": last[:120], "process": wall}
    return {**json.loads(out), "process": wall}


def row(facts: dict[str, Any]) -> tuple[str, ...]:
    """A row of the table."""
    if "seconds" not in facts:
        return (facts["name"], "", f"{facts['status']}: {facts['change']}", *[""] * 9, f"{facts['process']:.1f}", "")
    value, bound = (_told(facts, facts[key]) for key in ("value", "bound"))
    status = facts["status"] + (f": {facts['change']}" if facts["change"] else "")
    gap = f"{facts['gap']:.0e}" if facts["value"] is not None else ""
    rate = "" if facts["rate"] is None else f"{facts['rate']:,.0f}"
    return (
        facts["name"], _short(int(facts["size"])), status, value, bound if facts["value"] is not None else "", gap,
        f"{facts['opened']} of {facts['branches']}", str(facts["models"]), str(facts["cuts"]), rate,
        f"{facts['seconds']:.2f}", f"{facts['cpu']:.2f}", f"{facts['process']:.1f}", f"{facts['peak_mb']:.0f}",
    )  # fmt: skip


def _told(facts: dict[str, Any], least: float | None) -> str:
    """What is minimized in the objective's own unit."""
    if least is None or not math.isfinite(least) or not least:
        return ""
    if facts["objective"] == "throughput":
        return f"{facts['work'] / least:,.0f} tokens/s"
    return f"{least:.6g} $" if facts["objective"] == "cost" else f"{least:.6g} s"


def _short(number: int) -> str:
    """A whole number, its size alone where it is long."""
    text = str(number)
    return f"{number:,}" if len(text) <= 7 else f"{text[0]}.{text[1]}e{len(text) - 1}"


def table(rows: list[tuple[str, ...]]) -> str:
    """Markdown of the rows."""
    lines = [" | ".join(line) for line in (HEAD, ("---",) * len(HEAD), *rows)]
    return "\n".join(f"| {line} |" for line in lines)


def summary(found: list[dict[str, Any]]) -> str:
    """How many are proven, and the seconds of solving of all."""
    proven = sum(facts["status"] in ("optimal", "infeasible") for facts in found)
    wall, cpu = (sum(facts.get(key, 0.0) for facts in found) for key in ("seconds", "cpu"))
    return f"{proven} of {len(found)} proven, {wall:.1f} s of solving ({cpu:.1f} CPU seconds)"


def history(label: str, found: list[dict[str, Any]], known: dict[str, float]) -> str:
    """A row: version and label, how many are proven, and the CPU seconds of solving as a ratio to the run before."""
    pairs = [(facts["cpu"], known[facts["name"]]) for facts in found if known.get(facts["name"]) and facts.get("cpu")]
    ratio = math.exp(sum(math.log(new / old) for new, old in pairs) / len(pairs)) if pairs else 1.0
    proven = sum(facts["status"] in ("optimal", "infeasible") for facts in found)
    peak = max((facts.get("peak_mb", 0.0) for facts in found), default=0.0)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    name = f"{project['version']}, {label}"
    return f"| {name} | {proven} of {len(found)} | {ratio:.2f} over {len(pairs)} | {peak:.0f} |"


def known_seconds(text: str) -> dict[str, float]:
    """CPU seconds of solving by problem in a table that was written before."""
    rows = (line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith("| "))
    return {cells[0]: float(cells[11]) for cells in rows if len(cells) == len(HEAD) and re.fullmatch(r"[\d.]+", cells[11])}


def write(label: str, found: list[dict[str, Any]]) -> None:
    """Replace the table, and add to the history."""
    text = README.read_text()
    known = known_seconds(RESULTS.read_text() if RESULTS.exists() else "")
    told = f"{summary(found)}.\n\n{table([row(facts) for facts in found])}\n"
    text = re.sub(r"(<!-- suite -->\n).*?(<!-- /suite -->)", lambda m: f"{m[1]}{told}{m[2]}", text, flags=re.S)
    text = text.replace("<!-- /history -->", f"{history(label, found, known)}\n<!-- /history -->")
    README.write_text(text)
    how = "Written by `python -m tests.benchmarks.suite --write`; what the columns mean is told in `tests/benchmarks`."
    RESULTS.write_text(f"# The suite: {len(found)} problems\n\n{how}\n\n{told}")


def main() -> None:
    """Solve the asked problems."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--case", help=argparse.SUPPRESS)
    parser.add_argument("--only", default="", help="run those whose names have this word")
    parser.add_argument("--label", default="unnamed", help="the name of this run in the history")
    parser.add_argument("--write", action="store_true", help="write the tables")
    given = parser.parse_args()
    every = list(cases())
    if given.case:
        facts = solve(next(case for case in every if case.name == given.case))
        print(json.dumps({**facts, "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024}))
        return
    found = []
    for case in every:
        if given.only in case.name:
            found.append(run(case))
            print(" | ".join(row(found[-1])), flush=True)
    print(f"{summary(found)}; {os.cpu_count()} cores")
    if given.write:
        write(given.label, found)


if __name__ == "__main__":
    main()
