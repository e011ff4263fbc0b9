"""Destinations: where the tokens of an exchange with the experts go, against the plan's experts and their loads."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from math import isclose

from planner.check.findings import Finding
from planner.graph.experts import Load, layer_loads, layer_rows
from planner.graph.flows import Flow
from planner.graph.nodes import Graph, Node, Piece
from planner.model import Ffn, ModelSpec
from planner.units import dtype_bytes
from planner.workload import Workload
from search_spaces.experts import ExpertPlacement
from search_spaces.stages import Choice

FIX = "price it by the chances that a token goes to each group of GPUs"


def check_destinations(model: ModelSpec, workload: Workload, choice: Choice, tokens: int, graph: Graph) -> Iterator[Finding]:
    """Every exchange whose destinations are not those of its layer's experts, of micro-batches with so many tokens. Equal loads
    in the usual place have none.
    """
    loads, rows = layer_loads(model, workload), layer_rows(model, workload)
    for node in graph.nodes:
        if node.flow is None and not (node.name in ("dispatch", "combine") and len(node.devices) > 1 and node.transfer is None):
            continue
        experts = choice.stages[node.stage].experts
        if node.layer is None or experts is None or node.name not in ("dispatch", "combine"):
            yield _error(node, "it has destinations, and no experts", "destinations", "none")
            continue
        placed, load = experts.at(rows[node.layer]), loads[node.layer]
        usual, flow, ways = not load and not placed.placement, node.flow, len(node.devices)
        ffn = model.layers[node.layer].ffn
        if (flow is not None) if usual else (flow is None or not _as_placed(flow, ffn, placed, load, ways)):
            wanted = "none" if usual else str(placed)[:80]
            yield _error(node, "its bytes go elsewhere than to the plan's experts", str(flow)[:80], wanted)
        elif flow is not None and node.output is not None:
            own = _own_bytes(node.output, tokens, ways)
            if not isclose(flow.own_bytes, own):
                yield _error(node, "a GPU has more or fewer bytes of its own", str(flow.own_bytes), str(own))


def _as_placed(flow: Flow, ffn: Ffn, placed: ExpertPlacement, load: Load, ways: int) -> bool:
    """Whether a flow is that of a placement: every block of senders reaches a group with the chance of its experts' pairs."""
    within, groups = placed.serve_within or ways, ways // placed.tensor_ways
    if (flow.tensor_ways, flow.within, len(flow.hits)) != (placed.tensor_ways, placed.serve_within, -(-ways // within)):
        return False
    for block, hits in enumerate(flow.hits):
        wanted = _chances(ffn, placed, load, groups, range(block * within, (block + 1) * within))
        if len(hits) != groups or not all(
            isclose(a, b, rel_tol=1e-9, abs_tol=1e-12) for a, b in zip(hits, wanted, strict=True)
        ):
            return False
    return True


def _own_bytes(piece: Piece, tokens: int, ways: int) -> float:
    """Bytes of the largest part of the tokens of a micro-batch, as wide as those of a piece."""
    return -(-tokens // ways) * piece.shape[-1] * dtype_bytes(piece.dtype)


def served_share(placed: ExpertPlacement, held: Sequence[int], group: int, ways: int) -> float:
    """What part of the pairs of an expert, held by the groups `held`, one of them serves."""
    within, found = placed.serve_within or ways, 0.0
    for first in range(0, ways, within):
        near = [other for other in held if first <= other * placed.tensor_ways < first + within] or held
        found += min(within, ways - first) / ways * (group in near) / len(near)
    return found


def _chances(ffn: Ffn, placed: ExpertPlacement, load: Load, groups: int, near: range) -> list[float]:
    """The chance that a token of the GPUs `near` goes to each group: its k experts are drawn one by one."""
    weights = load or (1.0,) * ffn.experts
    pairs = [0.0] * groups
    for weight, held in zip(weights, placed.groups(ffn.experts, groups * placed.tensor_ways), strict=True):
        close = [group for group in held if group * placed.tensor_ways in near] or list(held)
        for group in close:
            pairs[group] += weight / sum(weights) / len(close)
    return [1.0 - (1.0 - min(part, 1.0)) ** ffn.top_k for part in pairs]


def _error(node: Node, message: str, measured: str, expected: str) -> Finding:
    return Finding("SHAPE012", "error", node.id, message, measured, expected, FIX)
