"""Whole verbs on broken and hostile files: what a reader lets through is to be answered or refused, too."""

from __future__ import annotations

import contextlib
import io
import json
import os
from collections.abc import Callable
from functools import cache
from pathlib import Path
from unittest import mock

import yaml

from planner.cli.app import BAD_INPUT, INTERNAL, main
from planner.errors import PlannerError
from planner.problem import load_problem
from tests.fuzz.readers import DOT, SWEEP, TABLE, Reader, certificates, clusters, tiny_problem

TINY_PLAN = """schema: planner.plan/1
name: mine
replicas: 1
micro_batches: 2
stages: [{layers: 1, devices: [0, 1]}]
attention: {head_groups: 2, dimension_segments: 1}
mlp: {ways: 2}
"""
EXPERTS = {"kind": "moe", "hidden": 64, "experts": 4, "top_k": 2}


class FaultError(Exception):
    """A verb that ended in another way than it may."""


def verbs() -> list[Reader]:
    """The verbs that work on files, as the command line runs them, on problems that take some hundredths of a second."""
    problems, plans = _problems(), _plans()
    found = [
        ("search", "p.yaml", problems, ("--time-limit", "2", "--json"), True),
        ("evaluate", "p.yaml", plans, ("--json",), True),
        ("validate", "p.yaml", plans, ("--json",), True),
        ("explain", "p.yaml", plans, ("--json",), True),
        ("dag", "p.yaml", plans, ("--view", "full", "--as", "dot"), True),
        ("verify", "c.json", certificates(), ("--samples", "5", "--json"), True),
        ("inspect", "d.dot", [DOT], ("--cluster", "2x8-h100", "--json"), False),
        ("show", "c.yaml", [*clusters(), *problems], ("--json",), True),
        ("batch", "s.yaml", [SWEEP], ("--dry-run", "--json"), True),
        ("batch --from", "t.csv", [TABLE], ("--dry-run", "--json"), False),
    ]
    return [Reader(f"planner {verb}", file, _verb(verb, more), seeds, data) for verb, file, seeds, more, data in found]


def _verb(verb: str, more: tuple[str, ...]) -> Callable[[Path], object]:
    return lambda path: run([*verb.split(), str(path), *more])


def run(arguments: list[str]) -> str:
    """What a command prints to standard output; `PlannerError` with its one line where it refuses its input, `FaultError`
    for any other end than an answer.
    """
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = main(arguments)
    told = err.getvalue().strip()
    if code == INTERNAL:
        _again_with_its_traceback(arguments)
        raise FaultError(told)
    if code == BAD_INPUT:
        if not told.startswith("error: ") or "\n" in told or out.getvalue():
            raise FaultError(f"exit code {code} with {told[:500]!r} and {out.getvalue()[:100]!r}")
        raise PlannerError(told)
    if code not in (0, 1, 3):
        raise FaultError(f"exit code {code}: {told[:500]}")
    if "--json" in arguments and code != 1:
        json.loads(out.getvalue())
    return out.getvalue()


def _again_with_its_traceback(arguments: list[str]) -> None:
    with mock.patch.dict(os.environ, PLANNER_DEBUG="1"), contextlib.redirect_stdout(io.StringIO()):
        main(arguments)


@cache
def _problems() -> list[str]:
    """Tiny problems: dense prefill, experts with loads, decode over two kinds of GPU."""
    model = tiny_problem()["model"]
    experts = {**model, "layers": 2, "ffn": EXPERTS, "vocab": 100}
    mixed = {"nodes": [{"kind": "h100", "count": 1, "gpus": 1}, {"kind": "a100-80gb", "count": 1, "gpus": 1}]}
    found = [
        tiny_problem(),
        {**tiny_problem(), "model": experts,
         "workload": {"phase": "prefill", "batch": 2, "prompt": 16, "expert_load": [3, 2, 1, 1]}},
        {**tiny_problem(), "model": {**experts, "attention": {**model["attention"], "kv_heads": 1}}, "cluster": mixed,
         "workload": {"phase": "decode", "batch": 4, "context": 64}},
        {**tiny_problem(), "space": {"replicas": 1, "attention": {"head_groups": "any"}}, "plans": {"p": {"micro_batches": 1}}},
    ]  # fmt: skip
    for problem in found:
        load_problem(problem)
    return [yaml.safe_dump(problem, sort_keys=False) for problem in found]


def _plans() -> list[str]:
    """A plan of each tiny problem that pins some of it, and one that pins nothing."""
    problems = [yaml.safe_load(text) for text in _problems()]
    plan = yaml.safe_load(TINY_PLAN)
    return [
        yaml.safe_dump({**plan, "problem": problems[0]}, sort_keys=False),
        *(
            yaml.safe_dump({"schema": plan["schema"], "name": "open", "problem": problem}, sort_keys=False)
            for problem in problems
        ),
    ]
