"""The index of a store: a row for each run and each point of a sweep, in SQLite, to be rebuilt from the folders."""

from __future__ import annotations

import contextlib
import json
import sqlite3
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn, Self

from planner.batch.folders import FULL, read_run, run_folders, unwritable
from planner.batch.listing import read_listings
from planner.batch.work import HEAD, TOLD
from planner.errors import InputError

NAME = "index.sqlite"
VERSION = 1
BUSY_S = 60.0
MOST_STEPS = 5_000_000
"""Thousands of SQLite's instructions after which a question is given up."""

COLUMNS = ("key", "folder", *HEAD, *TOLD)
_REAL = {"value", "bound", "gap", "latency_s", "tokens_per_s"}
_INTEGER = {"batch", "length", "gpus", "gpus_used", "replicas", "stages", "micro_batches"}
TYPES = {**dict.fromkeys(_REAL, "REAL"), **dict.fromkeys(_INTEGER, "INTEGER"), "runtime_s": "REAL", "position": "INTEGER"}
SCHEMA = {
    "runs": "CREATE TABLE runs (" + ", ".join(
        f"{name} {TYPES.get(name, 'TEXT')}{' PRIMARY KEY' if name == 'key' else ''}" for name in COLUMNS
    ) + ") WITHOUT ROWID",
    "times": "CREATE TABLE times (key TEXT PRIMARY KEY, runtime_s REAL, finished TEXT, host TEXT) WITHOUT ROWID",
    "points": (
        "CREATE TABLE points (sweep TEXT, position INTEGER, label TEXT, key TEXT, varied TEXT, "
        "PRIMARY KEY (sweep, position)) WITHOUT ROWID"
    ),
    "asked": "CREATE TABLE asked (spec TEXT PRIMARY KEY, key TEXT) WITHOUT ROWID",
    "claims": "CREATE TABLE claims (key TEXT PRIMARY KEY, owner TEXT) WITHOUT ROWID",
    "points_key": "CREATE INDEX points_key ON points (key)",
}  # fmt: skip
Row = dict[str, Any]


WRONG = (sqlite3.Error, UnicodeDecodeError)
"""What a file that is no index of ours, or was changed, ends in."""


class BrokenIndexError(Exception):
    """The index is no SQLite file of ours; the folders still hold everything."""


