"""Claims that compare two plans: percentages, ratios, and which of them is better; from the planner's own prices."""

from __future__ import annotations

from collections.abc import Mapping

from planner.check.claims.claim import Claim
from planner.check.claims.judgement import Judgement, judged
from planner.check.claims.mistakes import Mistake
from planner.check.claims.subject import Subject
from planner.check.claims.work import number
from planner.evaluate.evaluation import Evaluation
from planner.evaluate.term import OPERATIONS
from planner.units import show_seconds

Priced = Mapping[str, Evaluation]
SAME = 0.01
NEEDS = {
    "latency_reduction": "the plan that it is compared with",
    "throughput_gain": "the plan that it is compared with",
    "communication_reduction": "the plan that it is compared with",
    "launch_overhead_reduction": "the launch time of a kernel, and the kernels that it is compared with",
}
GOES = {"latency_reduction": "latency", "throughput_gain": "throughput", "communication_reduction": "communication"}


def communication_s(evaluation: Evaluation) -> float:
    """Seconds of communication between GPUs on the critical path."""
    names = (*OPERATIONS, "Transfer")
    return sum(item.seconds for item in evaluation.critical_path if item.term.startswith(names))


def judge_percentage(subject: Subject, claim: Claim, priced: Priced) -> Judgement:
    """A gain in percent (or as a ratio, for throughput), or a range of it."""
    claimed = _shown(claim)
    if claim.of not in GOES or not claim.rival:
        return judged(claim, "not_derivable", claimed, "-", f"needs {NEEDS[claim.of]}{_kernels(subject, claim)}")
    own, other = priced.get(subject.name), priced.get(claim.rival)
    if own is None or other is None:
        missing = claim.rival if own is not None else subject.name
        return judged(claim, "not_derivable", claimed, "-", f"needs a price of {missing}: no plan of that kind can be made")
    first, second = (
        (communication_s(own), communication_s(other))
        if claim.of == "communication_reduction"
        else (own.latency_s, other.latency_s)
    )
    value = second / first if claim.of == "throughput_gain" else 100 * (1 - first / second)
    words = f"{GOES[claim.of]}: {show_seconds(first)} against {show_seconds(second)} {_rival(claim)}"
    stated = claim.claim if isinstance(claim.claim, tuple) else (claim.claim, claim.claim)
    low, high = (float(bound) for bound in stated)
    slack = claim.tolerance * abs(high) if claim.tolerance else 0.05 if claim.of == "throughput_gain" else 0.5
    derived = f"{value:.3g}" if claim.of == "throughput_gain" else f"{value:.3g} %"
    if low - slack <= value <= high + slack:
        return judged(claim, "holds", claimed, derived, words)
    middle = (low + high) / 2
    mistake = Mistake("gain not borne out" if value * middle > 0 else "gain is a loss", middle / value, words)
    factor = middle / value if value * middle > 0 else None
    return judged(claim, "wrong", claimed, derived, words, factor, [mistake])


def _rival(claim: Claim) -> str:
    return f"in {claim.against}" if isinstance(claim.against, str) else "in the plan that the claim is compared with"


def _shown(claim: Claim) -> str:
    unit = "x" if claim.of == "throughput_gain" else " %"
    if isinstance(claim.claim, tuple):
        return f"{number(claim.claim[0])} to {number(claim.claim[1])}{unit}"
    return f"{number(float(claim.claim))}{unit}" if isinstance(claim.claim, float) else str(claim.claim)


def _kernels(subject: Subject, claim: Claim) -> str:
    """How many kernels the plan launches in a layer, where launches are in question."""
    if claim.of != "launch_overhead_reduction":
        return ""
    first = next(iter(subject.layers))
    gpu = subject.ranks[0]
    nodes = [n for n in subject.graph.operators() if n.layer == first and gpu in n.devices and not n.communicates]
    return f"; the plan launches {len(nodes)} kernels in a layer, one of them for attention where unfused ones are three"


def judge_comparison(subject: Subject, claim: Claim, priced: Priced) -> Judgement:
    """Which of two plans has less time or communication, or the more even load."""
    own, other = priced.get(subject.name), priced.get(claim.rival)
    if own is None or other is None:
        return judged(claim, "not_derivable", claim.claim, "-", "needs a price of both plans")
    if claim.of == "imbalance":
        busy = [[device.busy_s for device in e.devices] for e in (own, other)]
        values = [max(seconds) * len(seconds) / sum(seconds) for seconds in busy]
        return _weighed(claim, values[0], values[1], "times the mean time on the busiest GPU", _rival(claim))
    values = [communication_s(e) if claim.of == "communication" else e.latency_s for e in (own, other)]
    what = "communication on the longest path" if claim.of == "communication" else "latency"
    return _weighed(claim, values[0], values[1], f"s of {what}", _rival(claim))


def _weighed(claim: Claim, own: float, other: float, unit: str, against: str) -> Judgement:
    ratio = own / other if other else 1.0
    found = "same" if abs(ratio - 1) <= SAME else "less" if ratio < 1 else "more"
    times = "as much" if found == "same" else f"{ratio:.3g} times as much"
    words = f"{own:.4g} {unit}, {other:.4g} {against}: {times}"
    if found == claim.claim:
        return judged(claim, "holds", claim.claim, found, words)
    return judged(claim, "wrong", claim.claim, found, words, None, [Mistake("conclusion not borne out", None, words)])
