"""Where a store's last sweep came from, so that it can be resumed by the store's name alone."""

from __future__ import annotations

import secrets
from pathlib import Path

from planner.batch.folders import FACTS, make_folder, unwritable
from planner.batch.listing import FOLDER
from planner.errors import InputError
from planner.fields import Fields
from planner.files import read_json
from planner.store import stable_json

SCHEMA = "planner.origin/1"


def write_origin(root: Path, file: Path, *, table: bool) -> None:
    """Note the file of a sweep; a fact of this machine, so it goes where times go."""
    text = stable_json({"schema": SCHEMA, "file": str(file.absolute()), "table": table})
    temporary = root / FOLDER / f".{secrets.token_hex(4)}.tmp"
    try:
        root.mkdir(parents=True, exist_ok=True)
        make_folder(root / FOLDER)
        try:
            temporary.write_text(text, encoding="utf-8")
            temporary.replace(root / FOLDER / FACTS)
        finally:
            temporary.unlink(missing_ok=True)
    except OSError as error:
        raise unwritable(root, error) from None


def read_origin(root: Path) -> tuple[Path, bool]:
    """The file of the store's last sweep, and whether it is a table; `InputError` where no batch has noted one."""
    path = root / FOLDER / FACTS
    if not path.is_file():
        raise InputError("--resume", str(root), "a store that a batch has begun (--out DIR), or the sweep's file besides")
    fields = Fields(read_json(path), str(path))
    fields.choice("schema", [SCHEMA])
    found = Path(fields.text("file")), fields.boolean("table")
    fields.done()
    return found
