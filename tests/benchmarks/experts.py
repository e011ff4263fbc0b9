"""Skewed expert loads: ``python -m tests.benchmarks.experts [--loads PATH] [--eplb PATH] [--page FILE] [--json]``.

Load: the fullest GPU over the mean, by layer: ours, EPLB (global and hierarchical), longest processing time first, and the
proven lower bound. Time: the slowest GPU of a mixture with its all-to-all, for several numbers of tokens: ours, the
load-balanced placements, a greedy by time, the bound that counts whole experts and the one by the mean; and the hottest experts
on every node, whose copies serve their own node first.

`--loads` is a CSV with a header, a name and a layer in the first columns and a count for each expert in the rest; without it
the measured loads of `tests/golden` are used. `--eplb` is the published `eplb.py`, run as it is beside our own writing of it.
"""

from __future__ import annotations

import argparse
import csv
import json
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from planner.clusters import load_cluster
from planner.evaluate.setting import setting
from planner.files import write_text_atomic
from planner.models import load_model
from planner.solve.experts.costs import Mixture
from planner.solve.experts.load import Balanced, balance
from planner.solve.experts.nodes import node_placements
from planner.solve.experts.timed import fastest
from planner.workload import load_workload
from tests.benchmarks.expert_peers import eplb, load_public_eplb, longest_first, public_eplb

Array = NDArray[np.float64]
GOLDEN = Path(__file__).parent.parent / "golden" / "expert_loads.csv"
CASES = ((32, 0), (32, 32), (32, 64), (64, 0), (64, 64))
GPUS_PER_NODE, ROUTING_GROUPS = 8, 8
ABOUT = """Written by
`python -m tests.benchmarks.experts --loads counts.csv --name prefill_in4096 --tokens "" --page results/experts.md`.
The fullest GPU over the mean for each of DeepSeek-V3's 58 layers with 256 experts, under loads measured with prompts of
4,096 tokens (SGLang's expert statistics on 96 H100, sgl-project/sglang issue 6017). `bound` is what no placement goes
below, `copies` are experts beyond one each in ours; `eplb_global` and `eplb_hierarchical` are the policies of
deepseek-ai/EPLB (written anew from its description; the published file gives the same loads), `longest_first` is the
greedy of the longest processing time, without copies.
"""


def read_loads(path: Path) -> dict[str, tuple[list[int], Array]]:
    """Layers and loads [L, E] under each name of the file."""
    with path.open() as text:
        rows = [row for row in csv.reader(text) if row and not row[0].startswith("#")][1:]
    names = dict.fromkeys(row[0] for row in rows)
    return {
        name: ([int(r[1]) for r in rows if r[0] == name], np.array([r[2:] for r in rows if r[0] == name], dtype=np.float64))
        for name in names
    }


def in_load(loads: Array, gpus: int, spare: int, module: Any) -> dict[str, Any]:
    """Ratios of the fullest GPU over the mean by layer [L], for ours and the others, and the seconds that ours took."""
    slots, nodes = (loads.shape[1] + spare) // gpus, gpus // GPUS_PER_NODE
    start = time.perf_counter()
    found = balance(loads, gpus, slots)
    seconds = time.perf_counter() - start
    mean = loads.sum(axis=1) / gpus
    hierarchical = dict(nodes=nodes, routing_groups=ROUTING_GROUPS)
    others = {
        "eplb_global": [eplb(row, gpus, slots) for row in loads],
        "eplb_hierarchical": [eplb(row, gpus, slots, **hierarchical) for row in loads],
        "longest_first": [longest_first(row, gpus, slots) for row in loads],
    }
    if module is not None:
        others["public_global"] = public_eplb(module, loads, gpus, slots, 1, 1).tolist()
        others["public_hierarchical"] = public_eplb(module, loads, gpus, slots, **hierarchical).tolist()
    return {
        "gpus": gpus, "spare": spare, "seconds": seconds,
        "ours": _ratios(found, "largest", mean), "bound": _ratios(found, "bound", mean), "copies": [b.copies for b in found],
        **{name: (np.array(values) / mean).tolist() for name, values in others.items()},
    }  # fmt: skip


def _ratios(found: tuple[Balanced, ...], name: str, mean: Array) -> list[float]:
    return [getattr(answer, name) / float(m) for answer, m in zip(found, mean, strict=True)]


def in_time(loads: Array, gpus: int, spare: int, tokens: int) -> dict[str, Any]:
    """Microseconds of the slowest GPU by layer [L] for a pass of `tokens` tokens of DeepSeek-V3 on H100 nodes."""
    cluster = load_cluster(f"{gpus // GPUS_PER_NODE}x{GPUS_PER_NODE}-h100")
    env = setting(load_model("deepseek-v3"), load_workload(f"decode:batch={tokens},context=4096"), cluster)
    layer = next(kind for kind in env.kinds if kind.moe)
    mixture = Mixture(env, layer, "dispatch", 1, tuple(range(gpus)), tokens)
    slots = (loads.shape[1] + spare) // gpus
    start = time.perf_counter()
    found = fastest(mixture, loads, slots)
    seconds = time.perf_counter() - start
    even = balance(loads, gpus, slots, exact=False)
    names = [tuple(row) for row in loads.tolist()]
    balanced = mixture.placed_seconds([b.placement for b in even], names)
    local = node_placements(loads, gpus, GPUS_PER_NODE, slots)
    near = replace(mixture, within=GPUS_PER_NODE).placed_seconds(local, names) if local else np.full(len(loads), np.nan)
    return {
        "gpus": gpus, "spare": spare, "tokens": tokens, "seconds": seconds, "copies": [t.copies for t in found],
        "balanced": (balanced * 1e6).tolist(), "ours": [t.seconds * 1e6 for t in found],
        "greedy": [t.greedy_s * 1e6 for t in found], "bound": [t.bound * 1e6 for t in found],
        "mean_bound": [t.fractional * 1e6 for t in found], "near": (near * 1e6).tolist(),
    }  # fmt: skip


