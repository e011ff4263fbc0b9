"""Structural statements, each answered by the graph of the plan."""

from __future__ import annotations

import itertools
from collections.abc import Mapping

from planner.check.claims.answers import Answer, Ask
from planner.check.claims.subject import Subject
from planner.check.claims.work import ENDS, number
from planner.check.cycles import check_cycles
from planner.check.shapes import check_shapes
from planner.evaluate.expanded import longest_path, price_graph
from planner.graph.nodes import ranks_name
from planner.graph.ops import Kind
from planner.units import show_bytes

EVEN = 1e-3
"""Work that differs by less than this part is even: shares are whole rows."""


def agreed(values: Mapping[int, float], what: str) -> Answer:
    """The value that all GPUs share, or which GPUs have which."""
    if not values:
        return Answer(None, needs=f"GPUs that have {what}")
    kinds: dict[float, list[int]] = {}
    for gpu, value in values.items():
        kinds.setdefault(value, []).append(gpu)
    if len(kinds) == 1:
        return Answer(next(iter(kinds)))
    return Answer(
        ", ".join(f"{number(value)} on GPUs {ranks_name(tuple(gpus))}" for value, gpus in kinds.items()), f"{what} differ"
    )


def acyclic(subject: Subject, ask: Ask) -> Answer:
    """No circle in the graph of all layers."""
    found = check_cycles(subject.chain)
    return Answer(not found, found[0].message if found else f"{len(subject.chain.nodes)} nodes, no circle")


def shapes_align(subject: Subject, ask: Ask) -> Answer:
    """No operator reads another shape than was written, and no partial sum is left unsummed."""
    found = check_shapes(subject.graph)
    for index, stage in enumerate(subject.choice.stages):
        p = stage.attention
        if p.dimension_segments > 1 and not p.score_reduce:
            why = (
                f"the shapes agree, but in stage {index} the partial scores of {p.dimension_segments} segments are never summed"
            )
            return Answer(not found, why)
    return Answer(not found, found[0].message if found else "every operator reads what its producer wrote")


def no_repeated_work(subject: Subject, ask: Ask) -> Answer:
    """FLOPs over all GPUs against those of the unsplit model."""
    done = sum(sum(gpu_flops(subject, layer).values()) for layer in subject.layers)
    kinds = subject.env.kind_of_layer
    needed = sum(sum(work.flops for work in subject.unsplit[kinds[layer]].values()) for layer in subject.layers)
    ratio = done / needed
    return Answer(ratio <= 1 + EVEN, f"all GPUs together compute {ratio:.4g} times the products of the unsplit model")


def gpu_flops(subject: Subject, layer: int) -> dict[int, float]:
    """FLOPs of every GPU in a layer."""
    return {gpu: sum(work.flops for work in works.values()) for gpu, works in subject.book.get(layer, {}).items()}


def plan_flops(subject: Subject, operators: tuple[str, ...] = ()) -> dict[int, float]:
    """FLOPs of every GPU in all layers, of some operators or of all."""
    found = dict.fromkeys(subject.ranks, 0.0)
    for layer, times in subject.layers.items():
        for gpu, works in subject.book.get(layer, {}).items():
            found[gpu] += times * sum(w.flops for name, w in works.items() if not operators or name in operators)
    return found


def imbalance(subject: Subject, operators: tuple[str, ...] = (), gpus: tuple[int, ...] = ()) -> float:
    """Work of the busiest GPU over the mean."""
    values = [flops for gpu, flops in plan_flops(subject, operators).items() if not gpus or gpu in gpus]
    return max(values) * len(values) / sum(values) if sum(values) else 1.0


def balanced(subject: Subject, ask: Ask) -> Answer:
    """Whether the busiest GPU has no more work than the mean."""
    ratio = imbalance(subject, subject.operators(ask.operators)[0], ask.gpus)
    load = " at equal expert loads" if subject.sizes.moe else ""
    return Answer(ratio <= 1 + EVEN, f"the busiest GPU multiplies {ratio:.4g} times the mean{load}")


