"""What a program calls: from a problem or a plan, named as on the command line, to its answer."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from planner.check.claims import Claim, Judgement, Subject, claim_findings, claims_of, judge, read_claims
from planner.check.findings import Finding, errors
from planner.check.run import NOT_RUN, NumericRun, run_choice, run_training
from planner.check.structure import check_structure
from planner.check.validate import check_choice
from planner.errors import InputError, PlannerError, unknown_name
from planner.evaluate.evaluation import Evaluation
from planner.evaluate.evaluation import evaluate as price
from planner.evaluate.setting import Setting, setting
from planner.files import read_yaml
from planner.graph.expand import expand
from planner.graph.nodes import Graph
from planner.plan import plan_space
from planner.problem import PROBLEM_SCHEMA, Problem, library_names, load_plan, load_problem
from planner.search import MOST_GPUS, Progress, Result
from planner.search import search as find
from planner.solve.answer import Limits
from planner.solve.experts.options import with_found_placements
from planner.solve.objective import Name
from planner.solve.searcher import space_search
from search_spaces.space import SearchSpace
from search_spaces.stages import Choice

VALIDATION_SCHEMA = "planner.validation/1"
BEST = "best"
"""What the plan is called that search finds for a problem."""
PlanRef = str | Path


class NoPlanError(PlannerError):
    """A sound no: what a plan pins contradicts the rules of its space, so there is nothing to price or to check."""

    exit_code = 1


@dataclass(frozen=True)
class Chosen:
    """A plan of a problem with every decision made; `completed` says that a search made those the plan leaves open."""

    problem: Problem
    env: Setting
    name: str
    choice: Choice
    completed: bool = False


@dataclass(frozen=True)
class Validation:
    """What checking a plan found; it is valid when no finding is an error."""

    findings: tuple[Finding, ...]
    run: NumericRun = NOT_RUN
    claims: tuple[Judgement, ...] = ()

    @property
    def valid(self) -> bool:
        """Whether the plan is free of errors."""
        return not any(finding.severity == "error" for finding in self.findings)

    def to_dict(self) -> dict[str, Any]:
        """As JSON-ready data (`planner.validation/1`)."""
        return {
            "schema": VALIDATION_SCHEMA,
            "valid": self.valid,
            "findings": [asdict(finding) for finding in self.findings],
            "run": self.run.to_dict(),
            "claims": [judgement.to_dict() for judgement in self.claims],
        }


def choose(plan: PlanRef | Chosen, *, sets: Sequence[str] = ()) -> Chosen:
    """A plan with its open decisions filled in: the fastest that fits the memory, or the fastest where none fits.

    Raises `InputError` for wrong input, `NoPlanError` where what the plan pins leaves nothing to choose from.
    """
    if isinstance(plan, Chosen):
        return plan
    return _complete(*named_space(plan, sets))


def _complete(problem: Problem, space: SearchSpace, name: str) -> Chosen:
    """A plan as a space, completed by a search where it leaves something open."""
    env = setting(problem.model, problem.workload, problem.cluster)
    space = with_found_placements(env, space)
    only = list(itertools.islice(space.choices(), 2)) if space.layout and space.size() == 1 else []
    if len(only) == 1:
        return Chosen(problem, env, name, only[0])
    if problem.cluster.size > MOST_GPUS:
        told = f"at most {MOST_GPUS} GPUs where a plan leaves decisions open, for now"
        raise InputError("cluster", f"{problem.cluster.size} GPUs", told)
    if len(problem.orders.gpus) > 1 and not (space.layout or problem.cluster.gpus):
        best = find(replace(problem, space=space), details=False)
        if best.choice is not None:
            env = setting(problem.model, problem.workload, best.problem.cluster)
            return Chosen(problem.in_order(best.problem.sizes.gpus), env, name, best.choice, completed=True)
    choice = space_search(env, space).run().choice or space_search(env, space, ignore_memory=True).run().choice
    if choice is None:
        raise NoPlanError(f"{name}: no plan obeys these pins and the rules of the space; leave more decisions open")
    return Chosen(problem, env, name, choice, completed=True)


def named_space(plan: PlanRef, sets: Sequence[str] = ()) -> tuple[Problem, SearchSpace, str]:
    """A plan as a space; a problem in the place of a plan is the plan with everything open, so its best plan."""
    if str(plan) in library_names() or _is_problem_file(plan):
        problem = load_problem(plan, sets=sets)
        return problem, problem.space, BEST
    return load_plan(plan, sets=sets)


def _is_problem_file(ref: PlanRef) -> bool:
    path = Path(ref)
    if path.suffix.lower() not in (".yaml", ".yml") or not path.is_file():
        return False
    content = read_yaml(path)
    return content.get("schema") == PROBLEM_SCHEMA or ("schema" not in content and {"model", "workload"} <= set(content))


def search(
    problem: Problem | PlanRef | Mapping[str, object],
    *,
    sets: Sequence[str] = (),
    objective: Name = "latency",
    limits: Limits | None = None,
    top: int = 1,
    details: bool = True,
    progress: Progress | None = None,
) -> Result:
    """The best plan of a problem with its proof; a problem that nothing fits is an answer, not an error."""
    found = problem if isinstance(problem, Problem) else load_problem(problem, sets=sets)
    return find(found, objective=objective, limits=limits, top=top, details=details, progress=progress)


def evaluate(plan: PlanRef | Chosen, *, sets: Sequence[str] = ()) -> Evaluation:
    """What a plan costs: latency, critical path, Get_Time expression, time and memory of every GPU."""
    chosen = choose(plan, sets=sets)
    return price(chosen.env, chosen.problem.sizes, chosen.choice)


def validate(
    plan: PlanRef | Chosen, *, sets: Sequence[str] = (), run: bool = True, claims: PlanRef | None = None
) -> Validation:
    """Whether a plan is sound: structure, shapes, cycles, conservation of work, memory, and with `run` its numbers.

    The claims of its problem about it are judged, or those of the file `claims`; a wrong one makes no plan invalid.
    """
    chosen = choose(plan, sets=sets)
    sizes, choice = chosen.problem.sizes, chosen.choice
    found = tuple(check_choice(chosen.env, sizes, choice))
    sound = not errors(check_structure(sizes, choice))
    stated = _claims_about(chosen, sets, claims)
    execute = run_choice if choice.training is None else run_training
    numeric = execute(chosen.env, sizes, choice) if run and sound else NOT_RUN
    judgements = judge_claims(chosen, stated) if sound else ()
    return Validation((*found, *numeric.findings, *claim_findings(judgements)), numeric, judgements)


def _claims_about(chosen: Chosen, sets: Sequence[str], path: PlanRef | None) -> tuple[Claim, ...]:
    """The claims about a plan: of a file, else of its problem, unless the problem was changed and is not the source's."""
    problem = chosen.problem
    if path is not None:
        claims, name = read_claims(Path(path))
        if name and name != problem.name:
            raise InputError("problem", name, f"{problem.name}, the problem of the plan", str(path))
        about = tuple(claim for claim in claims if claim.plan in ("", chosen.name))
        if claims and not about:
            raise InputError("plan", claims[0].plan, f"a claim about {chosen.name}", str(path))
        return about
    if chosen.name not in problem.plans or any(not text.strip().startswith("plan") for text in sets):
        return ()
    return tuple(claim for claim in claims_of(problem.claims, problem.name) if claim.plan in ("", chosen.name))


