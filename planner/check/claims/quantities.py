"""Quantities that a claim may state: each derived from the problem, the plan or the graph, with the reason for its value."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from planner.check.claims import structures as by_graph
from planner.check.claims.answers import Answer, Ask
from planner.check.claims.subject import Subject
from planner.check.claims.work import number
from planner.units import dtype_bytes

Derive = Callable[[Subject, Ask], Answer]


@dataclass(frozen=True, slots=True)
class Quantity:
    """What can be stated: the kind of claim that states it, what it is, and how it is derived."""

    kind: Literal["model", "count", "structure", "bytes"]
    words: str
    derive: Derive


def _plain(value: Callable[[Subject], float]) -> Derive:
    return lambda subject, ask: Answer(float(value(subject)))


def _ffn(subject: Subject) -> float:
    return float(subject.env.model.layers[-1].ffn.hidden)


def _heads(subject: Subject, ask: Ask) -> Answer:
    """Query heads on each GPU asked for; they must agree."""
    return by_graph.agreed({w.gpu: w.product.count for w in subject.works(("scores",), ask.gpus)}, "heads")


def _all_heads(subject: Subject, ask: Ask) -> Answer:
    return Answer(sum(w.product.count for w in subject.works(("scores",), ask.gpus)))


def _head_dims(subject: Subject, ask: Ask) -> Answer:
    return by_graph.agreed({w.gpu: w.product.k for w in subject.works(("scores",), ask.gpus)}, "head dims")


def _experts_per_gpu(subject: Subject, ask: Ask) -> Answer:
    return by_graph.agreed({w.gpu: w.product.count for w in subject.works(("expert_up_proj",), ask.gpus)}, "experts")


def _total_experts(subject: Subject, ask: Ask) -> Answer:
    ffn = subject.env.model.layers[-1].ffn
    return Answer(float(ffn.experts), f"the gate of a layer has {ffn.experts} outputs, one for each expert")


def _tokens_per_expert(subject: Subject, ask: Ask) -> Answer:
    work = subject.slowest(("expert_up_proj",), ask.gpus)
    ffn = subject.env.model.layers[-1].ffn
    if work is None:
        return Answer(None, needs="a model with experts")
    why = f"{number(subject.tokens)} tokens x top-{ffn.top_k} / {ffn.experts} experts at equal loads"
    return Answer(work.product.rows, why)


def _layers_per_stage(subject: Subject, ask: Ask) -> Answer:
    stages = subject.choice.stages
    why = f"{len(stages)} stages share {sum(s.layers for s in stages)} layers"
    return Answer(float(max(stage.layers for stage in stages)), why)


def _layers_per_gpu(subject: Subject, ask: Ask) -> Answer:
    layers, gpus = subject.sizes.layers, len(subject.ranks)
    return Answer(layers / gpus, f"{layers} layers / {gpus} GPUs: what the shares of a GPU add up to")


def _gpus_per_stage(subject: Subject, ask: Ask) -> Answer:
    return Answer(float(max(len(stage.devices) for stage in subject.choice.stages)))


def _expert_gpus(subject: Subject) -> float:
    return float(len({w.gpu for w in subject.works(("expert_up_proj",))}))


def _attention_gpus(subject: Subject) -> float:
    return float(len({w.gpu for w in subject.works(("q_proj",)) or subject.works(("scores",))}))


def _partitions(subject: Subject, ask: Ask) -> Answer:
    p = subject.choice.stages[0].attention
    return Answer(float(p.ways), f"{p.head_groups} head groups x {p.dimension_segments} dimension segments")


def _ways(size: Literal["k", "n"]) -> Derive:
    """Into how many parts a weight is cut along its rows (k) or its columns (n)."""

    def derive(subject: Subject, ask: Ask) -> Answer:
        whole, work = subject.whole(ask.operators), subject.slowest(ask.operators, ask.gpus)
        if whole is None or work is None:
            return Answer(None, needs="the operator whose split is meant")
        return Answer(getattr(whole.product, size) / getattr(work.product, size), f"each GPU computes {work.product}")

    return derive


def _tensor_ways(subject: Subject, ask: Ask) -> Answer:
    whole, work = subject.whole(("q_proj",)), subject.slowest(("q_proj",))
    if whole is None or work is None:
        return Answer(None, needs="a query projection")
    return Answer(
        whole.product.n / work.product.n, f"each GPU has {number(work.product.n)} of {number(whole.product.n)} columns"
    )


def _weight_bytes(subject: Subject, ask: Ask) -> Answer:
    """Weights of all layers on the fullest GPU."""
    held: dict[int, float] = {}
    for node in subject.chain.operators():
        for rank in node.devices if node.weights else ():
            held[rank] = held.get(rank, 0.0) + sum(weight.bytes for weight in node.weights)
    return Answer(max((held.get(rank, 0.0) for rank in subject.gpus(ask.gpus)), default=0.0))


def _activation_bytes(subject: Subject, ask: Ask) -> Answer:
    model = subject.env.model
    why = f"{number(subject.tokens)} tokens x {model.hidden} x {dtype_bytes(model.dtype):g} bytes"
    return Answer(subject.tokens * model.hidden * dtype_bytes(model.dtype), why)


def _model(words: str, value: Callable[[Subject], float]) -> Quantity:
    return Quantity("model", words, _plain(value))


QUANTITIES: dict[str, Quantity] = {
    "layers": _model("layers of the model", lambda s: s.sizes.layers),
    "hidden": _model("width of the residual stream", lambda s: s.env.model.hidden),
    "heads": _model("query heads of a layer", lambda s: s.sizes.heads),
    "kv_heads": _model("KV heads of a layer", lambda s: s.sizes.kv_heads),
    "head_dim": _model("dims of a head", lambda s: s.sizes.head_dim),
    "ffn_hidden": _model("width of the FFN, or of one expert", _ffn),
    "ffn_ratio": _model("width of the FFN over that of the model", lambda s: _ffn(s) / s.env.model.hidden),
    "vocab": _model("entries of the vocabulary", lambda s: s.env.model.vocab),
    "batch": _model("sequences of the batch", lambda s: s.env.workload.batch),
    "sequence": _model("tokens of a sequence", lambda s: s.env.query_length),
    "tokens": _model("tokens of the batch", lambda s: s.tokens),
    "total_experts": Quantity("model", "experts of a layer", _total_experts),
    "top_k": _model("experts that a token passes", lambda s: s.sizes.top_k),
    "gpus": Quantity("count", "GPUs in use", _plain(lambda s: len(s.ranks) * s.choice.replicas)),
    "stages": Quantity("count", "pipeline stages", _plain(lambda s: len(s.choice.stages))),
    "layers_per_stage": Quantity("count", "layers of a stage", _layers_per_stage),
    "layers_per_gpu": Quantity("count", "layers over GPUs", _layers_per_gpu),
    "gpus_per_stage": Quantity("count", "GPUs of a stage", _gpus_per_stage),
    "attention_gpus": Quantity("count", "GPUs that compute attention in a layer", _plain(_attention_gpus)),
    "expert_gpus": Quantity("count", "GPUs that hold experts of a layer", _plain(_expert_gpus)),
    "heads_per_gpu": Quantity("count", "query heads on a GPU", _heads),
    "heads_in_all": Quantity("count", "query heads on some GPUs together", _all_heads),
    "head_dims_per_gpu": Quantity("count", "dims of each head on a GPU", _head_dims),
    "head_groups": Quantity("count", "head groups", _plain(lambda s: s.choice.stages[0].attention.head_groups)),
    "dimension_segments": Quantity(
        "count", "segments of the head dims", _plain(lambda s: s.choice.stages[0].attention.dimension_segments)
    ),
    "partitions": Quantity("count", "parts that attention is cut into", _partitions),
    "experts_per_gpu": Quantity("count", "experts on a GPU", _experts_per_gpu),
    "experts_at_once": Quantity("count", "experts that are computed at the same time", by_graph.experts_at_once),
    "tokens_per_expert": Quantity("count", "tokens that an expert gets", _tokens_per_expert),
    "tensor_ways": Quantity("count", "GPUs that share the columns of a projection", _tensor_ways),
    "column_ways": Quantity("count", "parts that a weight's columns are cut into", _ways("n")),
    "row_ways": Quantity("count", "parts that a weight's rows are cut into", _ways("k")),
    "products": Quantity("count", "products of some operators in a layer, over all GPUs", by_graph.products),
    "operators_per_layer": Quantity("count", "different products of a GPU in a layer", by_graph.operators_per_layer),
    "products_per_layer": Quantity("count", "products of a GPU in a layer, each head for itself", by_graph.products_per_layer),
    "sequential_layers": Quantity("count", "layers that the longest path runs through", by_graph.sequential_layers),
    "acyclic": Quantity("structure", "no operator waits for itself", by_graph.acyclic),
    "shapes_align": Quantity("structure", "every operator reads what its producer wrote", by_graph.shapes_align),
    "no_repeated_work": Quantity("structure", "no product is computed twice", by_graph.no_repeated_work),
    "balanced": Quantity("structure", "all GPUs have the same work", by_graph.balanced),
    "stages_alike": Quantity("structure", "all stages have the same work", by_graph.stages_alike),
    "at_once": Quantity("structure", "operators run at the same time", by_graph.at_once),
    "in_order": Quantity("structure", "each operator needs the one before", by_graph.in_order),
    "summed_after": Quantity("structure", "partial outputs are summed over GPUs", by_graph.summed_after),
    "collectives_overlap": Quantity("structure", "collectives run beside products", by_graph.collectives_overlap),
    "stages_overlap": Quantity("structure", "stages work at the same time", by_graph.stages_overlap),
    "layers_alike": Quantity("structure", "all layers are alike", by_graph.layers_alike),
    "computes_attention": Quantity("structure", "the plan computes attention", by_graph.computes_attention),
    "busiest_gpus": Quantity("structure", "the GPUs with most work", by_graph.busiest_gpus),
    "fits_in_cache": Quantity("structure", "weights stay in SRAM or L2", by_graph.fits_in_cache),
    "path": Quantity("structure", "layers and roles along the longest path", by_graph.path),
    "largest_part": Quantity("structure", "the part of a layer with most work: attention or ffn", by_graph.largest_part),
    "weights_per_gpu": Quantity("bytes", "weights on the fullest GPU", _weight_bytes),
    "activations": Quantity("bytes", "the residual stream of the whole batch", _activation_bytes),
}
