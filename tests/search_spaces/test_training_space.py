"""TrainingSpace: every plan keeps to the rules that its problem tells."""

from __future__ import annotations

import pytest

from planner.clusters import load_cluster
from planner.models import load_model
from planner.problem.sizes import sizes_of
from planner.workload import load_workload
from search_spaces.sizes import divisors
from search_spaces.stages import Choice
from search_spaces.training_space import TrainingSpace

MODEL = {"name": "m", "layers": 6, "hidden": 384, "vocab": 1000, "attention": {"heads": 6, "kv_heads": 2}}
MIXTURE = {"kind": "moe", "hidden": 512, "experts": 4, "top_k": 2}
ENDS = {(0, 0), (0, 1), (1, 1), (1, 2), (2, 2)}


def plans(ffn: dict[str, object], cluster: str) -> tuple[TrainingSpace, list[Choice]]:
    workload = load_workload("training:global_batch=4,sequence=96")
    space = TrainingSpace(sizes_of(load_model({**MODEL, "ffn": ffn}), workload, load_cluster(cluster)))
    return space, list(space.choices())


@pytest.mark.parametrize("ffn", [{"hidden": 2048}, MIXTURE], ids=["dense", "mixture"])
@pytest.mark.parametrize("cluster", ["1x6-h100", "1x4-h100+1x4-a100-80gb"])
def test_every_plan_keeps_the_rules_that_are_told(ffn, cluster):
    space, found = plans(ffn, cluster)
    sizes = space.sizes
    node = len(sizes.domain_of_device) // len(set(sizes.domain_of_device))
    assert found
    for choice in found:
        stages, training, first = choice.stages, choice.training, choice.stages[0]
        width, part = len(first.devices), first.attention
        ranks = [rank for stage in stages for rank in stage.devices]
        assert ranks == list(range(len(ranks))) and {len(stage.devices) for stage in stages} == {width}
        assert {(s.attention, s.mlp_ways, s.experts) for s in stages} == {(part, first.mlp_ways, first.experts)}
        assert width in divisors(node) or width % node == 0
        assert all(len({sizes.kind_of_device[rank] for rank in stage.devices}) == 1 for stage in stages)
        assert sizes.batch % (choice.replicas * choice.micro_batches * part.batch_parts) == 0
        assert sizes.query_length % part.context_parts == 0
        assert (part.dimension_segments, part.output_projection, part.order) == (1, "row", "segments_inner")
        assert first.mlp_ways == part.head_groups or not sizes.dense
        assert first.experts is None or (first.experts.form in ("local", "dispatch") and not first.experts.placement)
        assert part.batch_parts == 1 or (first.experts is not None and first.experts.form == "dispatch")
        assert training.overlap and training.recompute != "selective"
        if training.virtual_stages > 1:
            assert choice.micro_batches % len(stages) == 0
            assert max(stage.layers for stage in stages) % training.virtual_stages == 0


@pytest.mark.parametrize("stages", [1, 2, 3])
def test_first_and_last_stages_have_fewer_layers_as_told(stages):
    space, found = plans({"hidden": 2048}, "1x6-h100")
    for virtual in {choice.training.virtual_stages for choice in found if len(choice.stages) == stages}:
        told = {(0, 0)} if virtual > 1 or stages == 1 else {(0, 0), (0, 1)} if stages == 2 else ENDS
        for split in space.splits(stages, virtual):
            levels = [(split[0] + a, *split[1:-1], split[-1] + b) if stages > 1 else split for a, b in told]
            assert sum(split) == 6 and any(max(level) - min(level) <= 1 for level in levels)
