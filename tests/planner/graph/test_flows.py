"""Flows of unequal experts: what leaves a node, by copies near and far."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from planner.clusters import load_cluster
from planner.costs.collectives import Collectives
from planner.costs.groups import GroupShape
from planner.graph.experts import moe_device_rows, moe_rows, moe_table
from planner.graph.flows import Floor, Flow
from planner.graph.least import least_tables
from planner.model import Ffn
from search_spaces.attention import AttentionPartition
from search_spaces.experts import ExpertPlacement, contiguous_placement, most_held
from search_spaces.stages import StageChoice

FFN = Ffn("moe", 64, experts=8, top_k=2)
LOAD = (8.0, 4.0, 2.0, 2.0, 1.0, 1.0, 1.0, 1.0)
HOT = ((0, 2), (1, 3), (0,), (1,), (2,), (2,), (3,), (3,))  # the hottest two on both nodes of two


def flow_of(placement: ExpertPlacement, ways: int = 4) -> Flow:
    (flow,) = moe_table(FFN, [(placement, ways)], LOAD).flows
    assert flow is not None
    return flow


@st.composite
def flows(draw) -> tuple[Flow, tuple[int, ...]]:
    tensor, groups, blocks = (draw(st.integers(1, n)) for n in (2, 4, 3))
    ways = tensor * groups
    within = 0 if blocks == 1 else -(-ways // blocks)
    rows = len(range(0, ways, within)) if within else 1
    chance = st.floats(0.01, 1.0)
    hits = tuple(tuple(draw(chance) for _ in range(groups)) for _ in range(rows))
    return Flow(hits, tensor, within), tuple(sorted(draw(st.integers(0, 2)) for _ in range(ways)))


@given(flows())
@settings(max_examples=100, deadline=None)
def test_parts_are_those_of_the_table_of_all_pairs_of_gpus(case: tuple[Flow, tuple[int, ...]]) -> None:
    flow, domains = case
    ways = len(domains)
    sent = np.array(
        [[flow.hits[s // flow.within if flow.within else 0][r // flow.tensor_ways] for r in range(ways)] for s in range(ways)]
    )
    away = np.array([[domains[s] != domains[r] for r in range(ways)] for s in range(ways)])

    def busiest(table: np.ndarray) -> float:
        return float(max(table.sum(axis=1).max(), table.sum(axis=0).max()))

    assert flow.parts(domains) == pytest.approx((busiest(sent * away), busiest(sent * ~away)))


def test_equal_parts_cost_what_an_even_all_to_all_costs() -> None:
    prices, moved = Collectives(load_cluster("2x4-h100")), 1e7
    even = GroupShape(8, 2, 4, 1, 4)
    outside, inside = (part / 4.0 for part in Flow(((0.5,) * 8,)).parts((0,) * 4 + (1,) * 4))  # of four tokens for each
    assert (outside, inside) == (0.5, 0.5)
    same = prices.time("all_to_all", moved, replace(even, outside=outside, inside=inside))
    assert float(same) == pytest.approx(float(prices.time("all_to_all", moved, even)), rel=1e-12)


def test_more_that_leaves_a_node_takes_longer() -> None:
    prices = Collectives(load_cluster("2x4-h100"))
    times = [float(prices.time("all_to_all", 1e7, GroupShape(8, 2, 4, 1, 4, 0, part, 1 - part))) for part in (0.2, 0.5, 0.8)]
    assert times[0] < times[1] < times[2]


def test_copies_near_the_sender_keep_tokens_inside_the_node() -> None:
    far, near = (ExpertPlacement("dispatch", 1, 0, HOT, serve_within=within) for within in (0, 2))
    nodes = (0, 0, 1, 1)
    assert flow_of(near).parts(nodes)[0] < 0.8 * flow_of(far).parts(nodes)[0]


def test_near_service_changes_who_gets_the_load_only_where_copies_are_uneven_over_nodes() -> None:
    placed = ((0, 1, 2), (1,), (0,), (1,), (2,), (3,), (3,), (3,))  # two copies on the first node, one on the second
    total = sum(LOAD)
    tables = [moe_table(FFN, [(ExpertPlacement("dispatch", 1, 0, placed, serve_within=within), 4)], LOAD) for within in (0, 2)]
    shares = [dict(zip(table.first.tolist(), table.shares.max(axis=1).tolist(), strict=True)) for table in tables]
    assert shares[0][2] == pytest.approx(LOAD[0] / total / 3)
    assert shares[1][2] == pytest.approx(LOAD[0] / total / 2)  # the second node's half of the tokens
    for table in tables:
        assert table.shares.sum() == pytest.approx(1.0)


@pytest.mark.parametrize("within", [0, 2])
def test_every_gpu_has_the_rows_of_its_class(within: int) -> None:
    placement = ExpertPlacement("dispatch", 1, 0, HOT, serve_within=within)
    stage = StageChoice(1, tuple(range(4)), AttentionPartition(4), 4, placement)
    rows = moe_device_rows(stage, FFN, LOAD, 64, 1)
    table = moe_table(FFN, [(placement, 4)], LOAD)
    entry = np.arange(table.owner.size)
    own = moe_rows(table, entry, *(np.full(entry.shape, x) for x in (64, 4, 1)), FFN.top_k)
    assert sorted(set(rows.routed.tolist())) == sorted(set(own.routed.tolist()))
    assert rows.flows is not None
    assert own.flows is not None
    assert rows.flows.kinds == own.flows.kinds


def test_equal_loads_in_the_usual_place_have_no_flow() -> None:
    assert moe_table(FFN, [(ExpertPlacement("dispatch"), 4)], ()).flows == (None,)
    given_place = ExpertPlacement("dispatch", placement=contiguous_placement(8, 4))
    assert moe_table(FFN, [(given_place, 4)], ()).flows != (None,)


@st.composite
def placed_flows(draw) -> tuple[ExpertPlacement, int, tuple[float, ...], tuple[int, ...]]:
    tensor, groups = draw(st.sampled_from(((1, 4), (1, 6), (1, 8), (2, 4))))
    ways, most = tensor * groups, most_held(FFN.experts, groups)
    load = tuple(draw(st.sampled_from((0.1, 1.0, 2.0, 8.0, 40.0))) for _ in range(FFN.experts))
    held, places = [0] * groups, list[tuple[int, ...]]()
    for expert in range(FFN.experts):
        free = [g for g in range(groups) if held[g] < most]
        left = FFN.experts - expert - 1
        room = sum(most - count for count in held) - left
        chosen = draw(st.permutations(free))[: draw(st.integers(1, max(1, min(room, len(free), 4))))]
        for group in chosen:
            held[group] += 1
        places.append(tuple(sorted(chosen)))
    within = draw(st.sampled_from([n for n in (0, 2, 4) if not n or n < ways]))
    copied = any(len(groups) > 1 for groups in places)
    first, size = draw(st.integers(0, 3)), draw(st.sampled_from((2, 3, 4)))
    domains = tuple((first + rank) // size for rank in range(ways))
    return ExpertPlacement("dispatch", tensor, 0, tuple(places), serve_within=within if copied else 0), ways, load, domains


@given(placed_flows(), st.sampled_from((2, 4)))
@settings(max_examples=300, deadline=None)
def test_no_flow_goes_below_the_floor_of_all_placements(
    case: tuple[ExpertPlacement, int, tuple[float, ...], tuple[int, ...]], neighbours: int
) -> None:
    placement, ways, load, domains = case
    table = moe_table(FFN, [(placement, ways)], load)
    (flow,) = table.flows
    assert flow is not None
    fullest = (table.shares.sum(axis=1) * ways / placement.tensor_ways).max()  # over the mean
    for near in (neighbours, 0) if not placement.serve_within else (placement.serve_within,):
        for interval in ((1.0, np.inf), (min(1.0, fullest - 1e-9), fullest + 1e-9), (max(1.0, fullest - 1e-9), np.inf)):
            least = least_tables(FFN, [(replace(placement, serve_within=0), ways)], [load], interval, near)
            (floor,) = least.flows
            assert isinstance(floor, Floor)
            for below, own in zip(floor.parts(domains), flow.parts(domains), strict=True):
                assert below <= own * (1 + 1e-9) + 1e-12
            assert least.spread[0] <= table.spread[0] * (1 + 1e-9)
            assert least.reach[0] <= table.reach[0] * (1 + 1e-9)


def test_the_floor_is_below_two_nodes_that_each_hold_all_but_a_few() -> None:
    placed = ((0, 2), (1, 3), (0, 2), (1, 3), (0,), (1,), (2,), (3,))
    placement = ExpertPlacement("dispatch", 1, 0, placed, serve_within=2)
    even = (1.0,) * 8
    (flow,) = moe_table(FFN, [(placement, 4)], even).flows
    (floor,) = least_tables(FFN, [(ExpertPlacement("dispatch"), 4)], [even], neighbours=2).flows
    assert floor is not None
    assert flow is not None
    assert floor.parts((0, 0, 1, 1))[0] <= flow.parts((0, 0, 1, 1))[0]
