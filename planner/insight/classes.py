"""Classes of operators, read off the graph: what the seconds of a critical path are spent on, and on which tier."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum

from planner.check.conservation import ABSORBED
from planner.evaluate.devices import StageRoles
from planner.evaluate.setting import Setting
from planner.evaluate.timeline import Item
from planner.graph.ops import COLLECTIVES, Kind, Op, Role, Store
from planner.model import Module
from search_spaces.sizes import Sizes
from search_spaces.stages import Choice


class Class(StrEnum):
    """What an operator is for; every collective kind is a class of its own."""

    CORE = "attention_core"
    PROJECTIONS = "projections"
    FFN = "ffn"
    EXPERTS = "experts"
    ROUTER = "router"
    ELEMENTWISE = "elementwise"
    ENDS = "embedding_head"
    ALL_REDUCE = "all_reduce"
    ALL_GATHER = "all_gather"
    REDUCE_SCATTER = "reduce_scatter"
    ALL_TO_ALL = "all_to_all"
    SEND = "send_recv"
    TRANSFER = "transfer"


class Tier(StrEnum):
    """The slowest part of the network that a collective or a transfer crosses."""

    INSIDE = "inside_domain"
    BETWEEN = "between_domains"


COMMUNICATION = frozenset(Class) - {
    Class.CORE, Class.PROJECTIONS, Class.FFN, Class.EXPERTS, Class.ROUTER, Class.ELEMENTWISE, Class.ENDS,
}  # fmt: skip
_OF_MODULE: dict[Module, Class] = {
    "attention": Class.PROJECTIONS, "ffn": Class.FFN, "experts": Class.EXPERTS, "router": Class.ROUTER,
    "embedding": Class.ENDS, "head": Class.ENDS, "norm": Class.ELEMENTWISE,
}  # fmt: skip
_OF_CALL = {
    "AllReduce": Class.ALL_REDUCE, "AllGather": Class.ALL_GATHER, "ReduceScatter": Class.REDUCE_SCATTER,
    "AllToAll": Class.ALL_TO_ALL, "SendRecv": Class.SEND, "Transfer": Class.TRANSFER,
}  # fmt: skip
_DOMAINS = re.compile(r"\bdomains=(\d+)")


@dataclass(frozen=True, slots=True)
class Split:
    """The seconds of a critical path by class of operator, and those of its communication by tier."""

    classes: dict[Class, float]
    tiers: dict[Tier, float]

    @property
    def communication_s(self) -> float:
        """Seconds of collectives and transfers."""
        return math.fsum(seconds for name, seconds in self.classes.items() if name in COMMUNICATION)


def path_split(items: Iterable[Item], classes: Mapping[str, Class]) -> Split:
    """Add the items of a critical path up by class and tier; `classes` are those of the plan's operators by name."""
    by_class: dict[Class, list[float]] = {name: [] for name in Class}
    by_tier: dict[Tier, list[float]] = {tier: [] for tier in Tier}
    for item in items:
        name = item_class(item, classes)
        by_class[name].append(item.seconds)
        if name in COMMUNICATION:
            by_tier[item_tier(item)].append(item.seconds)
    return Split(
        {name: math.fsum(seconds) for name, seconds in by_class.items()},
        {tier: math.fsum(seconds) for tier, seconds in by_tier.items()},
    )


def item_class(item: Item, classes: Mapping[str, Class]) -> Class:
    """The class of a critical path's item: communication by what its term calls, the rest by its operator's name."""
    call = item.term.partition("(")[0]
    return _OF_CALL[call] if call in _OF_CALL else classes[item.op]


def item_tier(item: Item) -> Tier:
    """The slowest tier that a collective's or a transfer's term crosses."""
    if item.term.startswith("Transfer("):
        crosses = float(item.term.rstrip(")").rpartition(",")[2]) > 0
    else:
        found = _DOMAINS.search(item.term)
        crosses = found is not None and int(found[1]) > 1
    return Tier.BETWEEN if crosses else Tier.INSIDE


def operator_classes(env: Setting, sizes: Sizes, choice: Choice) -> dict[str, Class]:
    """The class of every operator of a plan, by name."""
    modules = {weight.name: weight.module for _, weight in env.model.weights()}
    found: dict[str, Class] = {}
    for index in range(len(choice.stages)):
        for role, _ in plan_roles(env, sizes, choice, index):
            found |= role_classes(role, modules)
    return found


def plan_roles(env: Setting, sizes: Sizes, choice: Choice, index: int) -> list[tuple[Role, int]]:
    """The roles of a stage with a row per GPU, and how many of its layers run each; those of expert GPUs come last."""
    build = StageRoles(env, sizes, choice, index)
    return [*build.near(), *(build.far() if choice.stages[index].separate else ())]


def role_classes(role: Role, modules: Mapping[str, Module]) -> dict[str, Class]:
    """The class of every operator of a role, by name; `modules` are those of the model's weights.

    A head that shares the embedding's weights holds none of its own, so its product is known by its role.
    """
    found: dict[str, Class] = {}
    routing = {op.output.name for op in role.ops if op.weights and modules.get(op.weights[0].name) == "router"}
    for op in role.ops:
        found[op.name] = Class.ENDS if role.name == "head" and op.kind is Kind.MATMUL else _class_of(op, modules, routing)
    return found


def _class_of(op: Op, modules: Mapping[str, Module], routing: set[str]) -> Class:
    """Products by the module of their weights, those of two activations are the attention core, and what only moves memory
    by what it is about: probabilities, routes, or anything else.
    """
    if op.kind in COLLECTIVES:
        return Class(op.kind.value)
    if op.kind is Kind.ATTENTION:
        return Class.CORE
    if op.kind in (Kind.MATMUL, Kind.GROUPED):
        name = op.weights[0].name if op.weights else ABSORBED.get(op.name, "")
        return _OF_MODULE[modules.get(name, "head")] if name else Class.CORE
    if op.kind is Kind.LOOKUP:
        return Class.ENDS
    if op.output.store is Store.SCORES:
        return Class.CORE
    return Class.ROUTER if op.inputs and set(op.inputs) <= routing else Class.ELEMENTWISE
