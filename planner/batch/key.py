"""What names a run: a digest of everything that its answer depends on."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from functools import cache
from pathlib import Path

import search_spaces
from planner import errors
from planner.problem import Problem
from planner.report import safe_name
from planner.search import versions

DIGITS = 32
SLUG = 40
SOURCES = (".py", ".yaml")
PACKAGES = (Path(search_spaces.__file__).parent, Path(errors.__file__).parent)


@cache
def fingerprint() -> str:
    """A digest of the planner's own sources, data included, and of the versions that an answer depends on.

    A version number alone would let a changed formula answer with an old run. Two machines that give the same
    fingerprint give the same answers.
    """
    found = hashlib.sha256(json.dumps(versions(), sort_keys=True).encode())
    for root in PACKAGES:
        for path in sorted(path for path in root.rglob("*") if path.suffix in SOURCES):
            found.update(f"{root.name}/{path.relative_to(root).as_posix()}\0".encode())
            found.update(hashlib.sha256(path.read_bytes()).digest())
    return found.hexdigest()[:DIGITS]


def digest(value: object) -> str:
    """A digest of plain data; the order of keys does not count."""
    text = json.dumps(_plain(value), sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()[:DIGITS]


def run_key(problem: Problem, options: Mapping[str, object]) -> str:
    """The name of a run: the problem in all its parts (not the files they came from), the options, the planner."""
    model = problem.model
    outer = {field.name: getattr(model, field.name) for field in fields(model) if field.name != "layers"}
    parts = {
        "model": {**outer, "kinds": model.layer_kinds, "kind_of_layer": model.kind_of_layer},
        "cluster": problem.cluster, "workload": problem.workload, "space": problem.space, "plans": problem.plans,
        "stored": problem.raw,
    }  # fmt: skip
    return digest({"run": 1, "problem": parts, "options": dict(options), "planner": fingerprint()})


def spec_key(spec: Mapping[str, object]) -> str:
    """The name of a problem as it was asked for, before it is read: quick to compute, and one run may have several."""
    return digest({"spec": 1, "asked": spec, "planner": fingerprint()})


def run_folder(key: str, name: str) -> str:
    """Where a run stands below the store: two digits to spread the folders, the key, and the problem's name made safe."""
    return f"runs/{key[:2]}/{key}-{safe_name(name)[:SLUG]}"


def _plain(value: object) -> object:
    """Data as JSON can hold it; a type that it cannot hold is an error of ours."""
    if is_dataclass(value) and not isinstance(value, type):
        return {field.name: _plain(getattr(value, field.name)) for field in fields(value)}
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, set | frozenset):
        return sorted((_plain(item) for item in value), key=repr)
    if value is None or isinstance(value, str | bool | int | float):
        return value
    raise TypeError(f"{type(value).__name__} has no digest")
