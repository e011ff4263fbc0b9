"""Conservation: weights and FLOPs over all GPUs of a replica against the unsplit model, counted from its own inventory."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator

from planner.check.declared import Declared, computed_pairs, kept_pairs, layer_weights
from planner.check.findings import Finding
from planner.graph.experts import layer_rows
from planner.graph.nodes import Graph, Node
from planner.graph.ops import Kind
from planner.model import Layer, ModelSpec
from planner.workload import Workload
from search_spaces.sizes import Sizes
from search_spaces.stages import Choice

SLACK = 1e-9
ABSORBED = {"q_absorb": "kv_b", "v_absorb": "kv_b"}
CORE = ("attention", "scores", "attention_value")


def check_conservation(model: ModelSpec, workload: Workload, sizes: Sizes, choice: Choice, graph: Graph) -> tuple[Finding, ...]:
    """Findings for every weight and product of every layer and micro-batch: less than the model, or more than declared.

    Each layer of each stage must compute all of its micro-batch. With all layers and micro-batches there (see `check_places`)
    the plan computes the model. What is declared is told of the first micro-batch alone.
    """
    sequences = sizes.batch // choice.replicas // choice.micro_batches
    turns: dict[tuple[int, int], dict[tuple[int, int], list[Node]]] = defaultdict(lambda: defaultdict(list))
    for node in graph.operators():
        layer = -1 if node.layer is None else node.layer
        turns[node.step, node.micro_batch][node.stage, layer].append(node)
    declared = [Declared(model, workload, sizes, stage) for stage in choice.stages]
    found: list[Finding] = []
    rows = layer_rows(model, workload)
    for turn, parts in sorted(turns.items()):
        later = f", micro-batch {turn[1]}" if turn != min(turns) else ""
        for (stage, index), nodes in sorted(parts.items()):
            ends = stage == 0, stage == len(choice.stages) - 1
            if index < 0:
                told = _outer(declared[stage], nodes, f"stages[{stage}]{later}", sequences, *ends)
            else:
                where = f"stages[{stage}].layer {index}{later}"
                told = _layer(declared[stage].at(rows[index]), model.layers[index], nodes, where, sequences)
            found += told if not later else (finding for finding in told if finding.severity != "info")
    return tuple(found)


def _layer(declared: Declared, layer: Layer, nodes: list[Node], where: str, sequences: int) -> Iterator[Finding]:
    held, work = _held(nodes), _work(nodes)
    attention = {weight.name for weight in layer.attention.weights(declared.model.hidden)}
    tokens = float(sequences * declared.workload.query_length)
    for name, (elements, module) in layer_weights(layer, declared.model.hidden).items():
        own = name in attention or name.startswith(("attention_", "input_"))
        copies = declared.attention_copies(layer.attention, name) if own else declared.ffn_copies(layer.ffn, name)
        if module == "norm" and not own:
            copies = float(declared.near)
        if module != "norm" or name in held:
            yield from _compare("weight", name, where, held.get(name, 0.0), elements, copies)
        if name in work:
            times = declared.attention_work(layer.attention, name) if own else declared.ffn_work(name)
            share = layer.ffn.top_k / layer.ffn.experts if module == "experts" else 1.0
            yield from _compare(
                "FLOPs of", name, where, work[name], 2.0 * tokens * elements * share, times, _rounding(nodes, name)
            )
        elif module != "norm" and "bias" not in name and name != "sinks":
            yield from _compare("FLOPs of", name, where, 0.0, 2.0 * tokens * elements, 1.0)
    yield from _core(declared, layer, nodes, where, sequences)
    yield from _cache(declared, layer, nodes, where, sequences)


def _outer(declared: Declared, nodes: list[Node], where: str, sequences: int, first: bool, last: bool) -> Iterator[Finding]:
    """Embedding, positions, final norm and head. A tied head on another stage than the embedding is a copy of it."""
    model, workload = declared.model, declared.workload
    held, work = _held(nodes), _work(nodes)
    expected = {weight.name: weight.parameters for weight in model.outer_weights()}
    head = last and bool(model.vocab) and workload.logits != "none"
    if head and model.tied_embeddings and not first:
        expected["head"] = model.vocab * model.hidden
    for name, elements in expected.items():
        here = first and bool(model.vocab) if name in ("embedding", "positions") else head
        if here and not (name.startswith("final_norm") and name not in held):
            yield from _compare("weight", name, where, held.get(name, 0.0), elements, declared.outer_copies(name))
    if head:
        rows = sequences * workload.query_length if workload.logits == "all" else sequences
        done = sum(node.flops for node in nodes if node.name == "lm_head")
        yield from _compare("FLOPs of", "head", where, work.get("head", done), 2.0 * rows * model.hidden * model.vocab, 1.0)


def _core(declared: Declared, layer: Layer, nodes: list[Node], where: str, sequences: int) -> Iterator[Finding]:
    """Scores and their products with the values, over all heads and pairs that the partition's kernels compute."""
    spec, workload, p = layer.attention, declared.workload, declared.stage.attention
    width = spec.head_dim + spec.v_head_dim
    if spec.kind == "mla" and workload.phase == "decode":
        width = 2 * spec.kv_lora_rank + spec.rope_dim
    done = sum(node.flops for node in nodes if node.name in CORE or node.name.rstrip("0123456789") == "attention_")
    required = 2.0 * sequences * spec.heads * kept_pairs(spec, workload) * width
    masked = computed_pairs(spec, workload, p) / kept_pairs(spec, workload)
    yield from _compare("FLOPs of", "attention", where, done, required, masked)


