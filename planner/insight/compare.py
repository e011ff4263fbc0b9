"""Compare: plans side by side, with the seconds of each by class of operator and by tier."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

from planner.api import Chosen, NoPlanError, PlanRef, choose
from planner.check.findings import Finding
from planner.check.validate import check_choice
from planner.errors import InputError
from planner.evaluate.evaluation import DeviceReport, Evaluation, evaluate
from planner.insight.classes import Class, Split, operator_classes, path_split
from planner.insight.explain import filled, fullest_gpu
from planner.insight.waiting import Waiting, waiting
from planner.plan import choice_to_dict
from planner.problem import Problem
from planner.solve.searcher import inference_only

SCHEMA = "planner.comparison/1"
MOST_PLANS = 20
SHOWN = 60


@dataclass(frozen=True)
class Side:
    """One plan of a comparison: everything that its column tells."""

    chosen: Chosen
    evaluation: Evaluation
    split: Split
    waiting: Waiting
    fullest: DeviceReport
    findings: tuple[Finding, ...]
    gpus: int
    cost: float | None

    @property
    def label(self) -> str:
        """The plan as PROBLEM:NAME."""
        return f"{self.chosen.problem.name}:{self.chosen.name}"


@dataclass(frozen=True, slots=True)
class Missing:
    """A plan that could not be priced, and why."""

    label: str
    reason: str


@dataclass(frozen=True, slots=True)
class Difference:
    """A fact about the problems that is not the same for all plans: its name and its value for each."""

    fact: str
    values: tuple[str, ...]


@dataclass(frozen=True)
class Comparison:
    """Plans in the order asked for; `differences` is empty where all belong to one problem."""

    columns: tuple[Side | Missing, ...]
    differences: tuple[Difference, ...]

    @property
    def sides(self) -> tuple[Side, ...]:
        """The plans that have a price."""
        return tuple(column for column in self.columns if isinstance(column, Side))

    @property
    def fastest(self) -> Side | None:
        """The plan of least latency, the first of equal ones."""
        return min(self.sides, key=lambda side: side.evaluation.latency_s, default=None)

    def to_dict(self) -> dict[str, Any]:
        """As JSON-ready data (`planner.comparison/1`)."""
        return {
            "schema": SCHEMA,
            "fastest": self.fastest.label if self.fastest else None,
            "plans": [self._column(column) for column in self.columns],
            "problem_differences": [{"fact": d.fact, "values": list(d.values)} for d in self.differences],
        }

    def _column(self, column: Side | Missing) -> dict[str, Any]:
        if isinstance(column, Missing):
            return {"label": column.label, "priced": False, "reason": column.reason}
        best = self.fastest or column
        e, w = column.evaluation, column.waiting
        return {
            "label": column.label, "priced": True, "reason": None, "problem": column.chosen.problem.name,
            "name": column.chosen.name, "completed": column.chosen.completed,
            "plan": choice_to_dict(column.chosen.choice, column.chosen.problem.sizes), "latency_s": e.latency_s,
            "ratio_to_fastest": e.latency_s / best.evaluation.latency_s,
            "throughput_tokens_per_s": e.throughput_tokens_per_s, "cost_dollars": column.cost, "mfu": e.mfu,
            "gpus_used": column.gpus,
            "classes": {name.value: seconds for name, seconds in column.split.classes.items()},
            "against_fastest": {
                name.value: seconds - best.split.classes[name] for name, seconds in column.split.classes.items()
            },
            "communication_s": column.split.communication_s,
            "tiers": {tier.value: seconds for tier, seconds in column.split.tiers.items()},
            "gpu_seconds": {"busy": w.busy, "communication": w.communication, "pipeline_bubble": w.bubble,
                            "waiting_for_slowest_stage": w.stages, "waiting_inside_stage": w.gpus},
            "fullest_gpu": {"rank": column.fullest.rank, "share": filled(column.fullest.memory),
                            **asdict(column.fullest.memory)},
            "over_capacity_bytes": e.over_capacity_bytes,
            "findings": [{"code": f.code, "severity": f.severity, "where": f.where} for f in column.findings],
        }  # fmt: skip


def compare(plans: Sequence[PlanRef | Chosen], *, sets: Sequence[str] = ()) -> Comparison:
    """Plans side by side. A plan that its rules leave nothing of is a column with the reason.

    Raises `InputError` for wrong input and for fewer than two plans.
    """
    if not 2 <= len(plans) <= MOST_PLANS:
        raise InputError("plans", len(plans), f"2 to {MOST_PLANS} plans")
    columns = tuple(_column(plan, sets) for plan in plans)
    return Comparison(columns, differences([c.chosen.problem for c in columns if isinstance(c, Side)]))


def _column(plan: PlanRef | Chosen, sets: Sequence[str]) -> Side | Missing:
    try:
        chosen = choose(plan, sets=sets)
        inference_only(chosen.problem.space, "compare", "planner evaluate prices each of them")
        return side(chosen)
    except NoPlanError as error:
        return Missing(str(plan), str(error))


def side(chosen: Chosen) -> Side:
    """One plan priced and taken apart."""
    env, sizes, choice = chosen.env, chosen.problem.sizes, chosen.choice
    evaluation = evaluate(env, sizes, choice)
    split = path_split(evaluation.critical_path, operator_classes(env, sizes, choice))
    used = [report.rank for report in evaluation.devices]
    prices = [env.cluster.kind_of(rank).price_per_hour for rank in used]
    cost = sum(prices) / 3600.0 * evaluation.latency_s if all(prices) else None
    return Side(
        chosen, evaluation, split, waiting(env, sizes, choice, evaluation), fullest_gpu(evaluation),
        tuple(check_choice(env, sizes, choice)), len(used), cost,
    )  # fmt: skip


def differences(problems: Sequence[Problem]) -> tuple[Difference, ...]:
    """What is not the same in the models, workloads and clusters of some problems."""
    found = []
    for part, facts in (("model", _model_facts), ("workload", _fields), ("cluster", _cluster_facts)):
        told = [facts(getattr(problem, part)) for problem in problems]
        for fact in dict.fromkeys(name for each in told for name in each):
            values = tuple(each.get(fact, "-") for each in told)
            if len(set(values)) > 1:
                found.append(Difference(f"{part}.{fact}", values))
    return tuple(found)


def _fields(value: Any) -> Mapping[str, str]:
    """Every field of a dataclass as text."""
    return {f.name: _short(getattr(value, f.name)) for f in fields(value)}


def _model_facts(model: Any) -> Mapping[str, str]:
    """The fields of a model, its layers by what the different ones are."""
    kinds = {f"layer kind {i}": kind for i, kind in enumerate(model.layer_kinds)}
    inner = {
        f"{label}.{part}.{name}": value
        for label, kind in kinds.items()
        for part in ("attention", "ffn")
        for name, value in _fields(getattr(kind, part)).items()
    }
    own = {name: value for name, value in _fields(model).items() if name not in ("layers", "source")}
    return {**own, "layers": str(len(model.layers)), **inner}


def _cluster_facts(cluster: Any) -> Mapping[str, str]:
    """What a cluster is made of."""
    kinds = {f"GPUs of kind {name}": str(cluster.device_kinds.count(name)) for name in cluster.kinds}
    return {
        "GPUs": str(cluster.size), **kinds, "domains": str([len(d.ranks) for d in cluster.domains]),
        "network GB/s": f"{cluster.network.bandwidth / 1e9:g}",
        **{f"{name}: {fact}": text for name, kind in cluster.kinds.items() for fact, text in _kind_facts(kind).items()},
    }  # fmt: skip


def _kind_facts(kind: Any) -> Mapping[str, str]:
    return {
        "memory GB": f"{kind.memory_bytes / 1e9:g}", "memory TB/s": f"{kind.memory_bandwidth / 1e12:g}",
        "bf16 TFLOP/s": f"{kind.peak_flops['bf16'] / 1e12:g}",
    }  # fmt: skip


def _short(value: object) -> str:
    text = str(value)
    return text if len(text) <= SHOWN else text[: SHOWN - 3] + "..."


def shown_classes(comparison: Comparison) -> tuple[Class, ...]:
    """The classes that take time in some plan."""
    return tuple(name for name in Class if any(side.split.classes[name] for side in comparison.sides))
