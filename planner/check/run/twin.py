"""The small twin of a plan: the same devices, splits, stages and schedule on a model with small sizes.

What shrinking keeps: heads and their groups, RoPE pairs, experts and routing, windows shorter than the sequence, and of each
size its remainder by the ways that split it. What it keeps apart: no two sizes are equal that are not in the model.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import cached_property
from math import lcm, sqrt

from planner.cluster import Cluster
from planner.graph.chunks import chunk_layers
from planner.graph.experts import layer_rows
from planner.model import Attention, Ffn, Layer, ModelSpec
from planner.problem import sizes_of
from planner.workload import Workload
from search_spaces.experts import rows_of
from search_spaces.sizes import Sizes
from search_spaces.stages import Choice, StageChoice

LAYERS_OF_A_KIND = 2
MOST_MODULUS = 512
POSITION_OFFSETS = 7
"""Sequences begin at positions below this."""
HIDDEN_OF_HEADS = ("gpt2", "gpt_neox", "opt")
"""Architectures whose hidden size is heads x dims by definition."""


@dataclass(frozen=True)
class Twin:
    """Small sizes for a plan. `layers` are the indices of the kept layers in the full model, `sequences` those of a
    micro-batch.
    """

    model: ModelSpec
    workload: Workload
    sizes: Sizes
    choice: Choice
    layers: tuple[int, ...]
    sequences: int

    @cached_property
    def rows(self) -> tuple[int, ...]:
        """For every layer of the twin its entry of a placement by layer."""
        return layer_rows(self.model, self.workload)


def twin_of(model: ModelSpec, workload: Workload, cluster: Cluster, sizes: Sizes, choice: Choice) -> Twin:
    """The twin of a plan that is structurally sound."""
    kept = kept_layers(model, choice)
    micro = cut_micro_batches(choice)
    full = sizes.batch // choice.replicas // choice.micro_batches
    numbers = _Numbers(choice.stages, micro)
    small, sequences = _small_workload(numbers, model, workload, full)
    layers = [model.layers[index] for index in kept]
    small_layers = tuple(_small_layer(numbers, layer, workload, small) for layer in layers)
    hidden = numbers.shrink("hidden", model.hidden, numbers.near)
    if model.architecture in HIDDEN_OF_HEADS:
        hidden = layers[0].attention.heads * small_layers[0].attention.head_dim
    twin = replace(
        model, hidden=hidden, layers=small_layers,
        vocab=numbers.shrink("vocab", model.vocab, numbers.near) if model.vocab else 0,
        positions=POSITION_OFFSETS + small.kv_length + model.position_offset if model.positions else 0,
        embedding_scale=sqrt(hidden) if model.embedding_scale != 1.0 else 1.0,
    )  # fmt: skip
    small = replace(small, batch=sequences * micro, expert_load=_kept_loads(model, workload, kept))
    stages = tuple(
        _kept_placements(replace(stage, layers=count), model, kept)
        for stage, count in zip(choice.stages, _counts(model, choice, kept), strict=True)
    )
    small_choice = Choice(1, micro, stages, min(choice.in_flight, micro), choice.training)
    return Twin(twin, small, sizes_of(twin, small, cluster), small_choice, kept, sequences)


def kept_layers(model: ModelSpec, choice: Choice) -> tuple[int, ...]:
    """Layers that the twin runs: of every stage the first two of each kind."""
    if choice.training is not None:
        return tuple(sorted(index for stage in _kept_of_chunks(model, choice) for index in stage))
    found, start = [], 0
    for stage in choice.stages:
        found += _first_of_each(model, range(start, start + stage.layers))
        start += stage.layers
    return tuple(found)


def _first_of_each(model: ModelSpec, layers: range) -> list[int]:
    """Of some layers the first two of each kind."""
    found, seen = [], dict[Layer, int]()
    for index in layers:
        layer = model.layers[index]
        seen[layer] = seen.get(layer, 0) + 1
        if seen[layer] <= LAYERS_OF_A_KIND:
            found.append(index)
    return found


def _kept_of_chunks(model: ModelSpec, choice: Choice) -> list[list[int]]:
    """Layers of every stage of a training plan that the twin runs: as many of each chunk, so that chunks stay chunks."""
    virtual = choice.training.virtual_stages if choice.training is not None else 1
    found = []
    for chunks in chunk_layers([stage.layers for stage in choice.stages], virtual):
        if virtual == 1:
            found.append(_first_of_each(model, chunks[0]))
            continue
        most = max(max(_first_of_each(model, chunk), default=chunk.start) - chunk.start + 1 for chunk in chunks if len(chunk))
        found.append([index for chunk in chunks for index in chunk[:most]])
    return found


def cut_micro_batches(choice: Choice) -> int:
    """Micro-batches that the twin runs: enough to fill the pipeline and to come round, whole waves where there are waves."""
    if choice.stages[0].separate:
        waves = -(-max(3, 2 * choice.in_flight) // choice.in_flight)
        return min(choice.micro_batches, waves * choice.in_flight)
    if choice.training is not None and choice.training.virtual_stages > 1:  # whole groups of stages
        return min(choice.micro_batches, 2 * len(choice.stages))
    return min(choice.micro_batches, len(choice.stages) + 2)


def _counts(model: ModelSpec, choice: Choice, kept: tuple[int, ...]) -> list[int]:
    if choice.training is not None:
        return [len(stage) for stage in _kept_of_chunks(model, choice)]
    counts, start = [], 0
    for stage in choice.stages:
        counts.append(sum(start <= index < start + stage.layers for index in kept))
        start += stage.layers
    return counts


def _kept_loads(model: ModelSpec, workload: Workload, kept: tuple[int, ...]) -> tuple[tuple[float, ...], ...]:
    loads = workload.expert_load
    if len(loads) <= 1:
        return loads
    return tuple(loads[mixture % len(loads)] for mixture in _kept_mixtures(model, kept))


def _kept_placements(stage: StageChoice, model: ModelSpec, kept: tuple[int, ...]) -> StageChoice:
    """The stage with the placements of the layers that are kept, where each has its own."""
    if stage.experts is None or not stage.experts.by_layer:
        return stage
    rows = rows_of(stage.experts.placement)
    placed = tuple(rows[mixture] for mixture in _kept_mixtures(model, kept))
    return replace(stage, experts=replace(stage.experts, placement=placed))


def _kept_mixtures(model: ModelSpec, kept: tuple[int, ...]) -> list[int]:
    """The kept layers that have experts, as numbers among the model's layers with experts."""
    mixtures = [index for index, layer in enumerate(model.layers) if layer.ffn.kind == "moe"]
    return [mixtures.index(index) for index in kept if index in mixtures]


