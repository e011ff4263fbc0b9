from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from search_spaces.attention import AttentionDomain, kv_heads_of_groups, legal_grid
from search_spaces.experts import ExpertDomain, ExpertPlacement, contiguous_placement, legal_placement
from search_spaces.sizes import divisors, share
from search_spaces.stages import block_pattern, micro_batch_counts, replica_counts, replica_stride
from tests.search_spaces.small import small_sizes


@given(st.integers(0, 1000), st.integers(1, 50))
def test_shares_sum_up_and_differ_by_one_at_most(total: int, parts: int):
    shares = [share(total, parts, index) for index in range(parts)]
    assert sum(shares) == total
    assert shares == sorted(shares, reverse=True)
    assert shares[0] - shares[-1] <= 1


@given(st.integers(1, 5000))
def test_divisors_are_all_and_ascending(number: int):
    assert list(divisors(number)) == [d for d in range(1, number + 1) if number % d == 0]


@given(st.integers(1, 40), st.integers(1, 40))
def test_the_default_placement_gives_each_expert_one_group(experts: int, groups: int):
    placed = contiguous_placement(experts, groups)
    assert legal_placement(placed, experts, groups)
    counts = [sum(held == (g,) for held in placed) for g in range(groups)]
    assert max(counts) - min(counts) <= 1


@given(st.integers(1, 4), st.sampled_from([1, 2, 4]), st.data())
def test_kv_heads_of_groups_cover_every_kv_head(per: int, kv_heads: int, data: st.DataObject):
    heads = per * kv_heads
    cuts = data.draw(st.lists(st.integers(1, heads), max_size=4).map(lambda xs: sorted({*xs, heads})))
    split = tuple(b - a for a, b in zip([0, *cuts], cuts, strict=False))
    found = kv_heads_of_groups(split, heads, kv_heads)
    first, touched = 0, []
    for count in split:
        touched.append(len({head // per for head in range(first, first + count)}))
        first += count
    assert found == tuple(touched)


def test_a_placement_twice_in_a_group_or_nowhere_is_not_legal():
    assert legal_placement(((0, 1), (1,)), 2, 2)
    assert not legal_placement(((0, 0), (1,)), 2, 2)
    assert not legal_placement(((), (1,)), 2, 2)
    assert not legal_placement(((0,), (2,)), 2, 2)


def test_the_default_placement_has_one_form():
    sizes = small_sizes(moe=True, dense=False, experts=2, expert_hidden=4)
    domain = ExpertDomain(form=("local",), tensor_ways=(1,), placement=(((0,), (1,)), ((1,), (0,))))
    assert list(domain.shared(sizes, 2)) == [ExpertPlacement(), ExpertPlacement(placement=((1,), (0,)))]


def test_segments_need_a_rotary_pair_and_no_context_parts():
    sizes = small_sizes(head_dim=4)
    assert legal_grid(sizes, 1, 1, 2, 2)
    assert not legal_grid(sizes, 1, 1, 1, 4)
    assert not legal_grid(sizes, 1, 2, 1, 2)
    assert not legal_grid(small_sizes(head_dim=4, latent=True, phase="decode", query_length=1), 1, 1, 1, 2)
    assert legal_grid(small_sizes(head_dim=1, v_head_dim=1), 1, 1, 1, 1)


def test_a_segment_pin_leaves_only_such_grids():
    found = list(AttentionDomain(dimension_segments=(2,)).partitions(small_sizes(), 4))
    assert found
    assert {p.dimension_segments for p in found} == {2}


def test_replicas_look_alike():
    sizes = small_sizes(domain_of_device=(0, 0, 0, 1), batch=4)
    assert replica_counts(sizes, None) == (1, 2, 4)
    assert replica_stride(sizes, 2) == 1  # blocks of two would be cut differently
    assert block_pattern(sizes, 2, 2) == ((0, 0), (0, 1))
    assert micro_batch_counts(sizes, 2, None) == (1, 2)
    mixed = small_sizes(kind_of_device=(0, 0, 1, 1))
    assert replica_stride(mixed, 4) is None
