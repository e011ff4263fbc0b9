"""run_choice: build the twin of a plan, run its graph, and say how far it is from the unsplit model."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from planner.check.findings import Finding
from planner.check.reference import Tokens, forward, random_weights
from planner.check.run.confirm import confirm
from planner.check.run.machine import Departure, Machine, Outcome
from planner.check.run.twin import POSITION_OFFSETS, Twin, cut_micro_batches, kept_layers, twin_of
from planner.check.run.world import World
from planner.evaluate.setting import Setting
from planner.graph.expand import expand
from planner.graph.nodes import Graph
from search_spaces.sizes import Sizes
from search_spaces.stages import Choice

TOLERANCE = 1e-9
ORDERS = 4
SEED = 20_260_101
"""The same tensors for everyone: a run is repeatable to the last bit on one machine."""

Ints = NDArray[np.int64]


@dataclass(frozen=True)
class NumericRun:
    """What executing a plan's graph on small tensors showed.

    `max_abs_error` and `tolerance` are those of the intermediate with the largest error; `reference` is what it was
    compared with; `compared` counts tensors, `nodes` operators of the graph that ran, `orders` orders it was run in.
    """

    executed: bool
    max_abs_error: float | None = None
    tolerance: float | None = None
    matches_unsplit_model: bool | None = None
    reference: str = ""
    first_departure: str = ""
    nodes: int = 0
    compared: int = 0
    orders: int = 0
    layers: int = 0
    micro_batches: int = 0
    findings: tuple[Finding, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """As JSON-ready data, without the findings."""
        return {name: value for name, value in asdict(self).items() if name != "findings"}


NOT_RUN = NumericRun(False)
"""What stands for a run that was not asked for, or that an unsound structure forbids."""


def run_choice(env: Setting, sizes: Sizes, choice: Choice, change: Callable[[Graph], Graph] | None = None) -> NumericRun:
    """Run the twin of a structurally sound plan; `change` breaks its graph first (for tests of this check)."""
    twin = twin_of(env.model, env.workload, env.cluster, sizes, choice)
    graph = expand(twin.model, twin.workload, twin.sizes, twin.choice)
    full = expand(env.model, env.workload, sizes, choice, layers=kept_layers(env.model, choice),
                  micro_batches=cut_micro_batches(choice))  # fmt: skip
    differs = difference(full, graph, twin)
    if differs:
        finding = Finding("NUM005", "warning", differs, "the small twin is not built like the plan: it was not run")
        return NumericRun(False, findings=(finding,))
    graph = change(graph) if change else graph
    worlds = [make_world(twin)]
    if twin.sizes.moe:
        worlds.append(make_world(twin, forced_routes(twin, worlds[0].length)))
    outcomes = [_run(graph, world) for world in worlds]
    outcomes[0].departures += _orders(graph, worlds[0])
    reference, disagreement = confirm(worlds[0], TOLERANCE)
    return _report(twin, graph, worlds, outcomes, reference, disagreement)


def _run(graph: Graph, world: World) -> Outcome:
    """One run with numbers, in a random order."""
    machine = Machine(graph, world, TOLERANCE)
    order = next(machine.orders(np.random.default_rng(SEED), 1))
    return machine.run(order)


def _orders(graph: Graph, world: World) -> list[Departure]:
    """Some orders more without numbers: they find what the order of the run may hide, and who never gets to run."""
    machine, found = Machine(graph, world, TOLERANCE), list[Departure]()
    orders = list(machine.orders(np.random.default_rng(SEED), ORDERS))
    runs = {node.id for node in orders[0]}
    stuck = [node.id for node in graph.nodes if node.id not in runs]
    if stuck:
        found.append(Departure(stuck[0], f"{len(stuck)} operators wait for each other and never run", fault=True))
    hazards = (machine.hazards(order) for order in orders)
    return found + [hazard for hazard in hazards if hazard is not None]


def difference(full: Graph, small: Graph, twin: Twin) -> str:
    """The first node or edge by which the twin's graph is not the plan's own; empty where they are isomorphic."""
    layer_of = {original: index for index, original in enumerate(twin.layers)}

    def renamed(text: str, layer: int | None) -> str:
        return text if layer is None else text.replace(f".l{layer}.", f".l{layer_of[layer]}.", 1)

    names = {node.id: renamed(node.id, node.layer) for node in full.nodes}
    nodes = {names[node.id]: (node.kind, node.role, node.devices, node.formals) for node in full.nodes}
    others = {node.id: (node.kind, node.role, node.devices, node.formals) for node in small.nodes}
    for name in (*nodes, *others):
        if nodes.get(name) != others.get(name):
            return name
    edges = {(names[e.src], names[e.dst], e.kind, e.tensor) for e in full.edges}
    left = edges ^ {(e.src, e.dst, e.kind, e.tensor) for e in small.edges}
    return "{} -> {} ({} {})".format(*min(left)) if left else ""


def make_world(twin: Twin, routes: Mapping[int, Ints] | None = None) -> World:
    """Random weights and tokens for a twin, and what the unsplit model makes of them."""
    rng = np.random.default_rng(SEED)
    weights = random_weights(twin.model, rng)
    tokens = make_tokens(twin, rng)
    shape = (*tokens.ids.shape, -1)
    forced = None if routes is None else {layer: chosen.reshape(shape) for layer, chosen in routes.items()}
    return World(twin, weights, tokens, forward(twin.model, weights, tokens, forced), routes)


def make_tokens(twin: Twin, rng: np.random.Generator) -> Tokens:
    """Sequences of different lengths, each from a position of its own."""
    count, length = twin.workload.batch, twin.workload.kv_length
    lengths = length - np.arange(count) % max(1, min(3, length // 4))
    index = np.arange(length)[None, :]
    offsets = rng.integers(0, POSITION_OFFSETS, size=(count, 1))
    ids = rng.integers(0, max(twin.model.vocab, 1), size=(count, length))
    embedded = None if twin.model.vocab else rng.standard_normal((count, length, twin.model.hidden))
    return Tokens(ids, offsets + index, index < lengths[:, None], embedded)


def forced_routes(twin: Twin, length: int) -> dict[int, Ints]:
    """Routes that give every expert tokens in turn, in a random order of the experts; in decode the new tokens count."""
    rng, decode = np.random.default_rng(SEED + 1), twin.workload.phase == "decode"
    tokens, found = twin.workload.batch * (1 if decode else length), {}
    for index, layer in enumerate(twin.model.layers):
        if layer.ffn.kind == "moe":
            turns = np.arange(tokens * layer.ffn.top_k) % layer.ffn.experts
            chosen = rng.permutation(layer.ffn.experts)[turns].reshape(tokens, layer.ffn.top_k)
            found[index] = np.repeat(chosen, length, axis=0) if decode else chosen
    return found


def _report(
    twin: Twin, graph: Graph, worlds: list[World], outcomes: list[Outcome], reference: str, findings: Sequence[Finding]
) -> NumericRun:
    findings = list(findings)
    rank = {node.id: index for index, node in enumerate(graph.nodes)}
    departures = sorted((d for outcome in outcomes for d in outcome.departures), key=lambda d: rank[d.node])
    for world, outcome in zip(worlds, outcomes, strict=True):
        findings += _lost(world, outcome)
        findings += _uneven_replicas(world, outcome)
    first = departures[0] if departures else None
    worst = max((outcome.worst for outcome in outcomes), key=lambda pair: pair[0])
    if first is not None:
        code = "NUM003" if first.fault else "NUM001"
        fix = (
            "deliver it by an edge, and order who writes and reads it"
            if first.fault
            else "compare the operator with the unsplit model"
        )
        text = f"does not compute the model: {first.message}"
        findings.insert(0, Finding(code, "error", first.node, text, first.error or None, first.allowed or None, fix))
    unique = tuple(dict.fromkeys(findings))
    matches = not any(finding.severity == "error" for finding in unique)
    operators = sum(1 for _ in graph.operators())
    if matches:
        compared = sum(outcome.compared for outcome in outcomes)
        text = f"{operators} operators ran on small tensors; {compared} intermediates agree with the unsplit model"
        unique = (*unique, Finding("NUM002", "info", "run", text, worst[0], worst[1]))
    return NumericRun(
        True, worst[0], worst[1], matches, reference, first.node if first else "", operators,
        sum(outcome.compared for outcome in outcomes), ORDERS, len(twin.layers), twin.choice.micro_batches, unique,
    )  # fmt: skip


def _lost(world: World, outcome: Outcome) -> list[Finding]:
    """Tokens that no GPU finishes: a layer, a stage or a micro-batch is missing."""
    if any(departure.fault for departure in outcome.departures):
        return []
    twin, found = world.twin, []
    for micro in range(twin.choice.micro_batches):
        first = micro * twin.sequences
        rows = np.arange(first * world.length, (first + twin.sequences) * world.length)
        everything = (
            set(world.last[first : first + twin.sequences].tolist()) if twin.workload.phase == "decode" else set(rows.tolist())
        )
        for layer in range(len(twin.model.layers)):
            missing = everything - outcome.finished.get((layer, micro), set())
            if missing:
                message = (
                    f"{len(missing)} of {len(everything)} tokens of micro-batch {micro} never leave layer {twin.layers[layer]}"
                )
                found.append(
                    Finding(
                        "NUM004",
                        "error",
                        f"layer {twin.layers[layer]}",
                        message,
                        len(missing),
                        0,
                        "run every layer on every token",
                    )
                )
    return found[:3]


def _uneven_replicas(world: World, outcome: Outcome) -> list[Finding]:
    """Replicas of an expert that do not share its tokens as the plan says: evenly."""
    found = []
    stages = world.twin.choice.stages
    ends = np.cumsum([stage.layers for stage in stages])
    totals: dict[tuple[int, int, int], dict[int, int]] = {}
    for (layer, micro, expert, group), count in outcome.served.items():
        totals.setdefault((layer, micro, expert), {})[group] = count
    for (layer, _, expert), shares in totals.items():
        stage = stages[int(np.searchsorted(ends, layer, side="right"))]
        if stage.experts is None:
            continue
        held = stage.experts.groups(world.twin.sizes.experts, len(stage.expert_devices))[expert]
        total = sum(shares.values())
        most, least = max(shares.get(g, 0) for g in held), min(shares.get(g, 0) for g in held)
        if most - least > 1:
            message = f"of {total} tokens of expert {expert} one replica serves {most}, another {least}"
            where = f"layer {world.twin.layers[layer]}.expert {expert}"
            found.append(
                Finding(
                    "WORK004",
                    "error",
                    where,
                    message,
                    most,
                    -(-total // len(held)),
                    "share an expert's tokens evenly among its replicas",
                )
            )
    return found[:3]
