from __future__ import annotations

import json
from dataclasses import replace
from itertools import islice

import pytest
from hypothesis import given

from planner.errors import InputError
from planner.plan import choice_to_dict, merge_plans, plan_space
from search_spaces.attention import AttentionDomain
from search_spaces.experts import ExpertDomain
from search_spaces.space import SearchSpace
from tests.search_spaces.small import small_sizes, spaces

DENSE = SearchSpace(small_sizes(kind_of_device=(0,) * 8, domain_of_device=(0,) * 8, head_dim=16, v_head_dim=16, batch=8))
MOE_SIZES = replace(DENSE.sizes, dense=False, moe=True, ffn_hidden=0, experts=4, expert_hidden=8, top_k=2)
MOE = SearchSpace(MOE_SIZES)
WHOLE = {"layers": 2, "devices": [0, 1, 2, 3, 4, 5, 6, 7]}


@given(spaces())
def test_a_written_choice_reads_back_as_itself_alone(space: SearchSpace):
    for choice in islice(space.choices(), 0, 1000, 37):
        written = json.loads(json.dumps(choice_to_dict(choice, space.sizes)))
        for base in (space, SearchSpace(space.sizes)):
            read = plan_space(written, base, "plan.json")
            assert list(read.choices()) == [choice]
            assert read.size() == 1
            assert read.contains(choice)


@given(spaces())
def test_an_empty_plan_is_the_space_itself(space: SearchSpace):
    assert plan_space({}, space) == space


def test_a_pin_leaves_the_rest_open():
    pinned = plan_space({"attention": {"dimension_segments": 2}, "micro_batches": [1, 2]}, DENSE)
    assert pinned == replace(DENSE, micro_batches=(1, 2), attention=AttentionDomain(dimension_segments=(2,)))
    assert plan_space({"stages": {"from": 1, "to": 2}, "replicas": "any"}, pinned).stages == (1, 2)


def test_stages_become_the_layout_and_override_what_holds_for_all():
    plan = {
        "replicas": 1,
        "stages": [{"layers": 1, "devices": [0, 1, 2, 3], "attention": {"head_groups": 4}}, {"layers": 1, "devices": [6, 7]}],
        "attention": {"heads_per_group": [3, 1], "output_projection": "gather"},
        "mlp": {"ways": 2},
    }
    space = plan_space(plan, DENSE)
    first, second = space.layout
    assert (first.devices, second.devices) == ((0, 1, 2, 3), (6, 7))
    assert first.attention == AttentionDomain(head_groups=(4,), output_projection=("gather",))
    assert second.attention == AttentionDomain((2,), heads_per_group=((3, 1),), output_projection=("gather",))
    assert first.mlp_ways == second.mlp_ways == (2,)
    assert space.size() > 0


def test_a_plan_may_say_what_its_space_does_not():
    plan = {"stages": [WHOLE], "attention": {"head_groups": 4, "dimension_segments": 2, "score_reduce": False}}
    choices = list(plan_space(plan, replace(DENSE, attention=AttentionDomain(dimension_segments=(1,)))).choices())
    assert choices
    assert not any(c.stages[0].attention.score_reduce for c in choices)


@pytest.mark.parametrize(
    "stage",
    [
        {"devices": [0, 1, 2, 3, 4, 5, 6, 7], "experts": {"devices": [2, 3]}},
        {"devices": [0, 1, 4, 5, 6, 7, 2, 3], "experts": {"form": "separate", "devices": 2}},
        {"attention": {"devices": [0, 1, 4, 5, 6, 7]}, "experts": {"devices": [2, 3]}},
        {"devices": {"from": 0, "to": 7}, "attention": {"devices": [0, 1, 4, 5, 6, 7]}},
    ],
)
def test_experts_apart_are_moved_behind_attention(stage):
    (pin,) = plan_space({"stages": [{"layers": 2, **stage}]}, MOE).layout
    assert pin.devices == (0, 1, 4, 5, 6, 7, 2, 3)
    assert pin.experts == ExpertDomain(("separate",), devices=(2,))


