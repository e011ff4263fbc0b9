"""A typed reader over a mapping from outside: every value is checked once, and an unknown field is refused by name."""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterable, Mapping
from typing import Final, Literal, TypeVar

from planner.errors import InputError, unknown_name

Text = TypeVar("Text", bound=str)
HUGE: Final = 2**40  # no count in a model, a cluster or a plan comes near it; larger ones are typing errors
MAX_TEXT: Final = 10_000


class _Required:
    """Marks a field that has no default."""


REQUIRED: Final = _Required()


class Fields:
    """The fields of one mapping; remembers which were read, so that `done` can refuse the rest.

    A missing field takes its default; a null one as well, except in the `maybe_` readers, where null means none.

    Parameters
    ----------
    mapping: the values, as parsed from YAML or JSON
    source: the file or argument they came from, for messages
    path: the path of this mapping inside `source`; empty at the top

    """

    def __init__(self, mapping: object, source: str = "", path: str = "") -> None:
        self.source, self.path = source, path
        if not isinstance(mapping, Mapping):
            raise InputError(path or "top level", mapping, "a mapping of names to values", source)
        for key in mapping:
            if not isinstance(key, str):
                raise InputError(self.at(str(key)[:100]), mapping[key], "a field name that is text", source)
        self.values: Mapping[str, object] = mapping
        self._read: set[str] = set()

    def at(self, name: str) -> str:
        """The full path of a field."""
        return f"{self.path}.{name}" if self.path else name

    def error(self, name: str, allowed: str) -> InputError:
        """An `InputError` about a field of this mapping."""
        return InputError(self.at(name), self.values.get(name), allowed, self.source)

    def has(self, name: str) -> bool:
        """Whether a field is there and not null; counts as having read it."""
        return self.raw(name) is not None

    def raw(self, name: str) -> object:
        """A field as it is, None when missing."""
        self._read.add(name)
        return self.values.get(name)

    def integer(self, name: str, *, low: int = 0, high: int = HUGE, default: int | _Required = REQUIRED) -> int:
        """A whole number in [low, high]; neither a float nor a boolean passes for one."""
        value = self.raw(name)
        if value is None and not isinstance(default, _Required):
            return default
        return self._integer(self.at(name), value, low, high, name in self.values)

    def maybe_integer(self, name: str, *, low: int = 0, high: int = HUGE, default: int | None = None) -> int | None:
        """As `integer`; an explicit null is None, whatever the default."""
        if self.raw(name) is None:
            return None if name in self.values else default
        return self.integer(name, low=low, high=high)

    def integers(self, name: str, *, low: int = 0, high: int = HUGE, default: Iterable[int] | None = None) -> list[int]:
        """A list of whole numbers in [low, high]."""
        if self.raw(name) is None and default is not None:
            return list(default)
        items = self._list(name, "a list of integers")
        return [self._integer(f"{self.at(name)}[{i}]", item, low, high, True) for i, item in enumerate(items)]

    def number(self, name: str, *, low: float = 0.0, high: float = math.inf, default: float | _Required = REQUIRED) -> float:
        """A finite number in [low, high]."""
        value = self.raw(name)
        if value is None and not isinstance(default, _Required):
            return default
        bounds = f"from {low:g} to {high:g}" if math.isfinite(high) else f"of at least {low:g}"
        if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high or abs(value) > 1e300:
            raise self._wrong(name, f"a number {bounds}")
        return float(value)

    def maybe_number(self, name: str, *, low: float = 0.0, high: float = math.inf) -> float | None:
        """As `number`; missing or null is None."""
        return None if self.raw(name) is None else self.number(name, low=low, high=high)

    def boolean(self, name: str, *, default: bool | _Required = REQUIRED) -> bool:
        """A truth value; `yes`, `on` and 1 are refused."""
        value = self.raw(name)
        if value is None and not isinstance(default, _Required):
            return default
        if not isinstance(value, bool):
            raise self._wrong(name, "true or false")
        return value

    def text(self, name: str, *, default: str | _Required = REQUIRED) -> str:
        """A text that is not empty (unless the default is what applies)."""
        value = self.raw(name)
        if value is None and not isinstance(default, _Required):
            return default
        if not isinstance(value, str) or not value.strip() or len(value) > MAX_TEXT:
            raise self._wrong(name, "a text that is not empty")
        return value

    def choice(self, name: str, options: Iterable[Text], *, default: Text | _Required = REQUIRED) -> Text:
        """One of a few words."""
        value = self.raw(name)
        if value is None and not isinstance(default, _Required):
            return default
        known = list(options)
        for option in known:
            if option == value:
                return option
        if isinstance(value, str):
            raise unknown_name(self.at(name), value, known, self.source)
        raise self._wrong(name, "one of " + ", ".join(known))

    def mapping(self, name: str) -> Fields:
        """A nested mapping, as fields of its own; the caller calls its `done`."""
        if self.raw(name) is None:
            raise self._wrong(name, "a mapping of names to values")
        return Fields(self.values[name], self.source, self.at(name))

    def maybe_mapping(self, name: str) -> Fields | None:
        """As `mapping`; missing or null is None."""
        return None if self.raw(name) is None else self.mapping(name)

    def mappings(self, name: str, *, required: bool = False) -> list[Fields]:
        """A list of mappings; an absent list is empty unless required."""
        if self.raw(name) is None and not required:
            return []
        items = self._list(name, "a list of mappings")
        return [Fields(item, self.source, f"{self.at(name)}[{i}]") for i, item in enumerate(items)]

    def texts(self, name: str, *, default: Iterable[str] | None = None) -> list[str]:
        """A list of texts."""
        if self.raw(name) is None and default is not None:
            return list(default)
        items = self._list(name, "a list of texts")
        for i, item in enumerate(items):
            if not isinstance(item, str):
                raise InputError(f"{self.at(name)}[{i}]", item, "a text", self.source)
        return [str(item) for item in items]

    def ignore(self, names: Iterable[str]) -> None:
        """Count fields as read: they are known and have no effect here."""
        self._read.update(names)

    def unread(self) -> list[str]:
        """Names of the fields that nobody has read yet."""
        return [name for name in self.values if name not in self._read]

    def done(self) -> None:
        """Refuse the first field that nobody read, with near matches."""
        for name in self.unread():
            near = difflib.get_close_matches(name[:100], sorted(self._read), n=3, cutoff=0.6)
            hint = f"did you mean {' or '.join(near)}?" if near else "known fields are " + ", ".join(sorted(self._read))
            raise InputError(self.at(name[:100]), self.values[name], f"no field of this name; {hint}", self.source)

    def _integer(self, path: str, value: object, low: int, high: int, there: bool) -> int:
        allowed = f"an integer from {low} to {high}"
        if isinstance(value, float):
            allowed += ", written without a point or an exponent"
        if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
            raise InputError(path, value if there else _MISSING, allowed, self.source)
        return value

    def _list(self, name: str, allowed: str) -> list[object]:
        value = self.raw(name)
        if not isinstance(value, list | tuple):
            raise self._wrong(name, allowed)
        return list(value)

    def _wrong(self, name: str, allowed: str) -> InputError:
        value = self.values.get(name, _MISSING)
        return InputError(self.at(name), value, allowed, self.source)


class _Missing:
    """Shown in place of the value of a field that is not there."""

    def __repr__(self) -> Literal["missing"]:
        return "missing"


_MISSING: Final = _Missing()
