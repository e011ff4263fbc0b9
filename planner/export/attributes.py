"""A dataclass as attributes of a DOT node or edge, and back: every field by its name, whatever fields there are.

Text, numbers and names stand as they are, ranks as `0,1,2`, anything else as JSON. What equals its default is left out.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import MISSING, Field, fields, is_dataclass
from enum import Enum
from functools import cache
from types import NoneType, UnionType
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from planner.errors import InputError

Made = TypeVar("Made")
RANKS = tuple[int, ...]
LONGEST = 5_000_000  # characters of one attribute, and digits of a number are far fewer
BROKEN = (ValueError, TypeError, KeyError, AttributeError, OverflowError, RecursionError)


def to_attributes(value: object, renamed: Mapping[str, str] | None = None) -> dict[str, str]:
    """The fields of a dataclass as text; `renamed` gives the attribute's name where it is not the field's."""
    names, found = renamed or {}, {}
    for known in fields(value):  # type: ignore[arg-type]  # a dataclass, as the caller says
        item = getattr(value, known.name)
        if item is not None and not _is_default(known, item):
            found[names.get(known.name, known.name)] = _text(item)
    return found


def from_attributes(made: type[Made], given: Mapping[str, str], renamed: Mapping[str, str] | None = None) -> Made:
    """The dataclass that was written as these attributes; others are left alone. Raises `InputError` for a wrong one."""
    names, found = renamed or {}, {}
    kind: Any = made
    for name, hint in _hints(kind).items():
        attribute = names.get(name, name)
        if attribute in given:
            try:
                found[name] = _value(hint, given[attribute])
            except BROKEN:
                raise InputError(attribute, given[attribute], f"{_shown(hint)}, as `planner dag` writes it") from None
        elif name in _needed(kind):
            if NoneType not in get_args(hint):
                raise InputError(attribute, "missing", f"{_shown(hint)}, as `planner dag` writes it")
            found[name] = None
    return made(**found)


def _is_default(known: Field[Any], item: object) -> bool:
    return known.default is not MISSING and bool(item == known.default)


def _text(item: object) -> str:
    if isinstance(item, str):
        return str(item.value) if isinstance(item, Enum) else item
    if isinstance(item, tuple) and all(isinstance(part, int) for part in item):
        return ",".join(map(str, item))
    plain = _plain(item)
    return repr(plain) if isinstance(plain, float) else json.dumps(plain, separators=(",", ":"), ensure_ascii=False)


def _plain(item: object) -> object:
    """As JSON-ready data; of a dataclass the fields that differ from their defaults."""
    if is_dataclass(item):
        return {f.name: _plain(getattr(item, f.name)) for f in fields(item) if not _is_default(f, getattr(item, f.name))}
    if isinstance(item, tuple):
        return [_plain(part) for part in item]
    if isinstance(item, Enum):
        return item.value
    return item.item() if hasattr(item, "item") else item  # a number of NumPy's


def _value(hint: Any, text: str) -> object:
    """The value of a field from its text."""
    kind = next((arm for arm in get_args(hint) if arm is not NoneType), hint) if _is_union(hint) else hint
    if kind is float:
        return float(text)
    if kind == RANKS:
        return tuple(int(part) for part in text.split(",")) if text else ()
    if kind is str or get_origin(kind) is Literal or (isinstance(kind, type) and issubclass(kind, Enum)):
        return _built(kind, text)
    if len(text) > LONGEST:
        raise ValueError
    return _built(hint, json.loads(text))


def _built(hint: Any, data: Any) -> Any:
    """A value of a type from plain data; raises one of `BROKEN` where it is none."""
    if _is_union(hint):
        if data is None and NoneType in get_args(hint):
            return None
        return _built(next(arm for arm in get_args(hint) if arm is not NoneType), data)
    if get_origin(hint) is tuple:
        if not isinstance(data, list):
            raise TypeError
        return tuple(_built(get_args(hint)[0], part) for part in data)
    if get_origin(hint) is Literal:
        if data not in get_args(hint):
            raise ValueError
        return data
    make: Any = hint
    if is_dataclass(hint):
        hints = _hints(make)
        return make(**{name: _built(hints[name], part) for name, part in data.items()})
    if isinstance(hint, type) and issubclass(hint, Enum):
        return hint(data)
    if hint is float and type(data) is int:
        return float(data)
    if type(data) is not hint:
        raise TypeError
    return data


def _is_union(hint: Any) -> bool:
    return get_origin(hint) in (Union, UnionType)


@cache
def _hints(made: Any) -> dict[str, Any]:
    """The types of the fields by name."""
    hints = get_type_hints(made)
    return {known.name: hints[known.name] for known in fields(made)}


@cache
def _needed(made: Any) -> frozenset[str]:
    """The fields without a default."""
    return frozenset(f.name for f in fields(made) if f.default is MISSING and f.default_factory is MISSING)


def _shown(hint: Any) -> str:
    """A type in words."""
    kind = next((arm for arm in get_args(hint) if arm is not NoneType), hint) if _is_union(hint) else hint
    if kind == RANKS:
        return "whole numbers such as 0,1,2"
    known = {int: "a whole number", float: "a number", str: "text"}
    if get_origin(kind) is Literal:
        return "one of " + ", ".join(get_args(kind))
    if isinstance(kind, type) and issubclass(kind, Enum):
        return "one of " + ", ".join(str(item.value) for item in kind)
    return known.get(kind, "JSON")