def _cache(declared: Declared, layer: Layer, nodes: list[Node], where: str, sequences: int) -> Iterator[Finding]:
    """New keys and values that stay for later steps."""
    workload, spec = declared.workload, layer.attention
    if workload.phase != "decode" and not workload.keep_kv_cache:
        return
    kept = sum(piece.elements for node in nodes for piece in node.outputs if piece.name == "cache")
    tokens = float(sequences * workload.query_length)
    yield from _compare("entries of", "cache", where, kept, tokens * spec.kv_elements_per_token, declared.cached_copies(spec))


def _compare(
    what: str, name: str, where: str, measured: float, required: float, copies: float, extra: float = 0.0
) -> Iterator[Finding]:
    """Less than required is no model, and less than the declared `copies` leaves a GPU without its part; more of it is
    undeclared; the declared repetition of work is worth knowing.
    """
    place, label, least = f"{where}.{name}", f"{what} {name}", required * copies
    come, are = ("comes", "is") if what == "weight" else ("come", "are")
    if measured < least * (1.0 - SLACK):
        message = f"does not compute the model: {label} {come} to {measured / least:.3g} of what this partition of it needs"
        yield Finding("WORK001", "error", place, message, measured, least, "give every part to a GPU")
    elif measured > required * copies * (1.0 + SLACK) + extra:
        factor = measured / (required * copies)
        message = f"redundant: {label} {are} {factor:.3g} times what the plan's partition declares"
        yield Finding("WORK002", "warning", place, message, measured, required * copies, "split it, or declare the repetition")
    elif what.startswith("FLOPs") and copies > 1.0 + SLACK:
        message = f"{label} are computed {measured / required:.3g} times, as this partition declares"
        yield Finding("WORK003", "info", place, message, measured, required)


def _held(nodes: list[Node]) -> dict[str, float]:
    """Elements of every weight over all GPUs; a LayerNorm's two vectors come as one tensor."""
    found: dict[str, float] = defaultdict(float)
    for node in nodes:
        for weight in node.weights:
            if "norm" in weight.name and len(weight.shape) == 2 and weight.shape[0] == 2:
                found[weight.name] += weight.elements / 2
                found[f"{weight.name}_bias"] += weight.elements / 2
            else:
                found[weight.name] += weight.elements
    return found


def _work(nodes: list[Node]) -> dict[str, float]:
    """FLOPs of every product with a weight, over all GPUs; padding of grouped products to equal experts does not count."""
    found: dict[str, float] = defaultdict(float)
    for node in nodes:
        name = ABSORBED.get(node.name) or next((w.name for w in node.weights if len(w.shape) > 1), "")
        if name and node.kind in (Kind.MATMUL, Kind.GROUPED):
            found[name] += _grouped(node) if node.kind == Kind.GROUPED else node.flops
    return found


def _grouped(node: Node) -> float:
    rows = node.output.shape[0] if node.output is not None else node.m * node.batch
    return 2.0 * rows * node.k * node.n


def _rounding(nodes: list[Node], name: str) -> float:
    """FLOPs that rounding up to whole rows may add: a row on every GPU with experts."""
    grouped = [n for n in nodes if n.kind == Kind.GROUPED and any(w.name == name for w in n.weights)]
    return sum(2.0 * n.k * n.n for n in grouped)
