"""The expanded graph: order, streams, buffers, hand-overs, and what is left out."""

from __future__ import annotations

import pytest

from planner.graph.expand import expand
from planner.graph.nodes import ranks_name
from planner.graph.ops import Kind
from planner.graph.rows import share_tokens
from planner.workload import Workload
from search_spaces.attention import AttentionPartition
from search_spaces.experts import ExpertPlacement
from search_spaces.stages import StageChoice
from tests.planner.check.test_validate import DENSE, MIXED, case, stage

TWO = (stage((0, 1, 2, 3)), stage((4, 5, 6, 7)))


def graph_of(plan, **changes):
    return expand(plan.model, plan.workload, plan.sizes, plan.choice, **changes)


def sources(graph, name, kind=None):
    return {edge.src for edge in graph.into[name] if kind is None or edge.kind == kind}


def test_names_tell_stage_micro_batch_layer_role_operator_and_gpus():
    names = {node.id for node in graph_of(case(stages=TWO)).nodes}
    assert "s1.m1.l3.attention.q_proj@5" in names
    assert "s0.m0.l0.attention.score_all_reduce@0-1" in names
    assert "s0.m0.send@0-3>4-7" in names


def test_every_edge_runs_forward_through_the_list_of_nodes():
    for plan in (case(stages=TWO, micro_batches=4), case(MIXED, APART, micro_batches=4, in_flight=2)):
        graph = graph_of(plan)
        place = {node.id: at for at, node in enumerate(graph.nodes)}
        assert len(place) == len(graph.nodes)
        assert all(place[edge.src] < place[edge.dst] for edge in graph.edges)


def test_a_collective_is_one_node_that_waits_for_all_members():
    graph = graph_of(case(stages=TWO))
    name = "s0.m0.l0.attention.score_all_reduce@0-1"
    assert sources(graph, name, "data") == {f"s0.m0.l0.attention.scores@{rank}" for rank in (0, 1)}
    assert graph.by_id[name].family == ((0, 1), (2, 3))


def test_a_send_queues_behind_the_last_and_waits_for_a_buffer():
    graph = graph_of(case(stages=TWO, micro_batches=4))
    waits = graph.into["s0.m2.send@0-3>4-7"]
    kinds = {(edge.src, edge.kind) for edge in waits}
    assert ("s0.m1.send@0-3>4-7", "stream") in kinds
    assert ("s1.m0.head.end@4-7", "buffer") in kinds
    assert not any(edge.kind == "buffer" for edge in graph.into["s0.m1.send@0-3>4-7"])


def test_absent_operators_are_left_out_and_passed_by():
    graph = graph_of(case(stages=(StageChoice(4, (0,)),)))
    assert not any(node.communicates for node in graph.nodes)
    assert sources(graph, "s0.m0.l0.attention.q_proj@0", "data") == {"s0.m0.l0.attention.attention_norm@0"}
    assert sources(graph, "s0.m0.l0.attention.attention_residual@0", "data") == {
        "s0.m0.embedding.embedding@0",
        "s0.m0.l0.attention.o_proj@0",
    }


def test_a_gathered_tensor_is_read_instead_of_its_parts():
    plan = case(stages=(stage(layers=4, attention=AttentionPartition(4, sequence_parallel=True)),))
    graph = graph_of(plan)
    assert sources(graph, "s0.m0.l0.mlp.up_proj@0", "data") == {"s0.m0.l0.mlp.ffn_gather@0-3"}


def test_roles_end_together():
    graph = graph_of(case(stages=TWO))
    barrier = next(node for node in graph.nodes if node.id == "s0.m0.l0.attention.end@0-3")
    assert barrier.kind == Kind.BARRIER
    assert sources(graph, barrier.id) == {f"s0.m0.l0.attention.attention_residual@{rank}" for rank in range(4)}
    assert barrier.id in sources(graph, "s0.m0.l0.mlp.ffn_norm@2")


def test_ring_sends_run_beside_the_attention_of_the_block_before():
    plan = case(stages=(stage(layers=4, attention=AttentionPartition(2, 1, context_parts=2)),))
    graph = graph_of(plan)
    ring = next(node for node in graph.nodes if node.name == "ring_1")
    assert ring.stream == "transfer" and ring.devices == (0, 2)
    assert not any("attention_0" in name for name in sources(graph, ring.id))


def test_sampled_tokens_go_back_to_the_first_stage_in_decode():
    plan = case(stages=TWO, workload=Workload("decode", 8, context=64))
    graph = graph_of(plan, steps=2)
    back = next(node for node in graph.nodes if node.name == "feedback")
    assert back.devices == (7, 0)
    assert back.id in sources(graph, "t1.s0.m0.embedding.embedding@0")


APART = (StageChoice(2, tuple(range(8)), AttentionPartition(6), 6, ExpertPlacement("separate", 1, 2)),)


def test_experts_apart_take_turns_in_waves():
    graph = graph_of(case(MIXED, APART, micro_batches=4, in_flight=2))
    order = [node.id for node in graph.nodes if node.name == "dispatch"]
    assert [name.split(".")[1:3] for name in order] == [
        [f"m{micro}", f"l{layer}"] for wave in ((0, 1), (2, 3)) for layer in (0, 1) for micro in wave
    ]
    assert graph.by_id[order[0]].transfer.target == (6, 7)
    assert order[0] in sources(graph, order[1], "stream")
    assert "s0.m1.l0.route.end@0-5" in sources(graph, "s0.m0.l0.return.unpermute@3")
    assert "s0.m0.l0.combine@6-7>0-5" in sources(graph, "s0.m0.l0.return.unpermute@3", "data")


def test_a_part_of_the_graph_can_be_asked_for():
    plan = case(stages=TWO, micro_batches=4)
    graph = graph_of(plan, layers=[3], micro_batches=1, ends=False)
    assert {(n.stage, n.layer, n.micro_batch) for n in graph.nodes} == {(1, 3, 0)}
    assert {node.role for node in graph.nodes} == {"attention", "mlp"}


def test_token_cuts_nest():
    for total in range(1, 40):
        for parts in (1, 2, 3, 6, 12):
            fine = [int(share_tokens(total, parts, i)) for i in range(parts)]
            assert sum(fine) == total and max(fine) == fine[0] and min(fine) >= 0
            for coarse in (c for c in (1, 2, 3) if parts % c == 0):
                each = parts // coarse
                whole = [sum(fine[i * each : (i + 1) * each]) for i in range(coarse)]
                assert whole == [int(share_tokens(total, coarse, i)) for i in range(coarse)]


@pytest.mark.parametrize(("ranks", "text"), [((0, 1, 2), "0-2"), ((0, 2, 3), "0,2-3"), ((5,), "5")])
def test_ranks_are_named_as_ranges(ranks, text):
    assert ranks_name(ranks) == text


def test_dense_models_have_no_expert_roles():
    assert {node.role for node in graph_of(case(DENSE)).nodes} == {"embedding", "attention", "mlp", "head"}