class _Numbers:
    """Hands out small sizes: each original size gets one, with its remainder, and no two originals share one."""

    def __init__(self, stages: tuple[StageChoice, ...], micro_batches: int) -> None:
        self.near = [len(stage.attention_devices) for stage in stages]
        self.segments = [stage.attention.dimension_segments for stage in stages]
        self.context = [stage.attention.context_parts for stage in stages]
        self.batch = [stage.attention.batch_parts for stage in stages]
        self.mlp = [stage.mlp_ways for stage in stages]
        self.tensor = [stage.experts.tensor_ways if stage.experts else 1 for stage in stages]
        placed = [row for stage in stages if stage.experts for row in rows_of(stage.experts.placement)]
        replicas = max((len(held) for row in placed for held in row), default=1)
        self.copies = replicas if micro_batches > 1 else 2 * replicas  # tokens of an expert: two for each replica in all
        self._of: dict[tuple[str, int], int] = {}
        self._taken = {*self.near, *(s.attention.head_groups for s in stages), *self.segments, *self.context}

    def shrink(self, name: str, original: int, ways: Iterable[int], least: int = 5) -> int:
        """A small size for `original`, which is split by each of `ways`."""
        key = (name, original)
        if key not in self._of:
            modulus = _modulus(ways)
            self._of[key] = self.take(original % modulus, modulus, max(least, modulus))
        return self._of[key]

    def take(self, remainder: int, modulus: int, least: int) -> int:
        """The smallest free size with a remainder."""
        size = least + (remainder - least) % modulus
        while size in self._taken:
            size += modulus
        self._taken.add(size)
        return size


def _modulus(ways: Iterable[int]) -> int:
    """What remainders are kept by: the least common multiple, or the largest of the ways where that is too much."""
    numbers = list(ways)
    common = lcm(*numbers)
    return common if common <= MOST_MODULUS else max(numbers)


