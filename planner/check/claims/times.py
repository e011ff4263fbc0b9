"""Times: an author's expression as a sum of products, maxima and waiting, ready to be compared operator by operator."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace

from planner.check.claims.claim import BASE, Definition
from planner.check.claims.work import Products
from planner.errors import InputError
from planner.evaluate.expression import Call, Name, Number, Sum, Tree, children, evaluate_tree
from planner.evaluate.expression import Product as Factors
from planner.evaluate.setting import Setting
from planner.evaluate.term import OPERATIONS

ARGUMENTS = {"Get_Time": 3, "Attention": 7}


@dataclass(frozen=True, slots=True)
class Leaf:
    """A Get_Time of the expression: its sizes (None: not stated), how often its own arguments repeat it, whose work it is.

    `operators` are those it is tagged with, `gpu` the rank it speaks of (None: the one with most work).
    """

    operators: tuple[str, ...]
    gpu: int | None
    rows: float | None
    k: float | None
    n: float | None
    count: float
    text: str
    names: tuple[str, ...] = ()

    def filled(self, needed: Products) -> Products:
        """With what the plan needs in the place of sizes that are not stated."""
        return Products(
            needed.rows if self.rows is None else self.rows,
            needed.k if self.k is None else self.k,
            needed.n if self.n is None else self.n,
            self.count,
        )


@dataclass(frozen=True, slots=True)
class Waiting:
    """A part that multiplies nothing: communication, memory traffic, or a time that is not stated."""

    kind: str
    name: str


@dataclass(frozen=True, slots=True)
class Scaled:
    """A part that is counted."""

    times: float
    part: Time


@dataclass(frozen=True, slots=True)
class Together:
    """Parts that follow each other."""

    parts: tuple[Time, ...]


@dataclass(frozen=True, slots=True)
class Largest:
    """The longest of some parts."""

    branches: tuple[Time, ...]


Time = Leaf | Waiting | Scaled | Together | Largest


class UnstatedError(Exception):
    """A size rests on a name that the author does not define."""


def base_values(env: Setting) -> dict[str, float]:
    """What the names of `BASE` stand for in a problem."""
    layer, workload = env.model.layers[0], env.workload
    sizes = (
        workload.batch, env.query_length, env.model.hidden, env.model.vocab, layer.ffn.experts, layer.attention.heads,
        layer.attention.head_dim, layer.ffn.hidden,
    )  # fmt: skip
    return dict(zip(BASE, map(float, sizes), strict=True))


class TimeReader:
    """Reads trees into times; `values` are known sizes, `where` the author's own names."""

    def __init__(self, values: Mapping[str, float], where: Mapping[str, Definition]) -> None:
        self.values, self.where = dict(values), where

    def time(self, tree: Tree) -> Time:
        """An expression as a time; `InputError` where it is not one, such as a product of two times."""
        if isinstance(tree, Number):
            return Waiting("constant", f"{tree.value:g}")
        if isinstance(tree, Name):
            return self._name(tree)
        if isinstance(tree, Sum):
            return Together(tuple(Scaled(sign, self.time(part)) for sign, part in tree.parts))
        if isinstance(tree, Factors):
            return self._scaled(tree)
        if tree.function == "max":
            return Largest(tuple(self.time(part) for part in tree.plain))
        return self._call(tree)

    def size(self, tree: Tree) -> float:
        """A size as a number; `UnstatedError` where it rests on a name without a value."""
        for name in _names(tree):
            if name not in self.values:
                self.values[name] = self._value(name)
        return evaluate_tree(tree, {}, self.values)

    def _value(self, name: str) -> float:
        found = self.where[name]
        if found.kind == "unstated":
            raise UnstatedError(name)
        if found.kind == "communication" or found.tree is None or _times(found.tree, self.where):
            raise InputError("expression", name, "a size in the place of a time")
        return self.size(found.tree)

    def _name(self, tree: Name) -> Time:
        found = self.where.get(tree.name)
        if found is None or found.kind == "unstated":
            return Waiting("unstated", tree.name)
        if found.kind == "communication" or found.tree is None:
            return Waiting("communication", tree.name)
        return self.time(found.tree)

    def _scaled(self, tree: Factors) -> Time:
        times, part = 1.0, None
        for divide, factor in tree.factors:
            if _times(factor, self.where):
                if divide or part is not None:
                    raise InputError(f"expression, word {tree.at}", "a time", "one time in a product, and none as a divisor")
                part = self.time(factor)
            else:
                other = self.size(factor)
                if divide and other == 0:
                    raise InputError(f"expression, word {tree.at}", 0, "a divisor that is not zero")
                times = times / other if divide else times * other
        return Waiting("constant", f"{times:g}") if part is None else Scaled(times, part)

    def _call(self, call: Call) -> Time:
        named = dict(call.named)
        if call.function in (*OPERATIONS, "Transfer"):
            return Waiting("communication", call.function)
        if call.function == "Memory":
            return Waiting("memory", call.function)
        if len(call.plain) != ARGUMENTS[call.function]:
            allowed = f"{ARGUMENTS[call.function]} sizes, such as Get_Time(m, k, n)"
            raise InputError(f"expression, word {call.at}", call.function, allowed)
        gpu = int(self._named(named, "gpu", -1.0)) if not isinstance(named.get("gpu"), str) else -1
        tag = named.get("op", "")
        if not isinstance(tag, str):
            raise InputError(f"expression, word {call.at}", "op", "the name of an operator")
        if call.function == "Attention":
            return self._attention([self.size(argument) for argument in call.plain], self._named(named, "causal", 0.0), gpu)
        sizes: list[float | None] = []
        unstated: list[str] = []
        for argument in call.plain:
            try:
                sizes.append(self.size(argument))
            except UnstatedError as name:
                sizes.append(None)
                unstated.append(str(name))
        count = self._named(named, "batch", 1.0) * self._named(named, "groups", 1.0)
        text = f"Get_Time({', '.join(unstated[0] if size is None else f'{size:.15g}' for size in sizes)})"
        rows, k, n = sizes
        return Leaf((tag,) if tag else (), None if gpu < 0 else gpu, rows, k, n, count, text, tuple(unstated))

    def _attention(self, sizes: list[float], causal: float, gpu: int) -> Time:
        """A fused kernel as its two products; under a causal mask a query sees half of the keys."""
        batch, heads, _, q, kv, qk, v = sizes
        keys, rank = (kv + 1) / 2 if causal else kv, None if gpu < 0 else gpu
        text = f"Attention({', '.join(f'{size:.15g}' for size in sizes)})"
        scores = Leaf(("scores",), rank, batch * q, qk, keys, heads, text)
        return Together((scores, replace(scores, operators=("attention_value",), k=keys, n=v)))

    def _named(self, named: Mapping[str, Tree | str], name: str, default: float) -> float:
        found = named.get(name)
        return default if found is None or isinstance(found, str) else self.size(found)


