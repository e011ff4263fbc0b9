"""Every reader of files from outside, with the sound files that broken ones are made from."""

from __future__ import annotations

import itertools
import json
import sqlite3
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import yaml

import planner
import search_spaces
from planner.batch.folders import FACTS, read_run, run_folders
from planner.batch.index import NAME
from planner.batch.listing import read_listings
from planner.batch.origin import read_origin, write_origin
from planner.batch.points import spec_of
from planner.batch.query import FIELDS, Question, answer
from planner.batch.sweep import read_sweep, read_table
from planner.batch.where import parse_where
from planner.batch.work import ask
from planner.certify.document import digests, read_certificate
from planner.certify.refusal import RefusedError
from planner.certify.verify import verify
from planner.certify.write import certificate
from planner.check.claims import claims_of, read_claims
from planner.clusters import load_cluster, load_gpu
from planner.costs import Roofline, Table, load_table
from planner.errors import InputError, PlannerError
from planner.files import read_json, read_text
from planner.inspect.inspection import inspect_file
from planner.models import load_model
from planner.problem import load_plan, load_problem
from planner.search import search
from planner.workload import load_workload
from tests.planner.batch.stores import run_sweep, tiny_sweep, write_sweep

ROOT = Path(__file__).resolve().parents[2]
LIBRARY = Path(search_spaces.__file__).parent / "library"
CLUSTERS = Path(planner.__file__).parent / "clusters"
REFUSALS = (PlannerError, RefusedError)
CLUSTER = """name: pool
nodes: [{kind: h100, count: 2, gpus: 8}, {kind: mine, count: 1, gpus: 4}]
kinds: {mine: {like: h100, memory_mib: 144384, network: {gb_per_s: 12.5}}}
network: {gb_per_s: 25, latency_us: 6, nics_per_node: 4}
price_per_gpu_hour: {h100: 2.5}
"""
WORKLOADS = (
    "phase: decode\nbatch: 64\ncontext: 8192\nexpert_load: [1, 2, 3, 4]\n",
    "schema: planner.workload/1\nphase: prefill\nbatch: 8\nprompt: 512\nlogits: all\nkeep_kv_cache: false\n"
    "expert_load: [[1, 2], [3, 4.5]]\n",
)
MEASURED = "m,k,n,dtype,batch,time_us\n128,256,512,bf16,1,3.5\n256,256,512,bf16,1,4.5\n128,256,512,fp8,2,2e0\n"
MEASURED_MORE = (
    "op,batch,heads,kv_heads,q_len,kv_len,qk_dim,v_dim,causal,dtype,kv_dtype,ranks,nodes,bytes,m,k,n,time_ms,gpu\n"
    "attention,1,8,2,1,100,64,64,1,bf16,fp8,,,,,,,0.01,x\nall_reduce,,,,,,,,,,,8,1,1024,,,,0.02,x\n"
    "gemm,1,,,,,,,,bf16,,,,,16,16,16,0.001,y\n"
)
PLAN = """problem: helix
stages: [{layers: 1, devices: [0, 1, 2, 3, 4, 5, 6, 7]}, {layers: 1, devices: [8, 9, 10, 11, 12, 13, 14, 15]}]
attention: {head_groups: 4, dimension_segments: 2, heads_per_group: [4, 4, 4, 4]}
mlp: {ways: 8}
micro_batches: 64
"""
SWEEP = """schema: planner.sweep/1
name: all of it
include: []
problems: [helix, {name: mine, problem: layer_wise, set: {workload.batch: 64}}]
sweep: {workload.batch: {from: 8, to: 64, times: 2}, objective: [latency, cost]}
zip: [{workload.prompt: [100, 200], plan.micro_batches: [1, 2]}]
exclude: [{workload.batch: {above: 32}, objective: cost}, {workload.batch: [8, 16]}]
options: {seed: 1, time_limit_s: 5, max_latency_ms: 100.5}
output: {summary: [md, csv]}
"""
TABLE = (
    "name,model,cluster,workload.batch,workload.phase,workload.context,objective\n"
    'a,llama-3.1-70b,2x8-h100,64,decode,4096,latency\nb,mixtral-8x7b,"1x8-h100+1x8-a100-80gb",8,decode,128,cost\n'
)
DOT = 'digraph "a b" { rankdir=LR; node [shape=box]; a [label="MatMul m=4 k=8 n=2 GPU 0"]; b [label=<<b>x</b>>]; a -> b -> c [label="all_reduce 3"]; subgraph cluster_0 { d; e } d -> e }\n'  # noqa: E501
WHERE = "status = optimal and (batch >= 64 or not model ~ 'llama') and label in (a, \"b c\", 3) and error is not null"


@dataclass(frozen=True)
class Reader:
    """How a kind of file is read, under which name, and sound ones."""

    name: str
    file: str
    read: Callable[[Path], object]
    seeds: Sequence[str]
    data: bool = True


