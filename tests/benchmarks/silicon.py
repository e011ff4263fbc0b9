"""How well a measured table prices what it does not hold: half of aiconfigurator-core's rows, left out at random.

    pip install 'parallelism-planner[silicon]' && python -m tests.benchmarks.silicon h100 b200

prints, for each table of a GPU kind, the error of the table on the rows left out, and the fitted formula's on the same rows.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from planner.clusters import load_gpu
from planner.costs import Roofline, Table
from planner.costs.kernels import AttentionClass
from planner.costs.rows import Measurements, Sample
from planner.costs.silicon import STRAYS, silicon_measurements

Key = str | AttentionClass


def prices(source: Table | Roofline, key: Key, points: NDArray[np.float64]) -> NDArray[np.float64]:
    """Seconds of points (rows, sizes)."""
    if isinstance(key, str):
        m, k, n, batch = points.T
        return source.get_time(m, k, n, batch, key)
    b, h, kv, q, length, qk, v = points.T
    return source.attention(b, h, kv, q, length, qk, v, key.causal, key.dtype, key.kv_dtype, key.shared_kv)


def lines(kind: str, name: str, seed: int) -> Iterator[str]:
    """One line for each table of a GPU kind."""
    formula, found = Roofline(load_gpu(kind)), silicon_measurements(name, kind)
    both: dict[Key, Sample] = {**found.products, **found.attention}
    for key, sample in both.items():
        kept = np.random.default_rng(seed).random(len(sample.seconds)) < 0.5
        half = {key: Sample(sample.points[kept], sample.seconds[kept])}
        rows = Measurements(half, {}) if isinstance(key, str) else Measurements({}, half)
        rest, seconds = sample.points[~kept], sample.seconds[~kept]
        off = [np.abs(prices(source, key, rest) / seconds - 1) for source in (Table(rows, formula, STRAYS), formula)]
        table, plain = (f"{100 * np.median(x):.1f} % ({100 * np.quantile(x, 0.9):.0f} %)" for x in off)
        title = f"products {key}" if isinstance(key, str) else f"{key.family} {key.dtype}, cache {key.kv_dtype}"
        yield f"| {kind} | {title} | {len(seconds):,} | {table} | {plain} |"


def main() -> None:
    """The table of errors: median (90th percentile)."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kinds", nargs="+")
    parser.add_argument("--table", default="silicon", help="silicon[:SYSTEM[/BACKEND]]")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    print("| GPU | table | rows left out | table | formula |\n|---|---|--:|--:|--:|")
    for kind in given.kinds:
        for line in lines(kind, given.table, given.seed):
            print(line)


if __name__ == "__main__":
    main()
