"""Loading a problem: from the library, a file, a mapping, or composed of a model, a workload, a cluster and a space."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from planner.cluster import Cluster
from planner.clusters import as_mapping, load_cluster
from planner.clusters.measured import tables_to_dict
from planner.errors import InputError, unknown_name
from planner.fields import Fields
from planner.model import ModelSpec
from planner.models import load_model
from planner.plan import merge_plans, plan_space
from planner.problem.core import PROBLEM_SCHEMA, Drawing, Problem
from planner.problem.library import beside, is_path, library_names, problem_mapping
from planner.problem.models import changeable, model_mapping, shorten
from planner.problem.settings import change, parse_sets
from planner.problem.sizes import sizes_of
from planner.problem.space import FULL, read_space, restrictions
from planner.workload import load_workload, workload_to_dict
from search_spaces.space import SearchSpace

DEFAULT_CLUSTER = "2x8-h100"
DRAWING_NAME = re.compile(r"[A-Za-z0-9_-]{1,60}")
FIELDS = (
    "schema",
    "name",
    "source",
    "model",
    "workload",
    "cluster",
    "space",
    "pins",
    "plans",
    "drawings",
    "assumptions",
    "claims",
)
Ref = str | Path | Mapping[str, object]


def load_problem(
    ref: Ref | None = None,
    *,
    sets: Sequence[str] = (),
    model: Ref | None = None,
    cluster: Ref | None = None,
    workload: Ref | None = None,
    space: Ref | None = None,
) -> Problem:
    """The problem that `ref` means (a library name, a path, a mapping), or the one composed of the other arguments.

    A part that is given replaces that of `ref`. `space` is `full`, a library name or a problem file whose space is
    taken, or a mapping. `sets` are changes `path=value`; those of `plan.` pin decisions of the space. Hand-designed
    plans that a change makes impossible are left out, and `plan_notes` says why. `InputError` names the file, the field
    and the value that are wrong.
    """
    mapping, source, folder = ({}, "", None) if ref is None else problem_mapping(ref)
    parts = {"model": model, "cluster": cluster, "workload": workload, "space": _space_section(space)}
    given = {name: str(part) if isinstance(part, Path) else part for name, part in parts.items() if part is not None}
    own = {name: beside(value, folder) if name in parts else value for name, value in mapping.items()}
    changes = parse_sets(sets)
    whole: dict[str, object] = {"cluster": DEFAULT_CLUSTER, "space": FULL, **own, **given}
    for root in ("model", "workload") if ref is None else ():
        if root not in whole:
            raise InputError(root, None, f"a {root}, since no problem is named")
    _apply(whole, changes, source)
    pins = changes.get("plan", {})
    if pins:
        whole["pins"] = change(whole.get("pins") or {}, pins, "plan")
    return _build(whole, source, changed=bool(given) or bool(set(changes) - {"plan"}))


def _space_section(space: Ref | None) -> object:
    """The `space` argument as a section of a problem file."""
    if space is None or isinstance(space, Mapping) or space == FULL:
        return space
    if not is_path(space) and space not in library_names():
        raise unknown_name("space", space, [FULL, *library_names()])
    return problem_mapping(space)[0].get("space", FULL)


def _apply(whole: dict[str, object], changes: Mapping[str, Mapping[str, object]], source: str) -> None:
    """Change single fields of the sections, each resolved to its mapping first."""
    if "model" in changes:
        before = changeable(whole.get("model"), source)
        after = change(before, changes["model"], "model")
        whole["model"] = after
        if isinstance(after, dict) and "layers" in changes["model"]:
            shorten(after, before)
    if "cluster" in changes:
        ref = _ref(whole["cluster"], "cluster", source)
        resolved = ref if isinstance(ref, Mapping) else as_mapping(ref, source)
        whole["cluster"] = change(resolved, changes["cluster"], "cluster")
    if "workload" in changes:
        section = whole.get("workload")
        resolved = (
            section if isinstance(section, Mapping) else workload_to_dict(load_workload(_ref(section, "workload", source)))
        )
        whole["workload"] = change(resolved, changes["workload"], "workload")
    if "space" in changes:
        section = whole["space"]
        whole["space"] = change(section if isinstance(section, Mapping) else {}, changes["space"], "space")


def _ref(value: object, name: str, source: str) -> str | Mapping[str, object]:
    if isinstance(value, str | Mapping):
        return value
    raise InputError(name, value, "a name, a path, or a mapping", source)


def _build(whole: dict[str, object], source: str, changed: bool) -> Problem:
    fields = _fields(whole, source)
    model = _sourced(_ref(fields.raw("model"), "model", source), source, fields.text("source", default="the problem file"))
    cluster = load_cluster(_ref(fields.raw("cluster"), "cluster", source), source)
    asked = _ref(fields.raw("workload"), "workload", source)
    workload = load_workload(asked, source)
    try:
        sizes = sizes_of(model, workload, cluster)
    except InputError as error:
        own = error.field.startswith("workload.") and isinstance(asked, str) and is_path(asked)
        raise error.within(str(asked) if own else source) from None
    base = read_space(fields.raw("space"), sizes, source, training=workload.training is not None)
    pins = _mapping(fields, "pins")
    space = _pinned(pins, base, source)
    plans, notes, kept = _plans(_mapping(fields, "plans"), base, source, changed)
    name = fields.text("name", default=f"{model.name}-{workload.phase}-{cluster.name}")
    written = {"name": name, "workload": workload_to_dict(workload), "plans": kept}
    return Problem(
        name=name,
        source=fields.text("source", default=""),
        model=model,
        cluster=cluster,
        workload=workload,
        space=space,
        plans=plans,
        plan_notes=notes,
        assumptions=tuple(fields.texts("assumptions", default=())),
        claims=tuple(dict(claim.values) for claim in fields.mappings("claims")),
        unrestricted=replace(space, replicas=None),
        restrictions=restrictions(fields.raw("space"), pins, space),
        drawings=_drawings(_mapping(fields, "drawings"), plans, len(model.layers), source),
        raw=_raw({**whole, **written}, model, cluster),
    )


def _drawings(section: Mapping[str, object], plans: Mapping[str, SearchSpace], layers: int, source: str) -> tuple[Drawing, ...]:
    """Named drawings of hand-designed plans; those of plans that a change left out are left out, too."""
    found = []
    for name, value in section.items():
        if not DRAWING_NAME.fullmatch(name):
            raise InputError("drawings", name, "names of letters, digits, - and _, at most 60", source)
        fields = Fields({name: value}, source, "drawings").mapping(name)
        drawing = Drawing(
            name,
            fields.text("plan"),
            fields.choice("view", ("model", "layer", "mha", "mlp", "moe", "communication")),
            fields.maybe_integer("layer", high=layers - 1),
        )
        fields.done()
        found.append(drawing)
    return tuple(drawing for drawing in found if drawing.plan in plans)


def _sourced(ref: str | Mapping[str, object], source: str, facts: str) -> ModelSpec:
    """The model, its source told without this machine's folders: `facts` where it stands in the problem's own file."""
    model = load_model(ref, source)
    if isinstance(ref, Mapping):
        return model if "source" in ref else replace(model, source=facts)
    return replace(model, source="/".join(Path(model.source).parts[-2:])) if is_path(ref) else model


def _raw(whole: Mapping[str, object], model: ModelSpec, cluster: Cluster) -> dict[str, object]:
    """The resolved mapping of a problem; it needs no other file where our own format can say the model."""
    raw = {"schema": PROBLEM_SCHEMA} | {name: whole[name] for name in FIELDS if name in whole}
    ref = raw["model"]
    if is_path(ref):
        raw["model"] = model_mapping(model) or ref
    elif isinstance(ref, Mapping) and "attention" in ref and model.source:
        raw["model"] = {**ref, "source": model.source}
    if is_path(raw["cluster"]):
        raw["cluster"] = as_mapping(str(raw["cluster"]))
    tables = tables_to_dict(cluster)
    if tables:
        ref = raw["cluster"]
        raw["cluster"] = {**(ref if isinstance(ref, Mapping) else as_mapping(str(ref))), **tables}
    return raw


def _fields(whole: Mapping[str, object], source: str) -> Fields:
    """The fields of a problem, its schema and their names checked."""
    fields = Fields(whole, source)
    schema = fields.raw("schema")
    if schema not in (None, PROBLEM_SCHEMA):
        newer = isinstance(schema, str) and schema.startswith("planner.problem/")
        hint = "the file is of another version than this planner reads" if newer else "a problem file"
        raise fields.error("schema", f"{PROBLEM_SCHEMA} ({hint})")
    fields.ignore(FIELDS)
    fields.done()
    return fields


def _mapping(fields: Fields, name: str) -> Mapping[str, object]:
    found = fields.maybe_mapping(name)
    return found.values if found else {}


def _pinned(pins: Mapping[str, object], base: SearchSpace, source: str) -> SearchSpace:
    return plan_space(pins, base, source or "--set") if pins else base


def _plans(
    section: Mapping[str, object], base: SearchSpace, source: str, changed: bool
) -> tuple[dict[str, SearchSpace], dict[str, str], dict[str, object]]:
    """The plans as spaces, their notes, and their mappings with `like` resolved."""
    spaces: dict[str, SearchSpace] = {}
    notes: dict[str, str] = {}
    kept: dict[str, object] = {}
    for name in section:
        mapping = resolve_like(section, name, source)
        note = mapping.get("note")
        if isinstance(note, str):
            notes[name] = note
        try:
            spaces[name] = plan_space(mapping, base, f"{source} {name}".strip())
            kept[name] = mapping
        except InputError as error:
            if not changed:
                raise
            notes[name] = f"left out, as the problem was changed: {error}"
    return spaces, notes, kept


def resolve_like(section: Mapping[str, object], name: str, source: str, seen: tuple[str, ...] = ()) -> dict[str, object]:
    """A plan's mapping laid over that of the plan it is `like`."""
    plan = section.get(name)
    if name not in section:
        raise unknown_name(f"plans.{seen[-1]}.like" if seen else "plan", name, section, source)
    if not isinstance(plan, Mapping):
        raise InputError(f"plans.{name}", plan, "a mapping", source)
    other = plan.get("like")
    own = {field: value for field, value in plan.items() if field != "like"}
    if other is None:
        return own
    if not isinstance(other, str) or other in (*seen, name):
        raise InputError(f"plans.{name}.like", other, "another plan of this file, without a circle", source)
    return merge_plans(resolve_like(section, other, source, (*seen, name)), own)
