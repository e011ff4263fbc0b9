from __future__ import annotations

from dataclasses import replace
from itertools import islice, pairwise

import pytest
from hypothesis import given

from search_spaces.attention import AttentionDomain, AttentionPartition, kv_heads_of_groups
from search_spaces.experts import ExpertDomain
from search_spaces.large import node_counts
from search_spaces.space import SearchSpace, StagePin
from search_spaces.stages import Choice
from tests.search_spaces.small import small_sizes, spaces

MOE = {"dense": False, "moe": True, "ffn_hidden": 0, "experts": 4, "expert_hidden": 8, "top_k": 2}
MOST = 3000


@given(spaces())
def test_size_counts_the_choices(space: SearchSpace):
    size = space.size()
    listed = list(islice(space.choices(), MOST))
    assert len(listed) == min(size, MOST)
    assert len(set(listed)) == len(listed)


@given(spaces())
def test_every_choice_is_contained_and_sound(space: SearchSpace):
    for choice in islice(space.choices(), 0, MOST, 97):
        assert space.contains(choice)
        ranks = [rank for stage in choice.stages for rank in stage.devices]
        assert len(set(ranks)) == len(ranks)
        assert max(ranks) < space.stride(choice.replicas) <= space.sizes.devices // choice.replicas
        assert sum(stage.layers for stage in choice.stages) == space.sizes.layers
        assert space.sizes.batch % (choice.replicas * choice.micro_batches) == 0
        if space.use_all:
            assert len(ranks) == space.stride(choice.replicas)
        for stage in choice.stages:
            assert stage.attention.ways == len(stage.attention_devices)
            assert sum(stage.attention.heads(space.sizes.heads)) == space.sizes.heads
            assert space.one_kind(stage.attention_devices)
            assert space.one_kind(stage.expert_devices)


@given(spaces())
def test_a_choice_with_one_decision_changed_out_of_the_space_is_not_contained(space: SearchSpace):
    for choice in islice(space.choices(), 3):
        assert not space.contains(replace(choice, micro_batches=space.sizes.batch + 1))
        assert not space.contains(replace(choice, in_flight=17))
        first = choice.stages[0]
        assert not space.contains(replace(choice, stages=(replace(first, layers=first.layers + 1), *choice.stages[1:])))


@given(spaces())
def test_closing_a_decision_removes_choices_and_adds_none(space: SearchSpace):
    closed = replace(space, stages=(1,), micro_batches=(1,))
    everything = set(islice(space.choices(), MOST))
    if len(everything) < MOST and (space.stages is None or 1 in space.stages):
        assert {c for c in closed.choices() if space.micro_batches is None or 1 in space.micro_batches} <= everything


def test_a_space_counted_by_hand():
    # One GPU: one partition, one FFN; batch 4 gives 1, 2 or 4 micro-batches, two layers one stage.
    space = SearchSpace(small_sizes(kind_of_device=(0,), domain_of_device=(0,)))
    assert [(c.replicas, c.micro_batches) for c in space.choices()] == [(1, 1), (1, 2), (1, 4)]
    assert space.size() == 3


def test_a_layout_fixes_the_stages():
    sizes = small_sizes()
    pins = (StagePin(1, (2, 3)), StagePin(1, (0,)))
    space = SearchSpace(sizes, replicas=(1,), layout=pins)
    choices = list(space.choices())
    assert len(choices) == space.size() > 0
    assert {tuple((s.layers, s.devices) for s in c.stages) for c in choices} == {((1, (2, 3)), (1, (0,)))}


def test_a_layout_beyond_the_replica_is_empty():
    space = SearchSpace(small_sizes(), replicas=(2,), layout=(StagePin(2, (0, 1, 2)),))
    assert space.size() == 0 == len(list(space.choices()))


def test_experts_apart_come_after_attention_and_fly_in_waves():
    sizes = small_sizes(**MOE)
    space = SearchSpace(sizes, replicas=(1,), micro_batches=(2,), experts=ExpertDomain(form=("separate",), devices=(2,)))
    choices = list(space.choices())
    assert len(choices) == space.size() > 0
    assert {c.in_flight for c in choices} == {1, 2}
    for choice in choices:
        (stage,) = choice.stages
        assert stage.separate
        assert len(stage.expert_devices) == 2
        assert stage.devices == (*stage.attention_devices, *stage.expert_devices)


