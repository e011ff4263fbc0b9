"""A PLAN argument: a plan of a problem, a plan file, or a stored result."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from planner.errors import InputError, unknown_name
from planner.fields import Fields
from planner.files import expanded, read_json, read_yaml
from planner.plan import PLAN_SCHEMA, plan_space, read_gpus
from planner.problem.core import Problem
from planner.problem.library import beside, is_path, library_names
from planner.problem.load import load_problem, resolve_like
from planner.problem.settings import change, parse_sets
from search_spaces.space import SearchSpace

RESULT_SCHEMA = "planner.result/1"
SHAPES = "PROBLEM:PLAN such as helix:m4n4, a path to a plan file, or a result file"


def load_plan(ref: str | Path, *, sets: Sequence[str] = ()) -> tuple[Problem, SearchSpace, str]:
    """The problem of a plan, the plan as a space, and its name.

    `sets` change the problem, and with `plan.` the plan itself. `InputError` for an unknown plan, a file of another
    kind, or a result without a plan.
    """
    own = parse_sets(sets).get("plan", {})
    others = [text for text in sets if not text.strip().startswith("plan")]
    problem, mapping, name, source = _found(ref, others)
    if own:
        changed = change(mapping, own, "plan")
        mapping = dict(changed) if isinstance(changed, Mapping) else mapping
    problem = _counted(problem, mapping, source)
    base = problem.space
    return problem, plan_space(mapping, base, source) if own or name not in problem.plans else problem.plans[name], name


def _counted(problem: Problem, mapping: Mapping[str, object], source: str) -> Problem:
    """The problem with its GPUs counted as a plan counts them."""
    fields = Fields(mapping, source, "plan")
    gpus = read_gpus(fields)
    try:
        return problem.in_order(gpus)
    except ValueError as error:
        raise fields.error("gpus", str(error)) from None


def _found(ref: str | Path, sets: Sequence[str]) -> tuple[Problem, dict[str, object], str, str]:
    """The problem, the plan's mapping, its name, and what messages call it."""
    text = str(ref)
    if is_path(ref) and ":" not in Path(text).name:
        return _from_file(expanded(text), sets)
    head, colon, name = text.rpartition(":")
    if not colon or not head or not name:
        raise _bad_reference(text)
    problem = load_problem(head, sets=sets)
    if name not in problem.plans:
        if name in problem.plan_notes:
            raise InputError("plan", name, f"another plan; this one is {problem.plan_notes[name]}", head)
        raise unknown_name("plan", name, problem.plans, head) if problem.plans else InputError("plan", name, "no plan", head)
    return problem, _plan_of(problem, name), name, text


def _bad_reference(text: str) -> InputError:
    if text in library_names():
        plans = ", ".join(f"{text}:{name}" for name in load_problem(text).plans)
        return InputError("plan", text, f"one of its plans: {plans}")
    return InputError("plan", text, SHAPES)


def _plan_of(problem: Problem, name: str) -> dict[str, object]:
    plans = problem.raw.get("plans")
    return resolve_like(plans, name, problem.name) if isinstance(plans, Mapping) else {}


def _from_file(path: Path, sets: Sequence[str]) -> tuple[Problem, dict[str, object], str, str]:
    content = read_json(path) if path.suffix.lower() == ".json" else read_yaml(path)
    schema, source = content.get("schema"), str(path)
    if schema == RESULT_SCHEMA:
        plan = content.get("plan")
        if not isinstance(plan, Mapping):
            raise InputError("plan", plan, f"a result with a plan (its status is {content.get('status')})", source)
        mapping, name = dict(plan), path.parent.resolve().name if path.stem == "result" else path.stem
    elif schema == PLAN_SCHEMA or (schema is None and "problem" in content):
        given = content.get("name")
        mapping, name = content, given if isinstance(given, str) else path.stem
    elif isinstance(schema, str) and schema.startswith("planner.problem/"):
        raise InputError("schema", schema, f"a plan; a plan of this problem is {source}:PLAN", source)
    elif schema is None and "stages" in content:
        raise InputError("problem", None, "the plan's problem: a library name, a path, or a mapping", source)
    else:
        raise InputError("schema", schema, f"{PLAN_SCHEMA} or {RESULT_SCHEMA}", source)
    problem = _problem_of(content, mapping, path, sets)
    if "like" in mapping:
        plans = problem.raw.get("plans")
        section = {**plans, name: mapping} if isinstance(plans, Mapping) else {name: mapping}
        mapping = resolve_like(section, name, source)
    return problem, mapping, name, source


def _problem_of(content: Mapping[str, object], plan: Mapping[str, object], path: Path, sets: Sequence[str]) -> Problem:
    """The problem that a file names, or the one stored beside a result."""
    ref = content.get("problem", plan.get("problem"))
    if ref is None and (path.parent / "problem.yaml").is_file():
        ref = str(path.parent / "problem.yaml")
    elif not isinstance(ref, str | Mapping):
        raise InputError("problem", ref, "the plan's problem: a library name, a path, or a mapping", str(path))
    else:
        ref = beside(ref, path.parent)
    try:
        return load_problem(ref if isinstance(ref, Mapping) else str(ref), sets=sets)
    except InputError as error:
        raise error.within(str(path)) from None
