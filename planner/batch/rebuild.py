"""Making the index of a store anew from its folders."""

from __future__ import annotations

import contextlib
from pathlib import Path

from planner.batch.folders import RUNS
from planner.batch.index import NAME, BrokenIndexError, Index
from planner.batch.lease import Owner
from planner.errors import InputError


def open_for_writing(root: Path, owner: Owner, broken: str = "") -> tuple[Index, list[str] | None]:
    """The index for writing; a broken or missing one is made anew, and then what was wrong with the folders is told.

    `broken` says why an index that opens is no good all the same: a page or a cell in it was changed.
    """
    fresh = bool(broken) or not (root / NAME).exists()
    wrong = [broken] if broken else []
    if not broken:
        try:
            index = Index(root)
        except BrokenIndexError as error:
            wrong.append(str(error))
    if wrong:
        for name in (NAME, f"{NAME}-journal"):
            with contextlib.suppress(FileNotFoundError):
                (root / name).rename(owner.workspace / name)
        index, fresh = Index(root), True
    return index, [*wrong, *index.rebuild()] if fresh else None


def rebuild(root: Path) -> list[str]:
    """Read every run folder again; returns what was wrong with those that were left out."""
    if not (root / RUNS).is_dir():
        raise InputError("folder", str(root), "a folder that holds a batch")
    with Owner(root) as owner:
        index, wrong = open_for_writing(root, owner)
        try:
            with index:
                return index.rebuild() if wrong is None else wrong
        except BrokenIndexError as error:
            index, wrong = open_for_writing(root, owner, str(error))
            index.close()
            return wrong or []
