"""The problems that ship with the package, and where a problem's mapping comes from."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import search_spaces
from planner.errors import InputError, unknown_name
from planner.files import expanded, read_yaml

FOLDER = Path(search_spaces.__file__).parent / "library"
SUFFIXES = (".yaml", ".yml")


def library_names() -> list[str]:
    """Names of the library problems, in alphabetical order."""
    return sorted(path.stem for path in FOLDER.glob("*.yaml"))


def is_path(ref: object) -> bool:
    """Whether a reference means a file; a plain word means a name even where a file is called the same."""
    return isinstance(ref, Path) or (isinstance(ref, str) and (ref.lower().endswith((*SUFFIXES, ".json")) or "/" in ref))


def problem_mapping(ref: str | Path | Mapping[str, object]) -> tuple[dict[str, object], str, Path | None]:
    """The mapping of a problem with the name for its messages, and the folder that its paths are relative to."""
    if isinstance(ref, Mapping):
        return dict(ref), "", None
    if is_path(ref):
        path = expanded(ref)
        mapping = read_yaml(path)
        if "problem" in mapping and "model" not in mapping:
            allowed = "no field of a problem file; a plan file is for planner evaluate, validate, compare, explain and dag"
            raise InputError("problem", mapping["problem"], allowed, str(ref))
        return {"name": path.stem, **mapping}, str(ref), path.parent
    if not isinstance(ref, str):
        raise InputError("problem", ref, "a library name, a path to a problem file, or a mapping")
    if ref not in library_names():
        error = unknown_name("problem", ref, library_names())
        raise InputError("problem", ref, f"{error.allowed}, or a path to a problem file")
    return {"name": ref, **read_yaml(FOLDER / f"{ref}.yaml")}, f"{ref}.yaml", FOLDER


def beside(ref: object, folder: Path | None) -> object:
    """A path found in a file, taken from the folder of that file; anything else as it is."""
    if folder is None or not isinstance(ref, str) or not is_path(ref):
        return ref
    try:
        return str(folder / ref) if (folder / ref).exists() else ref
    except (OSError, ValueError):  # no path at all, such as one that is too long: the reader of the part says so
        return ref
