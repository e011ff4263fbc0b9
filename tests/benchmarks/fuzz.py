"""Broken and hostile files for every reader, many of them.

    python -m tests.benchmarks.fuzz [--inputs 200000] [--seed 0] [--only problem,dot]

An input counts as survived when its reader answers, or refuses it in one message, within ten processor seconds and four
gigabytes, and nothing is written. Everything else is a finding: it is printed with its traceback, and its input is kept
under --keep.
"""

from __future__ import annotations

import argparse
import contextlib
import math
import random
import resource
import signal
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import yaml

from planner.files import parse_json
from tests.fuzz.mutate import inputs, scrambled
from tests.fuzz.readers import REFUSALS, Reader, readers, store_readers
from tests.fuzz.verbs import verbs

SECONDS = 10
"""Of the processor, so that a busy machine finds nothing that an idle one would not."""
WAITING_S = 300
BYTES = 4 * 10**9
KEPT = 5
SHARE = {
    "problem": 0.4,
    "plan": 0.25,
    "result": 0.25,
    "sweep": 0.25,
    "index": 0.5,
    "index of a batch": 0.1,
    "certificate renewed": 0.25,
}
VERB_SHARE = 0.25
"""Readers that take longer get fewer inputs, and whole verbs the fewest."""


class SlowError(Exception):
    """A reader took too long."""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--inputs", type=int, default=200_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", default="")
    parser.add_argument("--keep", type=Path, default=Path("fuzz-findings"))
    given = parser.parse_args()
    resource.setrlimit(resource.RLIMIT_AS, (BYTES, BYTES))
    watch()
    total: Counter[str] = Counter()
    with tempfile.TemporaryDirectory() as name:
        scratch = Path(name)
        sources = _sources(scratch, given.seed)
        chosen = [name for name in sources if not given.only or name in given.only.split(",")]
        whole = sum(map(_share, chosen))
        for name in chosen:
            count = math.ceil(given.inputs * _share(name) / whole)
            total.update(_fuzz(name, *sources[name], count, given.keep))
    print(
        f"all: {total['inputs']:,} inputs, {total['read']:,} read, {total['refused']:,} refused, {total['findings']} findings"
    )
    return 1 if total["findings"] else 0


def _share(name: str) -> float:
    return VERB_SHARE if name.startswith("planner ") else SHARE.get(name, 1.0)


def _sources(scratch: Path, seed: int) -> dict[str, tuple[Path, Iterator[bytes], Callable[[Path], object]]]:
    """For every reader: the file that it is given, what is written there, and the reader."""
    found: dict[str, tuple[Path, Iterator[bytes], Callable[[Path], object]]] = {}
    for reader in (*readers(), *verbs()):
        folder = scratch / reader.name
        folder.mkdir()
        draw = random.Random(f"{seed} {reader.name}")
        found[reader.name] = (folder / reader.file, _variants(reader, draw), reader.read)
    for name, path, read in store_readers(scratch):
        found[name] = (path, _broken(path.read_bytes(), random.Random(f"{seed} {name}")), read)
    return found


def _variants(reader: Reader, draw: random.Random) -> Iterator[bytes]:
    as_json = reader.file.endswith(".json")
    parse = (lambda text: parse_json(text, "")) if as_json else yaml.safe_load
    streams = [inputs(parse(text) if reader.data else None, text, as_json, draw) for text in reader.seeds]
    while True:
        yield next(draw.choice(streams))


def _broken(data: bytes, draw: random.Random) -> Iterator[bytes]:
    while True:
        yield scrambled(data, draw)


def _fuzz(
    name: str, path: Path, variants: Iterator[bytes], read: Callable[[Path], object], count: int, keep: Path
) -> Counter[str]:
    """Give a reader many inputs; returns how it went."""
    tally: Counter[str] = Counter()
    sound = path.read_bytes() if path.exists() else None
    path.write_bytes(b"")
    start, slowest, there, told = time.monotonic(), 0.0, _names(path), Counter[str]()
    for _ in range(count):
        data = next(variants)
        path.write_bytes(data)
        began = time.process_time()
        outcome, text = attempt(read, path)
        slowest = max(slowest, time.process_time() - began)
        if _names(path) != there:
            outcome, text = "findings", f"files were written: {_names(path) - there}"
        tally.update(("inputs", outcome))
        if outcome == "findings":
            told[text.strip().splitlines()[-1]] += 1
            if told[text.strip().splitlines()[-1]] <= 1 and len(told) <= KEPT:
                keep.mkdir(exist_ok=True)
                (keep / f"{name}-{tally['findings']}{path.suffix}").write_bytes(data)
                print(f"{name}: {text}", flush=True)
    if sound is not None:
        path.write_bytes(sound)
    seconds = time.monotonic() - start
    print(f"{name}: {tally['inputs']:,} inputs, {tally['read']:,} read, {tally['refused']:,} refused, "
          f"{tally['findings']} findings, slowest {slowest:.2f} s, {seconds:.0f} s", flush=True)  # fmt: skip
    for line, number in told.most_common():
        print(f"    {number} x {line}", flush=True)
    return tally


def attempt(read: Callable[[Path], object], path: Path) -> tuple[str, str]:
    """What a reader makes of a file: `read`, `refused`, or `findings` with its traceback."""
    signal.setitimer(signal.ITIMER_PROF, SECONDS)
    signal.alarm(WAITING_S)
    try:
        read(path)
        return "read", ""
    except REFUSALS as error:
        message = str(error)
        if not message or len(message) > 100_000:
            return "findings", f"a message of {len(message)} characters"
        return "refused", message
    except Exception:
        return "findings", traceback.format_exc()
    finally:
        with contextlib.suppress(SlowError):
            signal.setitimer(signal.ITIMER_PROF, 0)
            signal.alarm(0)


def watch() -> None:
    """Have a reader that takes too long end in a `SlowError`."""
    signal.signal(signal.SIGPROF, _slow)
    signal.signal(signal.SIGALRM, _slow)


def _slow(number: int, frame: object) -> None:
    raise SlowError(f"more than {SECONDS} s of the processor, or {WAITING_S} s in all")


def _names(path: Path) -> set[str]:
    return {place.name for place in path.parent.iterdir() if not place.name.endswith("-journal")}


if __name__ == "__main__":
    raise SystemExit(main())
