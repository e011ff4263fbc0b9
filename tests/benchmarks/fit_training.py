"""Fit the constants of training stacks to published runs: `python -m tests.benchmarks.fit_training --truth DIR [--write]`.

Two thirds of the models are fitted (by a hash of their name), the others test. Least squares of the logarithm of predicted over
measured, with a loss that grows linearly for outliers, every group of rows weighed by the square root of its size, and a weak
pull towards the starting values, so that what the runs do not tell stays where it was.
"""

from __future__ import annotations

import argparse
import copy
import hashlib
import re
import time
from collections import Counter
from collections.abc import Hashable, Iterable, Sequence
from pathlib import Path
from statistics import fmean, median
from typing import Any

import numpy as np
from numpy.typing import NDArray

from planner.costs.training import FILE, calibrated
from tests.benchmarks.fidelity.clusters import Machines
from tests.benchmarks.fidelity.report import status_reason, training_seconds
from tests.benchmarks.fidelity.rows import Unusable, read_table, text
from tests.benchmarks.fidelity.training_rows import job_of
from tests.benchmarks.training_model import Sample, raw_prices, sample_of, seconds
from tests.benchmarks.training_spreads import fit_spreads

Array = NDArray[np.float64]
SCALE, PULL = 0.06, 0.4  # where the loss turns linear, and how hard a factor of e from its start is pulled back
GPUS, DTYPES = "sustained.gpus.", "sustained.dtypes."
# What is fitted, in this order, with starting values: to the runs of a stack, its own constants and those of GPUs.
STEPS: tuple[tuple[str, dict[str, float]], ...] = (
    ("megatron-core", {GPUS + "h100": 1.1, GPUS + "b200": 1.0, GPUS + "gb200": 1.0, GPUS + "b300": 1.0, GPUS + "gb300": 0.9,
                       DTYPES + "hopper fp8": 0.9, DTYPES + "blackwell fp8": 0.9, DTYPES + "blackwell nvfp4": 0.9,
                       "attention.hopper": 1.3, "attention.blackwell": 1.4, "memory": 0.7, "loss": 1.4,
                       "communication": 0.5, "dispatch": 0.7, "moe": 2.0, "host_s": 2e-5, "mixture_s": 1e-4, "gradients": 1.1,
                       "exposed": 0.1, "step_s": 1e-2}),
    ("pytorch-fsdp", {GPUS + "a100-80gb": 1.05, "gemm": 1.05, "attention.hopper": 2.4, "attention.ampere": 1.25, "memory": 1.0,
                      "loss": 1.4, "communication": 1.0, "moe": 1.0, "host_s": 3e-5, "gradients": 1.0, "exposed": 0.5,
                      "step_s": 5e-3}),
    ("megatron-deepspeed", {"gemm": 1.1, "attention.other": 1.0, "memory": 1.0, "loss": 4.0, "communication": 1.0,
                            "host_s": 5e-5, "gradients": 1.0, "accumulate_bytes": 20.0, "blocking": 1.0, "step_s": 3e-3}),
    ("megatron-2022", {"gemm": 1.05, "attention.other": 0.9, "memory": 0.7, "loss": 2.0, "communication": 0.9, "host_s": 4e-5,
                       "blocking": 0.5}),
    ("jax", {"gemm": 1.05, "attention.hopper": 1.5, "memory": 0.7, "gradients": 1.1, "exposed": 0.2}),
)  # fmt: skip


def held_out(model: str) -> bool:
    """Whether the runs of a model only test: one in three, by a hash of its name."""
    return hashlib.sha256(model.lower().encode()).digest()[0] % 3 == 0


def load_samples(folder: Path) -> tuple[list[Sample], Counter[str]]:
    """All runs of a truth folder that state a plan, and why others do not serve."""
    machines, prices = Machines(read_table(folder, "gpus.csv", [])), raw_prices(calibrated())
    found: list[Sample] = []
    unusable: Counter[str] = Counter()
    for row in read_table(folder, "training.csv", []).rows:
        measured = training_seconds(row)
        if status_reason(row) is not None or measured is None:
            unusable["no measured step"] += 1
            continue
        job = job_of(row, machines)
        sample = job if isinstance(job, Unusable) else sample_of(row, job, measured, prices)
        if isinstance(sample, Unusable):
            unusable[sample.reason] += 1
        else:
            found.append(sample)
    return found, unusable


def place(data: dict[str, Any], stack: str, path: str) -> tuple[dict[str, Any], str]:
    """The mapping and the key that a parameter's path means."""
    names = path.split(".", 2) if path.startswith("sustained.") else ["stacks", stack, *path.split(".")]
    for name in names[:-1]:
        data = data.setdefault(name, {})
    return data, names[-1]


def with_values(data: dict[str, Any], stack: str, values: dict[str, float]) -> dict[str, Any]:
    """A calibration with some parameters of a stack changed."""
    found = copy.deepcopy(data)
    for path, value in values.items():
        mapping, key = place(found, stack, path)
        mapping[key] = float(value)
    return found