class Index:
    """The index of a store, open for writing (made where there is none) or, with `read_only`, for questions alone."""

    def __init__(self, root: Path, *, read_only: bool = False, memory: bool = False) -> None:
        self.root, self._steps = root, 0
        path = root / NAME
        if path.is_symlink():
            raise InputError("index", str(path), "a file, not a link")
        place = ":memory:" if memory else f"{path.resolve().as_uri()}?mode={'ro' if read_only else 'rwc'}"
        try:
            self._db = sqlite3.connect(place, uri=not memory, timeout=BUSY_S, isolation_level=None)
            self._db.row_factory = sqlite3.Row
            self._guard()
            self._make() if memory or not read_only else self._check()
        except WRONG as error:
            self._fail(error)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the file."""
        self._db.close()

    def ask(self, sql: str, values: Sequence[object] = ()) -> list[sqlite3.Row]:
        """The rows of a question."""
        self._steps = 0
        try:
            return self._db.execute(sql, values).fetchall()
        except WRONG as error:
            self._fail(error)

    def write(self, statements: Iterable[tuple[str, Sequence[object]]]) -> None:
        """Carry out statements together: all of them reach the disk, or none."""
        self._steps = -(10**12)
        try:
            self._db.execute("BEGIN IMMEDIATE")
            try:
                for sql, values in statements:
                    self._db.execute(sql, values)
                self._db.execute("COMMIT")
            except BaseException:
                with contextlib.suppress(sqlite3.Error):
                    self._db.execute("ROLLBACK")
                raise
        except WRONG as error:
            self._fail(error)

    def statuses(self, keys: Sequence[str]) -> dict[str, str]:
        """The status of those of some runs that are in the index."""
        found: dict[str, str] = {}
        for at in range(0, len(keys), 500):
            some = list(keys[at : at + 500])
            marks = ", ".join("?" * len(some))
            found |= {
                row["key"]: row["status"] for row in self.ask(f"SELECT key, status FROM runs WHERE key IN ({marks})", some)
            }
        return found

    def claim(self, keys: Sequence[str], owner: str, alive: Callable[[str], bool]) -> set[str]:
        """Those of some runs that are now this batch's to do: unclaimed ones, and those of batches that are gone."""
        granted: set[str] = set()

        def statements() -> Iterator[tuple[str, Sequence[object]]]:
            for key in keys:
                rows = self._db.execute("SELECT owner FROM claims WHERE key = ?", (key,)).fetchall()
                if not rows or rows[0]["owner"] == owner or not alive(rows[0]["owner"]):
                    granted.add(key)
                    yield "INSERT OR REPLACE INTO claims VALUES (?, ?)", (key, owner)

        self.write(statements())
        return granted

    def release(self, gone: Callable[[str], bool]) -> None:
        """Give up the claims of batches that are gone."""
        owners = [row["owner"] for row in self.ask("SELECT DISTINCT owner FROM claims")]
        self.write([("DELETE FROM claims WHERE owner = ?", (owner,)) for owner in owners if gone(owner)])

    def rebuild(self) -> list[str]:
        """Read all run folders and sweeps anew; returns what is wrong with those that were left out."""
        wrong: list[str] = []

        def statements() -> Iterator[tuple[str, Sequence[object]]]:
            for table in ("runs", "times", "points", "asked"):
                yield f"DELETE FROM {table}", ()
            for folder in run_folders(self.root):
                try:
                    record, facts = read_run(self.root, folder)
                except InputError as error:
                    wrong.append(str(error))
                    continue
                yield from run_rows(folder, record, facts)
            for sweep, lines in read_listings(self.root, wrong):
                yield from (point_row(sweep, *line) for line in lines)

        self.write(statements())
        return wrong

    def listing(self, sweep: str) -> Iterator[tuple[int, str, str, dict[str, Any]]]:
        """The points of a sweep in their order: position, label, key of the run, and what varied."""
        try:
            rows = self._db.execute(
                "SELECT position, label, key, varied FROM points WHERE sweep = ? ORDER BY position", (sweep,)
            )
            yield from ((row["position"], row["label"], row["key"], json.loads(row["varied"])) for row in rows)
        except (*WRONG, TypeError, json.JSONDecodeError) as error:
            self._fail(error)

    def _guard(self) -> None:
        """A file from elsewhere may not define what our questions mean, nor keep us for ever."""

        def count() -> int:
            self._steps += 1
            return int(self._steps > MOST_STEPS)

        self._db.execute("PRAGMA trusted_schema = OFF")
        self._db.execute("PRAGMA cell_size_check = ON")
        self._db.set_progress_handler(count, 1000)

    def _make(self) -> None:
        if not self._tables():
            self._db.execute("PRAGMA synchronous = FULL")
            self._db.execute("BEGIN IMMEDIATE")
            if not self._tables():  # another batch may have made them in between
                for sql in SCHEMA.values():
                    self._db.execute(sql)
            self._db.execute("COMMIT")
        self._check()

    def _check(self) -> None:
        """Our tables and nothing else: no views or triggers that would run with our questions."""
        if self._tables() != SCHEMA:
            raise BrokenIndexError(f"{self.root / NAME} has other tables than this planner's index")

    def _tables(self) -> dict[str, str]:
        rows = self._db.execute("SELECT name, sql FROM sqlite_master WHERE sql IS NOT NULL").fetchall()
        return {str(row["name"]): str(row["sql"]) for row in rows}

    def _fail(self, error: Exception) -> NoReturn:
        """Tell a broken file, a full disk and a folder that may not be written apart."""
        text, code = str(error), getattr(error, "sqlite_errorname", "")
        if code.startswith(("SQLITE_FULL", "SQLITE_IOERR")):
            raise unwritable(self.root, OSError(FULL[0], text)) from None
        if code.startswith(("SQLITE_READONLY", "SQLITE_CANTOPEN", "SQLITE_PERM")):
            raise unwritable(self.root, OSError(0, text)) from None
        if code.startswith("SQLITE_BUSY"):
            raise InputError("index", str(self.root / NAME), f"an index that others leave free now and then ({text})") from None
        raise BrokenIndexError(f"{self.root / NAME}: {text}") from None


def run_rows(folder: str, record: Mapping[str, Any], facts: Mapping[str, Any]) -> list[tuple[str, Sequence[object]]]:
    """The statements that put a run into the index."""
    row = [record["key"], folder, *(record.get(name) for name in (*HEAD, *TOLD))]
    times = [record["key"], *(facts.get(name) for name in ("runtime_s", "finished", "host"))]
    return [
        (f"INSERT OR REPLACE INTO runs VALUES ({', '.join('?' * len(row))})", row),
        ("INSERT OR REPLACE INTO times VALUES (?, ?, ?, ?)", times),
    ]


def point_row(sweep: str, position: int, label: str, key: str, varied: Mapping[str, object]) -> tuple[str, Sequence[object]]:
    """The statement that puts a point of a sweep into the index."""
    text = json.dumps(varied, sort_keys=True, default=str)
    return "INSERT OR REPLACE INTO points VALUES (?, ?, ?, ?, ?)", (sweep, position, label, key, text)
