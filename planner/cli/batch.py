"""`batch` and `results`: sweeps of many problems, and questions to what they have stored."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import sys
import time
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from planner.cli.output import QUIET_S, fields, say, say_json, table, warn
from planner.errors import InputError

if TYPE_CHECKING:
    from planner.batch.engines import Engine
    from planner.batch.events import Event, Tally
    from planner.batch.sweep import Sweep

RESULTS_SCHEMA = "planner.runs/1"
SOME_FAILED = 4
FIRST = 10
BAR = 30
LONGEST = 270


class EngineName(StrEnum):
    """Where the problems are solved."""

    serial = "serial"
    process = "process"
    ray = "ray"


class Rows(StrEnum):
    """How rows are written."""

    table = "table"
    csv = "csv"
    json = "json"
    parquet = "parquet"


def batch(
    sweep: Annotated[Path | None, typer.Argument(metavar="SWEEP", help="A sweep's YAML file.", show_default=False)] = None,
    from_: Annotated[
        Path | None, typer.Option("--from", metavar="TABLE.csv", help="A table instead: one problem a row.", show_default=False)
    ] = None,
    out: Annotated[
        Path | None, typer.Option(metavar="DIR", help="The store.  [default: runs/ and the sweep's name]", show_default=False)
    ] = None,
    engine: Annotated[EngineName, typer.Option(help="Where the problems are solved.")] = EngineName.process,
    workers: Annotated[
        int | None,
        typer.Option(min=1, max=4096, metavar="N", help="Processes.  [default: one for each CPU]", show_default=False),
    ] = None,
    address: Annotated[
        str | None, typer.Option(help="A running Ray cluster (auto, HOST:6379); else a local one.", show_default=False)
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say how many problems there are, and show the first.")] = False,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with a store that is there; with --out DIR alone its last sweep.")
    ] = False,
    retry_failed: Annotated[bool, typer.Option("--retry-failed", help="Try again what failed before.")] = False,
    json_: Annotated[bool, typer.Option("--json", help="Events as JSON, one a line.")] = False,
) -> int:
    """Solve every problem of a sweep and store each as a run folder; what the store holds already is not solved again.

    A batch that was stopped, however, is finished by the same command. Exit code 4 says that some problems failed.
    """
    if resume and sweep is None and from_ is None and out is not None:
        from planner.batch.origin import read_origin

        file, table = read_origin(out)
        sweep, from_ = (None, file) if table else (file, None)
    found = _sweep(sweep, from_)
    if dry_run:
        return _dry_run(found, json_)
    from planner.report import safe_name

    root = out if out is not None else Path("runs") / safe_name(found.name)
    if resume and not (root / "runs").is_dir():
        raise InputError("--resume", str(root), "a store that a batch has begun (--out DIR, as then)")
    if address is not None and engine != EngineName.ray:
        raise InputError("--address", address, "given with --engine ray alone")
    from planner.batch.drive import Batch
    from planner.batch.origin import write_origin
    from planner.batch.summary import write_summaries

    write_origin(root, sweep or from_ or root, table=sweep is None)
    listener = _Json() if json_ else _Told(root)
    try:
        with contextlib.redirect_stdout(sys.stderr):  # where Ray tells of lost nodes, which is no answer of ours
            tally = Batch(found, root, _engine(engine, workers, address), retry_failed, listener).run()
    finally:
        listener.done()
    write_summaries(root, found.summaries)
    listener.end(tally)
    return SOME_FAILED if tally.failures else 0


def results(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="The store of a batch.")],
    where: Annotated[
        str, typer.Option(metavar="CONDITION", help="Such as: status = optimal and batch >= 64.", show_default=False)
    ] = "",
    sort: Annotated[
        list[str], typer.Option(metavar="FIELD", help="Sort by a field, -FIELD falling; may be repeated.", show_default=False)
    ] = [],  # noqa: B006  # typer copies it
    best_by: Annotated[
        str, typer.Option(metavar="FIELD", help="The best run of each, such as model.", show_default=False)
    ] = "",
    sweep: Annotated[str, typer.Option(metavar="NAME", help="The points of one sweep alone.", show_default=False)] = "",
    limit: Annotated[int | None, typer.Option(min=1, metavar="N", help="At most N rows.", show_default=False)] = None,
    format_: Annotated[Rows, typer.Option("--format", help="How to write the rows.")] = Rows.table,
    json_: Annotated[bool, typer.Option("--json", help="Short for --format json.")] = False,
    output: Annotated[
        Path | None, typer.Option("-o", "--output", metavar="FILE", help="Write to a file.", show_default=False)
    ] = None,
    rebuild: Annotated[bool, typer.Option("--rebuild", help="Make the index anew from the folders first.")] = False,
) -> int:
    """Ask the store of a batch which runs it holds, and which is best.

    Fields: label, model, cluster, phase, batch, length, gpus, objective, status, value, gap, runtime_s, error and more; also
    the paths that a sweep varies.
    """
    from planner.batch.query import FIELDS, Question, answer

    if rebuild:
        _rebuild(folder)
    question = Question(where, tuple(sort), best_by, sweep, limit)
    rows, wrong = answer(folder, question)
    for text in wrong:
        warn(f"warning: {text}")
    form = Rows.json if json_ else format_
    if form == Rows.parquet:
        _write_parquet(rows, output, FIELDS)
        return 0
    if form == Rows.json:
        whole = {"schema": RESULTS_SCHEMA, "rows": rows}
        _put(None if output is None else json.dumps(whole, indent=1, ensure_ascii=False, default=str) + "\n", output, whole)
        return 0
    from planner.report.batch import results_csv, results_table

    text = results_csv(rows, FIELDS) if form == Rows.csv else results_table(rows) + "\n"
    _put(text, output)
    return 0


def _sweep(sweep: Path | None, from_: Path | None) -> Sweep:
    from planner.batch.sweep import read_sweep, read_table

    if (sweep is None) == (from_ is None):
        raise InputError(
            "SWEEP",
            None if sweep is None else str(sweep),
            "a sweep's YAML file, or else --from TABLE.csv, or --resume --out DIR",
        )
    if sweep is not None and sweep.suffix.lower() == ".csv":
        raise InputError("SWEEP", str(sweep), "a sweep's YAML file; a table is given as --from TABLE.csv")
    return read_sweep(sweep) if sweep is not None else read_table(from_)  # type: ignore[arg-type]  # one of them is given


def _dry_run(found: Sweep, as_json: bool) -> int:
    first = [(point.label, point) for point in itertools.islice(found.points(), FIRST)]
    total = found.count()
    if as_json:
        say_json({
            "schema": "planner.sweep-plan/1", "sweep": found.name, "problems": total,
            "first": [{"label": label, "fields": point.values} for label, point in first],
        })  # fmt: skip
        return 0
    say(f"{found.name}: {total:,} problem{'' if total == 1 else 's'}")
    say(table(["", "problem"], [(point.position, label) for label, point in first], [None, 140]))
    if total > len(first):
        say(f"... and {total - len(first):,} more")
    return 0


def _engine(name: EngineName, workers: int | None, address: str | None) -> Engine:
    from planner.batch.engines import ProcessEngine, RayEngine, SerialEngine

    count = workers or _cpus()
    if name == EngineName.serial:
        return SerialEngine()
    return RayEngine(address, count) if name == EngineName.ray else ProcessEngine(count)


def _cpus() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _rebuild(folder: Path) -> None:
    from planner.batch.rebuild import rebuild

    for wrong in rebuild(folder):
        warn(f"warning: {wrong}")


def _write_parquet(rows: list[dict[str, Any]], output: Path | None, columns: tuple[str, ...]) -> None:
    from planner.batch.index import TYPES
    from planner.batch.summary import to_parquet
    from planner.files import write_bytes_atomic

    if output is None:
        raise InputError("--format", "parquet", "given with -o FILE: Parquet is no text")
    write_bytes_atomic(output, to_parquet(rows, columns, TYPES))


def _put(text: str | None, output: Path | None, value: object = None) -> None:
    if output is not None and text is not None:
        from planner.files import write_text_atomic

        write_text_atomic(output, text)
    elif text is None:
        say_json(value)
    else:
        say(text.rstrip("\n"))


class _Json:
    """Every event as one line of JSON on standard output as it is now."""

    def __init__(self) -> None:
        self.stream = sys.stdout

    def __call__(self, event: Event) -> None:
        say(json.dumps(event, ensure_ascii=False, default=str), self.stream)

    def done(self) -> None:
        """Nothing is left on the screen."""

    def end(self, tally: Tally) -> None:
        """Where the batch ended."""
        self({"event": "end", **tally.to_dict()})


class _Told:
    """Progress for a person: a line that is rewritten on a terminal, nothing in a pipe; at the end what came of it."""

    def __init__(self, root: Path) -> None:
        self.root, self.terminal = root, sys.stderr.isatty()
        self.next_at = self.start = time.monotonic()
        self.solved = self.total = 0
        self.best: dict[str, tuple[float, str]] = {}
        self.failures: dict[tuple[str, str], list[str]] = {}
        self.shown = False

    def __call__(self, event: Event) -> None:
        """Take an event."""
        if event["event"] == "start":
            self.total = event["problems"]
        elif event["event"] in ("warning", "rebuild"):
            self.done()
            warn(f"warning: {event.get('message') or event.get('reason')}")
        elif event["event"] == "run":
            self.solved += not event["reused"]
            self._best(event)
            if event["error"] and event["status"] != "infeasible":
                self.failures.setdefault((event["status"], event["error"]), []).append(event["label"])
            if self.terminal and time.monotonic() >= self.next_at:
                self._show(event)

    def _best(self, event: Event) -> None:
        value, name = event["value"], event["objective"]
        if isinstance(value, int | float):
            known = self.best.get(name)
            if known is None or (value > known[0] if name == "throughput" else value < known[0]):
                self.best[name] = (value, event["label"])

    def _show(self, event: Event) -> None:
        from planner.report.show import objective_value

        self.next_at = time.monotonic() + 0.2
        bar = "#" * round(BAR * (1 - event["left"] / max(1, self.total)))
        text = f"[{bar:<{BAR}}] {event['done']:,} done, {event['failed']:,} failed, {event['left']:,} left"
        if event["left_s"] is not None:
            text += f", {event['rate']:.1f}/s, {_clock(event['left_s'])} left"
        for name, (value, label) in sorted(self.best.items()):
            text += f"; best {name} {objective_value(name, value)} ({label})"
        width = max(20, (os.get_terminal_size(sys.stderr.fileno()).columns or 100) - 1)
        print(f"\r\033[K{text[:width]}", end="", file=sys.stderr, flush=True)
        self.shown = True

    def done(self) -> None:
        """Clear the line."""
        if self.shown:
            print("\r\033[K", end="", file=sys.stderr, flush=True)
        self.shown = False

    def end(self, tally: Tally) -> None:
        """What came of the batch."""
        from planner.report.show import objective_value

        seconds = time.monotonic() - self.start
        rows = {
            "problems": f"{tally.total:,}: {tally.done:,} done ({tally.infeasible:,} infeasible), {tally.failures:,} failed",
            "known before": f"{tally.reused:,}",
            "time": f"{_clock(seconds)}, {self.solved / max(seconds, 1e-3):.1f} problems a second",
            **{
                f"best {name}": f"{objective_value(name, value)} ({label})"
                for name, (value, label) in sorted(tally.best.items())
            },
            "store": str(self.root),
        }
        say(fields(rows))
        if self.failures:
            say("")
            say(table(["failed", "because", "problems", "first"], self._failures(), [None, 90, None, 50]))
            say(f'\nall of them: planner results {self.root} --where "status in ({", ".join(tally.failed)})"')

    def _failures(self) -> list[tuple[str, str, int, str]]:
        """Why problems failed, the commonest reason first: status, message, how many, and the first of them."""
        reasons = sorted(self.failures.items(), key=lambda item: -len(item[1]))[:FIRST]
        return [(status, _cut(error), len(labels), labels[0]) for (status, error), labels in reasons]


def _cut(text: str) -> str:
    return text if len(text) <= LONGEST else text[: LONGEST - 3] + "..."


def _clock(seconds: float) -> str:
    """Seconds as a person says them."""
    whole = round(seconds)
    if whole < QUIET_S * 60:
        return f"{seconds:.1f} s" if seconds < 10 else f"{whole} s"
    hours, rest = divmod(whole, 3600)
    return f"{hours} h {rest // 60} min" if hours else f"{rest // 60} min {rest % 60} s"
