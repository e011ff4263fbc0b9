"""Axes of a sweep: the fields that vary, their values, and which combinations are left out."""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from planner.batch.options import OPTIONS
from planner.errors import InputError, unknown_name
from planner.fields import Fields
from planner.problem.settings import ROOTS

PARTS = ("problem", "model", "cluster", "workload", "space")
MOST_VALUES = 1_000_000
PATH = re.compile(r"[A-Za-z_]\w*(?:\.[A-Za-z0-9_-]+|\[[0-9]{1,6}\])+", re.ASCII)
BOUNDS = {"above": "more than", "at_least": "at least", "below": "less than", "at_most": "at most"}
Values = dict[str, object]


@dataclass(frozen=True, slots=True)
class Axis:
    """Fields that vary together: `rows` holds one value for each of `paths`."""

    paths: tuple[str, ...]
    rows: tuple[tuple[object, ...], ...]


def field_path(name: str, where: str, source: str) -> str:
    """A field that a sweep may vary: a part of a problem, `objective` or another option, or a path inside a part."""
    if name in PARTS or name in OPTIONS:
        return name
    if name.startswith("options.") and name.removeprefix("options.") in OPTIONS:
        return name.removeprefix("options.")
    if PATH.fullmatch(name) and name.split(".")[0].split("[")[0] in ROOTS:
        return name
    known = [*PARTS, *OPTIONS, *(f"{root}.FIELD" for root in ROOTS)]
    raise unknown_name(where, name, known, source)


def read_axes(sweep: Fields | None, zips: Sequence[Fields], source: str) -> tuple[Axis, ...]:
    """The axes of the `sweep` section, in the order of the file, then those of `zip`."""
    axes = []
    for name in sweep.values if sweep else ():
        path = field_path(name, "sweep", source)
        values = tuple((value,) for value in values_of(sweep.raw(name), f"sweep.{name}", source)) if sweep else ()
        axes.append(Axis((path,), values))
    for group in zips:
        paths = tuple(field_path(name, group.path, source) for name in group.values)
        columns = [values_of(group.raw(name), group.at(name), source) for name in group.values]
        if len({len(column) for column in columns}) != 1:
            lengths = ", ".join(f"{name}: {len(column)}" for name, column in zip(group.values, columns, strict=True))
            raise InputError(group.path, lengths or "empty", "lists of the same length", source)
        axes.append(Axis(paths, tuple(zip(*columns, strict=True))))
    twice = [path for path, count in _counted(path for axis in axes for path in axis.paths).items() if count > 1]
    if twice:
        raise InputError("sweep", twice[0], "each field on one axis", source)
    return tuple(axes)


def values_of(value: object, where: str, source: str) -> tuple[object, ...]:
    """The values of an axis: a list, a range `{from, to, step}` or `{from, to, times}`, or a single value.

    A mapping with `from` and `to` is a range; to pass such a mapping on as a value, put it into a list.
    """
    if isinstance(value, list):
        if not value:
            raise InputError(where, value, "at least one value", source)
        return tuple(value)
    if isinstance(value, Mapping) and {"from", "to"} <= set(value):
        return tuple(_range(Fields(value, source, where)))
    return (value,)


def _range(fields: Fields) -> Iterator[int | float]:
    """`from`, then up by `step` (1 unless given) or multiplied by `times`, to `to` at most."""
    first, last = (_number(fields, name) for name in ("from", "to"))
    step = _number(fields, "step") if fields.has("step") else None
    times = _number(fields, "times") if fields.has("times") else None
    fields.done()
    if step is not None and times is not None:
        raise fields.error("times", "either step or times")
    if times is not None and not (times > 1 and first > 0):
        raise fields.error("times", "a factor above 1, from a number above 0")
    if step is not None and step <= 0:
        raise fields.error("step", "a number above 0")
    count = math.log(last / first, times) if times is not None and last >= first else (last - first) / (step or 1)
    if last < first or count >= MOST_VALUES:
        raise fields.error("to", f"a number of at least `from`, in at most {MOST_VALUES:,} steps")
    value, at = first, 0
    while value <= last * (1 + 1e-12 if isinstance(last, float) and last > 0 else 1):
        yield value
        at += 1
        value = value * times if times is not None else first + at * (1 if step is None else step)


def _number(fields: Fields, name: str) -> int | float:
    value = fields.raw(name)
    if isinstance(value, bool) or not isinstance(value, int | float) or abs(value) > 1e15:
        raise fields.error(name, "a number of at most 1e15")
    return value


@dataclass(frozen=True, slots=True)
class Rule:
    """A combination to leave out: conditions on fields, all of which must hold."""

    conditions: tuple[tuple[str, object], ...]

    def holds(self, values: Mapping[str, object]) -> bool:
        """Whether a combination is meant; a field that it does not have is never equal to anything."""
        return all(path in values and _meets(values[path], wanted) for path, wanted in self.conditions)


def read_rules(sections: Sequence[Fields], known: Sequence[str], source: str) -> tuple[Rule, ...]:
    """The rules of `exclude`; every field must be one that some problem of the sweep sets."""
    rules = []
    for section in sections:
        conditions = []
        for name in section.values:
            path = field_path(name, section.path, source)
            if path not in known:
                raise unknown_name(section.path, name, known, source)
            conditions.append((path, _condition(section, name)))
        if not conditions:
            raise InputError(section.path, {}, "at least one field", source)
        rules.append(Rule(tuple(conditions)))
    return tuple(rules)


def _condition(section: Fields, name: str) -> object:
    value = section.raw(name)
    if isinstance(value, Mapping) and set(value) & set(BOUNDS):
        bounds = Fields(value, section.source, section.at(name))
        for bound in BOUNDS:
            if bounds.has(bound):
                _number(bounds, bound)
        bounds.done()
    return value


def _meets(value: object, wanted: object) -> bool:
    if isinstance(wanted, Mapping) and set(wanted) & set(BOUNDS):
        if isinstance(value, bool) or not isinstance(value, int | float):
            return False
        low, high = wanted.get("above"), wanted.get("below")
        least, most = wanted.get("at_least"), wanted.get("at_most")
        return (
            (low is None or value > low)
            and (high is None or value < high)
            and (least is None or value >= least)
            and (most is None or value <= most)
        )
    if isinstance(wanted, list):
        return any(_same(value, one) for one in wanted)
    return _same(value, wanted)


def _same(left: object, right: object) -> bool:
    return left == right and isinstance(left, bool) == isinstance(right, bool)


def combinations(axes: Sequence[Axis]) -> Iterator[Values]:
    """Every combination of the axes, the last one varying fastest."""
    for rows in itertools.product(*(axis.rows for axis in axes)):
        pairs = zip(axes, rows, strict=True)
        yield {path: value for axis, row in pairs for path, value in zip(axis.paths, row, strict=True)}


def _counted(items: Iterator[str]) -> dict[str, int]:
    found: dict[str, int] = {}
    for item in items:
        found[item] = found.get(item, 0) + 1
    return found