def test_stages_are_of_one_gpu_kind():
    mixed = SearchSpace(small_sizes(kind_of_device=(0, 0, 1, 1)), replicas=(1,), stages=(1,))
    widths = {len(c.stages[0].devices) for c in mixed.choices()}
    assert widths == {1, 2}


def test_large_clusters_have_stages_of_parts_or_whole_domains():
    sizes = small_sizes(kind_of_device=(0,) * 128, domain_of_device=tuple(r // 8 for r in range(128)), heads=128, kv_heads=128)
    assert SearchSpace(sizes).widths(128) == (1, 2, 4, *range(8, 129, 8))


def test_in_large_clusters_stages_lie_in_nodes_and_are_of_two_kinds_at_most():
    sizes = small_sizes(layers=5, kind_of_device=(0,) * 8, domain_of_device=tuple(r // 4 for r in range(8)))
    large = SearchSpace(sizes, replicas=(1,), micro_batches=(1,), large=7)
    narrow = {c for c in large.choices() if not any(len(s.devices) == 3 for s in c.stages)}
    assert large.size() == len(narrow) > 0
    for choice in narrow:
        stages = [(s.layers, len(s.devices)) for s in choice.stages]
        assert sum(a != b for a, b in pairwise(stages)) <= 1
        for stage in choice.stages:
            assert stage.devices[0] % len(stage.devices) == 0
    free = replace(large, large=8)
    assert all(free.contains(choice) for choice in islice(narrow, 40))
    assert not all(large.contains(choice) for choice in islice(free.choices(), 4000))


@given(spaces())
def test_a_large_space_contains_what_it_lists_and_nothing_else(space: SearchSpace):
    listed = list(islice(space.choices(), MOST))
    if len(listed) < MOST:
        for choice in islice(replace(space, large=64).choices(), 0, MOST, 31):
            assert space.contains(choice) == (choice in listed)


def test_node_counts_are_all_up_to_16_then_eight_in_an_octave():
    assert node_counts(16) == tuple(range(1, 17))
    assert node_counts(41) == (*range(1, 17), *range(16, 33, 2)[1:], 36, 40, 41)
    assert len(node_counts(2048)) == 72


@pytest.mark.parametrize(
    ("domain", "partition"),
    [
        (AttentionDomain(heads_per_group=((2, 2),)), AttentionPartition(2)),
        (AttentionDomain(heads_per_group=((3, 1), (2, 2), (2, 2))), AttentionPartition(2)),
    ],
)
def test_an_even_split_has_one_form(domain: AttentionDomain, partition: AttentionPartition):
    found = [p for p in domain.partitions(small_sizes(), 2) if not p.heads_per_group]
    assert found.count(partition) == 1
    assert not any(p.heads_per_group == (2, 2) for p in domain.partitions(small_sizes(), 2))


@pytest.mark.parametrize(
    ("heads", "kv_heads", "groups", "split"),
    [
        (64, 8, 3, (24, 24, 16)),  # the even 22, 21, 21 reads four KV heads on the second GPU
        (64, 8, 7, (16, 8, 8, 8, 8, 8, 8)),
        (28, 4, 8, (4, 3) * 4),
        (28, 4, 6, (4, 3, 4, 3, 7, 7)),
    ],
)
def test_heads_are_also_split_with_kv_groups_left_whole(heads: int, kv_heads: int, groups: int, split: tuple[int, ...]):
    sizes = replace(small_sizes(), heads=heads, kv_heads=kv_heads)
    domain = AttentionDomain(dimension_segments=(1,), batch_parts=(1,), context_parts=(1,))
    found = {p.heads_per_group for p in domain.partitions(sizes, groups)}
    assert found == {(), split}
    even = AttentionPartition(groups).heads(heads)
    assert max(kv_heads_of_groups(split, heads, kv_heads)) <= max(kv_heads_of_groups(even, heads, kv_heads))
    assert {p.heads_per_group for p in replace(domain, heads_per_group=((),)).partitions(sizes, groups)} == {()}
    whole = replace(sizes, kv_heads=heads)
    assert {p.heads_per_group for p in domain.partitions(whole, groups)} == {()}


def test_choices_compare_by_value():
    assert Choice(1, 1, ()) == Choice(1, 1, ())
