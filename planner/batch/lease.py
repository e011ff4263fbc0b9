"""Who works in a store: each batch holds a lock while it lives, so that others leave it its share, and take over its rest."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import re
import secrets
import shutil
from pathlib import Path
from types import TracebackType
from typing import Self

from planner.batch.folders import make_folder, unwritable
from planner.errors import InputError

FOLDER = "tmp"
TOKEN = re.compile(r"[0-9a-f]{16}", re.ASCII)


class Owner:
    """A batch at work in a store: its token, its workspace for half-written folders, and its lock.

    The system drops the lock when the process ends, however it ends. Raises `InputError` for a store that cannot be
    written.
    """

    def __init__(self, root: Path) -> None:
        self.root, self._lock = root, -1
        self.token, self.workspace = "", root / FOLDER
        try:
            root.mkdir(parents=True, exist_ok=True)
            for folder in (root / FOLDER, root / "runs", root / "sweeps"):
                make_folder(folder)
            while not self._enter():
                pass
            self._probe()
        except OSError as error:
            self.close()
            raise unwritable(root, error) from None
        except InputError:
            self.close()
            raise
        self._clean()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Leave the store."""
        if self._lock >= 0:
            shutil.rmtree(self.workspace, ignore_errors=True)
            with contextlib.suppress(OSError):
                self._path(self.token).unlink()
            os.close(self._lock)
            self._lock = -1

    def alive(self, token: str) -> bool:
        """Whether the batch of a token is at work: itself, or one that holds its lock."""
        if token == self.token:
            return True
        return bool(TOKEN.fullmatch(token)) and _held(self._path(token))

    def _enter(self) -> bool:
        """Take a new token with its lock and workspace; False where another batch has cleaned it away in between."""
        self.token = secrets.token_hex(8)
        path = self._path(self.token)
        lock = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o644)
        if not (_locked(lock) and path.exists()):
            os.close(lock)
            return False
        self._lock, self.workspace = lock, self.root / FOLDER / self.token
        self.workspace.mkdir()
        return True

    def _path(self, token: str) -> Path:
        return self.root / FOLDER / f"{token}.lock"

    def _probe(self) -> None:
        """Write a block, so that a full disk is found before time is spent."""
        probe = self.workspace / "probe"
        probe.write_bytes(bytes(4096))
        probe.unlink()

    def _clean(self) -> None:
        """Remove what batches that were killed left half-written; whoever removes it holds the lock of the dead."""
        with contextlib.suppress(OSError):
            for place in sorted((self.root / FOLDER).iterdir()):
                token = place.name.removesuffix(".lock")
                if not TOKEN.fullmatch(token) or token == self.token:
                    continue
                if place.suffix == ".lock" and not place.is_symlink():
                    self._bury(token)
                elif not self._path(token).exists() and place.is_dir() and not place.is_symlink():
                    shutil.rmtree(place, ignore_errors=True)

    def _bury(self, token: str) -> None:
        lock = os.open(self._path(token), os.O_RDWR | os.O_NOFOLLOW)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            workspace = self.root / FOLDER / token
            if not workspace.is_symlink():
                shutil.rmtree(workspace, ignore_errors=True)
            self._path(token).unlink(missing_ok=True)
        except OSError:
            pass  # it lives, or this file system has no locks
        finally:
            os.close(lock)


def _locked(handle: int) -> bool:
    """Take a lock; a file system without locks grants it: batches then share no work there, and lose none."""
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        return error.errno not in (errno.EAGAIN, errno.EACCES)
    return True


def _held(path: Path) -> bool:
    """Whether some process holds the lock of a file."""
    try:
        handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
    except OSError:
        return False
    try:
        fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError as error:
        return error.errno in (errno.EAGAIN, errno.EACCES)
    finally:
        os.close(handle)
    return False
