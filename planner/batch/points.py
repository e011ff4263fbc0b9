"""Points of a sweep: one problem each, as it was asked for, and how it is made into a problem."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

from planner.batch.axes import PARTS
from planner.batch.options import OPTIONS, Options, read_options
from planner.clusters import as_mapping
from planner.errors import InputError
from planner.files import expanded, read_yaml
from planner.models import load_model
from planner.problem import Problem, load_problem
from planner.problem.library import beside, is_path, problem_mapping
from planner.problem.models import model_mapping
from planner.report.show import plain

MOST_LABEL = 200
Spec = dict[str, Any]
"""A problem as it was asked for, in plain data: its parts, the changes `sets` and the `options`."""


@dataclass(frozen=True, slots=True)
class Base:
    """What the points of a named problem have in common.

    `values` holds parts and single fields by path; `folder` is where the paths among them are taken from, `source` the
    file they were found in.
    """

    name: str = ""
    values: dict[str, object] = field(default_factory=dict)
    folder: Path | None = None
    source: str = ""


@dataclass(frozen=True, slots=True)
class Point:
    """One problem of a sweep: where it stands, what it is called, and its fields by path (`varied`: those of the axes)."""

    position: int
    label: str
    base: Base
    varied: dict[str, object]

    @property
    def values(self) -> dict[str, object]:
        """Every field that the sweep sets."""
        return {**self.base.values, **self.varied}


def label_of(base: Base, varied: Mapping[str, object]) -> str:
    """What a point is called: its name, then what varies."""
    parts = [base.name] if base.name else []
    for path, value in varied.items():
        if isinstance(value, Mapping):
            named = value.get("name")
            text = named if isinstance(named, str) else json.dumps(value, ensure_ascii=False, default=str)
        else:
            text = str(value)
        parts.append(text if path in PARTS or path == "objective" else f"{path}={text}")
    return plain(", ".join(parts), MOST_LABEL) or "problem"


def spec_of(point: Point) -> Spec:
    """A point in plain data that needs no file, wherever our formats can say what the file said.

    `InputError` for a file that cannot be read.
    """
    values, base = point.values, point.base
    spec: Spec = {name: _part(name, values[name], base) for name in PARTS if values.get(name) is not None}
    if isinstance(spec.get("problem"), str):
        spec["problem"] = _problem(spec["problem"])
    spec["options"] = {name: values[name] for name in OPTIONS if name in values}
    spec["sets"] = {path: value for path, value in values.items() if path not in PARTS and path not in OPTIONS}
    return spec


def needs_files(spec: Spec) -> bool:
    """Whether a part is still a path, so that the spec alone does not say what the problem is."""
    parts = [spec.get(name) for name in PARTS]
    whole = spec.get("problem")
    parts += list(whole.values()) if isinstance(whole, Mapping) else []
    return any(is_path(part) for part in parts)


def load_point(spec: Spec) -> tuple[Problem, Options]:
    """The problem and the options of a spec; `InputError` for a wrong one."""
    options = read_options(spec["options"])
    sets = [f"{path}={json.dumps(value, ensure_ascii=False)}" for path, value in spec["sets"].items()]
    parts = {name: spec.get(name) for name in PARTS[1:]}
    return load_problem(spec.get("problem"), sets=sets, **parts), options


def _part(name: str, value: object, base: Base) -> object:
    """A part with its path resolved and, where possible, replaced by what stands there."""
    if not isinstance(value, str | Mapping):
        raise InputError(name, value, "a name, a path, or a mapping", base.source)
    found = beside(value, base.folder)
    if not isinstance(found, str) or not is_path(found) or name == "problem":
        return found
    return _inline(name, found)


@lru_cache(maxsize=4096)
def _problem(ref: str) -> object:
    """A problem by name or path as a mapping, its own paths resolved; the name of a library problem stays one."""
    mapping, _, folder = problem_mapping(ref)
    for name in PARTS[1:]:
        part = beside(mapping[name], folder) if name in mapping else None
        if isinstance(part, str) and is_path(part):
            mapping[name] = _inline(name, part)
    return mapping


@lru_cache(maxsize=4096)
def _inline(name: str, path: str) -> object:
    """The mapping that a file of a part holds; the path itself where no mapping of ours can say all of it."""
    if name == "model":
        model = load_model(path)
        mapping = model_mapping(model)
        return path if mapping is None else {**mapping, "source": _told(Path(model.source))}
    if name == "cluster":
        return as_mapping(path)
    mapping = read_yaml(expanded(path))
    return mapping.get("space", "full") if name == "space" else mapping


def _told(path: Path) -> str:
    """The part of a path that names its file wherever it lies; a `config.json` is named by its folder."""
    place = path.resolve()
    return "/".join(place.parts[-2:]) if place.name == "config.json" else place.name
