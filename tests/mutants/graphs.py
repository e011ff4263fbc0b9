"""Graphs with one thing broken at random: the mutation operators by name."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass

from planner.graph.nodes import Graph
from tests.mutants import edges, groups, nodes, sizes

Change = Callable[[random.Random, Graph], "tuple[str, Graph] | None"]


@dataclass(frozen=True)
class Mutant:
    """A broken graph: which operator broke it, and what it did."""

    operator: str
    detail: str
    graph: Graph


def mutate(rng: random.Random, graph: Graph, operator: str) -> Mutant | None:
    """The graph with one thing broken by this operator; None where it has nothing of the kind."""
    found = OPERATORS[operator](rng, graph)
    return None if found is None or found[1] == graph else Mutant(operator, *found)


OPERATORS: dict[str, Change] = {
    change.__name__: change
    for change in (
        edges.drop_edge,
        edges.duplicate_edge,
        edges.reverse_edge,
        edges.reroute_source,
        edges.reroute_target,
        edges.reroute_data,
        edges.change_edge,
        edges.add_wait,
        nodes.drop_operator,
        nodes.drop_everywhere,
        nodes.bypass_operator,
        nodes.duplicate_operator,
        nodes.same_id,
        sizes.drop_weight,
        sizes.duplicate_weight,
        sizes.reshape_weight,
        sizes.move_weight,
        sizes.rename_weight,
        groups.move_operator,
        groups.swap_devices,
        sizes.change_size,
        sizes.change_attention,
        sizes.change_price,
        sizes.reshape_output,
        sizes.reshape_input,
        sizes.reshape_tensor,
        sizes.change_dtype,
        sizes.change_layout,
        groups.change_kind,
        groups.shrink_group,
        groups.extend_group,
        groups.permute_group,
        groups.swap_groups,
        nodes.change_layer,
        nodes.swap_layers,
        nodes.swap_stages,
        nodes.change_micro_batch,
        nodes.drop_micro_batch,
        nodes.drop_layer,
        sizes.swap_inputs,
        nodes.change_stream,
        groups.change_transfer,
        edges.swap_order,
    )
}
"""Mutation operators of graphs, by name."""
