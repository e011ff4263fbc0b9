"""Placements that balance load: legal, no worse than others', bounded, and exact where a brute force can tell."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from planner.solve.experts.bounds import companion_bounds, load_bounds
from planner.solve.experts.copies import even_copies
from planner.solve.experts.load import balance, largest_load
from search_spaces.experts import legal_placement
from tests.benchmarks.expert_peers import eplb, longest_first
from tests.golden.expert_loads import expert_loads

LOADS = expert_loads()
Placement = tuple[tuple[int, ...], ...]


def placements(experts: int, groups: int, slots: int) -> Iterator[Placement]:
    """Every placement of few experts."""
    options = [held for size in range(1, groups + 1) for held in combinations(range(groups), size)]

    def extend(done: Placement, room: tuple[int, ...]) -> Iterator[Placement]:
        if len(done) == experts:
            yield done
            return
        for held in options:
            if all(room[g] > 0 for g in held):
                yield from extend((*done, held), tuple(n - (g in held) for g, n in enumerate(room)))

    yield from extend((), (slots,) * groups)


def test_the_eight_gpu_case_is_proven_below_the_greedy() -> None:
    loads = np.array([600, 560, 120, 120, 20, 10, 10, 10.0])
    (found,) = balance(loads[None], 8, 2)
    assert found.largest == pytest.approx(590 / 3)  # 196.67: three copies of the second, each beside one of 10
    assert found.gap < 1e-8
    assert found.proof == "exact"
    assert eplb(loads, 8, 2) > 230
    assert legal_placement(found.placement, 8, 8)


@pytest.mark.parametrize(("experts", "groups", "slots"), [(3, 2, 2), (4, 2, 3), (3, 3, 2), (4, 3, 2), (6, 3, 2)])
def test_the_proven_optimum_is_the_brute_force_one(experts: int, groups: int, slots: int) -> None:
    rng = np.random.default_rng(experts * 100 + groups * 10 + slots)
    loads = np.round(rng.pareto(1.0, (6, experts)) * 100 + 1)
    for row, found in zip(loads, balance(loads, groups, slots), strict=True):
        best = min(largest_load(row, placement, groups) for placement in placements(experts, groups, slots))
        assert found.largest == pytest.approx(best, rel=1e-9)
        assert found.bound == pytest.approx(best, rel=1e-6)
        assert load_bounds(row[None], groups, slots)[0] <= best * (1 + 1e-12)


@given(st.lists(st.floats(0, 1e6), min_size=4, max_size=40), st.integers(1, 8), st.integers(0, 3), st.booleans())
@settings(max_examples=60, deadline=None)
def test_placements_are_legal_bounded_and_no_worse_than_the_greedy_ones(
    loads: list[float], groups: int, spare: int, even: bool
) -> None:
    row = np.array(loads) + (1.0 if even else 0.0)
    slots = -(-row.size // groups) + spare
    (found,) = balance(row[None], groups, slots, exact=False)
    assert legal_placement(found.placement, row.size, groups)
    count = np.bincount([g for held in found.placement for g in held], minlength=groups)
    assert count.max() <= slots
    assert found.largest == pytest.approx(largest_load(row, found.placement, groups))
    assert found.bound <= found.largest * (1 + 1e-9)
    assert found.largest <= longest_first(row, groups, slots) * (1 + 1e-9)


@pytest.mark.parametrize(("groups", "spare"), [(32, 0), (32, 32), (32, 64), (64, 0), (64, 64)])
def test_measured_loads_are_balanced_better_than_by_others_and_close_to_the_bound(groups: int, spare: int) -> None:
    slots = (256 + spare) // groups
    found = balance(LOADS, groups, slots)
    for row, answer in zip(LOADS, found, strict=True):
        others = (longest_first(row, groups, slots), eplb(row, groups, slots), eplb(row, groups, slots, groups // 8, 8))
        assert answer.largest <= min(others) * (1 + 1e-12)
        assert answer.gap < 0.01
        assert legal_placement(answer.placement, 256, groups)


def test_copies_make_the_largest_copy_as_small_as_can_be() -> None:
    loads = np.array([[10.0, 6.0, 1.0]])
    assert even_copies(loads, 2, 4).tolist() == [[2, 2, 1]]
    assert even_copies(loads, 3, 4).tolist() == [[3, 2, 1]]
    assert even_copies(loads, 9, 2).tolist() == [[2, 2, 1]]  # the first has a copy on both GPUs: nothing else would help


def test_the_hottest_with_the_coldest_beside_it_is_a_bound() -> None:
    loads = np.array([[10.0, 3.0, 2.0, 1.0]])
    assert companion_bounds(loads, 2, 2)[0] == pytest.approx(11.0)
    (found,) = balance(loads, 2, 2)
    assert found.largest == pytest.approx(11.0)


def test_too_few_slots_are_refused() -> None:
    with pytest.raises(ValueError, match="do not fit"):
        balance(np.ones((1, 5)), 2, 2)
