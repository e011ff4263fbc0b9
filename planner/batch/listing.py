"""Listings of sweeps: which runs answer which point, beside the runs, so that an index can be made anew."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from planner.batch.folders import sync, unwritable
from planner.batch.key import digest
from planner.errors import InputError, shown
from planner.report import safe_name

FOLDER = "sweeps"
SCHEMA = "planner.points/1"
FILE = re.compile(r"[A-Za-z0-9._-]{1,60}-[0-9a-f]{8}\.jsonl", re.ASCII)
KEY = re.compile(r"[0-9a-f]{32}", re.ASCII)
MOST_LINE = 1_000_000
Line = tuple[int, str, str, dict[str, Any]]
"""Position, label, key of the run, and what varied."""


def listing_path(root: Path, sweep: str) -> Path:
    """Where the listing of a sweep stands; its name is made safe."""
    return root / FOLDER / f"{safe_name(sweep)[:40]}-{digest(sweep)[:8]}.jsonl"


def write_listing(root: Path, workspace: Path, sweep: str, lines: Iterable[Line]) -> None:
    """Write the listing of a sweep, whole or not at all."""
    place, temporary = listing_path(root, sweep), workspace / "listing.jsonl"
    try:
        with temporary.open("w", encoding="utf-8", newline="\n") as stream:
            for line in itertools.chain([{"schema": SCHEMA, "sweep": sweep}], lines):
                stream.write(json.dumps(line, separators=(",", ":"), sort_keys=True, default=str) + "\n")
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(temporary, place)
        sync(place.parent)
    except OSError as error:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise unwritable(root, error) from None


def read_listings(root: Path, wrong: list[str]) -> Iterator[tuple[str, Iterator[Line]]]:
    """The listings of a store by sweep; what is wrong with one goes to `wrong`, and its rest is left out."""
    try:
        places = sorted(path for path in (root / FOLDER).iterdir() if FILE.fullmatch(path.name))
    except OSError:
        return
    for place in places:
        if place.is_file() and not place.is_symlink():
            try:
                with place.open("rb") as stream:
                    sweep = _head(stream.readline(MOST_LINE), place)
                    yield sweep, _lines(stream, place, wrong)
            except (OSError, InputError) as error:
                wrong.append(str(error))


def _head(text: bytes, place: Path) -> str:
    head = _parsed(text, place)
    sweep = head.get("sweep") if isinstance(head, dict) and head.get("schema") == SCHEMA else None
    if not isinstance(sweep, str) or listing_path(place.parent.parent, sweep).name != place.name:
        raise InputError("line 1", shown(text), f"the head of a {SCHEMA} listing of this name", str(place))
    return sweep


def _lines(stream: Any, place: Path, wrong: list[str]) -> Iterator[Line]:
    try:
        while text := stream.readline(MOST_LINE):
            line = _parsed(text, place)
            match line:
                case [int(position), str(label), str(key), dict(varied)] if KEY.fullmatch(key) and 0 <= position < 2**40:
                    yield position, label.encode(errors="replace").decode(), key, varied
                case _:
                    raise InputError("line", shown(text), "position, label, key and values", str(place))
    except InputError as error:
        wrong.append(str(error))


def _parsed(text: bytes, place: Path) -> object:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        raise InputError("line", shown(text), "JSON on one line", str(place)) from None
