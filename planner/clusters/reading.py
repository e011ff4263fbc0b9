"""Small readers of a mapping's fields, each refusing what it does not understand with the field's full path."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import yaml

from planner.errors import InputError, unknown_name


def read_mapping(path: Path) -> dict[str, Any]:
    """The mapping in a YAML file; anything else is refused with the place it went wrong."""
    try:
        found = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError("file", str(path), f"a readable file ({error.strerror})") from error
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        mark = getattr(error, "problem_mark", None)
        place = f"{path}:{mark.line + 1}" if mark else str(path)
        raise InputError("file", getattr(error, "problem", None) or str(error), "YAML", place) from error
    return mapping(found, "file", str(path))


def mapping(value: object, field: str, source: str, keys: Iterable[str] | None = None) -> dict[str, Any]:
    """A mapping with text keys, all of them among `keys` where those are given."""
    if not isinstance(value, Mapping):
        raise InputError(field, value, "a mapping", source)
    for key in value:
        if not isinstance(key, str) or (keys is not None and key not in keys):
            raise unknown_name(f"{field} (a key)" if field else "a key", key, keys or (), source)
    return dict(value)


def number(data: Mapping[str, Any], key: str, field: str, source: str, *, low: float = 0.0, high: float = 1e18) -> float:
    """A finite number above `low` (or equal to it when `low` is zero and the value is zero only for latencies)."""
    value = data.get(key)
    place = f"{field}.{key}" if field else key
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value) or not low < value <= high:
        raise InputError(place, value, f"a number above {low:g} and at most {high:g}", source)
    return float(value)


def whole(
    data: Mapping[str, Any], key: str, field: str, source: str, *, low: int, high: int, default: int | None = None
) -> int:
    """A whole number from `low` to `high`."""
    value = data.get(key, default)
    place = f"{field}.{key}" if field else key
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise InputError(place, value, f"a whole number from {low:,} to {high:,}", source)
    return value


def text(data: Mapping[str, Any], key: str, field: str, source: str, default: str | None = None) -> str:
    """A text; `default` where the key is absent."""
    value = data.get(key, default)
    if not isinstance(value, str):
        raise InputError(f"{field}.{key}" if field else key, value, "a text", source)
    return value