def stages_alike(subject: Subject, ask: Ask) -> Answer:
    """Whether the stages have the same layers and the slowest GPU of each the same work."""
    found, start = [], 0
    for stage in subject.choice.stages:
        here = [(layer, n) for layer, n in subject.layers.items() if start <= layer < start + stage.layers]
        found.append(sum(n * max(gpu_flops(subject, layer).values()) for layer, n in here))
        start += stage.layers
    return Answer(max(found) <= min(found) * (1 + EVEN), f"the slowest GPUs need {', '.join(f'{f:.4g}' for f in found)} FLOP")


def experts_at_once(subject: Subject, ask: Ask) -> Answer:
    """Groups of GPUs with experts: those of one group share its time."""
    works = subject.works(("expert_up_proj",), ask.gpus)
    stage = subject.choice.stages[0]
    if not works or stage.experts is None:
        return Answer(None, needs="a model with experts")
    groups = len(works) // stage.experts.tensor_ways
    each = number(max(work.product.count for work in works))
    why = f"{groups} group{'s' if groups > 1 else ''} of GPUs work at once; the {each} experts of a GPU share its time"
    return Answer(float(groups), why if each != "1" else f"one expert on each of {groups} GPUs")


def products(subject: Subject, ask: Ask) -> Answer:
    """Products of some operators in the first layer, over all GPUs or those asked for."""
    operators = subject.operators(ask.operators)[0]
    here = subject.book[next(iter(subject.layers))]
    found = [o for gpu in subject.gpus(ask.gpus) for o in here.get(gpu, {}) if o in operators]
    gpus = len(subject.works(operators, ask.gpus))
    return Answer(float(len(found)), f"{len(operators)} on each of {gpus} GPU{'s' if gpus > 1 else ''}, one after another")


def operators_per_layer(subject: Subject, ask: Ask) -> Answer:
    """Different products of the first GPU in a layer."""
    names = list(subject.book[next(iter(subject.layers))][subject.gpus(ask.gpus)[0]])
    return Answer(float(len(names)), ", ".join(names))


def products_per_layer(subject: Subject, ask: Ask) -> Answer:
    """Products of the first GPU in a layer, those of every head and expert counted for themselves."""
    works = subject.book[next(iter(subject.layers))][subject.gpus(ask.gpus)[0]]
    total = sum(work.product.count for work in works.values())
    return Answer(total, " + ".join(f"{number(w.product.count)} {o}" for o, w in works.items()))


def sequential_layers(subject: Subject, ask: Ask) -> Answer:
    """The most layers on any path through the graph."""
    most: dict[str, int] = {}
    for node in subject.chain.nodes:
        best = 0 if node.layer is None else 1
        for edge in subject.chain.into[node.id]:
            before = subject.chain.by_id[edge.src]
            step = node.layer is not None and before.layer != node.layer
            best = max(best, most[edge.src] + step)
        most[node.id] = best
    return Answer(float(max(most.values(), default=0)), "a layer reads what the layer before it wrote")


def at_once(subject: Subject, ask: Ask) -> Answer:
    """Whether two operators can run at the same time: independent ones on different GPUs, or other micro-batches."""
    first, second = (subject.operators([operator])[0][-1] for operator in ask.operators[:2])
    one, other = ({work.gpu for work in subject.works((o,))} for o in (first, second))
    waits = first in subject.behind.get(second, ()) or second in subject.behind.get(first, ())
    if one & other:
        return Answer(False, f"{first} and {second} are on the same GPUs and follow each other")
    if not waits:
        return Answer(True, f"{first} and {second} need nothing of each other")
    flying = subject.choice.in_flight
    if flying == 1:
        return Answer(False, f"{second} waits for {first}, and one micro-batch is in flight")
    why = f"{second} waits for {first} of the same micro-batch; {flying} micro-batches in flight keep both sides at work"
    return Answer(True, why)


def in_order(subject: Subject, ask: Ask) -> Answer:
    """Whether each operator needs what the one before it made."""
    operators = [part for operator in ask.operators for part in subject.operators([operator])[0][-1:]]
    for before, after in itertools.pairwise(operators):
        if before not in subject.behind.get(after, ()):
            return Answer(False, f"{after} does not need {before}")
    return Answer(True, f"{', '.join(operators)}: each needs what the one before it made")


