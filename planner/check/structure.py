"""Structure: a choice against the integers of its problem, before any graph is built."""

from __future__ import annotations

from collections.abc import Iterator

from planner.check.findings import Finding
from search_spaces.attention import legal_grid
from search_spaces.experts import Placement, contiguous_placement, legal_placement, matches_rows, rows_of, serves
from search_spaces.sizes import Sizes
from search_spaces.space import residual_shards
from search_spaces.stages import Choice, StageChoice, replica_stride


def check_structure(sizes: Sizes, choice: Choice) -> tuple[Finding, ...]:
    """Every finding about ranks, layers, heads, experts and divisors."""
    found = [*_ranks(sizes, choice), *_layers(sizes, choice), *_counts(sizes, choice), *_apart(choice)]
    for index, stage in enumerate(choice.stages):
        found += [
            *_heads(sizes, stage, f"stages[{index}].attention"),
            *_ffn(sizes, stage, f"stages[{index}].mlp"),
            *_experts(sizes, stage, f"stages[{index}].experts"),
        ]
        if not any(finding.severity == "error" for finding in found):
            found += _micro_batch(sizes, choice, stage, f"stages[{index}]")
    return tuple(found)


def _error(code: str, where: str, message: str, measured: object = None, expected: object = None, fix: str = "") -> Finding:
    return Finding(code, "error", where, message, _plain(measured), _plain(expected), fix)


def _plain(value: object) -> str | float | int | None:
    return value if value is None or isinstance(value, str | float | int) else str(value)


def _ranks(sizes: Sizes, choice: Choice) -> Iterator[Finding]:
    """Every rank exists and is used once, and the GPUs of a side are of one kind."""
    stride = replica_stride(sizes, choice.replicas) if choice.replicas >= 1 else None
    if stride is None:
        fix = "use fewer replicas"
        yield _error(
            "STRUCT001", "replicas", f"no block of ranks serves {choice.replicas} replicas alike", choice.replicas, fix=fix
        )
        return
    seen: set[int] = set()
    for index, stage in enumerate(choice.stages):
        where = f"stages[{index}].devices"
        for rank in stage.devices:
            if not 0 <= rank < stride:
                yield _error("STRUCT001", where, f"rank {rank} is not one of replica 0", rank, f"0 to {stride - 1}")
            elif rank in seen:
                yield _error("STRUCT002", where, f"rank {rank} is used twice", rank, fix="give each rank to one stage")
            seen.add(rank)
        for side in {stage.attention_devices, stage.expert_devices}:
            kinds = {sizes.kind_of_device[rank] for rank in side if 0 <= rank < sizes.devices}
            if len(kinds) > 1:
                yield _error(
                    "STRUCT013", where, "GPUs of different kinds share a stage", len(kinds), 1, "split the stage by kind"
                )
    idle = sizes.devices - choice.replicas * len(seen)
    if idle > 0:
        message = f"{idle} of {sizes.devices} GPUs are in no stage"
        yield Finding("STRUCT003", "info", "stages", message, sizes.devices - idle, sizes.devices, "")


def _layers(sizes: Sizes, choice: Choice) -> Iterator[Finding]:
    layers = [stage.layers for stage in choice.stages]
    for index, count in enumerate(layers):
        if count < 1:
            yield _error("STRUCT004", f"stages[{index}].layers", "a stage without layers", count, "1 or more")
    if sum(layers) != sizes.layers:
        message = f"the stages have {sum(layers)} layers, the model {sizes.layers}"
        yield _error("STRUCT004", "stages", message, sum(layers), sizes.layers, "every layer belongs to exactly one stage")


def _counts(sizes: Sizes, choice: Choice) -> Iterator[Finding]:
    if choice.replicas < 1 or sizes.batch % choice.replicas:
        yield _error(
            "STRUCT007", "replicas", f"{choice.replicas} replicas do not divide the batch", choice.replicas, sizes.batch
        )
    elif choice.micro_batches < 1 or sizes.batch // choice.replicas % choice.micro_batches:
        each, message = sizes.batch // choice.replicas, "micro-batches do not divide the batch of a replica"
        yield _error("STRUCT007", "micro_batches", message, choice.micro_batches, f"a divisor of {each}")


def _apart(choice: Choice) -> Iterator[Finding]:
    """Experts with GPUs of their own."""
    if not any(stage.separate for stage in choice.stages):
        return
    if len(choice.stages) > 1:
        yield _error("STRUCT014", "stages", "experts on GPUs of their own need a plan of one stage", len(choice.stages), 1)
    stage = choice.stages[0]
    if not stage.attention_devices or not stage.expert_devices:
        where = "stages[0].experts.devices"
        yield _error(
            "STRUCT014", where, "attention and experts both need GPUs", len(stage.expert_devices), "1 or more on each side"
        )
    if choice.in_flight < 1 or choice.micro_batches % max(choice.in_flight, 1):
        message = "waves do not divide the micro-batches"
        yield _error("STRUCT014", "in_flight", message, choice.in_flight, f"a divisor of {choice.micro_batches}")