def _small_workload(numbers: _Numbers, model: ModelSpec, workload: Workload, full: int) -> tuple[Workload, int]:
    """The workload of one micro-batch, and its sequences."""
    parts = lcm(*numbers.batch)
    mixtures = [layer.ffn for layer in model.layers if layer.ffn.kind == "moe"]
    needed = max((-(-numbers.copies * ffn.experts // ffn.top_k) for ffn in mixtures), default=0)
    if workload.phase == "decode":
        modulus = _modulus([*numbers.near, parts])
        few = full < modulus  # then some GPUs may have no token of their own: that must not change
        sequences = full if few else numbers.take(full % modulus, modulus, max(modulus, 2 * parts, needed))
        keys = numbers.take(0, 1, 4 * max(numbers.context) + 4)  # the new token among them
        return replace(workload, context=keys - 1), sequences
    sequences = parts * min(2, full // parts)
    unit = lcm(*numbers.context)
    least = max(5, 4 * unit, -(-2 * max(numbers.near) // sequences), -(-needed // sequences))
    modulus, remainder = _prompt_class(numbers, sequences, unit, full * workload.prompt, workload.prompt)
    return replace(workload, prompt=numbers.take(remainder, modulus, least)), sequences


def _prompt_class(numbers: _Numbers, sequences: int, unit: int, tokens: int, prompt: int) -> tuple[int, int]:
    """(modulus, remainder) of the prompt that leave the micro-batch's tokens their remainder by the GPUs, where one does."""
    ways = _modulus([*numbers.near, 2 * unit])
    for remainder in range(ways):
        if remainder % unit == 0 and (sequences * remainder - tokens) % ways == 0:
            return ways, remainder
    return 2 * unit, prompt % (2 * unit)


def _small_layer(numbers: _Numbers, layer: Layer, workload: Workload, small: Workload) -> Layer:
    shrink = _small_latent if layer.attention.kind == "mla" else _small_heads
    attention = shrink(numbers, layer.attention)
    reach = {
        name: None if limit is None else _reach(limit, workload.kv_length, small.kv_length)
        for name, limit in (("window", attention.window), ("chunk", attention.chunk))
    }
    attention = replace(attention, window=reach["window"], chunk=reach["chunk"])
    if attention.indexer is not None:
        dims = attention.rope_dim + 2
        top_k = _reach(attention.indexer.top_k, workload.kv_length, small.kv_length)
        attention = replace(attention, indexer=replace(attention.indexer, heads=4, head_dim=dims, top_k=top_k))
    return replace(layer, attention=attention, ffn=_small_ffn(numbers, layer.ffn))


def _reach(limit: int, keys: int, small_keys: int) -> int:
    """A window, a chunk or a number of picked keys: shorter than the sequence where it was, longer where it was not."""
    return max(2, small_keys // 2) if limit < keys else small_keys + 2


def _small_heads(numbers: _Numbers, spec: Attention) -> Attention:
    dim = 2 * _pairs(numbers, "head_dim", spec.head_dim)
    rotary = dim if spec.rotary_dim == spec.head_dim else 2 * max(1, dim // 4) if spec.rotary_dim else 0
    v_dim = dim if spec.v_head_dim == spec.head_dim else numbers.shrink("v_dim", spec.v_head_dim, numbers.segments)
    return replace(spec, head_dim=dim, v_head_dim=v_dim, rotary_dim=rotary, scale_dim=_scale(spec, dim))


def _small_latent(numbers: _Numbers, spec: Attention) -> Attention:
    nope, rope = (2 * _pairs(numbers, name, size) for name, size in (("nope", spec.nope_dim), ("rope", spec.rope_dim)))
    rank = None if spec.q_lora_rank is None else numbers.shrink("q_rank", spec.q_lora_rank, [1])
    return replace(
        spec, nope_dim=nope, rope_dim=rope, head_dim=nope + rope, q_lora_rank=rank, rotary_dim=rope if spec.rotary_dim else 0,
        kv_lora_rank=numbers.shrink("kv_rank", spec.kv_lora_rank, [1]), scale_dim=_scale(spec, nope + rope),
        v_head_dim=numbers.shrink("v_dim", spec.v_head_dim, numbers.segments),
    )  # fmt: skip


def _pairs(numbers: _Numbers, name: str, dims: int) -> int:
    """Rotary pairs of a small head: two at least, one for each segment, and their remainder by the segments."""
    modulus = _modulus(numbers.segments)
    least = max(2, modulus) if name != "nope" else max(3, modulus + 1)
    return least + (dims // 2 - least) % modulus


def _scale(spec: Attention, dim: int) -> float | None:
    """A whole number, and other than the head's dims where it was."""
    if spec.scale_dim is None:
        return None
    return dim if spec.scale_dim == spec.head_dim else max(dim + 1, round(spec.scale_dim * dim / spec.head_dim))


def _small_ffn(numbers: _Numbers, ffn: Ffn) -> Ffn:
    if ffn.kind == "dense":
        return replace(ffn, hidden=numbers.shrink("ffn", ffn.hidden, numbers.mlp))
    ways = [*numbers.tensor, *(numbers.near if ffn.shared_hidden else ())]
    hidden = numbers.shrink("expert", ffn.hidden, ways, least=3)
    if ffn.shared_hidden % ffn.hidden == 0:  # whole shared experts, each as wide as a routed one
        return replace(ffn, hidden=hidden, shared_hidden=ffn.shared_hidden // ffn.hidden * hidden)
    return replace(ffn, hidden=hidden, shared_hidden=numbers.shrink("shared", ffn.shared_hidden, numbers.near))