def summed_after(subject: Subject, ask: Ask) -> Answer:
    """Whether the partial outputs of an operator are summed over GPUs, by an all-reduce or a reduce-scatter."""
    operators = subject.operators(ask.operators)[0]
    found: set[str] = set()
    for node in subject.graph.nodes:
        made = {subject.graph.by_id[edge.src].name for edge in subject.graph.into[node.id] if edge.kind == "data"}
        if node.communicates and (made & set(operators) or (made == {"unpermute"} and operators[0].startswith("expert_"))):
            found.add(node.kind.value)
    summed = found & {Kind.ALL_REDUCE.value, Kind.REDUCE_SCATTER.value}
    words = f"{', '.join(operators)} followed by {', '.join(sorted(found)) or 'no collective'}"
    return Answer(bool(summed), words)


def collectives_overlap(subject: Subject, ask: Ask) -> Answer:
    """Whether some operator of a micro-batch can run beside a collective of the layer: neither waits for the other."""
    first = next(iter(subject.layers))
    nodes = {node.name: node for node in subject.graph.operators() if node.layer == first}
    moved = [name for name, node in nodes.items() if node.communicates]
    for collective in moved:
        for name in (n for n, node in nodes.items() if n not in moved and node.flops):
            if collective not in subject.behind[name] and name not in subject.behind[collective]:
                return Answer(True, f"{name} and {collective} need nothing of each other")
    return Answer(False, f"every product of a micro-batch comes before or waits for each of {', '.join(moved) or 'none'}")


def stages_overlap(subject: Subject, ask: Ask) -> Answer:
    """Whether stages work at the same time, on different micro-batches."""
    stages, micro = len(subject.choice.stages), subject.choice.micro_batches
    return Answer(stages > 1 and micro > 1, f"{stages} stages, {micro} micro-batches")


def layers_alike(subject: Subject, ask: Ask) -> Answer:
    """Whether all layers have the same structure and expert loads."""
    return Answer(len(subject.env.kinds) == 1, f"{len(subject.env.kinds)} kind of layer")


def computes_attention(subject: Subject, ask: Ask) -> Answer:
    """Whether the partial scores of dimension segments are summed before the softmax."""
    for stage in subject.choice.stages:
        p = stage.attention
        if p.dimension_segments > 1 and not p.score_reduce:
            why = f"partial scores of {p.dimension_segments} dimension segments are never summed before the softmax"
            return Answer(False, why)
    return Answer(True, "every score is whole before its softmax")


def busiest_gpus(subject: Subject, ask: Ask) -> Answer:
    """The GPUs with most work of some operators."""
    operators = tuple(part for operator in ask.operators for part in subject.operators([operator])[0])
    flops = plan_flops(subject, operators)
    most = max(flops.values())
    return Answer(ranks_name(tuple(gpu for gpu, value in flops.items() if value >= most * (1 - EVEN))), f"{most:.4g} FLOP each")


def fits_in_cache(subject: Subject, ask: Ask) -> Answer:
    """Whether the weights of a GPU stay in its caches."""
    held: dict[int, float] = {}
    for node in subject.chain.operators():
        for rank in node.devices if node.weights else ():
            held[rank] = held.get(rank, 0.0) + sum(weight.bytes for weight in node.weights)
    return Answer(
        None, needs=f"the size of a GPU's caches; its weights alone are {show_bytes(max(held.values(), default=0.0))}"
    )


def path(subject: Subject, ask: Ask) -> Answer:
    """Layers and roles along the longest path, such as `0 attention, 0 mlp, 1 attention`."""
    found = longest_path(subject.chain, price_graph(subject.env, subject.chain))
    nodes = [subject.chain.by_id[name] for name in found.path]
    steps = [f"{node.layer} {node.role}" for node in nodes if node.layer is not None and node.role != "send"]
    return Answer(", ".join(dict.fromkeys(steps)))


def largest_part(subject: Subject, ask: Ask) -> Answer:
    """Whether attention (with its projections) or the FFN has most of the FLOPs of a layer."""
    flops = {"attention": 0.0, "ffn": 0.0}
    for kind, works in subject.unsplit.items():
        for name, work in works.items() if kind != ENDS else ():
            ffn = name.startswith(("expert_", "shared_", "router", "up_", "gate_", "down_"))
            flops["ffn" if ffn else "attention"] += work.flops
    most = max(flops, key=lambda part: flops[part])
    return Answer(most, f"{most} has {100 * flops[most] / sum(flops.values()):.3g} % of a layer's FLOPs")
