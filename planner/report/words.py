"""A plan in words that need no glossary: what each stage's GPUs share, and how often the batch is cut."""

from __future__ import annotations

from planner.report.show import count, gpus, ranges, runs
from search_spaces.attention import ORDERS, AttentionPartition
from search_spaces.orders import in_ranges
from search_spaces.sizes import Sizes, share
from search_spaces.stages import Choice, StageChoice
from search_spaces.training import TrainingChoice

MOST_STAGES = 4
COUNTED = "GPU numbers are ranks: they count the GPUs that the cluster lists in the order {order}."

SUMMED = "partial scores of the segments summed (all-reduce) before the softmax"
SCATTERED = "partial scores of the segments summed and split by query rows for the softmax"
UNSUMMED = "partial scores of the segments NOT summed: this does not compute attention"
INNER = {
    "segments_inner": "neighbouring GPUs hold the segments of one head group",
    "heads_inner": "neighbouring GPUs hold the same segment of different head groups",
    "context_inner": "neighbouring GPUs hold different context parts of the same heads, their head groups stand apart",
    "batch_inner": "neighbouring GPUs hold different batch parts, those that share a part stand apart",
}
PROJECTION = {
    "row": "output projection split by rows, partial outputs summed",
    "gather": "heads gathered, output projection split by columns",
}
SEQUENCE = "residual stream split by tokens between the blocks (sequence parallel)"
FORMS = {
    "local": "experts on the attention GPUs (every GPU sees its stage's tokens, partial outputs summed)",
    "dispatch": "experts on the attention GPUs (tokens travel to their experts and back, all-to-all)",
    "separate": "experts on {gpus} of their own, attention on {near}, router on the {side} side",
}


def plan_words(choice: Choice, sizes: Sizes) -> str:
    """A plan in one line."""
    stages = choice.stages
    if len(stages) <= MOST_STAGES:
        pairs = zip(stage_layers(choice), stages, strict=True)
        where = "; ".join(f"{layers} on {gpus(stage.devices)}" for layers, stage in pairs)
    else:
        layers, widths = (sorted({*values}) for values in ([s.layers for s in stages], [len(s.devices) for s in stages]))
        many = ("" if layers == [1] else "s", "" if widths == [1] else "s")
        where = f"{_span(layers)} layer{many[0]} on {_span(widths)} GPU{many[1]} each"
    how = list(dict.fromkeys(f"{grid_words(stage.attention, sizes)}, {ffn_words(stage, sizes)[0]}" for stage in stages))
    shown = " / ".join(how if len(how) <= MOST_STAGES else [*how[:MOST_STAGES], "..."])
    return f"{count(len(stages), 'stage')} ({where}); {shown}; {batch_words(choice, sizes)}"


def order_words(sizes: Sizes) -> str:
    """Which GPUs of the cluster's list the ranks are; nothing where they are these themselves."""
    return COUNTED.format(order=in_ranges(sizes.gpus)) if sizes.gpus else ""


def batch_words(choice: Choice, sizes: Sizes) -> str:
    """Replicas, micro-batches and waves."""
    sequences = sizes.batch // choice.replicas // choice.micro_batches
    micro_batches = f"{count(choice.micro_batches, 'micro-batch')} of {count(sequences, 'sequence')}"
    waves = f", {choice.in_flight} of them in flight at a time" if choice.in_flight > 1 else ""
    steps = f", {training_words(choice.training)}" if choice.training is not None else ""
    return f"{count(choice.replicas, 'replica')}, {micro_batches}{waves}{steps}"


def training_words(training: TrainingChoice) -> str:
    """How a step runs: schedule, what is computed again, what copies share out."""
    chunks = f" of {training.virtual_stages} chunks" if training.virtual_stages > 1 else ""
    again = {"none": "nothing computed again", "selective": "attention cores computed again", "full": "layers computed again"}
    shared = ("every copy whole", "optimizer states shared out", "optimizer states and gradients shared out",
              "weights, gradients and optimizer states shared out")  # fmt: skip
    return f"schedule {training.schedule}{chunks}, {again[training.recompute]}, {shared[training.zero]} (zero {training.zero})"