def leaves(time: Time, times: float = 1.0) -> Iterator[tuple[float, Leaf]]:
    """Every Get_Time with how often it is counted; those of all branches of a maximum."""
    if isinstance(time, Leaf):
        yield times, time
    elif isinstance(time, Scaled):
        yield from leaves(time.part, times * time.times)
    elif isinstance(time, Together | Largest):
        for part in time.parts if isinstance(time, Together) else time.branches:
            yield from leaves(part, times)


def waits(time: Time) -> Iterator[Waiting]:
    """Every part that multiplies nothing."""
    if isinstance(time, Waiting):
        yield time
    elif isinstance(time, Scaled):
        yield from waits(time.part)
    elif isinstance(time, Together | Largest):
        for part in time.parts if isinstance(time, Together) else time.branches:
            yield from waits(part)


def maxima(time: Time) -> Iterator[Largest]:
    """Every maximum of two or more parts."""
    if isinstance(time, Scaled):
        yield from maxima(time.part)
    elif isinstance(time, Together | Largest):
        if isinstance(time, Largest) and len(time.branches) > 1:
            yield time
        for part in time.parts if isinstance(time, Together) else time.branches:
            yield from maxima(part)


def amount(time: Time, of_leaf: Callable[[Leaf], float], added: bool = False) -> float:
    """What a time comes to, each leaf counted by `of_leaf`; with `added` the branches of a maximum are added up."""
    if isinstance(time, Leaf):
        return of_leaf(time)
    if isinstance(time, Scaled):
        return time.times * amount(time.part, of_leaf, added)
    if isinstance(time, Together):
        return math.fsum(amount(part, of_leaf, added) for part in time.parts)
    if isinstance(time, Largest):
        parts = [amount(part, of_leaf, added) for part in time.branches]
        return math.fsum(parts) if added else max(parts, default=0.0)
    return 0.0


def _names(tree: Tree) -> Iterator[str]:
    if isinstance(tree, Call):
        raise InputError(f"expression, word {tree.at}", tree.function, "a size in the place of a time")
    if isinstance(tree, Name):
        yield tree.name
    for part in children(tree):
        yield from _names(part)


def _times(tree: Tree, where: Mapping[str, Definition]) -> bool:
    """Whether a tree is a time rather than a number."""
    if isinstance(tree, Call):
        return True
    if isinstance(tree, Name):
        found = where.get(tree.name)
        return found is not None and (found.kind == "communication" or (found.tree is not None and _times(found.tree, where)))
    return any(_times(part, where) for part in children(tree))
