"""Small sweeps, and what a store holds apart from times: two stores are the same when this is."""

from __future__ import annotations

import hashlib
import sqlite3
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import yaml

from planner.batch.drive import Batch
from planner.batch.engines import Engine, SerialEngine
from planner.batch.events import Tally
from planner.batch.folders import FACTS
from planner.batch.index import NAME
from planner.batch.summary import write_summaries
from planner.batch.sweep import read_sweep

ROOT = Path(__file__).resolve().parents[3]
TINY = {
    "name": "tiny", "layers": 1, "hidden": 128, "attention": {"heads": 2, "kv_heads": 2, "head_dim": 64},
    "ffn": {"kind": "dense", "hidden": 256}, "vocab": 0,
}  # fmt: skip


def tiny_sweep(
    batches: Sequence[object] = (1, 2, 4), prompts: Sequence[object] = (16, 32), **more: object
) -> dict[str, object]:
    """A sweep of problems that take some hundredths of a second each."""
    return {
        "schema": "planner.sweep/1", "name": "tiny", "model": TINY, "cluster": "1x1-h100",
        "workload": {"phase": "prefill", "logits": "none"},
        "sweep": {"workload.batch": list(batches), "workload.prompt": list(prompts)}, **more,
    }  # fmt: skip


def write_sweep(folder: Path, content: dict[str, object], name: str = "sweep.yaml") -> Path:
    """Write a sweep as a file."""
    path = folder / name
    path.write_text(yaml.safe_dump(content, sort_keys=False))
    return path


def run_sweep(path: Path, root: Path, engine: Engine | None = None, **more: object) -> Tally:
    """Run a sweep with its summaries, in this process."""
    sweep = read_sweep(path)
    tally = Batch(sweep, root, engine or SerialEngine(), **more).run()
    write_summaries(root, sweep.summaries)
    return tally


def command(*arguments: object) -> list[str]:
    """The command line of the planner."""
    return [sys.executable, "-m", "planner", *map(str, arguments)]


def planner(*arguments: object, **more: object) -> subprocess.CompletedProcess[str]:
    """Run the planner to its end."""
    return subprocess.run(command(*arguments), cwd=ROOT, capture_output=True, text=True, timeout=300, check=False, **more)


def contents(root: Path) -> dict[str, object]:
    """The index without its times, and the digest of every file but the times of the runs and the index itself."""
    database = sqlite3.connect(f"{(root / NAME).as_uri()}?mode=ro", uri=True)
    try:
        tables = {name: database.execute(f"SELECT * FROM {name} ORDER BY 1, 2").fetchall() for name in ("runs", "points")}
        claims = database.execute("SELECT COUNT(*) FROM claims").fetchone()[0]
    finally:
        database.close()
    files = {
        path.relative_to(root).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(root.rglob("*"))
        if path.is_file() and path.name not in (FACTS, NAME)
    }
    return {**tables, "claims": claims, "files": files}
