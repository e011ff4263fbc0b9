"""`--set path=value`: single fields of a problem or a plan, changed before anything is built."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from planner.errors import InputError, unknown_name
from planner.files import parse_yaml
from planner.plan import merge_plans

ROOTS = ("plan", "space", "model", "cluster", "workload")
SHAPE = "PATH=VALUE with a path that begins with plan., space., model., cluster. or workload."
_PATH = re.compile(r"[A-Za-z_]\w*(?:\.[A-Za-z0-9_-]+|\[[0-9]{1,6}\])+", re.ASCII)


def parse_sets(sets: Sequence[str]) -> dict[str, dict[str, object]]:
    """The changes of each root as nested mappings; positions in lists are keys of digits. A later change wins."""
    found: dict[str, dict[str, object]] = {}
    for text in sets:
        path, equals, value = text.partition("=")
        if not equals or not _PATH.fullmatch(path.strip()):
            raise InputError("--set", text, SHAPE)
        root, *names = path.strip().replace("[", ".").replace("]", "").split(".")
        if root not in ROOTS:
            raise unknown_name("--set", root, ROOTS)
        section = found.setdefault(root, {})
        for name in names[:-1]:
            inner = section.get(name)
            section[name] = section = inner if isinstance(inner, dict) else {}
        section[names[-1]] = _value(text, value)
    return found


def _value(text: str, value: str) -> object:
    """A value as YAML on one line."""
    if "\n" in value or "\r" in value:
        raise InputError("--set", text, "a value on one line")
    return parse_yaml(f"value: {value}", f"--set {text}")["value"]


def change(base: object, own: Mapping[str, object], path: str) -> object:
    """`base` with the changes of `own`; a list is changed at the positions that `own` names."""
    if isinstance(base, list) and all(name.isdigit() for name in own):
        return _change_list(base, own, path)
    if not isinstance(base, Mapping):
        return dict(own)
    deeper = {n: change(base[n], v, f"{path}.{n}") for n, v in own.items() if isinstance(v, Mapping) and n in base}
    rest = {name: value for name, value in own.items() if name not in deeper}
    return {**merge_plans({"x": base}, {"x": rest})["x"], **deeper}  # type: ignore[dict-item]  # a merge of two mappings


def _change_list(base: list[object], own: Mapping[str, object], path: str) -> list[object]:
    changed = list(base)
    for name, value in own.items():
        if int(name) >= len(base):
            raise InputError(f"--set {path}", name, f"a position from 0 to {len(base) - 1}")
        at = int(name)
        changed[at] = change(base[at], value, f"{path}[{at}]") if isinstance(value, Mapping) else value
    return changed
