"""Verdict: what the outcomes of a run say about a plan, as findings."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from planner.check.findings import Finding
from planner.check.run.machine import Outcome
from planner.check.run.twin import Twin
from planner.check.run.world import World
from planner.graph.nodes import Graph
from search_spaces.experts import ExpertPlacement


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


@dataclass(frozen=True)
class Evidence:
    """What was run: the twin's graph, the worlds it was run in with what came out, and what the numbers rest on."""

    twin: Twin
    graph: Graph
    worlds: tuple[World, ...]
    outcomes: tuple[Outcome, ...]
    orders: int
    reference: str
    disagreement: tuple[Finding, ...]


def verdict(seen: Evidence) -> NumericRun:
    """The first departure from the unsplit model, lost tokens and uneven replicas as findings."""
    findings = list(seen.disagreement)
    twin, graph, worlds, outcomes = seen.twin, seen.graph, seen.worlds, seen.outcomes
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
        True, worst[0], worst[1], matches, seen.reference, first.node if first else "", operators,
        sum(outcome.compared for outcome in outcomes), seen.orders, len(twin.layers), twin.choice.micro_batches, unique,
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
    ends, rows = np.cumsum([stage.layers for stage in stages]), world.twin.rows
    totals: dict[tuple[int, int, int], dict[int, int]] = {}
    for (layer, micro, expert, group), count in outcome.served.items():
        totals.setdefault((layer, micro, expert), {})[group] = count
    for (layer, _, expert), shares in totals.items():
        stage = stages[int(np.searchsorted(ends, layer, side="right"))]
        if stage.experts is None:
            continue
        own = stage.experts.at(rows[layer])
        held = own.groups(world.twin.sizes.experts, len(stage.expert_devices))[expert]
        total = sum(shares.values())
        most, least = _farthest_apart([shares.get(g, 0) for g in held], [_block(own, g) for g in held])
        if most - least > (2 if own.serve_within else 1):  # near copies take turns for near tokens, and again for far ones
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


def _block(placed: ExpertPlacement, group: int) -> int:
    """Which of the blocks of GPUs that serve one another a group belongs to."""
    return group * placed.tensor_ways // placed.serve_within if placed.serve_within else 0


def _farthest_apart(counts: Sequence[int], blocks: Sequence[int]) -> tuple[int, int]:
    """The largest and smallest count of the block where these are farthest apart."""
    each = [[count for count, own in zip(counts, blocks, strict=True) if own == block] for block in dict.fromkeys(blocks)]
    own = max(each, key=lambda some: max(some) - min(some))
    return max(own), min(own)
