"""Running a batch: every point of a sweep is asked for once, solved where an engine has room, and committed as it comes."""

from __future__ import annotations

import contextlib
import itertools
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from planner.batch.engines import Engine, Task
from planner.batch.events import Event, Listener, Tally
from planner.batch.folders import has_run, read_run, write_outcome
from planner.batch.index import BrokenIndexError, Index, point_row, run_rows
from planner.batch.key import spec_key
from planner.batch.lease import Owner
from planner.batch.listing import write_listing
from planner.batch.points import Point, Spec, needs_files, spec_of
from planner.batch.rebuild import open_for_writing
from planner.batch.sweep import Sweep
from planner.batch.work import FAILURES, Asked, Outcome, ask, refused
from planner.errors import InputError, PlannerError

WINDOW = 2000
"""Points that are read at a time, to put those that share prices together."""
MOST_TOGETHER = 16
"""Problems of one task."""
COMMIT_S = 0.5
"""How long outcomes wait for each other before the index takes them; their folders are on disk already."""
LOOK_S = 0.2


@dataclass
class Batch:
    """One run of a sweep over a store.

    Parameters
    ----------
    sweep: the problems
    root: the store's folder
    engine: where they are solved
    retry_failed: whether runs that failed before are tried again
    listen: takes every event

    """

    sweep: Sweep
    root: Path
    engine: Engine
    retry_failed: bool = False
    listen: Listener = lambda event: None
    tally: Tally = field(init=False)

    def run(self) -> Tally:
        """Solve what is not solved yet; returns how it went.

        Raises `InputError` where the store cannot be written (a full disk, a folder for reading only). Whatever ends it,
        a finished run is never lost, and another batch goes on from there. An index that turns out to be broken on the way
        is made anew, and the batch begins again with what the folders hold.
        """
        try:
            return self._run("")
        except BrokenIndexError as error:
            return self._run(str(error))

    def _run(self, broken: str) -> Tally:
        self.tally = Tally(self.sweep.count())
        self._labels: dict[str, list[str]] = {}  # of the points that wait for a run
        self._finished: set[str] = set()
        self._pending: list[tuple[str, Any]] = []
        self._flushed = time.monotonic()
        self._waiting: list[Asked] = []
        with Owner(self.root) as self._owner, self._open(broken) as self._index:
            self._index.release(lambda owner: not self._owner.alive(owner))
            self._tell("start", sweep=self.sweep.name, engine=self.engine.name, problems=self.tally.total)
            try:
                self._solve(self._tasks())
                self._wait_for_others()
            finally:
                with contextlib.suppress(PlannerError):
                    self._flush()
                    self._index.release(lambda owner: owner == self._owner.token)
            self._list()
        return self.tally

    def _open(self, broken: str) -> Index:
        """The index; one that is broken or missing is made anew from the folders."""
        index, wrong = open_for_writing(self.root, self._owner, broken)
        for message in wrong or ():
            self._tell("warning", message=message)
        return index

    def _tasks(self) -> Iterator[Task]:
        """Problems that are this batch's to solve, those that share prices together; the known ones are counted on the way."""
        points = self.sweep.points()
        while window := list(itertools.islice(points, WINDOW)):
            todo: dict[str, list[Asked]] = {}
            for point in window:
                asked, group = self._ask(point)
                if asked is not None:
                    todo.setdefault(group, []).append(asked)
            mine = self._claimed([asked for group in todo.values() for asked in group])
            for group in sorted(todo):
                ours = [asked for asked in todo[group] if asked.key in mine]
                yield from (ours[at : at + MOST_TOGETHER] for at in range(0, len(ours), MOST_TOGETHER))

    def _ask(self, point: Point) -> tuple[Asked | None, str]:
        """What a point asks for, if nobody knows the answer yet; else it is counted."""
        spec, error = _spec(point)
        name = None if error or needs_files(spec) else spec_key(spec)
        key = self._key_of(name)
        if key is not None and self._answered(point, key):
            return None, ""
        asked, group = (refused(spec, error), "") if error else ask(spec)
        if name is not None:
            self._pending.append(("INSERT OR REPLACE INTO asked VALUES (?, ?)", (name, asked.key)))
        self._point(point, asked.key)
        if asked.key in self._labels:  # equal work of this sweep: told when it is done
            self._labels[asked.key].append(point.label)
            return None, ""
        record = self._known(asked, retry=asked.key not in self._finished and self.retry_failed)
        if record is not None:
            self._count(point.label, asked.key, record, reused=True)
            return None, ""
        self._labels[asked.key] = [point.label]
        return asked, group

    def _key_of(self, name: str | None) -> str | None:
        rows = self._index.ask("SELECT key FROM asked WHERE spec = ?", (name,)) if name is not None else []
        return str(rows[0]["key"]) if rows else None

    def _answered(self, point: Point, key: str) -> bool:
        """Whether a point that was asked before has its answer; it is counted if so."""
        rows = self._index.ask("SELECT folder, status, objective, value, error FROM runs WHERE key = ?", (key,))
        if not rows or not has_run(self.root, rows[0]["folder"]):
            return False
        if self.retry_failed and rows[0]["status"] in FAILURES and key not in self._finished:
            return False
        self._point(point, key)
        self._count(point.label, key, dict(rows[0]), reused=True)
        return True

    def _known(self, asked: Asked, *, retry: bool) -> dict[str, Any] | None:
        """The record of a run that the store holds; one that the index misses (its batch was killed in between) joins it."""
        if not has_run(self.root, asked.folder):
            return None
        try:
            record, facts = read_run(self.root, asked.folder)
        except InputError as error:
            self._tell("warning", message=f"a run that was changed is made again: {error}")
            return None
        if retry and record["status"] in FAILURES:
            return None
        self._pending += run_rows(asked.folder, record, facts)
        return record

    def _claimed(self, every: list[Asked]) -> set[str]:
        """Those that no other batch at work has claimed; the others are waited for at the end."""
        mine = self._index.claim([asked.key for asked in every], self._owner.token, self._owner.alive)
        self._waiting += [asked for asked in every if asked.key not in mine]
        return mine

    def _solve(self, tasks: Iterator[Task]) -> None:
        outcomes = self.engine.run(tasks)
        try:
            for outcome in outcomes:
                self._commit(outcome)
        finally:
            with contextlib.suppress(RuntimeError):
                outcomes.close()  # type: ignore[attr-defined]  # engines are generators

    def _commit(self, outcome: Outcome) -> None:
        """Put an outcome into the store, then into the index."""
        record, facts = outcome.record, outcome.facts
        if not write_outcome(self.root, self._owner.workspace, outcome, replace=self.retry_failed):
            record, facts = read_run(self.root, outcome.folder)
        self._pending += run_rows(outcome.folder, record, facts)
        self._answer(outcome.key, record, fresh=True)
        if time.monotonic() - self._flushed > COMMIT_S:
            self._flush()

    def _wait_for_others(self) -> None:
        """Take what other batches have solved meanwhile, and solve what those leave behind that are gone."""
        while self._waiting:
            self._flush()
            left = [asked for asked in self._waiting if not self._joined(asked)]
            mine = self._index.claim([asked.key for asked in left], self._owner.token, self._owner.alive)
            ours = [asked for asked in left if asked.key in mine]
            self._waiting = [asked for asked in left if asked.key not in mine]
            if ours:
                self._solve(iter([ours[at : at + MOST_TOGETHER] for at in range(0, len(ours), MOST_TOGETHER)]))
            elif self._waiting:
                time.sleep(LOOK_S)

    def _joined(self, asked: Asked) -> bool:
        """Whether another batch has solved a problem."""
        record = self._known(asked, retry=False)
        if record is not None:
            self._answer(asked.key, record, fresh=False)
        return record is not None

    def _answer(self, key: str, record: dict[str, Any], *, fresh: bool) -> None:
        """Tell every point that waits for a run; `fresh`: the first of them had it made."""
        self._finished.add(key)
        for at, label in enumerate(self._labels.pop(key, [])):
            self._count(label, key, record, reused=at > 0 or not fresh)

    def _point(self, point: Point, key: str) -> None:
        self._pending.append(point_row(self.sweep.name, point.position, point.label, key, point.varied))
        if len(self._pending) > WINDOW:
            self._flush()

    def _flush(self) -> None:
        """Let the index take what has come since."""
        pending, self._pending = self._pending, []
        self._flushed = time.monotonic()
        if pending:
            self._index.write(pending)

    def _list(self) -> None:
        """Drop points that the sweep no longer has, and write down which run answers which."""
        name, total = self.sweep.name, self.tally.total
        self._index.write([("DELETE FROM points WHERE sweep = ? AND position >= ?", (name, total))])
        write_listing(self.root, self._owner.workspace, name, self._index.listing(name))

    def _count(self, label: str, key: str, row: dict[str, Any], reused: bool) -> None:
        self.tally.count(label, row, reused)
        told = {name: row.get(name) for name in ("status", "objective", "value", "error")}
        self._tell("run", key=key, label=label, **told, reused=reused, **self.tally.progress())

    def _tell(self, name: str, **values: object) -> None:
        event: Event = {"event": name, **values}
        self.listen(event)


def _spec(point: Point) -> tuple[Spec, str]:
    """A point in plain data, or what is wrong with it."""
    try:
        return spec_of(point), ""
    except PlannerError as error:
        message = str(error)
    except Exception as error:  # a fault of ours; one problem never stops a sweep
        message = f"internal error: {type(error).__name__}: {error}"
    return {"options": {}, "sets": {}, **{name: str(value)[:200] for name, value in point.values.items()}}, message
