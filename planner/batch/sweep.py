"""Sweeps: a file that names many problems at once, by lists and ranges over any field of a problem."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from planner.batch.axes import PARTS, Axis, Rule, combinations, field_path, read_axes, read_rules
from planner.batch.options import OPTIONS, read_options
from planner.batch.points import Base, Point, label_of
from planner.batch.table import read_rows
from planner.errors import InputError
from planner.fields import Fields
from planner.files import read_yaml
from planner.problem import PROBLEM_SCHEMA
from planner.report.show import plain

SCHEMA = "planner.sweep/1"
MOST_PROBLEMS = 10_000_000
MOST_FILES = 1000
DEEPEST = 8
FIELDS = (
    "schema", "name", "include", "problem", "model", "cluster", "workload", "space", "set", "problems", "sweep", "zip",
    "exclude", "options", "output",
)  # fmt: skip
SUMMARIES = ("md", "csv")


@dataclass(frozen=True)
class Block:
    """The problems of one file: every base with every combination of the axes, without those that a rule excludes."""

    bases: tuple[Base, ...]
    axes: tuple[Axis, ...]
    rules: tuple[Rule, ...]

    @property
    def most(self) -> int:
        """How many problems there are before any is excluded."""
        return len(self.bases) * math.prod(len(axis.rows) for axis in self.axes)

    def points(self) -> Iterator[tuple[Base, dict[str, object]]]:
        """Base and axis values of every problem, in a fixed order."""
        for base in self.bases:
            for varied in combinations(self.axes):
                if not any(rule.holds({**base.values, **varied}) for rule in self.rules):
                    yield base, varied


@dataclass(frozen=True)
class Sweep:
    """Many problems under one name; `summaries` are the tables written at the end."""

    name: str
    blocks: tuple[Block, ...]
    summaries: tuple[str, ...] = SUMMARIES

    def points(self) -> Iterator[Point]:
        """Every problem, in a fixed order."""
        found = itertools.chain.from_iterable(block.points() for block in self.blocks)
        for position, (base, varied) in enumerate(found):
            yield Point(position, label_of(base, varied), base, varied)

    def count(self) -> int:
        """How many problems there are."""
        if not any(block.rules for block in self.blocks):
            return sum(block.most for block in self.blocks)
        return sum(1 for block in self.blocks for _ in block.points())


def read_sweep(path: Path) -> Sweep:
    """The sweep of a YAML file and of those it includes; `InputError` names the file, the field and the value."""
    blocks = tuple(_file(path, (), [0]))
    return _checked(Sweep(_name(read_yaml(path), path), blocks, _summaries(path)), str(path))


def read_table(path: Path) -> Sweep:
    """The sweep of a CSV file: one problem a row; the header names fields by path, and `name` what a row is called."""
    source, bases = str(path), []
    paths: dict[str, str] = {}
    for number, row in read_rows(path):
        for name in row:
            if name != "name" and name not in paths:
                paths[name] = field_path(name, "column", source)
        values = {paths[name]: value for name, value in row.items() if name != "name" and value is not None}
        base = Base(plain(row.get("name", f"row {number}")), values, path.parent, f"{source} row {number}")
        bases.append(base)
    if not bases:
        raise InputError("rows", 0, "at least one row below the header", source)
    return _checked(Sweep(plain(path.stem) or "table", (Block(tuple(bases), (), ()),)), source)


def _checked(sweep: Sweep, source: str) -> Sweep:
    most = sum(block.most for block in sweep.blocks)
    if not 1 <= most <= MOST_PROBLEMS:
        raise InputError("sweep", f"{most:,} problems", f"1 to {MOST_PROBLEMS:,} problems", source)
    return sweep


def _name(content: Mapping[str, object], path: Path) -> str:
    name = content.get("name")
    return plain(name) if isinstance(name, str) and name.strip() else path.stem


def _summaries(path: Path) -> tuple[str, ...]:
    """The `output` section of the file that was asked for; included files have no say in it."""
    output = Fields(read_yaml(path), str(path)).maybe_mapping("output")
    if output is None:
        return SUMMARIES
    found = output.texts("summary", default=SUMMARIES)
    for name in found:
        if name not in SUMMARIES:
            raise InputError(output.at("summary"), name, "a list of " + ", ".join(SUMMARIES), str(path))
    output.done()
    return tuple(dict.fromkeys(found))


def _file(path: Path, above: tuple[Path, ...], read: list[int]) -> Iterator[Block]:
    """The blocks of a file: those it includes, then its own. `above` are the files that include it."""
    place = path.resolve()
    read[0] += 1
    if place in above or len(above) >= DEEPEST or read[0] > MOST_FILES:
        raise InputError(
            "include", str(path), f"files without a circle, at most {DEEPEST} deep and {MOST_FILES} in all", str(above[-1])
        )
    fields = _fields(path)
    own: list[Base] = []
    for name in fields.texts("include", default=()):
        other = path.parent / name
        try:
            content = read_yaml(other)
        except InputError as error:
            raise InputError("include", name, f"a file that can be read ({error})", str(path)) from None
        if content.get("schema") == PROBLEM_SCHEMA:
            own.append(Base(plain(other.stem), {"problem": str(other)}, None, str(other)))
        else:
            yield from _file(other, (*above, place), read)
    common = _base(fields, Base(folder=path.parent, source=str(path)))
    own = [replace(base, values={**common.values, **base.values}) for base in own]
    own += [_named(entry, common) for entry in _problems(fields)]
    axes = read_axes(fields.maybe_mapping("sweep"), fields.mappings("zip"), str(path))
    anything = own or axes or set(common.values) & set(PARTS)
    bases = tuple(own) or (common if axes else replace(common, name=_name(fields.values, path)),)
    known = sorted({path for base in bases for path in base.values} | {path for axis in axes for path in axis.paths})
    rules = read_rules(fields.mappings("exclude"), known, str(path))
    if anything:
        yield Block(bases, axes, rules)


def _fields(path: Path) -> Fields:
    fields = Fields(read_yaml(path), str(path))
    schema = fields.raw("schema")
    if schema not in (None, SCHEMA):
        raise fields.error("schema", f"{SCHEMA} (a sweep)")
    if fields.has("name"):
        fields.text("name")
    fields.ignore(FIELDS)
    fields.done()
    return fields


def _base(fields: Fields, common: Base) -> Base:
    """The parts, the single fields below `set` and the options of a mapping, laid over those of `common`."""
    values = {name: fields.raw(name) for name in PARTS if fields.has(name)}
    sets = fields.maybe_mapping("set")
    for name in sets.values if sets else ():
        path = field_path(name, "set", fields.source)
        values[path] = sets.raw(name) if sets else None
    options = fields.maybe_mapping("options")
    if options:
        read_options(options.values, fields.source)
        values |= {name: value for name, value in options.values.items() if name in OPTIONS}
    return replace(common, values={**common.values, **values})


def _problems(fields: Fields) -> list[Fields]:
    """The named problems; a plain name or path stands for a mapping with `problem` alone."""
    items = fields.raw("problems")
    if items is None:
        return []
    if not isinstance(items, list):
        raise fields.error("problems", "a list of names, paths, or mappings")
    whole = [{"name": item, "problem": item} if isinstance(item, str) else item for item in items]
    return [Fields(item, fields.source, f"problems[{at}]") for at, item in enumerate(whole)]


def _named(entry: Fields, common: Base) -> Base:
    name = entry.text("name", default="")
    base = _base(entry, replace(common, name=plain(name)))
    entry.done()
    return base