def readers() -> list[Reader]:
    """All readers of text files."""
    whole = [yaml.safe_load(path.read_text()) for path in sorted(LIBRARY.glob("*.yaml"))]
    problems = [yaml.safe_dump({**problem, "claims": problem.get("claims", [])[:3]}, sort_keys=False) for problem in whole]
    configs = [path.read_text() for path in sorted((ROOT / "tests/golden/hf").glob("*.json"))]
    stored_plan = (ROOT / "results/helix/plan.yaml").read_text()
    stored = [(ROOT / f"results/{name}/result.json").read_text() for name in ("helix", "ma_separation")]
    claims = [yaml.safe_dump(_claims(problem, at)) for problem in whole for at in range(0, 24, 8)]
    return [
        Reader("problem", "p.yaml", lambda path: _problem(path), problems),
        Reader("plan", "p.yaml", load_plan, [PLAN, stored_plan.replace("problem.yaml", "helix")]),
        Reader("claims", "c.yaml", read_claims, claims),
        Reader("dot", "d.dot", inspect_file, [DOT, *_dots()], data=False),
        Reader("config.json", "config.json", load_model, configs),
        Reader("cluster", "c.yaml", load_cluster, clusters()),
        Reader("workload", "w.yaml", load_workload, WORKLOADS),
        Reader("measured", "m.csv", _measured, [MEASURED, MEASURED_MORE], data=False),
        Reader("sweep", "s.yaml", _sweep, [SWEEP, yaml.safe_dump(tiny_sweep())]),
        Reader("table", "t.csv", lambda path: [spec_of(point) for point in read_table(path).points()], [TABLE], data=False),
        Reader("result", "result.json", load_plan, stored),
        Reader("certificate", "c.json", _certificate, certificates()),
        Reader("certificate renewed", "c.json", _renewed, certificates()),
        Reader("where", "w.txt", _where, [WHERE], data=False),
    ]  # fmt: skip


def store_readers(scratch: Path) -> list[tuple[str, Path, Callable[[Path], object]]]:
    """Readers of a store's files, each with the file that is to be broken; `scratch` is for a sound store."""
    sound = scratch / "sound"
    if not sound.exists():
        path = write_sweep(scratch, tiny_sweep((1, 2), (16,)))
        run_sweep(path, sound)
        write_origin(sound, path, table=False)
    folder = next(iter(run_folders(sound)))
    listing = next((sound / "sweeps").glob("*.jsonl"))
    return [
        ("index", sound / NAME, _index),
        ("index of a batch", sound / NAME, lambda path: run_sweep(scratch / "sweep.yaml", sound)),
        ("record", sound / folder / "record.json", lambda path: read_run(sound, folder, whole=False)),
        ("run.json", sound / folder / "run.json", lambda path: read_run(sound, folder, whole=False)),
        ("listing", listing, lambda path: [list(lines) for _, lines in read_listings(sound, [])]),
        ("origin", sound / "sweeps" / FACTS, lambda path: read_origin(sound)),
    ]


def _problem(path: Path) -> object:
    problem = load_problem(path)
    return claims_of(problem.claims, problem.name)


def _claims(problem: dict[str, Any], at: int) -> dict[str, object]:
    """A claims file with eight of a problem's claims."""
    return {"schema": "planner.claims/1", "problem": problem["name"], "claims": problem["claims"][at : at + 8]}


def _dots() -> list[str]:
    found = sorted((ROOT / "results").glob("*/dag/*.dot"), key=lambda path: path.stat().st_size)
    return [path.read_text() for path in found[:3]]


def _sweep(path: Path) -> object:
    sweep = read_sweep(path)
    sweep.count()
    return [ask(_spec(point)) for point in itertools.islice(sweep.points(), 3)]


def _spec(point: object) -> dict[str, object]:
    try:
        return spec_of(point)
    except InputError:
        return {"options": {}, "sets": {}}


def clusters() -> list[str]:
    """Clusters of all that their format has."""
    return [CLUSTER, *(path.read_text() for path in sorted(CLUSTERS.glob("*.yaml")))]


def tiny_problem() -> dict[str, Any]:
    """A problem that takes some hundredths of a second."""
    workload = {"phase": "prefill", "batch": 2, "prompt": 16, "logits": "none"}
    return {"name": "tiny", "model": tiny_sweep()["model"], "cluster": "1x2-h100", "workload": workload}


@cache
def certificates() -> list[str]:
    """The certificate of a tiny problem."""
    return [json.dumps(certificate(search(load_problem(tiny_problem()), details=False)))]


def _certificate(path: Path) -> object:
    return read_certificate(read_json(path), str(path))


def _renewed(path: Path) -> object:
    """What a forger can do: change a certificate and compute its digests anew."""
    raw = read_json(path)
    return verify({**raw, "digests": digests(raw)}, samples=5)


def _measured(path: Path) -> object:
    return Table(load_table(path), Roofline(load_gpu("h100"))).get_time(100, 300, 500)


def _where(path: Path) -> object:
    sql, values = parse_where(read_text(path), _column)
    sqlite3.connect(":memory:").execute(f"SELECT 1 FROM (SELECT 1 AS a) WHERE {sql}", values).fetchall()
    return sql


def _column(name: str) -> tuple[str, list[object]]:
    if name not in FIELDS:
        raise InputError("field", name, "a field")
    return "a", []


def _index(path: Path) -> object:
    return answer(path.parent, Question(sort=("value",), best_by="model", where="batch > 0 or label ~ x"))
