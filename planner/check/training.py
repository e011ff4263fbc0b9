"""check_training: what can be said about the graph of a training step without running it."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from itertools import pairwise
from math import isclose

from planner.check.buffers import races
from planner.check.conservation import check_conservation
from planner.check.cycles import check_cycles
from planner.check.findings import Finding
from planner.check.index import Index
from planner.check.places import check_identity
from planner.check.shards import check_shards
from planner.evaluate.setting import Setting
from planner.graph.nodes import Graph, Node
from planner.graph.ops import Kind
from planner.graph.sharing import UNTRAINED
from search_spaces.sizes import Sizes
from search_spaces.stages import Choice

ENDINGS = ("_backward", "_weights", "_again")
PRODUCTS = (Kind.MATMUL, Kind.GROUPED)


def check_training(env: Setting, sizes: Sizes, choice: Choice, graph: Graph) -> tuple[Finding, ...]:
    """Circles, streams, buffers, the part of every weight, and work: of the forward pass as in inference, and of every product
    once for the gradient of what it reads, once for that of its weight, and once more where it is computed again.
    """
    found = [*check_identity(graph), *check_cycles(graph)]
    if found:
        return tuple(found)
    index = Index(graph)
    found += [*_streams(graph, index), *(_error("CYCLE005", node, message, 0, 0) for node, message in races(index, choice))]
    reading = Graph(tuple(node for node in graph.nodes if not node.name.endswith("_wgrad")), ())  # what has rows or weights
    found += check_shards(env.model, env.workload.forward, sizes, choice, Index(reading))
    ahead = tuple(n for n in graph.nodes if n.layer is not None and n.role != "exchange" and not n.role.endswith(ENDINGS))
    found += check_conservation(env.model, env.workload.forward, sizes, choice, Graph(ahead, ()))
    found += _products(graph, choice)
    return tuple(found)


def _streams(graph: Graph, index: Index) -> Iterator[Finding]:
    """Of two neighbours on a stream of a GPU the later one waits for the earlier one; the exchange waits for no barrier."""
    chains: dict[tuple[str, int], list[Node]] = defaultdict(list)
    for node in index.order:
        for device in node.devices if node.transfer is None and node.kind != Kind.BARRIER else ():
            chains[node.stream, device].append(node)
    for (stream, device), chain in chains.items():
        for first, second in pairwise(chain):
            if not index.precedes(first, second):
                message = f"nothing orders it after {first.id} on the {stream} stream of GPU {device}"
                yield _error("CYCLE003", second, message, 0, 1)


def _products(graph: Graph, choice: Choice) -> Iterator[Finding]:
    """FLOPs of every product with a weight: forward, backward by input and by weight, and again."""
    done: dict[tuple[int, int | None, int, str], dict[str, float]] = defaultdict(lambda: defaultdict(float))
    samples: dict[tuple[int, int | None, int, str], Node] = {}
    for node in graph.nodes:
        if node.kind not in PRODUCTS:
            continue
        way = next((e for e in ("_dgrad", "_wgrad") if node.name.endswith(e)), "_again" if node.role.endswith("_again") else "")
        key = node.stage, node.layer, node.micro_batch, node.name.removesuffix(way)
        done[key][way] += node.flops
        if not way:
            samples[key] = node
    again = choice.training is not None and choice.training.recompute == "full"
    for key, node in samples.items():
        trained = all(weight.name not in UNTRAINED for weight in node.weights) and node.name != "index_score"
        wanted = {"_dgrad": float(trained), "_wgrad": float(trained), "_again": float(again and node.layer is not None)}
        for way, times in wanted.items():
            if not isclose(done[key][way], times * done[key][""], rel_tol=1e-9):
                message = f"its FLOPs in the backward pass ({way[1:]}) are not {times:.0f} times those forward"
                yield _error("WORK001", node, message, done[key][way], times * done[key][""])


def _error(code: str, node: Node, message: str, measured: float, expected: float) -> Finding:
    return Finding(code, "error", node.id, message, measured, expected, "build the graph from the plan")
