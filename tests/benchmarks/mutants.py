"""Mutation test of the validator: python -m tests.benchmarks.mutants --count 2500 --seed 0."""

from __future__ import annotations

import argparse
import time
from collections import Counter
from collections.abc import Sequence

from tests.mutants.campaign import Result, campaign, scores
from tests.mutants.judge import EQUIVALENT
from tests.mutants.subjects import extras, library


def main() -> None:
    """Run a campaign over all library plans and some more; print scores, checks and survivors."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=2500, help="mutants to make")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--equivalent", action="store_true", help="list every equivalent mutant with its criterion")
    options = parser.parse_args()
    subjects, start = [*library(), *extras()], time.perf_counter()
    results = list(campaign(subjects, options.count, options.seed))
    print(f"{len(results)} mutants of {len(subjects)} plans and their twins, {time.perf_counter() - start:.0f} s\n")
    print("\n".join(_table(results)))
    print("\n".join(_checks(results)))
    _list("Survivors", [result for result in results if result.verdict.survived])
    if options.equivalent:
        _list("Equivalent", [result for result in results if result.verdict.equivalent])


def _table(results: Sequence[Result]) -> list[str]:
    rows = ["| Mutation operator | Mutants | Found | Equivalent | Survived |", "|---|---:|---:|---:|---:|"]
    total: Counter[str] = Counter()
    for operator, fates in sorted(scores(results).items()):
        rows.append(_row(operator.replace("_", " "), fates))
        total += fates
    rows.append(_row("**all**", total))
    rows += [
        "",
        *(f"- {number} equivalent by *{name}*: {EQUIVALENT[name]}" for name, number in total.items() if name in EQUIVALENT),
    ]
    return rows


def _row(name: str, fates: Counter[str]) -> str:
    found, survived = fates["found"], fates["survived"]
    return f"| {name} | {fates.total()} | {found} | {fates.total() - found - survived} | {survived} |"


def _checks(results: Sequence[Result]) -> list[str]:
    """How many mutants each check was the first to find."""
    codes = Counter(result.verdict.found for result in results if result.verdict.found)
    rows = ["", "| First finding | Mutants |", "|---|---:|"]
    return [*rows, *(f"| `{code}` | {number} |" for code, number in sorted(codes.items())), ""]


def _list(title: str, results: Sequence[Result]) -> None:
    print(f"{title}: {len(results)}")
    for result in results:
        print(f"- {result.number} {result.operator} | {result.subject} | {result.verdict.equivalent} | {result.detail[:300]}")


if __name__ == "__main__":
    main()
