"""Drawings of a plan: which part of its graph each view needs, priced, and written as DOT, SVG or JSON."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, cast

from planner.errors import InputError

if TYPE_CHECKING:
    from planner.api import Chosen
    from planner.export.views import View
    from planner.graph.nodes import Graph
    from planner.model import Layer
    from planner.problem import Problem

WHOLE_MODEL = 2_000
"""Layers x GPUs up to which a drawing of the whole model holds every layer."""
FEW_LAYERS = 8
"""Layers up to which a drawing of the communication holds every layer."""

MOST_NODES = 50_000
"""Nodes up to which a whole graph is written: some 40 MB of DOT."""


@dataclass(frozen=True)
class Priced:
    """A part of a plan's graph with the seconds of its nodes and its longest path; `part` says in words what it is."""

    graph: Graph
    seconds: dict[str, float]
    path: tuple[str, ...]
    part: str


class Drawer:
    """Draws one plan; the parts of the graph that several views share are built once."""

    def __init__(self, chosen: Chosen) -> None:
        self.chosen = chosen
        self._parts: dict[tuple[tuple[int, ...], bool], Priced] = {}

    def dot(self, view: View, layer: int | None = None) -> str:
        """One view as DOT."""
        from planner.export.dot import dag_dot

        chosen, priced = self.chosen, self.priced(view, layer)
        title = f"{chosen.problem.name}:{chosen.name}, {view}: {priced.part}"
        return dag_dot(priced.graph, priced.seconds, priced.path, view, title, chosen.problem.cluster.domain_of)

    def json(self, view: View, layer: int | None = None) -> dict[str, Any]:
        """The part of the graph that a view is drawn from."""
        from planner.export.dag_json import dag_json

        priced = self.priced(view, layer)
        return {"part": priced.part, **dag_json(priced.graph, priced.seconds, priced.path)}

    def full(self, layer: int | None = None, micro_batches: int | None = None, as_json: bool = False) -> str | dict[str, Any]:
        """The graph with all that is known of it, as DOT or JSON: every layer and micro-batch unless fewer are asked for."""
        from planner.export.dag_json import dag_json
        from planner.export.full import full_dot

        priced = self._whole(layer, micro_batches)
        if as_json:
            return {"part": priced.part, **dag_json(priced.graph, priced.seconds, priced.path)}
        return full_dot(priced.graph, priced.seconds, f"{self.chosen.problem.name}:{self.chosen.name}, full: {priced.part}")

    def _whole(self, layer: int | None, micro_batches: int | None) -> Priced:
        """The graph of all layers, or of one, and its first micro-batches. Raises `InputError` where it would be too large."""
        from planner.evaluate.expanded import longest_path, price_graph
        from planner.graph.expand import expand

        chosen, problem, every = self.chosen, self.chosen.problem, self.chosen.choice.micro_batches
        layers = range(len(self.layers)) if layer is None else (self._layer("layer", layer),)
        count = every if micro_batches is None else min(micro_batches, every)

        def grown(number: int) -> Graph:
            return expand(
                problem.model, problem.workload, problem.sizes, chosen.choice,
                layers=layers, micro_batches=number, ends=layer is None,
            )  # fmt: skip

        one = grown(1)
        most = max(MOST_NODES // len(one.nodes), 1)
        if count > most:
            raise InputError("--micro-batches", count, f"1 to {most}: one has {len(one.nodes):,} nodes (or give --layer)")
        graph = one if count == 1 else grown(count)
        seconds = price_graph(chosen.env, graph)
        return Priced(graph, seconds, longest_path(graph, seconds).path, self._words(tuple(layers), count))

    def views(self) -> list[View]:
        """The views that apply to the plan's model."""
        found: list[View] = ["model", "layer", "mha"]
        kinds = {layer.ffn.kind for layer in self.layers}
        return [*found, *(["mlp"] if "dense" in kinds else []), *(["moe"] if "moe" in kinds else []), "communication"]  # type: ignore[list-item]

    @property
    def layers(self) -> tuple[Layer, ...]:
        """The model's layers."""
        return self.chosen.problem.model.layers

    def priced(self, view: View, layer: int | None) -> Priced:
        """The part of the graph that a view shows: everything, a layer of each kind, or a single layer."""
        if view in ("model", "communication") and layer is None:
            gpus = sum(len(stage.devices) for stage in self.chosen.choice.stages)
            most = WHOLE_MODEL // gpus if view == "model" else FEW_LAYERS
            wanted = range(len(self.layers)) if len(self.layers) <= most else self._sample
            return self._part(tuple(wanted), ends=True)
        return self._part((self._layer(view, layer),), ends=False)

    def _layer(self, view: View, layer: int | None) -> int:
        """The layer of a view of one layer: the one asked for, or the first that has what the view shows."""
        wanted = {"mlp": "dense", "moe": "moe"}.get(view)
        having = [index for index, found in enumerate(self.layers) if wanted in (None, found.ffn.kind)]
        if not having:
            raise InputError("--view", view, f"one of {', '.join(self.views())}: no layer of {self._model} has it")
        if layer is not None and layer not in having:
            allowed = f"a layer from {having[0]} to {having[-1]}" + (f" with {wanted} FFN" if wanted else "")
            raise InputError("--layer", layer, f"{allowed} of {self._model}")
        return having[0] if layer is None else layer

    @property
    def _model(self) -> str:
        return self.chosen.problem.model.name

    @cached_property
    def _sample(self) -> tuple[int, ...]:
        """The first layer of every kind in every stage."""
        kinds, found, start = self.chosen.problem.model.kind_of_layer, [], 0
        for stage in self.chosen.choice.stages:
            own = kinds[start : start + stage.layers]
            found += [start + own.index(kind) for kind in dict.fromkeys(own)]
            start += stage.layers
        return tuple(found)

    def _part(self, layers: tuple[int, ...], ends: bool) -> Priced:
        from planner.evaluate.expanded import longest_path, price_graph
        from planner.graph.expand import expand

        if (layers, ends) not in self._parts:
            chosen, problem = self.chosen, self.chosen.problem
            graph = expand(
                problem.model, problem.workload, problem.sizes, chosen.choice, layers=layers, micro_batches=1, ends=ends
            )
            seconds = price_graph(chosen.env, graph)
            path = longest_path(graph, seconds).path
            self._parts[layers, ends] = Priced(graph, seconds, path, self._words(layers))
        return self._parts[layers, ends]

    def _words(self, layers: tuple[int, ...], micro_batches: int = 1) -> str:
        total, choice = len(self.layers), self.chosen.choice
        shown = f"layer {layers[0]}" if len(layers) == 1 else f"{len(layers)} of {total} layers"
        if len(layers) == total:
            shown = "all layers"
        copies = f", one of {choice.replicas} replicas" if choice.replicas > 1 else ""
        some = "one" if micro_batches == 1 else str(micro_batches)
        return f"{shown}, {some} of {choice.micro_batches} micro-batches{copies}"


def drawings(chosen: Chosen) -> dict[str, tuple[str, bytes]]:
    """DOT and SVG of every view that applies."""
    from planner.export.dot import dag_svg

    drawer = Drawer(chosen)
    dots = {view: drawer.dot(view) for view in drawer.views()}
    return {view: (dot, dag_svg(dot)) for view, dot in dots.items()}


def listed_drawings(problem: Problem, plans: Mapping[str, Chosen]) -> dict[str, tuple[str, bytes]]:
    """DOT and SVG of the drawings that a problem lists of its hand-designed plans, as `drawings/NAME`."""
    from planner.export.dot import dag_svg

    drawers = {name: Drawer(chosen) for name, chosen in plans.items()}
    listed = [drawing for drawing in problem.drawings if drawing.plan in drawers]
    dots = {f"drawings/{d.name}": drawers[d.plan].dot(cast("View", d.view), d.layer) for d in listed}
    return {name: (dot, dag_svg(dot)) for name, dot in dots.items()}
