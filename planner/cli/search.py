"""`search`: the best plan of a problem with its proof, or of every library problem."""

from __future__ import annotations

import time
from collections.abc import Iterator
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from planner.cli.interrupts import told_first
from planner.cli.options import (
    AsFormat,
    AsJson,
    CertificateFile,
    CommTable,
    GemmTable,
    GpusAtMost,
    MaxLatency,
    MaxMemory,
    Sets,
    caps_of,
    check_file,
    check_folder,
    limits_of,
    with_tables,
)
from planner.cli.output import Format, Progress, say, say_json
from planner.errors import InputError

if TYPE_CHECKING:
    from planner.problem import Problem
    from planner.report import JudgedProblem
    from planner.search import Result

RESULTS_SCHEMA = "planner.results/1"
CODES = {"optimal": 0, "feasible": 0, "infeasible": 1, "timeout": 3}
INTERRUPTED = 130


class ObjectiveName(StrEnum):
    """What is optimized."""

    latency = "latency"
    throughput = "throughput"
    cost = "cost"


ProblemName = Annotated[
    str | None, typer.Argument(metavar="PROBLEM", help="A library name, or a path to a problem file.", show_default=False)
]
WorkloadPart = Annotated[
    str | None,
    typer.Option(
        help="prefill:batch=B,prompt=TOKENS, decode:batch=B,context=TOKENS or training:global_batch=B,sequence=TOKENS, "
        "or a file.",
        show_default=False,
    ),
]


def search(
    problem: ProblemName = None,
    all_: Annotated[bool, typer.Option("--all", help="Every problem of the library.")] = False,
    model: Annotated[str | None, typer.Option(help="A model's name, its config.json or folder, or our own file.")] = None,
    cluster: Annotated[str | None, typer.Option(help="NODESxGPUS-KIND such as 2x8-h100, a name, or a file.")] = None,
    workload: WorkloadPart = None,
    space: Annotated[str | None, typer.Option(help="full, or the problem whose space is taken.")] = None,
    sets: Sets = [],  # noqa: B006  # typer copies it
    gemm_table: GemmTable = [],  # noqa: B006
    comm_table: CommTable = None,
    objective: Annotated[ObjectiveName, typer.Option(help="What is optimized.")] = ObjectiveName.latency,
    top: Annotated[int, typer.Option(min=1, max=1000, metavar="K", help="How many plans to show.")] = 1,
    time_limit: Annotated[
        float | None, typer.Option(metavar="S", help="Seconds after which the best plan so far is taken.", show_default=False)
    ] = None,
    max_latency_ms: MaxLatency = None,
    max_memory_gb: MaxMemory = None,
    gpus_at_most: GpusAtMost = None,
    seed: Annotated[int, typer.Option(min=0, max=2**31 - 1, metavar="N", help="Seed of the solver.")] = 0,
    workers: Annotated[int, typer.Option(min=1, max=256, metavar="N", help="Threads of the solver.")] = 2,
    out: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Write the run to DIR/<problem>/.", show_default=False)
    ] = None,
    certificate: CertificateFile = None,
    format_: AsFormat = Format.table,
    json_: AsJson = False,
) -> int:
    """Find the best plan of a problem, prove it, and compare it with the plans people designed.

    PROBLEM is a library name or a file; without it the problem is composed of --model, --workload and --cluster.
    """
    sets = with_tables(sets, gemm_table, comm_table)
    limits = limits_of(time_limit, workers, seed, caps_of(max_latency_ms, max_memory_gb, gpus_at_most))
    parts = {"model": model, "cluster": cluster, "workload": workload, "space": space}
    problems = _problems(problem, all_, sets, parts)
    _check_outputs(out, certificate, all_)

    from planner.solve.preload import preload

    preload()
    as_json = json_ or format_ == Format.json
    answers: list[tuple[Result, float]] = []
    judged: list[JudgedProblem] = []
    for found, seconds in _answers(problems, objective.value, limits, top, certificate):
        answers.append((found, seconds))
        with told_first():
            _certify(found, certificate)
            folder = _write(found, out, seconds, None if sets or any(parts.values()) else judged) if out is not None else None
            if not as_json and not all_:
                _tell(found, seconds, None if sets or any(parts.values()) else problem, folder)
    if out is not None and all_ and judged and not answers[-1][0].interrupted:
        from planner.store import write_claims_summary

        write_claims_summary(judged, out)
    if as_json:
        with told_first():
            _tell_json(answers, all_)
    elif all_:
        _tell_all(answers)
    return _code([found for found, _ in answers], all_)


def _code(found: list[Result], every: bool) -> int:
    """The exit code of one answer, or of the answers of a whole library, where a sound no is one of them."""
    if any(result.interrupted for result in found):
        return INTERRUPTED
    codes = [CODES[result.status] for result in found]
    return max((code for code in codes if code != 1), default=0) if every else codes[0]


