"""Speed and memory of the planner: ``python -m tests.benchmarks.speed [--table problems|models]``.

Whole-process times include the start of Python; peak memory is that of the process. Times differ between machines: compare
ratios, and quote the machine.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import time

from planner.evaluate.evaluation import evaluate
from planner.evaluate.setting import setting
from planner.problem import library_names, load_problem
from planner.solve.blocks import PricedSpace
from planner.solve.optimum import SpaceSearch

MODELS = ("llama-3.1-70b", "mixtral-8x7b", "qwen3-235b-a22b", "deepseek-v3")
CLUSTERS = ("2x8-h100", "2x8-h200")
WORKLOADS = ("prefill:batch=16,prompt=4096", "decode:batch=64,context=8192")


def whole_process(arguments: list[str], runs: int = 5) -> tuple[float, float]:
    """(median wall seconds, peak MB) of a planner command."""
    walls, peak = [], 0.0
    for _ in range(runs):
        start = time.perf_counter()
        with subprocess.Popen(
            [sys.executable, "-m", "planner", *arguments], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        ) as process:
            _, _, usage = os.wait4(process.pid, 0)
        walls.append(time.perf_counter() - start)
        peak = max(peak, usage.ru_maxrss / 1024)
    return statistics.median(walls), peak


def commands() -> None:
    """Whole processes: help, and every library problem with all of its report."""
    print(f"planner --help: {whole_process(['--help'])[0]:.2f} s")
    for name in library_names():
        wall, peak = whole_process(["search", name])
        print(f"planner search {name}: {wall:.2f} s, {peak:.0f} MB")


def solving() -> None:
    """Inside one process: until a library problem is proven optimal, without reports and decision tables."""
    for name in library_names():
        problem = load_problem(name)
        start = time.perf_counter()
        found = SpaceSearch(setting(problem.model, problem.workload, problem.cluster), problem.space).run()
        print(f"{name}: proven optimal in {time.perf_counter() - start:.2f} s, gap {found.gap:.1e}")


def pricing() -> None:
    """Distinct stage options priced per second."""
    for name in library_names():
        problem = load_problem(name)
        env = setting(problem.model, problem.workload, problem.cluster)
        start = time.perf_counter()
        priced = PricedSpace(env, problem.space)
        seconds = time.perf_counter() - start
        print(f"{name}: {priced.priced:,} stage options in {seconds:.2f} s, {priced.priced / seconds:,.0f} per second")


def evaluation() -> None:
    """A full evaluation of a 16-GPU plan of a 126-layer model."""
    problem = load_problem(model="llama-3.1-405b", cluster="2x8-h200", workload="decode:batch=32,context=8192")
    env = setting(problem.model, problem.workload, problem.cluster)
    found = SpaceSearch(env, problem.space).run()
    if found.choice is None:
        print("llama-3.1-405b does not fit")
        return
    start = time.perf_counter()
    evaluate(env, problem.sizes, found.choice)
    print(f"evaluate llama-3.1-405b on 16 GPUs: {time.perf_counter() - start:.3f} s")


def models() -> None:
    """The table of well-known models on 16 GPUs, as Markdown."""
    print("| model | cluster | workload | best | status | gap | plan | s |\n|---|---|---|---|---|---|---|---|")
    for model in MODELS:
        for cluster in CLUSTERS:
            for workload in WORKLOADS:
                problem = load_problem(model=model, cluster=cluster, workload=workload)
                start = time.perf_counter()
                found = SpaceSearch(setting(problem.model, problem.workload, problem.cluster), problem.space).run()
                seconds = time.perf_counter() - start
                if found.choice is None:
                    short = f"infeasible: {found.excess_bytes / 1e9:.2f} GB short"
                    print(f"| {model} | {cluster} | {workload} | | {short} | | | {seconds:.1f} |")
                    continue
                stages = "; ".join(f"{s.layers} layers on {len(s.devices)}" for s in found.choice.stages)
                plan = f"{found.choice.replicas} x [{stages}], {found.choice.micro_batches} micro-batches"
                answer = f"{found.value * 1e3:.2f} ms | optimal | {found.gap:.0e} | {plan}"
                print(f"| {model} | {cluster} | {workload} | {answer} | {seconds:.1f} |")


def main() -> None:
    """Run the asked tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--table", choices=("all", "models"), default="all")
    if parser.parse_args().table == "models":
        models()
    else:
        commands()
        solving()
        pricing()
        evaluation()
    print(json.dumps({"peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024, "cpus": os.cpu_count()}))


if __name__ == "__main__":
    main()
