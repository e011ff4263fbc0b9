"""run_training: run the twin of a training plan, forward and back, and hold its gradients against the unsplit model's."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from planner.check.findings import Finding
from planner.check.run.confirm import confirm
from planner.check.run.isomorphic import difference
from planner.check.run.numeric import ORDERS, TOLERANCE, more_orders, run_once
from planner.check.run.twin import cut_micro_batches, kept_layers, twin_of
from planner.check.run.verdict import Evidence, NumericRun, verdict
from planner.check.run.worlds import forced_routes, make_world
from planner.evaluate.setting import Setting
from planner.graph.expand_training import expand_training
from planner.graph.nodes import Graph
from search_spaces.sizes import Sizes
from search_spaces.stages import Choice


def run_training(env: Setting, sizes: Sizes, choice: Choice, change: Callable[[Graph], Graph] | None = None) -> NumericRun:
    """Run the twin of a structurally sound training plan; `change` breaks its graph first (for tests of this check).

    One replica runs: replicas compute the same on other sequences, and the sum over them is that over the copies inside a
    stage with more members. Compared are all intermediates, the gradient of the residual stream at the entry of every half of a
    layer, and at the end of the step the gradient of every part of every weight on every GPU.
    """
    if not env.model.vocab:
        message = "a model without a vocabulary has no loss: its gradients were not computed"
        return NumericRun(False, findings=(Finding("NUM005", "warning", "model.vocab", message),))
    alone, own = replace(choice, replicas=1), replace(sizes, batch=sizes.batch // choice.replicas)
    twin = twin_of(env.model, env.workload, env.cluster, own, alone)
    graph = expand_training(twin.model, twin.workload, twin.sizes, twin.choice)
    full = expand_training(env.model, env.workload, own, alone, layers=kept_layers(env.model, alone),
                           micro_batches=cut_micro_batches(alone))  # fmt: skip
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