def judge_claims(
    chosen: Chosen, claims: Sequence[Claim], priced: Mapping[str, Evaluation] | None = None
) -> tuple[Judgement, ...]:
    """Verdicts on claims about a plan; plans that they compare it with are completed and priced unless `priced` has them."""
    problem, known = chosen.problem, dict(priced or {})
    for claim in claims:
        if claim.kind not in ("percentage", "comparison") or not claim.against:
            continue
        if chosen.name not in known:
            known[chosen.name] = evaluate(chosen)
        if claim.rival not in known:
            rival = _rival(problem, claim)
            known |= {claim.rival: evaluate(rival)} if rival is not None else {}
    return judge(Subject(chosen.env, problem.sizes, chosen.choice, chosen.name), claims, known)


def _rival(problem: Problem, claim: Claim) -> Chosen | None:
    """The plan that a claim compares with, completed; None where nothing obeys it."""
    place = f"{claim.place}.against"
    if isinstance(claim.against, str) and claim.against not in problem.plans:
        raise unknown_name(place, claim.against, problem.plans)
    space = problem.plans[claim.against] if isinstance(claim.against, str) else plan_space(claim.against, problem.space, place)
    try:
        return _complete(problem, space, claim.rival)
    except NoPlanError:
        return None


def judge_result(result: Result) -> dict[str, tuple[Judgement, ...]]:
    """Verdicts on all claims of a searched problem, by hand-designed plan; `` holds those about the problem itself."""
    problem = result.problem.listed
    claims = claims_of(problem.claims, problem.name)
    env = setting(problem.model, problem.workload, problem.cluster)
    choices = {hand.name: hand.best_completion.choice or hand.as_written.choice for hand in result.hand_designed}
    plans = {name: Chosen(problem, env, name, choice) for name, choice in choices.items() if choice is not None}
    if not claims or not plans:
        return {}
    priced = {name: evaluate(plan) for name, plan in plans.items()}
    found = {"": judge_claims(next(iter(plans.values())), [claim for claim in claims if not claim.plan], priced)}
    for name, plan in plans.items():
        found[name] = judge_claims(plan, [claim for claim in claims if claim.plan == name], priced)
    return {name: judgements for name, judgements in found.items() if judgements}


def build_graph(
    plan: PlanRef | Chosen, *, sets: Sequence[str] = (), layers: Sequence[int] | None = None, micro_batches: int | None = None
) -> Graph:
    """The expanded operator graph of a plan, of all layers and micro-batches unless fewer are asked for."""
    chosen = choose(plan, sets=sets)
    problem = chosen.problem
    return expand(problem.model, problem.workload, problem.sizes, chosen.choice, layers=layers, micro_batches=micro_batches)
