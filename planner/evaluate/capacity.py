"""Whether a plan fits: for every stage, bytes over the memory of its GPUs, each item taken at its largest share."""

from __future__ import annotations

import numpy as np

from planner.evaluate.separate import AttentionSide, Cases, expert_side, separate_price
from planner.evaluate.setting import Setting
from planner.evaluate.stage import intervals, stage_price, view
from planner.evaluate.tables import Bill, Block, FfnOption, StageTable, price_blocks
from search_spaces.sizes import Sizes
from search_spaces.space import residual_shards, token_split
from search_spaces.stages import Choice, StageChoice


def stage_table(env: Setting, sizes: Sizes, stage: StageChoice, sequences: int) -> StageTable:
    """The table of a stage that has one option (of its attention GPUs, where experts are apart)."""
    ffn = FfnOption(stage.mlp_ways, None if stage.separate else stage.experts)
    places, split = stage.attention_ranks, token_split(sizes, stage.attention)
    kind = env.cluster.device_kinds[places[0]]
    block = Block(kind, (places,), (sequences,), (stage.attention,), (ffn,), (split,))
    return env.once("stage tables", block, lambda: price_blocks(env, [block])[0])


def stage_total(env: Setting, sizes: Sizes, choice: Choice, index: int) -> tuple[float, float]:
    """(seconds of a micro-batch, bytes of the fullest GPU) of one stage of a linear pipeline."""
    stage, sequences = choice.stages[index], sizes.batch // choice.replicas // choice.micro_batches
    start = sum(other.layers for other in choice.stages[:index])
    v = view(env, sizes, stage_table(env, sizes, stage, sequences), 0, 0, sequences * choice.micro_batches)
    price = stage_price(v, intervals(env, [(start, start + stage.layers)]))
    return float(price.seconds[0, 0, 0]), float(price.memory[0, 0, 0])


def over_capacity(env: Setting, sizes: Sizes, choice: Choice) -> float:
    """Bytes by which the fullest GPU exceeds its memory; 0 or less when the plan fits."""
    if choice.stages[0].separate:
        return _over_apart(env, sizes, choice)
    excess = []
    for index, stage in enumerate(choice.stages):
        memory = stage_total(env, sizes, choice, index)[1]
        excess.append(memory - min(env.cluster.kind_of(rank).memory_bytes for rank in stage.devices))
    return max(excess)


def _over_apart(env: Setting, sizes: Sizes, choice: Choice) -> float:
    """The same where experts have GPUs of their own."""
    stage, sequences = choice.stages[0], sizes.batch // choice.replicas // choice.micro_batches
    if stage.experts is None:
        raise ValueError("experts apart need a placement")
    table = stage_table(env, sizes, stage, sequences)
    near, far = stage.attention_devices, stage.expert_devices
    kinds = env.cluster.device_kinds[near[0]], env.cluster.device_kinds[far[0]]
    one, shards = np.array([0]), np.array([residual_shards(sizes, stage.attention)])
    cases = Cases(np.array([sequences]), shards, one, one, one, (stage.experts,), (near,), (far,), *kinds)

    def flat(bill: Bill | None) -> Bill:
        return Bill(*(np.zeros(1) if bill is None else getattr(bill, name).reshape(1) for name in Bill.__slots__))

    dense = tuple(None if kind.moe else flat(table.ffn[k]) for k, kind in enumerate(env.kinds))
    side = AttentionSide(tuple(flat(b) for b in table.attention), dense, flat(table.embedding), flat(table.head))
    experts = {k: expert_side(env, kind, cases) for k, kind in enumerate(env.kinds) if kind.moe}
    resident = np.array([np.ceil(sizes.batch // choice.replicas / stage.attention.batch_parts)])
    price = separate_price(env, side, experts, cases, resident)
    near_bytes = float(price.attention_bytes[0] + choice.in_flight * price.held_bytes[0])
    spare = [min(env.cluster.kind_of(rank).memory_bytes for rank in ranks) for ranks in (near, far)]
    return max(near_bytes - spare[0], float(price.expert_bytes[0]) - spare[1])