def _problems(name: str | None, every: bool, sets: list[str], parts: dict[str, str | None]) -> list[Problem]:
    """The problems that are asked for, all of them read before any is searched."""
    from planner.problem import library_names, load_problem

    given = [f"--{part}" for part, value in parts.items() if value is not None]
    if every:
        if name is not None or given:
            raise InputError("--all", name or given[0], "given alone: it stands for every problem of the library")
        return [load_problem(known, sets=sets) for known in library_names()]
    if name is None and not given:
        raise InputError(
            "PROBLEM", "missing", f"one of {', '.join(library_names())}, a file, --all, or --model with --workload"
        )
    return [load_problem(name, sets=sets, **parts)]


def _check_outputs(out: Path | None, certificate: Path | None, every: bool) -> None:
    """Refuse what cannot be written before time is spent on the search."""
    check_file(certificate, "--certificate")
    if certificate is not None and every:
        raise InputError("--certificate", str(certificate), "given with one problem, without --all")
    check_folder(out, "--out")


def _answers(
    problems: list[Problem], objective: Any, limits: Any, top: int, certificate: Path | None
) -> Iterator[tuple[Result, float]]:
    """Every problem's result with the seconds it took; a certificate that is asked for must be one that can be written."""
    from planner.search import search as find
    from planner.solve.searcher import inference_only

    if certificate is not None:
        inference_only(problems[0].space, "search --certificate", "--out stores the plan with its bound")
    for problem in problems:
        start, progress = time.monotonic(), Progress(problem.name)
        try:
            found = find(problem, objective=objective, limits=limits, top=top, progress=progress)
        finally:
            progress.done()
        yield found, time.monotonic() - start
        if found.interrupted:
            return


def _certify(found: Result, certificate: Path | None) -> None:
    """Write the proof, where it is asked for."""
    if certificate is not None:
        from planner.certify.write import write_certificate

        write_certificate(found, certificate)


def _tell(found: Result, seconds: float, ref: str | None, folder: Path | None) -> None:
    """The report of one search; `ref` is the problem as it was written, for the command that draws its best plan.

    A problem that was changed or composed on the command line has no such name: its stored result stands for it.
    """
    from planner.report import safe_name, search_report

    stored = (folder or Path("runs") / safe_name(found.problem.name)) / "result.json"
    say(search_report(found, ref if ref is not None and folder is None else str(stored)))
    if folder is not None:
        say(f"\nwritten to {folder}")
    elif ref is None and found.choice is not None:
        say(f"  (the same search with `--out runs` stores {stored})")
    say(f"\nruntime_s: {seconds:.2f}")


def _write(found: Result, out: Path, seconds: float, judged: list[JudgedProblem] | None) -> Path:
    """Store a run with the drawings of its plan and the verdicts on its problem's claims, which join `judged` (None: the
    problem was changed, and its source speaks of another); the times of this machine go to `run.json` alone.
    """
    import os
    import platform

    from planner.api import BEST, Chosen, judge_result
    from planner.cli.drawing import drawings, listed_drawings
    from planner.evaluate.setting import setting
    from planner.report import JudgedProblem
    from planner.store import write_run

    problem, views = found.problem, {}
    if found.choice is not None:
        env = setting(problem.model, problem.workload, problem.cluster)
        views = drawings(Chosen(problem, env, BEST, found.choice))
        plans = {hand.name: hand.best_completion.choice or hand.as_written.choice for hand in found.hand_designed}
        own = problem.listed
        env = setting(own.model, own.workload, own.cluster)
        chosen = {name: Chosen(own, env, name, choice) for name, choice in plans.items() if choice is not None}
        views |= listed_drawings(own, chosen)
    facts = {
        "runtime_s": round(seconds, 3),
        "started": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(time.time() - seconds)),
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "cpus": os.cpu_count(),
    }
    completed = {h.name: h.best_completion.latency_s for h in found.hand_designed if h.best_completion.latency_s is not None}
    written = {h.name: h.as_written.latency_s for h in found.hand_designed if h.as_written.latency_s is not None}
    verdicts = JudgedProblem(problem, {} if judged is None else judge_result(found), completed, written)
    if judged is not None and verdicts.every:
        judged.append(verdicts)
    return write_run(found, out, views, facts, verdicts)


def _tell_json(answers: list[tuple[Result, float]], every: bool) -> None:
    """The one result, or those of the whole library."""
    told = [{**found.to_dict(), "runtime_s": round(seconds, 3)} for found, seconds in answers]
    say_json({"schema": RESULTS_SCHEMA, "results": told} if every else told[0])


def _tell_all(answers: list[tuple[Result, float]]) -> None:
    """One row per problem."""
    from planner.cli.output import table
    from planner.report.show import objective_value
    from planner.report.words import plan_words

    rows = []
    for found, seconds in answers:
        plan = "-" if found.choice is None else plan_words(found.choice, found.problem.sizes)
        value = "-" if found.value is None else objective_value(found.objective, found.value)
        hand = [
            f"{h.name} x{h.ratio_to_best:.3f}" if h.ratio_to_best else f"{h.name} fits nowhere" for h in found.hand_designed
        ]
        rows.append((found.problem.name, found.status, value, "\n".join(hand), f"{seconds:.1f}", plan))
    say(
        table(
            ["problem", "status", answers[0][0].objective, "hand-designed plans", "runtime_s", "best plan"],
            rows,
            [None] * 5 + [70],
        )
    )
