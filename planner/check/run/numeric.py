"""run_choice: build the twin of a plan, run its graph, and say how far it is from the unsplit model."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from planner.check.buffers import races
from planner.check.findings import Finding
from planner.check.index import Index
from planner.check.run.confirm import confirm
from planner.check.run.isomorphic import difference
from planner.check.run.machine import Departure, Machine, Outcome
from planner.check.run.twin import cut_micro_batches, kept_layers, twin_of
from planner.check.run.verdict import Evidence, NumericRun, verdict
from planner.check.run.world import World
from planner.check.run.worlds import SEED, forced_routes, make_world
from planner.evaluate.setting import Setting
from planner.graph.expand import expand
from planner.graph.nodes import Graph, Node
from search_spaces.sizes import Sizes
from search_spaces.stages import Choice

TOLERANCE = 1e-9
ORDERS = 4


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
    outcomes = [run_once(graph, world) for world in worlds]
    outcomes[0].departures += more_orders(graph, worlds[0])
    reference, disagreement = confirm(worlds[0], TOLERANCE)
    return verdict(Evidence(twin, graph, tuple(worlds), tuple(outcomes), ORDERS, reference, disagreement))


def run_once(graph: Graph, world: World) -> Outcome:
    """One run with numbers, in a random order."""
    machine = Machine(graph, world, TOLERANCE)
    order = next(machine.orders(np.random.default_rng(SEED), 1))
    return machine.run(order)


def more_orders(graph: Graph, world: World) -> list[Departure]:
    """Some orders more without numbers: they find what the order of the run may hide, and who never gets to run."""
    machine, found = Machine(graph, world, TOLERANCE), list[Departure]()
    orders = list(machine.orders(np.random.default_rng(SEED), ORDERS))
    runs = {node.id for node in orders[0]}
    stuck = [node.id for node in graph.nodes if node.id not in runs]
    if stuck:
        found.append(Departure(stuck[0], f"{len(stuck)} operators wait for each other and never run", fault=True))
        return found
    hazards = (machine.hazards(order) for order in orders)
    found += [hazard for hazard in hazards if hazard is not None]
    return found + [Departure(node.id, message, fault=True) for node, message in _races(graph, world)]


def _races(graph: Graph, world: World) -> list[tuple[Node, str]]:
    """Who may write over what is still in use, in any order at all: random orders need not come upon it."""
    known = graph.by_id
    edges = tuple(edge for edge in graph.edges if edge.src in known and edge.dst in known)
    return list(races(Index(Graph(graph.nodes, edges)), world.twin.choice))