def fit_stack(
    samples: Sequence[Sample], data: dict[str, Any], stack: str, start: dict[str, float], evaluations: int
) -> dict[str, Any]:
    """The calibration with the parameters of one step fitted to the samples of its stack."""
    from scipy.optimize import least_squares

    groups = Counter(sample.group for sample in samples)
    weight = np.array([groups[sample.group] ** -0.25 for sample in samples])
    weight /= weight.mean()
    target = np.log([sample.measured for sample in samples])
    distinct: dict[Hashable, int] = {}
    index = np.array([distinct.setdefault(sample.key, len(distinct)) for sample in samples])
    first = [samples[int(np.argmax(index == i))] for i in range(len(distinct))]
    names, begin = list(start), np.log(list(start.values()))

    def residuals(x: Array) -> Array:
        own = with_values(data, stack, dict(zip(names, np.exp(x), strict=True)))
        predicted = np.log([seconds(sample, own) for sample in first])[index]
        return np.concatenate([(predicted - target) * weight, (x - begin) * PULL])

    found = least_squares(residuals, begin, loss="soft_l1", f_scale=SCALE, max_nfev=evaluations, diff_step=0.02)
    return with_values(data, stack, dict(zip(names, np.exp(found.x), strict=True)))


def fit_all(samples: Sequence[Sample], data: dict[str, Any], evaluations: int) -> dict[str, Any]:
    """All steps, one after another, on the models that are fitted; what was fitted before leaves no trace."""
    for stack, start in STEPS:
        data = with_values(data, stack, start)
    for stack, start in STEPS:
        own = [sample for sample in samples if sample.job.stack == stack and not held_out(sample.name)]
        began = time.perf_counter()
        data = fit_stack(own, data, stack, start, evaluations)
        print(f"{stack}: {len(own)} rows, {time.perf_counter() - began:.0f} s")
    return data


def print_errors(samples: Iterable[Sample], data: dict[str, Any]) -> None:
    """Errors by group, fitted models apart from the others."""
    by_group: dict[str, list[tuple[float, bool]]] = {}
    for sample in samples:
        by_group.setdefault(sample.group, []).append((seconds(sample, data) / sample.measured, held_out(sample.name)))
    print(f"{'group':32s} {'fitted':>28s}   {'held out':>28s}")
    totals: dict[bool, list[float]] = {False: [], True: []}
    for group in sorted(by_group):
        cells = []
        for side in (False, True):
            ratios = [ratio for ratio, held in by_group[group] if held == side]
            if ratios:
                off = [abs(r - 1.0) for r in ratios]
                totals[side].append(fmean(off))
                cells.append(f"{len(ratios):4d} mape {fmean(off):5.1%} bias {median(ratios):.3f}")
            else:
                cells.append("")
        print(f"{group:32s} {cells[0]:>28s}   {cells[1]:>28s}")
    print("mean over groups: fitted " + f"{fmean(totals[False]):.1%}, held out {fmean(totals[True]):.1%}")


def written(data: dict[str, Any], committed: str) -> str:
    """The committed file with the fitted numbers in the place of its own; comments and sources stay."""
    out = committed
    for stack, start in STEPS:
        for path in start:
            mapping, key = place(data, stack, path)
            line = path.split(".", 2)[1] if path.startswith("sustained.") else ""
            scope = rf"(?m)^  {line}: {{.*$" if line else rf"(?m)^  {re.escape(stack)}:\n(?:    .*\n)*"
            block = re.search(scope, out)
            number = rf"(?<=[{{ ]){re.escape(key)}: [0-9.e+-]+"
            if block is None or not re.search(number, block[0]):
                raise ValueError(f"{FILE.name} has no place for {stack} {path}")
            changed = re.sub(number, f"{key}: {mapping[key]:.4g}", block[0], count=1)
            out = out[: block.start()] + changed + out[block.end() :]
    spreads = ", ".join(f"{name}: {value:.3g}" for name, value in data["spreads"].items())
    out = re.sub(r"(?m)^spreads: .*$", f"spreads: {{{spreads}}}", out)
    names = "".join(f"\n  - {model}" for model in data["fitted_models"])
    return re.sub(r"(?m)^fitted_models:(?: \[.*\])?(?:\n  - .*)*", f"fitted_models:{names}", out)


def main() -> None:
    """Fit, print, and write where that was asked for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--truth", type=Path, required=True)
    parser.add_argument("--write", action="store_true", help="write planner/costs/training.yaml")
    parser.add_argument("--evaluations", type=int, default=10, help="most evaluations of a step's Jacobian")
    asked = parser.parse_args()
    samples, unusable = load_samples(asked.truth)
    print(f"{len(samples)} runs; left out: {dict(unusable.most_common())}")
    data = fit_all(samples, copy.deepcopy(calibrated()), asked.evaluations)
    data["spreads"] = fit_spreads([s for s in samples if not held_out(s.name)], data)
    data["fitted_models"] = sorted({text(s.row, "model") for s in samples if not held_out(s.name)})
    print_errors(samples, data)
    if asked.write:
        FILE.write_text(written(data, FILE.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    main()
