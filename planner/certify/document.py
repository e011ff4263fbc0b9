"""A certificate as a document: its numbers, its digests, and reading one from a file that nobody vouches for."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, fields, is_dataclass, replace
from pathlib import Path

from planner.certify.question import INF, OBJECTIVES, Most
from planner.errors import InputError
from planner.fields import Fields
from planner.files import parse_json, read_text
from planner.plan import read_gpus
from planner.problem import Problem, load_problem
from planner.problem.library import is_path

SCHEMA = "planner.certificate/1"
STATUSES = ("optimal", "feasible", "infeasible", "timeout")
CLOSED = ("closed form", "exact program", "fixed stages", "no option", "table", "open")
LIMITS = ("latency_s", "steady_s", "dollars", "memory_bytes", "gpus")
PARTS = ("problem", "plan", "branches", "other_orders")
PROSE = ("source", "sources", "price_source")
"""Where a figure comes from, which may name a file: no digest of what figures stand for has it."""
DIGITS = 12
MOST_BRANCHES, MOST_GPUS, MOST_BATCH = 20_000, 65_536, 2**40


@dataclass(frozen=True, slots=True)
class Part:
    """What is claimed of the linear pipelines of a branch, or of its plans with experts apart: how they were closed, and
    that none is below `bound` (inf: there is none). `chain_s` and `work_s` are the terms of the closed form.
    """

    closed_by: str
    bound: float
    chain_s: float = INF
    work_s: float = INF


@dataclass(frozen=True, slots=True)
class BranchClaim:
    """What is claimed of one (replicas, micro-batches)."""

    replicas: int
    micro_batches: int
    pipelines: Part
    apart: Part | None

    @property
    def bound(self) -> float:
        """Below which the branch has no plan."""
        return min(self.pipelines.bound, self.apart.bound if self.apart is not None else INF)


@dataclass(frozen=True, slots=True)
class ModelClaim:
    """What is claimed of the CP model: its branch, the bound it proved in seconds, and how it is run."""

    replicas: int
    micro_batches: int
    bound_s: float
    seed: int
    workers: int
    effort: float


@dataclass(frozen=True, slots=True)
class OrderClaim:
    """What is claimed of the plans that count the cluster's GPUs in another order (empty: as listed)."""

    gpus: tuple[int, ...]
    branches: tuple[BranchClaim, ...]


@dataclass(frozen=True)
class Certificate:
    """A certificate that was read: well-formed, and nothing more is known of it.

    Its problem counts the GPUs of the cluster as its plan does; `others` are the other orders that were searched.
    With `any_placement` the bounds are claimed of every placement of the experts, not of those that the space lists alone.
    `value`, `bound` and `gap` are in the objective's own unit, `least` and `at_least` in what is minimized: seconds or dollars.
    """

    raw: dict[str, object]
    problem: Problem
    status: str
    objective: str
    value: float | None
    bound: float | None
    gap: float | None
    least: float | None
    at_least: float
    most: Most
    size: str
    any_placement: bool
    rules: tuple[str, ...]
    plan: Mapping[str, object] | None
    branches: tuple[BranchClaim, ...]
    model: ModelClaim | None
    versions: Mapping[str, object]
    facts: str
    digests: Mapping[str, object]
    others: tuple[OrderClaim, ...] = ()

    @property
    def every_branch(self) -> tuple[BranchClaim, ...]:
        """The branches of all orders."""
        return (*self.branches, *(claim for other in self.others for claim in other.branches))

    def of_other(self, other: OrderClaim) -> Certificate:
        """What is claimed of another order, as a certificate of its own that claims no plan."""
        problem = self.problem.in_order(other.gpus)
        return replace(self, problem=problem, branches=other.branches, others=(), plan=None, model=None)


