"""The search against brute force on many random small problems, for every objective.

    python -m tests.benchmarks.oracle --seeds 0-1000 [--certificates 10]

Every problem of at most 2,500 plans is searched for the least latency, the most throughput and the least cost, and all its
plans are priced one by one. With --certificates N the certificate of every Nth problem is verified, too. Ends with counts,
and with exit code 1 where anything disagrees.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections import Counter

from planner.certify.verify import verify
from planner.certify.write import certificate
from planner.errors import InputError
from planner.search import search
from planner.solve.objective import NAMES
from tests.oracle_problems import (
    DECISIONS,
    MOST_PLANS,
    brute_forces,
    case_setting,
    certifiable,
    disagreements,
    random_case,
)


def main() -> int:
    """Compare, and print the counts."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=_range, default=range(1000), metavar="FIRST-END", help="the end is not counted")
    parser.add_argument("--certificates", type=int, default=0, metavar="N", help="verify that of every Nth problem")
    asked = parser.parse_args()
    counts, decisions, start = Counter[str](), Counter[str](), time.monotonic()
    for done, seed in enumerate(asked.seeds, 1):
        _problem(seed, counts, decisions)
        if asked.certificates and seed % asked.certificates == 0:
            _certificate(seed, counts)
        if done % 50 == 0:
            print(f"{done} problems, {counts['disagree']} disagree", file=sys.stderr, flush=True)
    print(_told(counts, decisions, time.monotonic() - start))
    return 1 if counts["disagree"] or counts["refused"] else 0


def _range(text: str) -> range:
    first, _, end = text.partition("-")
    return range(int(first), int(end))


def _problem(seed: int, counts: Counter[str], decisions: Counter[str]) -> None:
    """One problem against brute force."""
    problem = random_case(seed)
    if problem.space.size() > MOST_PLANS:
        counts["too large"] += 1
        return
    brute = brute_forces(case_setting(problem), problem.space)
    wrong = disagreements(problem, brute)
    for text in wrong:
        print(f"seed {seed}: {text}", flush=True)
    counts["disagree" if wrong else "agree"] += 1
    counts["plans"] += brute.plans
    decisions.update(brute.decisions)


def _certificate(seed: int, counts: Counter[str]) -> None:
    """The certificate of one problem, its objective taken in turn."""
    problem = random_case(seed)
    if not certifiable(problem):
        return
    try:
        found = verify(certificate(search(problem, objective=NAMES[seed % len(NAMES)], details=False)), samples=50)
    except InputError as error:
        found, reason = None, str(error)
    else:
        reason = found.reason
    if found is None or not (found.verified and found.whole):
        print(f"seed {seed}: the certificate is refused: {reason or 'in part'}", flush=True)
        counts["refused"] += 1
        return
    counts["verified"] += 1


def _told(counts: Counter[str], decisions: Counter[str], seconds: float) -> str:
    lines = [
        f"{counts['agree']:,} agree, {counts['disagree']} disagree, {counts['too large']} too large to list; "
        f"{counts['plans']:,} plans priced; certificates: {counts['verified']} verified, {counts['refused']} refused; "
        f"{seconds:.0f} s",
        "",
        "| decision | problems |",
        "|---|---:|",
        *(f"| {name} | {decisions[name]} |" for name in DECISIONS),
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
