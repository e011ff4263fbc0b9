"""Solving one problem of a sweep: an answer, a bad input, the end of the time or a crash, each as the files of its run."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import time
import traceback
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from planner.batch.key import PACKAGES, fingerprint, run_folder, run_key, spec_key
from planner.batch.options import Options
from planner.batch.points import Spec, load_point
from planner.errors import PlannerError
from planner.evaluate.shared import Shared, sharing
from planner.problem import Problem
from planner.report import plan_words
from planner.report.show import plain
from planner.search import Result, versions
from planner.store import run_files, stable_json

SCHEMA = "planner.run/1"
RECORD = "record.json"
HEAD = (
    "name", "model", "cluster", "phase", "batch", "length", "gpus", "objective",
)  # fmt: skip
TOLD = (
    "status", "value", "bound", "gap", "latency_s", "tokens_per_s", "gpus_used", "replicas", "stages", "micro_batches",
    "plan", "error",
)  # fmt: skip
ANSWERS = ("optimal", "feasible", "infeasible")
FAILURES = ("timeout", "bad_input", "crash")
MOST_MESSAGE = 2000
MOST_TRACEBACK = 100_000
Head = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of a problem: its run's key and folder, the files of the run by name, its record, and the times."""

    key: str
    folder: str
    files: dict[str, str]
    record: dict[str, Any]
    facts: dict[str, Any]

    def to_dict(self) -> dict[str, Any]:
        """As plain data, to travel between processes."""
        return {name: getattr(self, name) for name in self.__slots__}


@dataclass(frozen=True, slots=True)
class Asked:
    """A problem that is to be solved: its key and folder, what is told of it whatever the answer, its options with every
    default, its spec, and what is wrong with it.
    """

    key: str
    folder: str
    head: Head
    options: dict[str, Any]
    spec: Spec
    error: str = ""

    def to_dict(self) -> dict[str, Any]:
        """As plain data, to travel between processes."""
        return {name: getattr(self, name) for name in self.__slots__}


def ask(spec: Spec) -> tuple[Asked, str]:
    """What a spec asks for, and the group of problems whose prices it shares; a wrong one is asked for with its error."""
    try:
        problem, options = load_point(spec)
    except PlannerError as error:
        return refused(spec, str(error)), ""
    except Exception:  # a fault of ours in a reader: `solve` meets it again, and records it with its traceback
        return refused(spec, ""), ""
    key = run_key(problem, options.to_dict())
    return Asked(key, run_folder(key, problem.name), head_of(problem, options), options.to_dict(), spec), group_of(problem)


def refused(spec: Spec, message: str) -> Asked:
    """A problem that cannot be read."""
    key = spec_key({"refused": spec})
    head: Head = {name: None for name in HEAD}
    head["objective"] = spec.get("options", {}).get("objective", "latency")
    for name in ("problem", "model", "cluster"):
        if isinstance(spec.get(name), str):
            head["name" if name == "problem" else name] = plain(spec[name], 200)
    return Asked(key, run_folder(key, "refused"), head, spec.get("options", {}), spec, plain(message, MOST_MESSAGE))


def head_of(problem: Problem, options: Options) -> Head:
    """What is told of a problem before it is solved."""
    workload = problem.workload
    return {
        "name": plain(problem.name, 200), "model": plain(problem.model.name, 200), "cluster": plain(problem.cluster.name, 200),
        "phase": workload.phase, "batch": workload.batch, "length": workload.prompt or workload.context,
        "gpus": problem.cluster.size, "objective": options.objective,
    }  # fmt: skip


def group_of(problem: Problem) -> str:
    """Problems of one group differ in their batch and their options alone, so they share most prices."""
    workload = problem.workload
    return "|".join((problem.model.name, problem.cluster.name, workload.phase, f"{workload.prompt:012}-{workload.context:012}"))


def solve(asked: Asked, shared: Shared) -> Outcome:
    """Solve a problem, with what earlier ones in this place have found; whatever goes wrong becomes its record.

    An interrupt is the one thing that passes through.
    """
    start = time.monotonic()
    files: dict[str, str] = {}
    if asked.error:
        told: dict[str, Any] = {"status": "bad_input", "error": asked.error}
    else:
        try:
            problem, options = load_point(asked.spec)
            with sharing(shared):
                result = options.search(problem)
            if result.interrupted:
                raise KeyboardInterrupt
            files = {name: data.decode() for name, data in run_files(result).items()}
            told = told_of(result)
        except PlannerError as error:
            told = {"status": "bad_input", "error": plain(error, MOST_MESSAGE)}
        except Exception as error:
            told = {"status": "crash", "error": plain(f"{type(error).__name__}: {error}", MOST_MESSAGE)}
            files = {"traceback.txt": told_traceback(error)}
    return outcome(asked, told, files, time.monotonic() - start)


def lost(asked: Asked, status: str, message: str) -> Outcome:
    """The outcome of a problem whose worker did not live to tell."""
    return outcome(asked, {"status": status, "error": message}, {}, 0.0)


def outcome(asked: Asked, told: Mapping[str, Any], files: Mapping[str, str], seconds: float) -> Outcome:
    """The run of a problem: its files with their digests in the record."""
    record = {
        "schema": SCHEMA, "key": asked.key, **asked.head, **{name: told.get(name) for name in TOLD},
        "options": asked.options, "versions": versions(), "planner": fingerprint(),
        "files": {name: hashlib.sha256(text.encode()).hexdigest() for name, text in sorted(files.items())},
    }  # fmt: skip
    facts = {
        "runtime_s": round(seconds, 4),
        "finished": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "host": platform.node(),
        "process": os.getpid(),
    }
    text = stable_json(record)
    return Outcome(asked.key, asked.folder, {**files, RECORD: text}, json.loads(text), facts)


def told_of(result: Result) -> dict[str, Any]:
    """The row of an answer."""
    told: dict[str, Any] = {"status": result.status, "value": result.value, "bound": result.bound, "gap": result.gap}
    choice, evaluation, reason = result.choice, result.evaluation, result.infeasibility
    if choice is not None and evaluation is not None:
        told |= {
            "latency_s": evaluation.latency_s, "tokens_per_s": evaluation.throughput_tokens_per_s,
            "gpus_used": choice.replicas * sum(len(stage.devices) for stage in choice.stages),
            "replicas": choice.replicas, "stages": len(choice.stages), "micro_batches": choice.micro_batches,
            "plan": plan_words(choice, result.problem.sizes),
        }  # fmt: skip
    elif result.status == "timeout":
        told["error"] = "the time limit came before any plan"
    elif reason is not None:
        told["error"] = plain(f"nothing fits: {reason.constraint}; {reason.relaxation}", MOST_MESSAGE)
    return told


def told_traceback(error: BaseException) -> str:
    """The traceback of an error, its files told without this machine's folders."""
    frames = traceback.extract_tb(error.__traceback__)
    lines = ["Traceback (most recent call last):"]
    for frame in frames:
        lines += [f'  File "{_inside(frame.filename)}", line {frame.lineno}, in {frame.name}', f"    {frame.line or ''}"]
    lines += [line.rstrip("\n") for line in traceback.format_exception_only(error)]
    return "\n".join(lines)[-MOST_TRACEBACK:] + "\n"


def _inside(path: str) -> str:
    """The part of a path from its package on."""
    place, root = Path(path), PACKAGES[-1].parent
    if place.is_relative_to(root):
        return place.relative_to(root).as_posix()
    return "/".join(place.parts[-3:])