def stage_layers(choice: Choice) -> list[str]:
    """The layers of each stage: `layer 0`, `layers 1-4`, or how many there are in the chunks of an interleaved schedule."""
    if choice.training is not None and choice.training.virtual_stages > 1:
        return [f"{stage.layers} in {choice.training.virtual_stages} chunks" for stage in choice.stages]
    found, start = [], 0
    for stage in choice.stages:
        found.append(f"layer{'s' if stage.layers > 1 else ''} {ranges(range(start, start + stage.layers))}")
        start += stage.layers
    return found


def grid_words(partition: AttentionPartition, sizes: Sizes) -> str:
    """The attention grid: head groups x dimension segments, with what each GPU holds."""
    n, m, heads = partition.head_groups, partition.dimension_segments, partition.heads(sizes.heads)
    each = f"{count(heads[0], 'head')} each" if len(set(heads)) == 1 else runs(heads, "head")
    words = f"{count(n, 'head group')} ({each})" if n > 1 else ("all heads" if m > 1 else f"all {count(sizes.heads, 'head')}")
    if m > 1:
        dims = sorted({share(sizes.head_dim, m, i) for i in range(m)})
        words += f" x {count(m, 'dimension segment')} ({_span(dims)} of {sizes.head_dim} head dims each)"
    words += f" x {count(partition.batch_parts, 'batch part')}" if partition.batch_parts > 1 else ""
    return words + (f" x {count(partition.context_parts, 'context part')}" if partition.context_parts > 1 else "")


def attention_words(partition: AttentionPartition, sizes: Sizes) -> list[str]:
    """The attention of a stage: its grid, then what its GPUs exchange."""
    n, m = partition.head_groups, partition.dimension_segments
    lines = [grid_words(partition, sizes)]
    if m > 1:
        lines.append((SCATTERED if partition.softmax == "scattered" else SUMMED) if partition.score_reduce else UNSUMMED)
    if partition.order != ORDERS[0] or (n > 1 and m > 1):
        lines.append(INNER[partition.order])
    if n * m > 1:
        lines.append(PROJECTION[partition.output_projection])
    if partition.sequence_parallel:
        lines.append(SEQUENCE)
    return lines


def ffn_words(stage: StageChoice, sizes: Sizes) -> list[str]:
    """The feed-forward part of a stage: dense layers' ways, then where the experts are."""
    return [*(_mlp_words(stage) if sizes.dense else []), *(_expert_words(stage, sizes) if stage.experts else [])] or ["-"]


def _mlp_words(stage: StageChoice) -> list[str]:
    width = len(stage.attention_devices)
    weights = f"MLP weights split {stage.mlp_ways} ways" if stage.mlp_ways > 1 else "MLP weights whole"
    tokens = width // stage.mlp_ways
    return [weights + (f", tokens split {tokens} ways" if tokens > 1 else "")]


def _expert_words(stage: StageChoice, sizes: Sizes) -> list[str]:
    experts = stage.experts
    if experts is None:
        return []
    width = len(stage.expert_devices)
    rows = [experts.at(row).groups(sizes.experts, width) for row in dict.fromkeys(sizes.expert_rows) or (0,)]
    groups = range(width // experts.tensor_ways)
    held = [sum(group in places for places in placed) for placed in rows for group in groups]
    near, side = gpus(stage.attention_devices), experts.router_side
    lines = [FORMS[experts.form].format(gpus=gpus(stage.expert_devices), near=near, side=side)]
    split = f"each expert split over {experts.tensor_ways} GPUs" if experts.tensor_ways > 1 else "whole experts"
    holder = "group" if experts.tensor_ways > 1 else "GPU"
    lines.append(f"{split}, {_span(sorted(set(held)))} of {sizes.experts} on each {holder}")
    if experts.by_layer:
        lines.append("every layer has a placement of its own")
    copies = max(sum(len(places) for places in placed) for placed in rows) - sizes.experts
    most, around = "at most " if experts.by_layer else "", experts.serve_within
    share = f"serve the {around} GPUs around them first" if around else "share the load"
    return [*lines, f"{most}{count(copies, 'extra expert')} as replicas that {share}"] if copies > 0 else lines


def _span(values: list[int]) -> str:
    return str(values[0]) if len(values) == 1 else f"{values[0]}-{values[-1]}"
