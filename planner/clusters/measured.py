"""Measured tables of a cluster: files that are read once, so that a problem written down holds their rows, or a package's."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from planner.cluster import Cluster, Measured
from planner.errors import InputError
from planner.fields import Fields
from planner.files import expanded, read_text

SILICON, PACKAGE = "silicon", "aiconfigurator-core"
SHAPES = f"a path to a CSV of measured times, or {SILICON}[:SYSTEM[/BACKEND]] for the tables of the package {PACKAGE}"


def gemm_tables(data: Fields, kinds: tuple[str, ...]) -> dict[str, Measured]:
    """`gemm_table` of a cluster: one table for its only GPU kind, or a mapping from kinds to tables."""
    given = data.raw("gemm_table")
    if given is None:
        return {}
    if not isinstance(given, Mapping) or "name" in given:
        if len(kinds) > 1 and given != SILICON:
            raise InputError(data.at("gemm_table"), given, f"a table by GPU kind: {', '.join(kinds)}", data.source)
        return dict.fromkeys(kinds, _measured(given, data.at("gemm_table"), data.source))
    by_kind = data.mapping("gemm_table")
    found = {kind: _measured(by_kind.raw(kind), by_kind.at(kind), data.source) for kind in kinds if by_kind.has(kind)}
    by_kind.done()
    return found


def comm_table(data: Fields) -> Measured | None:
    """`comm_table` of a cluster."""
    given = data.raw("comm_table")
    return None if given is None else _measured(given, data.at("comm_table"), data.source)


def tables_to_dict(cluster: Cluster) -> dict[str, object]:
    """The fields that give a cluster its tables again, without another file."""
    found: dict[str, object] = {}
    if cluster.gemm_tables:
        found["gemm_table"] = {kind: _to_dict(table) for kind, table in cluster.gemm_tables.items()}
    if cluster.comm_table is not None:
        found["comm_table"] = _to_dict(cluster.comm_table)
    return found


def _to_dict(table: Measured) -> dict[str, str]:
    return {"name": table.name, **({"csv": table.csv} if table.csv else {"version": table.version})}


def _measured(value: object, path: str, source: str) -> Measured:
    """A table from a path, the name of a package's tables, or what `tables_to_dict` wrote."""
    if isinstance(value, Mapping):
        return _stored(value, path, source)
    if not isinstance(value, str) or not value:
        raise InputError(path, value, SHAPES, source)
    if value.partition(":")[0] == SILICON:
        return Measured(value, version=_installed(path, value, source))
    try:
        return Measured(Path(value).name, read_text(expanded(value)))
    except InputError as error:
        raise InputError(path, value, error.allowed, source) from None


def _stored(value: Mapping[str, object], path: str, source: str) -> Measured:
    unknown = set(value) - {"name", "csv", "version"}
    name, csv, number = (value.get(key, "") for key in ("name", "csv", "version"))
    if unknown or not (isinstance(name, str) and isinstance(csv, str) and isinstance(number, str)) or not name:
        raise InputError(path, value, f"{SHAPES}, or name and csv", source)
    if csv:
        return Measured(name, csv)
    if name.partition(":")[0] != SILICON:
        raise InputError(f"{path}.csv", "", "the rows of the table", source)
    installed = _installed(path, name, source)
    if number not in ("", installed):
        raise InputError(f"{path}.version", number, f"the version of {PACKAGE} that is installed, {installed}", source)
    return Measured(name, version=installed)


def _installed(path: str, value: str, source: str) -> str:
    """The version of the package with the tables."""
    try:
        return version(PACKAGE)
    except PackageNotFoundError:
        needed = f"a table that is there: {PACKAGE} is not installed (pip install 'parallelism-planner[silicon]')"
        raise InputError(path, value, needed, source) from None
