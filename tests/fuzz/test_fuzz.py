"""A bounded share of `tests/benchmarks/fuzz.py` in every test run, with seeds that Hypothesis chooses and shrinks."""

from __future__ import annotations

import json
import random
import signal

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from planner.batch.folders import FOLDER, run_folders
from planner.batch.key import run_folder
from planner.batch.listing import FILE, listing_path
from planner.clusters import load_cluster
from planner.errors import InputError, PlannerError
from planner.models import load_model
from planner.problem import load_plan, load_problem
from planner.search import MOST_GPUS
from planner.workload import load_workload
from tests.benchmarks.fuzz import attempt, watch
from tests.fuzz.mutate import EVIL, inputs, scrambled
from tests.fuzz.readers import readers, store_readers, tiny_problem
from tests.fuzz.verbs import run, verbs
from tests.planner.batch.stores import contents, run_sweep, tiny_sweep, write_sweep

BOUNDED = settings(max_examples=15, deadline=None, suppress_health_check=list(HealthCheck))
FEW = settings(BOUNDED, max_examples=4)
READERS = {reader.name: reader for reader in readers()}
VERBS = {verb.name: verb for verb in verbs()}


@pytest.mark.parametrize("reader", [*READERS.values(), *VERBS.values()], ids=[*READERS, *VERBS])
def test_a_sound_file_is_read(tmp_path, reader):
    for text in reader.seeds:
        (tmp_path / reader.file).write_text(text)
        reader.read(tmp_path / reader.file)


@pytest.mark.parametrize("name", READERS)
@BOUNDED
@given(seed=st.integers(0, 2**32))
def test_a_broken_file_is_read_or_refused(tmp_path_factory, name, seed):
    _try(READERS[name], random.Random(seed), tmp_path_factory.mktemp("fuzz"))


@pytest.mark.parametrize("name", VERBS)
@FEW
@given(seed=st.integers(0, 2**32))
def test_a_broken_file_is_answered_or_refused(tmp_path_factory, name, seed):
    _try(VERBS[name], random.Random(seed), tmp_path_factory.mktemp("fuzz"))


@pytest.fixture(scope="module", autouse=True)
def a_watch():
    """A signal that ends a slow reader, and what was there before."""
    before = {number: signal.getsignal(number) for number in (signal.SIGPROF, signal.SIGALRM)}
    watch()
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("verb", ["search", "evaluate", "validate", "explain", "dag"])
def test_a_cluster_that_a_search_would_take_hours_for_is_refused(tmp_path, verb):
    (tmp_path / "p.yaml").write_text(yaml.safe_dump({**tiny_problem(), "cluster": f"{MOST_GPUS // 8 + 1}x8-h100"}))
    with pytest.raises(PlannerError, match=f"at most {MOST_GPUS} GPUs"):
        run([verb, str(tmp_path / "p.yaml")])


def test_a_reader_that_hangs_is_found(tmp_path, monkeypatch):
    monkeypatch.setattr("tests.benchmarks.fuzz.SECONDS", 0.05)
    outcome, told = attempt(lambda path: sum(1 for _ in iter(int, 1)), tmp_path)
    assert outcome == "findings" and "SlowError" in told


def _try(reader, draw, folder):
    text, as_json = draw.choice(reader.seeds), reader.file.endswith(".json")
    document = (json.loads(text) if as_json else yaml.safe_load(text)) if reader.data else None
    path = folder / reader.file
    path.write_bytes(next(inputs(document, text, as_json, draw)))
    outcome, told = attempt(reader.read, path)
    assert outcome != "findings", told
    assert [place.name for place in folder.iterdir()] == [reader.file]


@BOUNDED
@given(seed=st.integers(0, 2**32))
def test_a_broken_store_is_read_or_refused(tmp_path_factory, seed):
    scratch = tmp_path_factory.getbasetemp() / "fuzzed-store"
    scratch.mkdir(exist_ok=True)
    for _, path, read in store_readers(scratch):
        sound = path.read_bytes()
        try:
            path.write_bytes(scrambled(sound, random.Random(seed)))
            outcome, told = attempt(read, path)
            assert outcome != "findings", told
        finally:
            path.write_bytes(sound)


@pytest.mark.parametrize(
    "name", ["../../x", "/etc/passwd", "a\x00b", "x" * 300, "..", "", "\u202e", "CON/..", "a\nb", "-rf", ".hidden"]
)
def test_a_name_never_becomes_a_path(tmp_path, name):
    folder = run_folder("0" * 32, name)
    assert FOLDER.fullmatch(folder)
    listing = listing_path(tmp_path, name)
    assert listing.parent == tmp_path / "sweeps" and FILE.fullmatch(listing.name) and len(listing.name) < 100


@pytest.mark.parametrize("read", [load_problem, load_plan, load_model, load_cluster, load_workload])
def test_a_home_that_does_not_exist_is_refused(read):
    with pytest.raises(InputError):
        read("~nobody-here/x.yaml")


@pytest.mark.parametrize("part", ["model", "cluster", "workload"])
def test_a_path_that_is_too_long_is_refused(tmp_path, part):
    path = write_sweep(tmp_path, {"model": "gpt2", "workload": "decode:batch=1,context=1", part: "x/" + "y" * 5000 + ".yaml"})
    with pytest.raises(InputError):
        load_problem(path)


@BOUNDED
@given(seed=st.integers(0, 2**32))
def test_no_sweep_writes_outside_its_store(tmp_path_factory, seed):
    draw, outer = random.Random(seed), tmp_path_factory.mktemp("outer")
    name = draw.choice(EVIL[3:6])(draw) + "x"
    content = tiny_sweep((1,), (16,), problems=[{"name": name}, {"name": "bad", "model": name}]) | {"name": name}
    run_sweep(write_sweep(outer, content), outer / "store")
    assert {place.name for place in outer.iterdir()} == {"sweep.yaml", "store"}
    assert {place.name for place in (outer / "store").iterdir()} == {
        "index.sqlite", "runs", "sweeps", "tmp", "summary.csv", "summary.md",
    }  # fmt: skip
    assert len(list(run_folders(outer / "store"))) == 2
    assert contents(outer / "store")["claims"] == 0
