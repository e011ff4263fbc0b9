"""`verify`: whether a certificate holds, found out without trusting the search that wrote it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from planner.certify.document import PARTS, Certificate, digests, facts_of, gap_of, read_certificate, read_raw
from planner.certify.proof import Proof
from planner.certify.question import INF, TOLERANCE
from planner.certify.refusal import RefusedError
from planner.certify.winner import check_winner
from planner.errors import InputError
from search_spaces.orders import order_rule

SCHEMA = "planner.verification/1"
SAMPLES, MOST_SAMPLES = 200, 100_000
OPTIMAL_GAP = 1e-6
NOT_CHECKED = (
    "that the answer is the one that the rule for ties prefers: another plan may be as good",
    "counters of the search, and the smallest change with which an infeasible problem fits",
    "the prices of single operators: they are those of the installed planner",
)


@dataclass(frozen=True, slots=True)
class Check:
    """One thing that was looked at, and what was found."""

    name: str
    passed: bool
    detail: str


@dataclass(frozen=True)
class Verification:
    """What checking a certificate found: it is verified where no check failed. `whole` says that every branch was derived anew;
    where it is False, plans of the branches that were too large were drawn at random and nothing more.
    """

    name: str
    statement: str
    checks: tuple[Check, ...]
    whole: bool

    @property
    def verified(self) -> bool:
        """Whether every check passed."""
        return all(check.passed for check in self.checks)

    @property
    def reason(self) -> str:
        """Why the certificate is refused; empty where it is not."""
        return next((f"{check.name}: {check.detail}" for check in self.checks if not check.passed), "")

    def to_dict(self) -> dict[str, Any]:
        """As JSON-ready data (`planner.verification/1`)."""
        return {
            "schema": SCHEMA, "verified": self.verified, "whole": self.whole and self.verified, "problem": self.name,
            "statement": self.statement, "reason": self.reason or None,
            "checks": [asdict(check) for check in self.checks], "not_checked": list(NOT_CHECKED),
        }  # fmt: skip


def verify(
    certificate: str | Path | Mapping[str, object],
    *,
    samples: int = SAMPLES,
    seed: int = 0,
    progress: Callable[[str], None] | None = None,
) -> Verification:
    """Check a certificate, a file or its mapping; the first thing that does not hold ends it.

    `samples` plans are drawn with `seed`, as many of each order of the GPUs. Raises `InputError` for what is no certificate of
    this version.
    """
    if isinstance(samples, bool) or not 0 <= samples <= MOST_SAMPLES:
        raise InputError("samples", samples, f"a whole number from 0 to {MOST_SAMPLES}")
    source = "" if isinstance(certificate, Mapping) else str(certificate)
    raw = dict(certificate) if isinstance(certificate, Mapping) else read_raw(Path(certificate))
    checks: list[Check] = []
    whole, name, statement = False, "", ""
    try:
        checks.append(Check("digests", True, _digests(raw)))
        read = read_certificate(raw, source)
        name, statement = read.problem.name, _statement(read)
        proof = Proof(read)
        others: list[Proof] = []
        for title, look in _looks(read, proof, others, samples, seed):
            if progress:
                progress(title)
            checks.append(Check(title, True, "not reached"))
            checks[-1] = Check(title, True, look())
        whole = not any(one.too_large for one in (proof, *others))
    except RefusedError as refused:
        title = checks.pop().name if checks and checks[-1].detail == "not reached" else "digests"
        checks.append(Check(title, False, str(refused)))
    return Verification(name, statement, tuple(checks), whole)


def _looks(
    read: Certificate, proof: Proof, others: list[Proof], samples: int, seed: int
) -> Iterator[tuple[str, Callable[[], str]]]:
    """The checks in order, the cheap ones first; `others` gets the proofs of the other orders of the GPUs."""
    yield "versions", lambda: _versions(read)
    yield "problem", lambda: _problem(read)
    yield "statement", lambda: _consistent(read)
    others += [Proof(read.of_other(other)) for other in read.others]
    share = -(-samples // (1 + len(others)))
    yield "plan", lambda: check_winner(read, proof.env, proof.question)
    yield "branches", proof.check_branches
    yield "closed forms", proof.check_closed_forms
    yield "pipelines", proof.check_pipelines
    yield "experts apart", proof.check_apart
    yield "CP model", proof.check_model
    yield "samples", lambda: proof.check_samples(share, seed)
    for number, other in enumerate(others, 2):
        yield f"order {number} of the GPUs", partial(_other_order, other, share, seed)


def _other_order(proof: Proof, samples: int, seed: int) -> str:
    """No plan that counts the GPUs in this order is below its branches' bounds."""
    branches, _, pipelines, apart, drawn = (
        proof.check_branches(), proof.check_closed_forms(), proof.check_pipelines(), proof.check_apart(),
        proof.check_samples(samples, seed),
    )  # fmt: skip
    return "; ".join((branches, pipelines, apart, drawn))