def _heads(sizes: Sizes, stage: StageChoice, where: str) -> Iterator[Finding]:
    p, ways = stage.attention, len(stage.attention_devices)
    if p.ways != ways:
        grid = f"{p.batch_parts} x {p.context_parts} x {p.head_groups} x {p.dimension_segments} = {p.ways}"
        yield _error("STRUCT005", where, f"the grid {grid} does not fill the stage's {ways} attention GPUs", p.ways, ways)
        return
    heads = p.heads(sizes.heads)
    if len(heads) != p.head_groups or sum(heads) != sizes.heads or min(heads) < 1:
        message = f"{len(heads)} groups with {sum(heads)} heads in all, for {p.head_groups} groups of {sizes.heads} heads"
        yield _error(
            "STRUCT006", f"{where}.heads_per_group", message, sum(heads), sizes.heads, "each head in exactly one group"
        )
    if not legal_grid(sizes, p.batch_parts, p.context_parts, p.head_groups, p.dimension_segments):
        message = "segments, groups, batch parts or context parts that the model or the workload cannot be cut into"
        expected = f"at most {sizes.heads} groups and {max(1, min(sizes.head_dim // 2, sizes.v_head_dim))} segments"
        fix = "segments and context parts exclude each other; absorbed latent attention has no segments"
        yield _error("STRUCT012", where, message, str((p.head_groups, p.dimension_segments)), expected, fix)


def _ffn(sizes: Sizes, stage: StageChoice, where: str) -> Iterator[Finding]:
    ways, mlp = len(stage.attention_devices), stage.mlp_ways
    if mlp < 1 or ways % mlp or (sizes.dense and mlp > sizes.ffn_hidden):
        yield _error("STRUCT009", f"{where}.ways", f"{mlp} ways do not divide {ways} GPUs", mlp, f"a divisor of {ways}")
        return
    if stage.attention.ways != ways:
        return
    first, second = residual_shards(sizes, stage.attention), ways // mlp
    if first % second and second % first:
        message = f"attention leaves {first} token shards, the FFN wants {second}"
        yield _error("STRUCT015", f"{where}.ways", message, second, f"a divisor or a multiple of {first}")


def _experts(sizes: Sizes, stage: StageChoice, where: str) -> Iterator[Finding]:
    placement = stage.experts
    if (placement is not None) != sizes.moe:
        message = "the model has experts, and the stage places none" if sizes.moe else "the model has no experts to place"
        yield _error("STRUCT016", where, message, fix="give experts.form" if sizes.moe else "leave experts out")
        return
    if placement is None:
        return
    ways = len(stage.expert_devices)
    if placement.tensor_ways < 1 or ways % placement.tensor_ways or placement.tensor_ways > sizes.expert_hidden:
        message = f"{placement.tensor_ways} tensor ways do not divide the {ways} GPUs that hold experts"
        yield _error("STRUCT011", f"{where}.tensor_ways", message, placement.tensor_ways, f"a divisor of {ways}")
        return
    groups = ways // placement.tensor_ways
    near = placement.serve_within
    if near and not (placement.form == "dispatch" and serves(near, placement.tensor_ways, ways)):
        message = f"{near} GPUs that serve one another's tokens are no part of {ways} GPUs that dispatch theirs"
        wanted = f"0, or with dispatch a multiple of {placement.tensor_ways} below {ways}"
        yield _error("STRUCT024", f"{where}.serve_within", message, near, wanted)
        return
    if placement.by_layer and not matches_rows(placement.placement, sizes):
        told, wanted = len(rows_of(placement.placement)), f"{len(sizes.expert_rows)}, alike where layers have equal loads"
        message = f"a placement by layer with {told} rows does not fit the layers with experts and their loads"
        yield _error("STRUCT010", f"{where}.placement_by_layer", message, told, wanted, "give every such layer its row")
        return
    for row in dict.fromkeys(rows_of(placement.placement)):
        yield from _placed(sizes, row or contiguous_placement(sizes.experts, groups), groups, where)


def _placed(sizes: Sizes, placed: Placement, groups: int, where: str) -> Iterator[Finding]:
    if not legal_placement(placed, sizes.experts, groups):
        bad = [
            e for e, held in enumerate(placed) if not held or len(set(held)) < len(held) or not set(held) <= set(range(groups))
        ]
        message = f"experts {bad[:8]} have no legal place" if bad else f"{len(placed)} experts are placed"
        yield _error("STRUCT010", f"{where}.placement", message, len(placed), sizes.experts, f"groups are 0 to {groups - 1}")


def _micro_batch(sizes: Sizes, choice: Choice, stage: StageChoice, where: str) -> Iterator[Finding]:
    """A micro-batch can be split, and no part is empty."""
    sequences = sizes.batch // choice.replicas // choice.micro_batches
    tokens, p, ways = sequences * sizes.query_length, stage.attention, len(stage.attention_devices)
    shards = max(residual_shards(sizes, p), ways // stage.mlp_ways)
    if stage.experts is not None and stage.experts.form != "local":
        shards = ways
    if sequences % p.batch_parts:
        message = f"{p.batch_parts} batch parts do not divide a micro-batch of {sequences} sequences"
        yield _error("STRUCT008", f"{where}.attention.batch_parts", message, p.batch_parts, f"a divisor of {sequences}")
    if shards > tokens:
        message = f"{tokens} tokens of a micro-batch cannot fill {shards} shards"
        yield _error("STRUCT008", where, message, shards, f"at most {tokens}", "use fewer micro-batches")