def test_experts_on_all_gpus_of_a_stage_share_them():
    (pin,) = plan_space({"stages": [{**WHOLE, "experts": {"devices": WHOLE["devices"]}}]}, MOE).layout
    assert pin.experts.devices is None


@pytest.mark.parametrize(
    ("experts", "placement"),
    [
        ({"placement": [1, 0, 1, 0]}, ((1,), (0,), (1,), (0,))),
        ({"placement": {"by_rank": {"6": [1, 3], "7": [0, 2]}}}, ((1,), (0,), (1,), (0,))),
        ({"placement": {"by_rank": {6: [0, 1, 2, 3], 7: [0]}}, "replicas": [2, 1, 1, 1]}, ((0, 1), (0,), (0,), (0,))),
        ({"placement": {"by_rank": {"6": [0, 1, 2, 3], "7": [0, 1, 2, 3]}}, "tensor_ways": 2}, ((0,),) * 4),
        ({"replicas": 2}, ((0, 1),) * 4),
    ],
)
def test_placements_have_one_form(experts, placement):
    plan = {"stages": [{**WHOLE, "experts": {"form": "separate", "devices": [6, 7], **experts}}]}
    (pin,) = plan_space(plan, MOE).layout
    assert pin.experts.placement == (placement,)


def test_merging_withdraws_the_other_way_to_say_it():
    base = {"attention": {"head_groups": 2, "heads_per_group": [3, 1], "order": "heads_inner"}, "micro_batches": 2}
    merged = merge_plans(base, {"attention": {"head_groups": 4}, "mlp": {"ways": 1}})
    assert merged == {"attention": {"head_groups": 4, "order": "heads_inner"}, "micro_batches": 2, "mlp": {"ways": 1}}
    assert base["attention"]["heads_per_group"] == [3, 1]