def _statement(read: Certificate) -> str:
    """What the certificate says, in one line."""
    if read.value is None:
        return f"{read.status}: no plan" + (" fits" if read.status == "infeasible" else " was found")
    bound = "unknown" if read.bound is None else f"{read.bound:.9g}"
    return f"{read.status}: {read.objective} {read.value:.9g}, bound {bound}"


def _digests(raw: Mapping[str, object]) -> str:
    written = raw.get("digests")
    if not isinstance(written, Mapping):
        raise InputError("digests", written, "a mapping of names to digests")
    found = digests(raw)
    for name in PARTS:
        if written.get(name) != found[name]:
            raise RefusedError(f"the digest of `{name}` is not that of what stands there: it was changed after it was written")
    if written.get("content") != found["content"] or set(written) != set(found):
        raise RefusedError("the digest of the whole is not that of what stands there: it was changed after it was written")
    return f"content sha256 {found['content'][:16]}"


def _versions(read: Certificate) -> str:
    """The planner is the one that wrote the certificate; what else differs is told, since all is derived anew."""
    found = {}
    for name in ("parallelism-planner", "ortools", "numpy"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "unknown"
    planner = read.versions.get("parallelism-planner")
    if planner != found["parallelism-planner"]:
        raise RefusedError(f"written by planner {planner}, whose prices may differ from {found['parallelism-planner']}'s")
    other = [f"{n} {found[n]}, not {read.versions.get(n)}" for n in ("ortools", "numpy") if found[n] != read.versions.get(n)]
    return f"planner {planner}" + (f"; with {', '.join(other)}" if other else "")


def _problem(read: Certificate) -> str:
    """The names in the problem stand for what they stood for, and the space has the size and the rules that are claimed."""
    problem = read.problem
    if read.facts != facts_of(problem):
        raise RefusedError("the model, cluster, workload or space is not what it was when the certificate was written")
    size = str(problem.space.size())
    if read.size != size:
        raise RefusedError(f"the space has {size} plans, not {read.size}")
    every, claimed = problem.orders, [problem.sizes.gpus, *(other.gpus for other in read.others)]
    if sorted(claimed) != sorted(every.gpus[: len(claimed)]):
        raise RefusedError("the orders of the GPUs are not those that a search goes through")
    orders = order_rule(every, len(claimed))
    rules = tuple(rule for rule in read.rules if rule not in orders)
    if (
        rules[: len(problem.restrictions)] != problem.restrictions
        or (len(rules) > len(problem.restrictions)) != read.any_placement
        or len(read.rules) != len(rules) + len(orders)
    ):
        raise RefusedError("the rules of the space are not those that the certificate lists")
    every_order = f", the best of {len(claimed)} orders of the GPUs" if orders else ""
    every_placement = "; the bounds are claimed of every placement of the experts, by layer and with copies, too"
    return f"{problem.name}: a space of {size} plans{every_order}{every_placement if read.any_placement else ''}"


def _consistent(read: Certificate) -> str:
    """Status, value, bound and gap say the same thing."""
    if (read.value is None) != (read.plan is None) or (read.value is None) != (read.least is None):
        raise RefusedError("a value without a plan, or a plan without a value")
    if (read.plan is None) != (read.status in ("infeasible", "timeout")):
        raise RefusedError(f"status {read.status} " + ("without a plan" if read.plan is None else "with a plan"))
    least = INF if read.least is None else read.least
    lowest = min([least, *(claim.bound for claim in read.every_branch)])
    if read.at_least > lowest and not _same(read.at_least, lowest):
        raise RefusedError(f"the bound {read.at_least:.12g} is above {lowest:.12g}, that of a branch or the value")
    if read.status == "infeasible" and lowest != INF:
        raise RefusedError("infeasible, with a branch whose bound leaves room for a plan")
    value, bound = _in_unit(read, least), _in_unit(read, read.at_least)
    if not _same(value, read.value) or not _same(bound, read.bound):
        raise RefusedError(f"value or bound is not what it is in the objective's own unit: {value} and {bound}")
    gap = gap_of(read.value, read.bound)
    if read.value is not None and (read.gap is None) != (gap is None):
        raise RefusedError("a gap without a bound, or a bound without a gap")
    if gap is not None and read.gap is not None and abs(gap - read.gap) > TOLERANCE:
        raise RefusedError(f"the gap is {gap:.3g}, not {read.gap:.3g}")
    if read.status == "optimal" and (gap is None or gap > OPTIMAL_GAP):
        raise RefusedError(f"optimal, with a gap of {gap}: more than {OPTIMAL_GAP:g}")
    return _statement(read)


def _in_unit(read: Certificate, minimized: float) -> float | None:
    """What is minimized in the objective's own unit; None where there is no such number."""
    if minimized in (0.0, INF):
        return None
    work = read.problem.workload
    return work.batch * work.query_length / minimized if read.objective == "throughput" else minimized


def _same(one: float | None, other: float | None) -> bool:
    """Whether two numbers are the same, or both none."""
    if one is None or other is None:
        return one is other
    return one == other or abs(one - other) <= TOLERANCE * max(abs(one), abs(other))
