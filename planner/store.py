"""Run folders: a result with its plan, price, report and drawings, written whole or not at all, the same bytes every time."""

from __future__ import annotations

import json
import math
import os
import re
import secrets
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

import yaml

from planner.errors import InputError
from planner.files import write_text_atomic
from planner.plan import choice_to_dict
from planner.problem import problem_to_dict
from planner.report import JudgedProblem, claims_markdown, claims_summary, markdown_report, safe_name
from planner.search import Result

DIGITS = 10
VIEWS = frozenset({"model", "layer", "mha", "mlp", "moe", "communication"})
NAMED = re.compile(r"drawings/[A-Za-z0-9_-]{1,60}")
Views = Mapping[str, tuple[str, bytes]]


def write_run(
    result: Result, folder: Path, views: Views, run_facts: Mapping[str, object], judged: JudgedProblem | None = None
) -> Path:
    """Write the run folder of a result under `folder`, in place of an older one; returns its path.

    `views` gives the DOT text and the SVG of each drawing by name (see `view_files`; none where there is no plan).
    `judged` holds the verdicts on the problem's claims. `run_facts` (times, host) go to `run.json` alone. On an error the
    older folder is left as it was.
    """
    name = safe_name(result.problem.name)
    files = {**run_files(result, judged), **view_files(views), "run.json": stable_json(run_facts).encode()}
    temporary = folder / f".{name}.{secrets.token_hex(4)}.tmp"
    try:
        try:
            for path, data in files.items():
                _write(temporary / path, data)
            return _put(temporary, folder / name)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
    except OSError as error:
        raise InputError("folder", str(folder / name), f"a folder that can be written ({error.strerror})") from None


def write_claims_summary(problems: Sequence[JudgedProblem], folder: Path) -> Path:
    """Write `claims.md` over several problems; returns its path."""
    path = folder / "claims.md"
    write_text_atomic(path, claims_summary(problems))
    return path


def run_files(result: Result, judged: JudgedProblem | None = None) -> dict[str, bytes]:
    """The files of a run that depend on the problem and the seed alone."""
    found = result.to_dict()
    files = {
        "problem.yaml": stable_yaml(problem_to_dict(result.problem)),
        "result.json": stable_json(found),
        "report.md": markdown_report(result),
    }
    if result.choice is not None:
        reference = {"problem": "problem.yaml", **choice_to_dict(result.choice, result.problem.sizes)}
        files["plan.yaml"] = stable_yaml(reference)
        files["evaluation.json"] = stable_json(found["evaluation"])
    if judged is not None and judged.every:
        files["claims.md"] = claims_markdown(judged)
    return {name: text.encode() for name, text in files.items()}


def view_files(views: Views) -> dict[str, bytes]:
    """The drawings as files: views of the best plan below `dag/`, `drawings/NAME` where they are named so."""
    unknown = sorted(name for name in views if name not in VIEWS and not NAMED.fullmatch(name))
    if unknown:
        raise InputError("views", unknown[0], "drawings/NAME or one of " + ", ".join(sorted(VIEWS)))
    place = {name: f"dag/{name}" if name in VIEWS else name for name in views}
    dots = {f"{place[name]}.dot": dot.encode() for name, (dot, _) in views.items()}
    return dots | {f"{place[name]}.svg": svg for name, (_, svg) in views.items() if svg}


def stable_json(data: object) -> str:
    """JSON with the keys in the order given and floats to 10 significant digits; NaN and infinities become null."""
    return json.dumps(rounded(data), indent=1, ensure_ascii=False, allow_nan=False) + "\n"


def stable_yaml(data: object) -> str:
    """YAML with the keys in the order given, numbers as in `stable_json`, no aliases."""
    return yaml.dump(rounded(data), Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=120)


def rounded(value: object) -> object:
    """Plain data with floats to 10 significant digits, whole ones with their point; what is not finite is None."""
    if isinstance(value, Mapping):
        return {str(key): rounded(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [rounded(item) for item in value]
    if value is None or isinstance(value, str | bool):
        return value
    if isinstance(value, int):
        return int(value)
    if isinstance(value, float):
        return float(f"{value:.{DIGITS}g}") if math.isfinite(value) else None
    if isinstance(value, Path):
        raise TypeError(f"a path is a host fact and is not stored: {value}")
    raise TypeError(f"{type(value).__name__} is not plain data")


class _Dumper(getattr(yaml, "CSafeDumper", yaml.SafeDumper)):  # type: ignore[misc]
    """Writes a value again where it comes again: aliases are refused when read."""

    def ignore_aliases(self, data: object) -> bool:
        return True


# Our reader takes `1e3` for a number, as YAML 1.2 does: text of that form must be quoted.
_Dumper.add_implicit_resolver("tag:yaml.org,2002:float", re.compile(r"^[-+]?[0-9]+[eE][-+]?[0-9]+$"), list("-+0123456789"))


def _write(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("xb") as stream:
        stream.write(data)
        stream.flush()
        os.fsync(stream.fileno())


def _put(temporary: Path, place: Path) -> Path:
    """Rename a finished folder to its place; an older one steps aside first, and comes back if that fails."""
    aside = place.with_name(f"{temporary.name}.old")
    if place.is_symlink() or (place.exists() and not place.is_dir()):
        raise InputError("folder", str(place), "a folder, or a path where one can be made")
    if place.exists():
        os.rename(place, aside)
    try:
        os.rename(temporary, place)
    except BaseException:
        if aside.exists():
            os.rename(aside, place)
        raise
    shutil.rmtree(aside, ignore_errors=True)
    return place