def summary_of_load(case: dict[str, Any]) -> dict[str, Any]:
    """What a case comes to over its layers."""
    ours, bound = np.array(case["ours"]), np.array(case["bound"])
    gap = 1.0 - bound / ours
    others = [name for name in case if name.startswith(("eplb", "public", "longest"))]
    return {
        "gpus": case["gpus"], "spare": case["spare"], "layers": ours.size, "seconds": round(case["seconds"], 2),
        "ours": float(ours.mean()), "bound": float(bound.mean()),
        **{name: float(np.mean(case[name])) for name in others},
        "within_1_percent": float((gap <= 0.01).mean()), "largest_gap": float(gap.max()),
        "layers_worse_than_another": int(sum((np.array(case[name]) < ours * (1 - 1e-9)).sum() for name in others)),
    }  # fmt: skip


def summary_of_time(case: dict[str, Any]) -> dict[str, Any]:
    """What a case comes to over its layers."""
    ours, bound, mean = (np.array(case[name]) for name in ("ours", "bound", "mean_bound"))
    gap = 1.0 - bound / ours
    return {
        "gpus": case["gpus"], "spare": case["spare"], "tokens": case["tokens"], "layers": ours.size,
        "seconds": round(case["seconds"], 1), "ours_us": float(ours.mean()),
        "balanced_over_ours": float(np.mean(np.array(case["balanced"]) / ours)),
        "greedy_over_mean_bound": float(np.mean(np.array(case["greedy"]) / mean)),
        "ours_over_mean_bound": float(np.mean(ours / mean)), "gap": float(gap.mean()), "largest_gap": float(gap.max()),
        "copies": float(np.mean(case["copies"])), "near_over_ours": float(np.mean(np.array(case["near"]) / ours)),
    }  # fmt: skip


def table(rows: list[dict[str, Any]]) -> str:
    """Rows as a Markdown table."""
    lines = ["| " + " | ".join(rows[0]) + " |", "|" + "---|" * len(rows[0])]
    for row in rows:
        lines.append("| " + " | ".join(f"{x:.4f}" if isinstance(x, float) else str(x) for x in row.values()) + " |")
    return "\n".join(lines) + "\n"


def page(layers: list[int], cases: list[dict[str, Any]], path: Path) -> None:
    """The loads of every layer as a page of `results`."""
    text = "# Expert placement by layer\n\n" + ABOUT
    for case in cases:
        text += f"\n## {case['gpus']} GPUs, {case['spare']} spare slots\n\n{table(by_layer(layers, case))}"
    write_text_atomic(path, text)


def by_layer(layers: list[int], case: dict[str, Any]) -> list[dict[str, Any]]:
    """One row for each layer."""
    names = [name for name, values in case.items() if isinstance(values, list)]
    return [{"layer": layer, **{name: case[name][at] for name in names}} for at, layer in enumerate(layers)]


def main() -> None:
    """Compare on the loads that are given."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--loads", type=Path, default=GOLDEN, help="a CSV of expert counts")
    parser.add_argument("--name", help="only the rows of this name")
    parser.add_argument("--eplb", type=Path, help="the published eplb.py")
    parser.add_argument("--tokens", default="32,512,16384", help="tokens of a pass for the times; empty for none")
    parser.add_argument("--timed-layers", type=int, default=8, help="layers that are timed, spread over all")
    parser.add_argument("--page", type=Path, help="write a row for every layer there")
    parser.add_argument("--json", action="store_true")
    asked = parser.parse_args()
    module = load_public_eplb(asked.eplb) if asked.eplb else None
    sizes = [int(x) for x in asked.tokens.split(",") if x]
    told: dict[str, Any] = {}
    for name, (layers, loads) in read_loads(asked.loads).items():
        if asked.name not in (None, name):
            continue
        in_loads = [in_load(loads, gpus, spare, module) for gpus, spare in CASES]
        few = np.unique(np.linspace(0, len(layers) - 1, min(asked.timed_layers, len(layers))).round().astype(int))
        times = [in_time(loads[few], gpus, spare, tokens) for tokens in sizes for gpus, spare in CASES]
        told[name] = {"layers": layers, "load": in_loads, "timed_layers": [layers[i] for i in few], "time": times}
        if asked.json:
            continue
        print(f"## {name}\n")
        print(table([summary_of_load(case) for case in in_loads]))
        if times:
            print(table([summary_of_time(case) for case in times]))
        if asked.page:
            page(layers, in_loads, asked.page)
    if asked.json:
        print(json.dumps(told))


if __name__ == "__main__":
    main()
