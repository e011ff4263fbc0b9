"""`list` and `show`: what the planner knows by name."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Any

import typer

from planner.cli.options import AsFormat, AsJson
from planner.cli.output import Format, fields, say, say_json, table

if TYPE_CHECKING:
    from planner.cluster import Cluster
    from planner.model import ModelSpec
    from planner.problem import Problem

Row = dict[str, Any]


class Catalog(StrEnum):
    """What can be listed."""

    models = "models"
    clusters = "clusters"
    problems = "problems"
    plans = "plans"
    findings = "findings"


def list_(
    catalog: Annotated[Catalog, typer.Argument(metavar="|".join(c.value for c in Catalog), help="Which catalog.")],
    format_: AsFormat = Format.table,
    json_: AsJson = False,
) -> int:
    """List a catalog."""
    listed: dict[Catalog, Callable[[], list[Row]]] = {
        Catalog.models: _models,
        Catalog.clusters: _clusters,
        Catalog.problems: _problems,
        Catalog.plans: _plans,
        Catalog.findings: _findings,
    }
    rows = listed[catalog]()
    if json_ or format_ == Format.json:
        say_json(rows)
    else:
        headers = list(rows[0]) if rows else []
        say(table([h.replace("_", " ") for h in headers], [[row[h] for h in headers] for row in rows]))
    return 0


def _models() -> list[Row]:
    from planner.models import catalog_names, load_model

    models = [(name, load_model(name)) for name in catalog_names()]
    return [
        {
            "name": name,
            "layers": len(model.layers),
            "hidden": model.hidden,
            "parameters": model.parameters,
            "active_parameters": model.active_parameters,
            "kv_cache_bytes_per_token": model.kv_cache_bytes_per_token,
        }
        for name, model in models
    ]


def _clusters() -> list[Row]:
    """The clusters that come as files, then one node of every GPU kind; `NxM-kind` works for any N and M."""
    from planner.clusters import cluster_names, gpu_kinds, load_cluster, load_gpu

    names = [*cluster_names(), *(f"1x{min(8, load_gpu(kind).gpus_per_node)}-{kind}" for kind in gpu_kinds())]
    return [
        {
            "name": name,
            "gpus": cluster.size,
            "kinds": ", ".join(cluster.kinds),
            "memory_gb": ", ".join(f"{kind.memory_bytes / 1e9:.1f}" for kind in cluster.kinds.values()),
            "bf16_tflops": ", ".join(f"{kind.peak_flops['bf16'] / 1e12:.0f}" for kind in cluster.kinds.values()),
        }
        for name, cluster in ((name, load_cluster(name)) for name in names)
    ]


def _problems() -> list[Row]:
    from planner.problem import library_names, load_problem

    return [
        {
            "name": name,
            "model": problem.model.name,
            "cluster": problem.cluster.name,
            "workload": _workload(problem),
            "plans": ", ".join(problem.plans),
        }
        for name, problem in ((name, load_problem(name)) for name in library_names())
    ]


def _plans() -> list[Row]:
    from planner.problem import library_names, load_problem

    problems = [load_problem(name) for name in library_names()]
    return [{"plan": f"{p.name}:{plan}", "note": p.plan_notes.get(plan, "")} for p in problems for plan in p.plans]


def _findings() -> list[Row]:
    from planner.check.findings import CATALOG

    return [{"code": code, "meaning": meaning} for code, meaning in sorted(CATALOG.items())]


def show(
    name: Annotated[str, typer.Argument(metavar="NAME-OR-PATH", help="A model, cluster, problem, PROBLEM:PLAN, or a file.")],
    format_: AsFormat = Format.table,
    json_: AsJson = False,
) -> int:
    """Show one model, cluster, problem or plan."""
    facts = _facts(name)
    if json_ or format_ == Format.json:
        say_json(facts)
        return 0
    listed = {key: value for key, value in facts.items() if isinstance(value, list) and value and isinstance(value[0], Mapping)}
    say(fields({key: _inline(value) for key, value in facts.items() if key not in listed}))
    for key, rows in listed.items():
        shown = [{k: _inline(v) for k, v in row.items()} for row in _grouped(key, rows)]
        headers = list(dict.fromkeys(header for row in shown for header in row))
        say(f"\n{key}\n" + table(headers, [[row.get(header, "") for header in headers] for row in shown]))
    return 0


def _facts(name: str) -> Row:
    """What is known about whatever the name means."""
    from planner.clusters import cluster_names, gpu_kinds, load_cluster
    from planner.clusters.build import PART
    from planner.errors import unknown_name
    from planner.models import catalog_names, load_model
    from planner.models.catalog import find_name
    from planner.problem import library_names, load_problem

    kind = _kind_of_file(name)
    if kind == "plan" or (kind is None and ":" in name and "/" not in name.partition(":")[0]):
        return _plan_facts(name)
    if kind == "problem" or name in library_names():
        return _problem_facts(load_problem(name))
    if kind == "cluster" or name.lower() in cluster_names() or all(PART.fullmatch(p.strip()) for p in name.split("+")):
        return _cluster_facts(load_cluster(name))
    if name.lower() in gpu_kinds():
        return _cluster_facts(load_cluster(f"1x1-{name}"))
    if kind == "model" or find_name(name) is not None:
        return _model_facts(load_model(name))
    raise unknown_name("name", name, [*library_names(), *cluster_names(), *gpu_kinds(), *catalog_names()])


def _kind_of_file(name: str) -> str | None:
    """What a path holds, told from its schema or its fields; None for a name that is no path."""
    from pathlib import Path

    from planner.files import read_json, read_yaml

    if Path(name).is_dir():
        return "model"
    if not name.lower().endswith((".yaml", ".yml", ".json")):
        return None
    content = read_json(Path(name)) if name.lower().endswith(".json") else read_yaml(Path(name))
    schema = str(content.get("schema", "")).removeprefix("planner.").partition("/")[0]
    if schema in ("problem", "plan", "result"):
        return "plan" if schema == "result" else schema
    if "nodes" in content:
        return "cluster"
    if "problem" in content:
        return "plan"
    return "problem" if "model" in content and "workload" in content else "model"


def _model_facts(model: ModelSpec) -> Row:
    from dataclasses import asdict

    return {
        "name": model.name,
        "parameters": model.parameters,
        "active_parameters": model.active_parameters,
        "kv_cache_bytes_per_token": model.kv_cache_bytes_per_token,
        "hidden": model.hidden,
        "vocab": model.vocab,
        "dtype": model.dtype,
        "tied_embeddings": model.tied_embeddings,
        "source": model.source,
        "layers": [
            {"layer": index, "attention": asdict(layer.attention), "ffn": asdict(layer.ffn)}
            for index, layer in enumerate(model.layers)
        ],
    }


def _cluster_facts(cluster: Cluster) -> Row:
    kinds = [
        {
            "kind": kind.name,
            "gpus": cluster.device_kinds.count(kind.name),
            "memory_bytes": kind.memory_bytes,
            "memory_bandwidth_bytes_per_s": kind.memory_bandwidth,
            "peak_flops": kind.peak_flops,
            "price_per_gpu_hour": kind.price_per_hour,
            "source": kind.source,
        }
        for kind in cluster.kinds.values()
    ]
    inside = {(len(d.ranks), d.link.name): d.link for d in cluster.domains}
    links = [(f"domain of {size} GPUs", link) for (size, _), link in inside.items()]
    if len(cluster.domains) > 1:
        links.append(("between domains", cluster.network))
    tiers = [
        {"tier": tier, "link": k.name, "bytes_per_s": k.bandwidth, "latency_s": k.latency_s, "source": k.source}
        for tier, k in links
    ]
    ranks = [{"rank": rank, "kind": kind, "domain": cluster.domain_of[rank]} for rank, kind in enumerate(cluster.device_kinds)]
    facts = {"name": cluster.name, "gpus": cluster.size, "price_per_hour": cluster.price_per_hour()}
    return {**facts, "kinds": kinds, "tiers": tiers, "devices": ranks}


def _problem_facts(problem: Problem) -> Row:
    return {
        "name": problem.name,
        "source": problem.source,
        "model": problem.model.name,
        "cluster": problem.cluster.name,
        "workload": _workload(problem),
        "space_size": str(problem.space.size()),
        "plans": [{"plan": f"{problem.name}:{n}", "note": problem.plan_notes.get(n, "")} for n in problem.plans],
        "restrictions": [{"restriction": text} for text in problem.restrictions],
        "assumptions": [{"assumption": text} for text in problem.assumptions],
    }


def _plan_facts(name: str) -> Row:
    from planner.api import choose
    from planner.plan import choice_to_dict

    chosen = choose(name)
    return {
        "name": chosen.name,
        "problem": chosen.problem.name,
        "note": chosen.problem.plan_notes.get(chosen.name, ""),
        "completed_by_search": chosen.completed,
        **choice_to_dict(chosen.choice, chosen.problem.sizes),
    }


def _workload(problem: Problem) -> str:
    load = problem.workload
    length = f"prompt={load.prompt}" if load.phase == "prefill" else f"context={load.context}"
    return f"{load.phase}:batch={load.batch},{length}"


def _grouped(key: str, rows: list[Row]) -> list[Row]:
    """Neighbouring rows that differ in their number alone, as one: `0-2`."""
    number = {"layers": "layer", "devices": "rank"}.get(key)
    if number is None:
        return rows
    found: list[Row] = []
    for row in rows:
        rest = {name: value for name, value in row.items() if name != number}
        if found and {n: v for n, v in found[-1].items() if n != number} == rest:
            found[-1] = {number: f"{str(found[-1][number]).partition('-')[0]}-{row[number]}", **rest}
        else:
            found.append(dict(row))
    return found


def _inline(value: object) -> object:
    """A value on one line: of a mapping what is set, numbers with separators."""
    if isinstance(value, Mapping):
        return ", ".join(f"{k}={_inline(v)}" for k, v in value.items() if v not in (None, False, 0, [], ()))
    if isinstance(value, bool) or value is None:
        return "" if value is None else str(value).lower()
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, list | tuple):
        return ", ".join(str(_inline(item)) for item in value)
    return value
