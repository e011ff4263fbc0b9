"""How far the planner is from published measurements, by group.

    python -m tests.benchmarks.fidelity --truth DIR [--json] [--page DIR] [--no-baselines]

DIR holds `training.csv`, `inference.csv`, `gemm.csv`, `kernels.csv`, `comm.csv` and `gpus.csv`; what is missing is said.
Errors are shares: 0.1 is 10 %.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from tests.benchmarks.fidelity.page import write_page
from tests.benchmarks.fidelity.report import score
from tests.benchmarks.fidelity.tables import text


def main(arguments: list[str] | None = None) -> int:
    """Score a directory and print the report."""
    parser = argparse.ArgumentParser(description="Score the planner against published measurements.")
    parser.add_argument("--truth", type=Path, required=True, help="folder with training.csv, inference.csv, gemm.csv, ...")
    parser.add_argument("--json", action="store_true", help="print the scores as JSON")
    parser.add_argument("--page", type=Path, help="write a page with plots into this folder")
    parser.add_argument("--no-baselines", action="store_true", help="leave out the baselines")
    options = parser.parse_args(arguments)
    if not options.truth.is_dir():
        print(f"{options.truth}: no such folder", file=sys.stderr)
        return 2
    report = score(options.truth, not options.no_baselines)
    for line in report.missing:
        print(f"missing: {line}", file=sys.stderr)
    if options.page is not None:
        write_page(report, options.page)
    print(json.dumps(report.json, indent=2, allow_nan=False) if options.json else text(report))
    return 0


if __name__ == "__main__":
    sys.exit(main())
