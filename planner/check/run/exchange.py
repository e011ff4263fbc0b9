"""Collectives of the backward pass, and of the exchange of gradients between the copies of weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from planner.check.run import attention_gradients, moe_gradients
from planner.check.run.book import split_for
from planner.check.run.collectives import COLLECTIVES, ring
from planner.check.run.gradients import SAME, named, parts_for
from planner.check.run.load import AXES
from planner.check.run.site import Fault, Floats, Site, Value
from planner.graph.nodes import Node
from planner.graph.ops import Kind
from planner.graph.sharing import sharing

Members = Sequence[Site]
CARRIED = {
    "x_grad": ("xg", "xn"), "xg_grad": ("xg", "xn"), "routes_all_grad": ("routes_all", "routes"), "o_grad": ("o", ""),
    "f_grad": ("f", ""), "y_grad": ("y", ""), "gradient_gather": ("y", ""),
}  # fmt: skip
"""Of which tensor the gradient comes, and of which it is then; what goes to one reader alone has no name."""


def backward_collective(members: Members) -> list[Value]:
    """A collective of the backward pass: what its members bring are gradients."""
    node = members[0].node
    if node.name == "combine_backward":
        return moe_gradients.send_gradients(members)
    if node.name == "dispatch_backward":
        return moe_gradients.return_gradients(members)
    if node.name.startswith("ring_"):
        if node.name.endswith("_again"):
            return ring(members)
        parts = [attention_gradients.block_gradient(site) for site in members]
        return [attention_gradients.home(site, parts[index - 1]) for index, site in enumerate(members)]
    source, target = _carried(node)
    plain = [_plain(site, source, target) for site in members]
    if all(site is None for site in plain):
        raise Fault(f"nothing delivers the gradient of {source}")
    empty = next(site for site in plain if site is not None)
    whole = [site or _nothing(own, empty) for own, site in zip(members, plain, strict=True)]
    values = COLLECTIVES[node.kind](whole)
    return [named({target: Value(value.array)}) if target else Value(value.array) for value in values]


def _carried(node: Node) -> tuple[str, str]:
    if node.name == "x_grad_gather":
        return "x", "x"
    for prefix, names in CARRIED.items():
        if node.name.startswith(prefix):
            return names
    raise Fault(f"a collective called {node.name} has no definition")


def _plain(site: Site, source: str, target: str) -> Site | None:
    """A member with the sum of the gradients that it brings as one plain tensor; None where it brings none."""
    names = (source, *SAME.get(source, ()), *((target,) if target else ()))
    found = parts_for(site, names)
    if not found:
        return None
    total = np.asarray(np.sum([value.array for value in found], axis=0), dtype=np.float64)
    return Site(site.node, site.split, site.layer_index, {site.node.formals[0]: Value(total)})


def _nothing(site: Site, like: Site) -> Site:
    """A member without a share: it adds zeros to a sum."""
    (value,) = like.delivered.values()
    return Site(like.node, site.split, site.layer_index, {like.node.formals[0]: Value(np.zeros_like(value.array))})


Name = tuple[int | None, str]
Brought = Sequence[tuple[Site, Value]]


def exchange(members: Members, arrived: Sequence[Mapping[Name, list[Value]]]) -> list[Value]:
    """Gradients of weights, by layer and name, added up over all members; after a reduce-scatter each has its flat part."""
    node = members[0].node
    names = list(
        dict.fromkeys(
            _canonical(name, node)
            for own in arrived
            for name in own
            if _meant(members[0], name) and _brought(members[0], own, _canonical(name, node)) is not None
        )
    )
    found: list[dict[str, Value]] = [{} for _ in members]
    for name in names:
        fresh = [_brought(site, own, name) for site, own in zip(members, arrived, strict=True)]
        if any(value is None for value in fresh):
            raise Fault(f"not all of its {len(members)} members bring the gradient of {name[1]}")
        brought = [(site, value) for site, value in zip(members, fresh, strict=True) if value is not None]
        slot = f"{'' if name[0] is None else name[0]}:{name[1]}"
        if node.kind == Kind.REDUCE_SCATTER:
            for index, (own, mine) in enumerate(zip(_scattered(brought, name), arrived, strict=True)):
                before = [value.array for value in mine.get(name, []) if "part" in value.beside]
                total = own if not before else own + np.sum(before, axis=0)
                found[index][slot] = Value(total, {"part": np.array([index, len(members)])})
            continue
        axis = AXES.get(name[1], ("",))[-1]
        values = (
            _by_head(brought, name, axis) if node.name.startswith("finish") and axis in ("k", "v") else _summed(brought, name)
        )
        for index, (value, (_, own_value)) in enumerate(zip(values, brought, strict=True)):
            found[index][slot] = Value(value, dict(own_value.beside))
    return [named(parts) if parts else Value(np.zeros(0)) for parts in found]


def _meant(site: Site, name: Name) -> bool:
    """Whether the end of a step adds up this gradient: what comes with it in one buffer may be finished already."""
    kind, _, size = site.node.name.partition("_")
    if kind != "finish":
        return True
    layer = None if name[0] is None else site.split.world.twin.model.layers[name[0]]
    return sharing(site.split.at.stage, layer, name[1]).finish == int(size)


def _canonical(name: Name, node: Node) -> Name:
    """Where embedding and head are one weight their gradients meet as that of the embedding."""
    return (None, "embedding") if node.name == "tied" else name


def _brought(site: Site, own: Mapping[Name, list[Value]], name: Name) -> Value | None:
    """What a member brings for a weight: not what it holds of it already from earlier micro-batches."""
    scatters = site.node.kind == Kind.REDUCE_SCATTER
    for other in (name, (None, "head")) if site.node.name == "tied" else (name,):
        values = [value for value in own.get(other, []) if not (scatters and "part" in value.beside)]
        if values:
            (value,) = values
            turned = other[1] != name[1] and "part" not in value.beside
            return Value(value.array.T if turned else value.array, value.beside)
    return None


def _summed(brought: Brought, name: Name) -> list[Floats]:
    shapes = {value.array.shape for _, value in brought}
    if len(shapes) > 1:
        raise Fault(f"its members bring gradients of {name[1]} of different shapes: {sorted(map(list, shapes))}")
    return [np.asarray(np.sum([value.array for _, value in brought], axis=0))] * len(brought)


def _scattered(brought: Brought, name: Name) -> list[Floats]:
    """Equal flat parts of a sum; of a head that is one weight with the embedding in the order of that."""
    total = _summed(brought, name)[0]
    world = brought[0][0].split.world
    tied = name[1] == "head" and (None, "head") not in world.weights
    return np.array_split((total.T if tied else total).ravel(), len(brought))


def _by_head(brought: Brought, name: Name, axis: str) -> list[Floats]:
    """Sums column by column: members may hold different heads, of which some are the same."""
    if any("part" in value.beside for _, value in brought):
        if len({value.array.shape for _, value in brought}) > 1:
            raise Fault("its members bring parts of different heads")
        total = np.sum([value.array for _, value in brought], axis=0)
        return [total] * len(brought)
    sums: dict[int, Floats] = {}
    columns = [split_for(site.split, name[0]).index(axis) for site, _ in brought]
    for (_, value), own in zip(brought, columns, strict=True):
        for place, column in enumerate(own):
            sums[int(column)] = sums.get(int(column), 0.0) + value.array[..., place]
    return [np.stack([sums[int(column)] for column in own], axis=-1) for own in columns]
