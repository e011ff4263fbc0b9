"""Writing the certificate of a search: everything that its proof rests on, in one file."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from planner.certify.document import LIMITS, SCHEMA, digests, facts_of, gap_of, number
from planner.certify.question import INF
from planner.errors import InputError
from planner.evaluate.setting import setting
from planner.files import write_text_atomic
from planner.hand_designed import in_unit, plan_dict
from planner.problem import Problem
from planner.problem.library import is_path
from planner.search import Result, versions
from planner.solve.answer import Limits
from planner.solve.closings import Closing, closings
from planner.solve.objective import TIE_RULE
from planner.solve.optimum import SpaceSearch
from search_spaces.orders import in_ranges


def certificate(result: Result) -> dict[str, Any]:
    """The certificate (`planner.certificate/1`) of a result as plain data, the same for the same question and seed.

    Raises `InputError` for a problem that only a file on this machine tells in full.
    """
    found_space, result = result.problem.space, for_any_placement(result)
    problem, optimum, raw = result.problem, result.optimum, result.problem.raw
    least = optimum.value if optimum.choice is not None else INF
    every = [*result.closings, *(closing for order in result.orders for closing in order.closings)]
    at_least = min([least, *(closing.least for closing in every)])
    bound = in_unit(problem, result.objective, at_least) if 0 < at_least < INF else None
    for name in ("model", "cluster", "workload"):
        if is_path(raw.get(name)):
            raise InputError(name, str(raw[name]), "a catalog name or a mapping: this file says what a certificate cannot")
    found = {
        "schema": SCHEMA, "status": result.status, "problem": raw,
        "objective": {
            "name": result.objective, "value": number(result.value), "bound": number(bound),
            "gap": number(gap_of(result.value, bound)), "minimized": "dollars" if result.objective == "cost" else "seconds",
            "least": number(least), "at_least": number(at_least),
        },
        "limits": {name: number(getattr(result.caps, name)) for name in LIMITS},
        "space": {
            "size": str(problem.space.size()), "rules": list(problem.restrictions),
            "placements": "any" if result.problem.space != found_space else "listed",
            **({"gpus": in_ranges(problem.sizes.gpus)} if problem.sizes.gpus else {}),
        },
        "ties": TIE_RULE,
        "plan": plan_dict(result.choice, problem),
        "branches": [_branch(closing) for closing in result.closings],
        "other_orders": [
            {"gpus": in_ranges(order.gpus) or None, "branches": [_branch(closing) for closing in order.closings]}
            for order in result.orders if order.gpus != problem.sizes.gpus
        ],
        "cp_model": _model(result),
        "search": {
            "priced": optimum.counts.priced, "opened": optimum.counts.branches, "iterations": optimum.counts.iterations,
            "cuts": optimum.counts.cuts, "dropped": dict(sorted(optimum.counts.dropped.items())),
        },
        "infeasibility": None if result.infeasibility is None else asdict(result.infeasibility),
        "interrupted": result.interrupted, "seed": result.seed,
        "versions": versions(), "facts": facts_of(problem),
    }  # fmt: skip
    plain: dict[str, Any] = json.loads(json.dumps(found, allow_nan=False))
    return {**plain, "digests": digests(plain)}


def for_any_placement(result: Result) -> Result:
    """The result of a search that found placements itself, with the branches of the bound that holds for every placement."""
    space = result.problem.space
    if not space.experts.searched:
        return result

    def plain_of(gpus: tuple[int, ...]) -> Problem:
        ordered = result.problem.in_order(gpus)
        return replace(ordered, space=replace(ordered.space, experts=replace(space.experts, searched=(), neighbours=0)))

    plain = plain_of(result.problem.sizes.gpus)
    orders = tuple(replace(order, closings=_for_any(plain_of(order.gpus), result)) for order in result.orders)
    optimum = replace(result.optimum, counts=replace(result.optimum.counts, model=None))
    return replace(result, problem=plain, optimum=optimum, closings=_for_any(plain, result), orders=orders)


def _for_any(plain: Problem, result: Result) -> tuple[Closing, ...]:
    """How the branches of a problem are closed for every placement of its experts."""
    env = replace(setting(plain.model, plain.workload, plain.cluster), any_placement=True)
    asked = SpaceSearch(env, plain.space, result.objective, Limits(seed=result.seed, caps=result.caps))
    return closings(asked, asked.run(prove=False))


def write_certificate(result: Result, path: Path) -> Path:
    """Write the certificate of a result, whole or not at all; returns its path."""
    write_text_atomic(path, json.dumps(certificate(result), indent=1, ensure_ascii=False, allow_nan=False) + "\n")
    return path


def _branch(closing: Closing) -> dict[str, Any]:
    terms = {"chain_s": number(closing.chain_s), "work_s": number(closing.work_s)}
    apart = None if closing.apart is None else {"closed_by": closing.apart, "bound": number(closing.apart_bound)}
    return {
        "replicas": closing.replicas, "micro_batches": closing.micro_batches,
        "pipelines": {"closed_by": closing.how, "bound": number(closing.bound), **terms}, "experts_apart": apart,
    }  # fmt: skip


def _model(result: Result) -> dict[str, Any] | None:
    facts = result.optimum.counts.model
    if facts is None:
        return None
    return {
        "replicas": facts.replicas, "micro_batches": facts.micro_batches, "legs": facts.legs,
        "cutoff_s": number(facts.cutoff), "bound_s": number(facts.bound), "status": facts.status, "cuts": facts.cuts,
        "seed": facts.seed, "workers": facts.workers, "effort": facts.effort,
    }  # fmt: skip