def digest(value: object) -> str:
    """SHA-256 of plain data or of our dataclasses; the order of keys does not count."""
    text = json.dumps(_plain(value), sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()


def digests(raw: Mapping[str, object]) -> dict[str, str]:
    """The digests of a certificate's parts and of all of it but the digests."""
    found = {name: digest(raw.get(name)) for name in PARTS}
    return {**found, "content": digest({name: value for name, value in raw.items() if name != "digests"})}


def facts_of(problem: Problem) -> str:
    """The digest of what the names of a problem stand for: its model, cluster, workload and space."""
    return digest([problem.model, problem.cluster, problem.workload, problem.space])


def number(value: float | None) -> float | None:
    """A number as a certificate writes it: 12 significant digits, None where it is not finite."""
    return float(f"{value:.{DIGITS}g}") if value is not None and math.isfinite(value) else None


def gap_of(value: float | None, bound: float | None) -> float | None:
    """Relative distance of a bound; None without a value or a bound."""
    return None if value is None or bound is None else abs(bound - value) / abs(value)


def read_raw(path: Path) -> dict[str, object]:
    """The mapping of a certificate file; `InputError` where it is none, or of another version."""
    raw = parse_json(read_text(path), str(path))
    schema = raw.get("schema")
    if schema != SCHEMA:
        other = isinstance(schema, str) and schema.startswith("planner.certificate/")
        hint = "this planner reads no other version" if other else "a file that `planner search --certificate` wrote"
        raise InputError("schema", schema, f"{SCHEMA} ({hint})", str(path))
    return raw


def read_certificate(raw: dict[str, object], source: str = "") -> Certificate:
    """A certificate from its mapping; `InputError` for a field that is missing, unknown or of the wrong kind."""
    top = Fields(raw, source)
    top.ignore(("schema", "search", "infeasibility", "interrupted", "ties", "seed"))
    objective, space, limits = top.mapping("objective"), top.mapping("space"), top.mapping("limits")
    others = tuple(_other(claim) for claim in top.mappings("other_orders", required=True))
    claims = top.mappings("branches", required=True)
    if len(claims) + sum(len(other.branches) for other in others) > MOST_BRANCHES:
        raise InputError("branches", len(claims), f"at most {MOST_BRANCHES} of them", source)
    plan, model = top.maybe_mapping("plan"), top.maybe_mapping("cp_model")
    objective.ignore(("minimized",))
    found = Certificate(
        raw, _ordered(_problem(top, source), space), top.choice("status", STATUSES), objective.choice("name", OBJECTIVES),
        objective.maybe_number("value"), objective.maybe_number("bound"), objective.maybe_number("gap"),
        objective.maybe_number("least"), _or_inf(objective, "at_least"),
        Most(**{name: _or_inf(limits, name) for name in LIMITS}), space.text("size"),
        space.choice("placements", ("listed", "any")) == "any", tuple(space.texts("rules")),
        None if plan is None else plan.values, tuple(_branch(claim) for claim in claims),
        None if model is None else _model(model),
        top.mapping("versions").values, top.text("facts"), top.mapping("digests").values, others,
    )  # fmt: skip
    for part in (top, objective, space, limits):
        part.done()
    return found


def _problem(top: Fields, source: str) -> Problem:
    """The problem in the certificate: it names catalog entries or spells them out, and never a file."""
    mapping = top.mapping("problem")
    for name in ("model", "cluster", "workload"):
        if is_path(mapping.values.get(name)):
            raise mapping.error(name, "a catalog name or a mapping: a certificate is checked without other files")
    try:
        problem = load_problem(mapping.values)
    except InputError as error:
        raise error.within(source, "problem") from None
    sizes = problem.sizes
    for name, count, most in (("cluster", sizes.devices, MOST_GPUS), ("workload.batch", sizes.batch, MOST_BATCH)):
        if count > most:
            raise InputError(f"problem.{name}", count, f"at most {most}", source)
    return problem


def _ordered(problem: Problem, space: Fields) -> Problem:
    """The problem with its GPUs counted as the plan counts them."""
    try:
        return problem.in_order(read_gpus(space))
    except ValueError as error:
        raise space.error("gpus", str(error)) from None


def _other(claim: Fields) -> OrderClaim:
    found = OrderClaim(read_gpus(claim), tuple(_branch(branch) for branch in claim.mappings("branches", required=True)))
    claim.done()
    return found


def _branch(claim: Fields) -> BranchClaim:
    pipelines, apart = claim.mapping("pipelines"), claim.maybe_mapping("experts_apart")
    counts = claim.integer("replicas", low=1), claim.integer("micro_batches", low=1)
    found = BranchClaim(*counts, _part(pipelines), None if apart is None else _part(apart))
    claim.done()
    return found


def _part(claim: Fields) -> Part:
    how = claim.choice("closed_by", CLOSED)
    found = Part(how, _or_inf(claim, "bound"), _or_inf(claim, "chain_s"), _or_inf(claim, "work_s"))
    claim.done()
    return found


def _model(claim: Fields) -> ModelClaim:
    found = ModelClaim(
        claim.integer("replicas", low=1), claim.integer("micro_batches", low=1), claim.number("bound_s"),
        claim.integer("seed", high=2**31 - 1), claim.integer("workers", low=1, high=256),
        claim.number("effort", low=1e-3, high=1000.0),
    )  # fmt: skip
    claim.ignore(("legs", "cutoff_s", "status", "cuts"))
    claim.done()
    return found


def _or_inf(claim: Fields, name: str) -> float:
    """A number, inf where there is none."""
    found = claim.maybe_number(name)
    return INF if found is None else found


def _plain(value: object) -> object:
    """Data as JSON can hold it."""
    if is_dataclass(value) and not isinstance(value, type):
        return {field.name: _plain(getattr(value, field.name)) for field in fields(value) if field.name not in PROSE}
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return repr(value)
    if value is None or isinstance(value, str | bool | int | float):
        return value
    raise TypeError(f"{type(value).__name__} has no digest")
