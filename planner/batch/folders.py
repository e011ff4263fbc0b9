"""Run folders on disk: written whole or not at all, found again by name, read back with every check."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import re
import secrets
import shutil
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from planner.batch.work import ANSWERS, FAILURES, HEAD, RECORD, SCHEMA, TOLD, Outcome
from planner.errors import InputError
from planner.files import parse_json, read_text
from planner.store import stable_json

RUNS, FACTS = "runs", "run.json"
FOLDER = re.compile(r"runs/[0-9a-f]{2}/[0-9a-f]{32}-[A-Za-z0-9._-]{1,80}", re.ASCII)
KEY = re.compile(r"[0-9a-f]{32}", re.ASCII)
MOST_RECORD = 1_000_000
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
Record = dict[str, Any]


def write_outcome(root: Path, workspace: Path, outcome: Outcome, *, replace: bool = False) -> bool:
    """Put the run folder of an outcome into the store; False where another batch has put it there first.

    Every file reaches the disk before the folder takes its name, so neither a kill nor a power cut leaves half a run.
    `workspace` is this batch's own folder in the store. `replace` takes the place of a run that failed; a folder that is
    no sound run is always replaced.
    """
    place, temporary = root / outcome.folder, workspace / f"{outcome.key}.{secrets.token_hex(4)}"
    try:
        try:
            temporary.mkdir()
            files = {**outcome.files, FACTS: stable_json(outcome.facts)}
            for name, text in files.items():
                (temporary / name).write_bytes(text.encode())
            _to_disk([temporary / name for name in files] + [temporary])
            make_folder(place.parent)
            return _put(temporary, place, replace or not sound(root, outcome.folder))
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
    except OSError as error:
        raise unwritable(root, error) from None


def make_folder(folder: Path) -> None:
    """Make a folder of the store; a link in its place could lead writes out of the store, and is refused."""
    if folder.is_symlink():
        raise InputError("folder", str(folder), "a folder, not a link")
    folder.mkdir(parents=True, exist_ok=True)


def sound(root: Path, folder: str) -> bool:
    """Whether a run stands in the store as it was written (also when there is nothing)."""
    try:
        read_run(root, folder)
    except InputError:
        return not (root / folder).exists()
    return True


class UnwritableError(InputError):
    """The store takes no more: its disk is full, or it may not be written."""


def unwritable(root: Path, error: OSError) -> UnwritableError:
    """What to tell of a folder that takes no more: it is full, or it may not be written."""
    wanted = "free space; what is finished is kept, --resume goes on" if error.errno in FULL else "a folder that can be written"
    return UnwritableError("folder", str(root), f"{wanted} ({error.strerror})")


def has_run(root: Path, folder: str) -> bool:
    """Whether a run folder stands in the store, whole: they get their name when they are."""
    return (root / folder / RECORD).is_file()


def read_run(root: Path, folder: str, *, whole: bool = True) -> tuple[Record, dict[str, Any]]:
    """The record of a run and its times; with `whole` every file is held against its digest in the record.

    `InputError` for a folder that was changed, or that no batch has written.
    """
    place = root / folder
    if not FOLDER.fullmatch(folder) or place.is_symlink():
        raise InputError("folder", folder, "the name of a run folder", str(root))
    record = parse_json(read_text(place / RECORD, MOST_RECORD), str(place / RECORD))
    _check(record, folder, str(place / RECORD))
    files = record["files"]
    if whole and isinstance(files, dict):
        for name, expected in files.items():
            found = _digest(place / name)
            if found != expected:
                raise InputError(f"files.{name}", found, f"{expected}, as when the run was written", str(place))
    return record, _facts(place / FACTS)


def run_folders(root: Path) -> Iterator[str]:
    """The run folders of a store, in the order of their keys; anything else there is passed over."""
    for shelf in _children(root / RUNS):
        for place in _children(shelf) if shelf.is_dir() and not shelf.is_symlink() else ():
            folder = f"{RUNS}/{shelf.name}/{place.name}"
            if FOLDER.fullmatch(folder) and place.is_dir() and not place.is_symlink():
                yield folder


def sync(folder: Path) -> None:
    """Let a folder's names reach the disk."""
    with contextlib.suppress(OSError):  # some file systems cannot
        _fsync(folder)


def _check(record: Mapping[str, Any], folder: str, source: str) -> None:
    """A record that our index can hold: known fields of known kinds, its own key, and file names that are no paths."""
    if record.get("schema") != SCHEMA:
        raise InputError("schema", record.get("schema"), SCHEMA, source)
    key, files = record.get("key"), record.get("files")
    if not isinstance(key, str) or not KEY.fullmatch(key) or folder.split("/")[2][:32] != key or folder[5:7] != key[:2]:
        raise InputError("key", key, "the key that its folder is named by", source)
    if record.get("status") not in (*ANSWERS, *FAILURES):
        raise InputError("status", record.get("status"), "one of " + ", ".join((*ANSWERS, *FAILURES)), source)
    for name in (*HEAD, *TOLD):
        value = record.get(name)
        large = isinstance(value, int) and abs(value) >= 2**63
        broken = isinstance(value, str) and not value.isascii() and value != value.encode(errors="replace").decode()
        if large or broken or not isinstance(value, str | int | float | None):
            raise InputError(name, value, "text, a number or null", source)
    named = isinstance(files, dict) and all(re.fullmatch(r"[a-z_]{1,40}\.[a-z]{1,8}", name, re.ASCII) for name in files)
    if not named:
        raise InputError("files", files, "names of files with their digests", source)


def _digest(path: Path) -> str:
    """The digest of an ordinary file; links and devices are no part of a run."""
    try:
        if path.is_symlink() or not path.is_file():
            return "missing"
        with path.open("rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()
    except OSError:
        return "missing"


def _facts(path: Path) -> dict[str, Any]:
    """The times of a run; they are no part of the answer, so that broken ones are none."""
    try:
        found = parse_json(read_text(path, MOST_RECORD), str(path))
    except InputError:
        return {}
    runtime, finished, host = (found.get(name) for name in ("runtime_s", "finished", "host"))
    return {
        "runtime_s": runtime if isinstance(runtime, float | int) and not isinstance(runtime, bool) else None,
        "finished": finished[:40] if isinstance(finished, str) else None,
        "host": host[:255] if isinstance(host, str) else None,
    }


def _children(folder: Path) -> list[Path]:
    try:
        return sorted(folder.iterdir())
    except OSError:
        return []


def _to_disk(paths: Sequence[Path]) -> None:
    """Wait until files and folders are on the disk; together, since it writes many at once as fast as one."""
    with ThreadPoolExecutor(len(paths)) as pool:
        list(pool.map(_fsync, paths))


def _fsync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # a file system that keeps nothing of the kind
            raise
    finally:
        os.close(handle)


def _put(temporary: Path, place: Path, replace: bool) -> bool:
    """Give a finished folder its name; a run that is there already is kept, unless it is to be replaced."""
    if replace and place.is_dir() and not place.is_symlink():
        aside = temporary.with_name(f"{temporary.name}.old")
        os.rename(place, aside)
        try:
            os.rename(temporary, place)
        except BaseException:
            os.rename(aside, place)
            raise
        shutil.rmtree(aside, ignore_errors=True)
        return True
    try:
        os.rename(temporary, place)
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
            raise
        return False
    return True