WRONG = [
    ({"schema": "planner.plan/2"}, "planner.plan/1"),
    ({"schedule": "1f1b"}, "those of training workloads"),
    ({"uneven_micro_batches": True}, "false"),
    ({"micro_batch": 2}, "did you mean micro_batches"),
    ({"replicas": 3}, "plan.replicas is 3; allowed: a divisor of the batch of 8"),
    ({"replicas": 2, "micro_batches": 8}, "plan.micro_batches is 8; allowed: a divisor of the 4 sequences"),
    ({"stages": 5}, "plan.stages is 5; allowed: an integer from 1 to 2"),
    ({"stages": []}, "plan.stages"),
    ({"stages": {"x": 1}}, "how many stages"),
    ({"stages": {"from": 2, "to": 1}}, "plan.stages.to is 1"),
    ({"attention": {"head_groups": 5}}, "plan.attention.head_groups is 5"),
    ({"attention": {"dimension_segments": 9}}, "from 1 to 8"),
    ({"attention": {"heads_per_group": [3, 2]}}, "sum to the model's 4 heads"),
    ({"attention": {"heads_per_group": [4, 0]}}, "positive integers"),
    ({"attention": {"heads_per_group": [2, 2], "head_groups": 4}}, "as many groups as head_groups says: 4"),
    ({"attention": {"order": "segment_inner"}}, "did you mean segments_inner"),
    ({"attention": {"score_reduce": "no"}}, "true, false"),
    ({"experts": {"form": "local"}}, "the model has no experts"),
    ({"stages": [{"layers": 1, "devices": [0]}]}, "plan.stages is '1 layers'; allowed: layers of the stages that sum"),
    ({"stages": [{"layers": 2, "devices": [0, 8]}]}, "plan.stages[0].devices[1] is 8; allowed: an integer from 0 to 7"),
    ({"stages": [{"layers": 2, "devices": [0, 0]}]}, "0 stands twice"),
    ({"stages": [{"layers": 2}]}, "plan.stages[0].devices is missing"),
    ({"stages": [{"layers": 1, "devices": [0, 1]}, {"layers": 1, "devices": [1]}]}, "1 is in stage 0, too"),
    ({"stages": [WHOLE], "attention": {"head_groups": 4, "dimension_segments": 4}}, "dimension_segments 4 = 16"),
    ({"stages": [WHOLE], "mlp": {"ways": 3}}, "plan.stages[0].mlp.ways is 3"),
    ({"stages": [WHOLE], "replicas": 2}, "ranks of replica 0: 0 to 3"),
    ({"stages": [WHOLE], "micro_batches": 8, "attention": {"batch_parts": 8}}, "batch parts must divide a micro-batch"),
    ({"stages": [{**WHOLE, "mlp": {"way": 1}}]}, "plan.stages[0].mlp.way"),
]  # fmt: skip
WRONG_MOE = [
    ({"experts": {"devices": [6, 7]}}, "for ranks write the `stages`"),
    ({"experts": {"replicas": 2}}, "write the `stages`"),
    ({"experts": {"placement": [0, 1]}}, "each of the 4 experts"),
    ({"experts": {"placement": [0, 0, 0, []]}}, "a group for expert 3"),
    ({"experts": {"placement": [0, 0, 0, [1, 1]]}}, "different groups"),
    ({"experts": {"placement": [0, 0, 0, [0, 1]]}}, "declared by plan.experts.replicas"),
    ({"stages": [WHOLE], "experts": {"form": "local", "devices": [6, 7]}}, "or form: separate"),
    ({"stages": [WHOLE], "experts": {"form": "separate", "devices": WHOLE["devices"]}}, "some of the GPUs"),
    ({"stages": [WHOLE], "experts": {"form": "local", "tensor_ways": 3}}, "tensor_ways that divide the 8 GPUs"),
    ({"stages": [WHOLE], "experts": {"form": "local", "tensor_ways": 1}}, "at most 4: one for each expert"),
    ({"stages": [{**WHOLE, "devices": [0, 1]}], "experts": {"devices": [1, 2]}}, "ranks of its stage: 0, 1"),
    (
        {"stages": [{"layers": 1, "devices": [0, 1]}, {"layers": 1, "devices": [2, 3]}], "experts": {"form": "separate"}},
        "or one stage",
    ),
    (
        {"stages": [{**WHOLE, "experts": {"devices": [6, 7], "placement": {"by_rank": {"6": [0, 1], "7": [2]}}}}]},
        "a group for expert 3",
    ),
    (
        {"stages": [{**WHOLE, "experts": {"devices": [6, 7], "placement": {"by_rank": {"6": [0, 1], "7": [1, 2, 3]}}}}]},
        "declared by plan.stages[0].experts.replicas",
    ),
    ({"stages": [{**WHOLE, "experts": {"devices": [6, 7], "placement": {"by_rank": {"5": [0]}}}}]}, "each rank of 6, 7"),
    ({"stages": [{**WHOLE, "experts": {"devices": [5, 6, 7], "replicas": 2}}]}, "a divisor of the 3 expert groups"),
]  # fmt: skip


@pytest.mark.parametrize(("plan", "said"), WRONG)
def test_what_is_wrong_is_named(plan, said):
    with pytest.raises(InputError) as error:
        plan_space(plan, DENSE, "my.yaml")
    assert said in str(error.value)
    assert str(error.value).startswith("my.yaml: plan")


@pytest.mark.parametrize(("plan", "said"), WRONG_MOE)
def test_what_is_wrong_with_experts_is_named(plan, said):
    with pytest.raises(InputError) as error:
        plan_space(plan, MOE, "my.yaml")
    assert said in str(error.value)


def test_gpus_of_a_stage_are_of_one_kind():
    mixed = replace(DENSE, sizes=replace(DENSE.sizes, kind_of_device=(0,) * 4 + (1,) * 4))
    with pytest.raises(InputError, match="one kind"):
        plan_space({"stages": [WHOLE]}, mixed)


def test_a_layout_takes_later_pins():
    space = plan_space({"stages": [WHOLE]}, DENSE)
    again = plan_space({"attention": {"head_groups": 2}}, space)
    assert again.layout[0].attention.head_groups == (2,)
    assert again.layout[0].devices == tuple(WHOLE["devices"])
