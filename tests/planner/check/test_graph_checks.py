"""One fault for every promise that check_graph holds a graph to, and the code that names it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
from hypothesis import assume, given, settings

from planner.check.buffers import races
from planner.check.findings import CATALOG, errors
from planner.check.index import Index
from planner.check.structure import check_structure
from planner.check.validate import check_graph
from planner.graph.expand import expand
from planner.graph.nodes import Edge, Graph, Node
from planner.graph.ops import Kind
from search_spaces.attention import AttentionPartition
from search_spaces.experts import ExpertPlacement
from tests.planner.check.test_run_faults import DECODE, DENSE, MIXED, PREFILL, plan, run
from tests.planner.plans import Case, cases

PIPELINE = plan(DENSE, AttentionPartition(4), stages=2, micro_batches=4)
PARALLEL = plan(DENSE, AttentionPartition(4, sequence_parallel=True), workload=replace(PREFILL, logits="last"))
SEGMENTS = plan(DENSE, AttentionPartition(2, 2))
EXPERTS = plan(MIXED, AttentionPartition(4), experts=ExpertPlacement("dispatch", 2))


def whole(case: Case) -> Graph:
    return expand(case.model, case.workload, case.sizes, case.choice)


def codes(case: Case, graph: Graph) -> set[str]:
    return {f.code for f in check_graph(case.env, case.sizes, case.choice, graph, complete=True) if f.severity != "info"}


def node(graph: Graph, name: str, **where: object) -> Node:
    """The first operator of a name, on a layer, a GPU, in a micro-batch as asked for."""
    return next(n for n in graph.nodes if n.name == name and all(getattr(n, key) == value for key, value in where.items()))


def put(graph: Graph, *nodes: Node) -> Graph:
    new = {n.id: n for n in nodes}
    return Graph(tuple(new.get(n.id, n) for n in graph.nodes), graph.edges)


def edges(graph: Graph, keep: Callable[[Edge], bool], *more: Edge) -> Graph:
    return Graph(graph.nodes, (*(e for e in graph.edges if keep(e)), *more))


def without(graph: Graph, *gone: Node) -> Graph:
    names = {n.id for n in gone}
    kept = tuple(e for e in graph.edges if e.src not in names and e.dst not in names)
    return Graph(tuple(n for n in graph.nodes if n.id not in names), kept)


@settings(max_examples=40)
@given(cases())
def test_the_whole_graph_of_a_plan_keeps_every_promise(case):
    assume(not errors(check_structure(case.sizes, case.choice)))
    assert codes(case, whole(case)) == set()
    steps = expand(case.model, case.workload, case.sizes, case.choice, steps=2)
    assert codes(case, steps) == set()


@pytest.mark.parametrize("form", ["local", "dispatch"])
@pytest.mark.parametrize("workload", [PREFILL, DECODE])
@pytest.mark.parametrize("empty", [0, 1, 3])
def test_a_gpu_without_an_expert_is_no_fault(empty, workload, form):
    """It brings nothing to the exchange; the graph is checked by those of its GPUs that do."""
    others = [group for group in range(4) if group != empty]
    placement = tuple((others[expert % 3],) for expert in range(MIXED.layers[0].ffn.experts))
    skewed = replace(workload, expert_load=((40.0, 30.0, 5.0, 1.0, 1.0, 0.0),))
    case = plan(MIXED, AttentionPartition(4), skewed, experts=ExpertPlacement(form, placement=placement))
    assert codes(case, whole(case)) == set()
    assert run(case).matches_unsplit_model


def test_an_exchange_is_priced_by_where_the_experts_are():
    skewed = replace(PREFILL, expert_load=((40.0, 30.0, 5.0, 1.0, 1.0, 1.0),))
    placed = ((0, 2), (1,), (0,), (1,), (2,), (3,))
    case = plan(MIXED, AttentionPartition(4), skewed, experts=ExpertPlacement("dispatch", placement=placed, serve_within=2))
    graph = whole(case)
    assert codes(case, graph) == set()
    found = node(graph, "dispatch")
    first, *rest = found.flow.hits
    changes = ({"within": 0}, {"hits": (first,)}, {"hits": ((*first[:-1], 0.9), *rest)}, {"tensor_ways": 2}, {"own_bytes": 8.0})
    for flow in (None, *(replace(found.flow, **change) for change in changes)):
        assert "SHAPE012" in codes(case, put(graph, replace(found, flow=flow)))
    other = next(n for n in graph.nodes if n.name == "lm_head" or n.kind == Kind.MATMUL)
    assert "SHAPE012" in codes(case, put(graph, replace(other, flow=found.flow)))
    plain = whole(EXPERTS)
    assert "SHAPE012" in codes(EXPERTS, put(plain, replace(node(plain, "combine"), flow=found.flow)))


def between(graph: Graph, first: str, second: str, **where: object) -> Graph:
    """The graph without the waits of one operator for another on the same GPU."""
    a, b = node(graph, first, **where), node(graph, second, **where)
    return edges(graph, lambda e: (e.src, e.dst) != (a.id, b.id))


def crossed(graph: Graph, first: str, second: str, **where: object) -> Graph:
    """The graph in which two operators of one GPU have exchanged their places on its stream."""
    a, b = node(graph, first, **where).id, node(graph, second, **where).id
    new = {a: b, b: a}
    return Graph(
        graph.nodes,
        tuple(e if e.tensor else replace(e, src=new.get(e.src, e.src), dst=new.get(e.dst, e.dst)) for e in graph.edges),
    )


def test_operators_of_a_stream_are_ordered():
    assert codes(PIPELINE, between(whole(PIPELINE), "q_proj", "k_proj", layer=1, devices=(2,))) == {"CYCLE003"}


def test_gpus_run_a_role_in_one_order():
    assert codes(PIPELINE, crossed(whole(PIPELINE), "q_proj", "k_proj", layer=1, devices=(2,))) == {"CYCLE008"}


def test_a_role_ends_with_one_barrier_that_waits_for_all_of_it():
    graph = whole(PIPELINE)
    last, end = node(graph, "attention_residual", layer=1), node(graph, "end", layer=1, role="attention")
    assert "CYCLE006" in codes(PIPELINE, edges(graph, lambda e: (e.src, e.dst) != (last.id, end.id)))
    assert "CYCLE006" in codes(PIPELINE, without(graph, end))
    assert "CYCLE006" in codes(PIPELINE, Graph((*graph.nodes, replace(end, id="again")), graph.edges))


def test_hand_overs_queue_and_wait_for_free_buffers():
    graph = whole(PIPELINE)
    sends = {n.id for n in graph.nodes if n.name == "send"}
    assert codes(PIPELINE, edges(graph, lambda e: not (e.src in sends and e.dst in sends))) == {"CYCLE003"}
    unlimited = edges(graph, lambda e: e.kind != "buffer")
    assert codes(PIPELINE, unlimited) == {"CYCLE005"}
    assert all("may write over x" in message for _, message in races(Index(unlimited), PIPELINE.choice))


def test_a_wait_without_need_is_told():
    graph = whole(PIPELINE)
    first, second = node(graph, "q_proj", layer=0, devices=(0,)), node(graph, "v_proj", layer=0, devices=(3,))
    assert codes(PIPELINE, edges(graph, lambda e: True, Edge(first.id, second.id, "stream"))) == {"CYCLE004"}
    early = next(e for e in graph.edges if e.kind == "buffer")
    other = node(graph, "end", stage=1, micro_batch=graph.by_id[early.src].micro_batch + 1, role="head")
    assert "CYCLE004" in codes(PIPELINE, edges(graph, lambda e: e is not early, replace(early, src=other.id)))


def test_the_schedule_is_the_plans():
    """The second micro-batch of a stage before the first."""
    graph = whole(PIPELINE)
    new = {0: 1, 1: 0}
    swapped = [
        replace(n, micro_batch=new.get(n.micro_batch, n.micro_batch)) if n.stage == 1 and n.transfer is None else n
        for n in graph.nodes
    ]
    assert "CYCLE007" in codes(PIPELINE, Graph(tuple(swapped), graph.edges))


def test_a_graph_is_of_one_plan():
    graph = whole(PIPELINE)
    first, second = node(graph, "q_proj"), node(graph, "k_proj")
    assert "STRUCT018" in codes(PIPELINE, put(graph, replace(second, stage=7)))
    assert "STRUCT018" in codes(PIPELINE, put(graph, replace(second, layer=3)))
    assert "STRUCT018" in codes(PIPELINE, put(graph, replace(second, micro_batch=4)))
    assert "STRUCT019" in codes(PIPELINE, put(graph, replace(second, devices=(5,))))
    assert "STRUCT019" in codes(PIPELINE, put(graph, replace(second, stream="transfer")))
    twice = Graph(tuple(replace(n, id=first.id) if n is second else n for n in graph.nodes), graph.edges)
    assert codes(PIPELINE, twice) >= {"STRUCT017"}


def test_groups_share_out_the_stage():
    graph = whole(SEGMENTS)
    found = node(graph, "score_all_reduce")
    backwards = found.devices[::-1]
    family = tuple(backwards if group == found.devices else group for group in found.family)
    assert "STRUCT020" in codes(SEGMENTS, put(graph, replace(found, devices=backwards, family=family)))
    assert "STRUCT020" in codes(SEGMENTS, put(graph, replace(found, family=found.family[:1])))
    assert "STRUCT020" in codes(SEGMENTS, without(graph, found))
    others = ((0, 2), (1, 3))  # the same segment of two head groups
    crossing = [
        replace(n, devices=others[n.family.index(n.devices)], family=others) for n in graph.nodes if n.name == found.name
    ]
    assert "STRUCT023" in codes(SEGMENTS, put(graph, *crossing))


def test_every_gpu_runs_every_operator_once():
    graph = whole(PIPELINE)
    rotation = node(graph, "rope", layer=1, devices=(2,))
    assert "STRUCT021" in codes(PIPELINE, without(graph, rotation))
    assert "STRUCT021" in codes(PIPELINE, Graph((*graph.nodes, replace(rotation, id="again")), graph.edges))


@pytest.mark.parametrize(
    "lost", [{"micro_batch": 3}, {"layer": 2}, {"layer": 1, "role": "mlp"}, {"stage": 1, "micro_batch": 0}]
)
def test_nothing_is_missing(lost):
    graph = whole(PIPELINE)
    gone = [n for n in graph.nodes if all(getattr(n, key) == value for key, value in lost.items())]
    assert "STRUCT022" in codes(PIPELINE, without(graph, *gone))


def test_the_split_of_tokens_and_scores_is_the_plans():
    for field, value in (
        ("sequence_parallel", True),
        ("softmax", "scattered"),
        ("order", "heads_inner"),
        ("score_reduce", False),
    ):
        (stage,) = SEGMENTS.choice.stages
        other = replace(stage, attention=replace(stage.attention, **{field: value}))
        graph = expand(SEGMENTS.model, SEGMENTS.workload, SEGMENTS.sizes, replace(SEGMENTS.choice, stages=(other,)))
        assert "STRUCT023" in codes(SEGMENTS, graph), field


def data(graph: Graph, source: str, target: str, **where: object) -> Edge:
    a, b = node(graph, source, **where), node(graph, target, **where)
    return next(e for e in graph.edges if (e.src, e.dst) == (a.id, b.id) and e.tensor)


def test_tensors_come_from_their_writers():
    graph = whole(PIPELINE)
    read = data(graph, "up_proj", "activation", layer=1)
    assert codes(PIPELINE, edges(graph, lambda e: e is not read)) == {"SHAPE006", "SHAPE009"}
    elsewhere = node(graph, "up_proj", layer=1, devices=(3,))
    assert "SHAPE006" in codes(PIPELINE, edges(graph, lambda e: e is not read, replace(read, src=elsewhere.id)))
    before = node(graph, "up_proj", layer=0)
    assert "SHAPE008" in codes(PIPELINE, edges(graph, lambda e: e is not read, replace(read, src=before.id)))
    later = data(graph, "up_proj", "activation", layer=1, micro_batch=2)
    other = node(graph, "up_proj", layer=1, micro_batch=1)
    assert "SHAPE008" in codes(PIPELINE, edges(graph, lambda e: e is not later, replace(later, src=other.id)))
    assert codes(PIPELINE, edges(graph, lambda e: e is not read, replace(read, bytes=1.0))) == {"SHAPE007"}


def test_the_residual_stream_passes_through_every_role():
    """A norm that reads what the role before the last one left."""
    graph = whole(PIPELINE)
    reader = node(graph, "ffn_norm", layer=1)
    read = next(e for e in graph.into[reader.id] if e.tensor)
    stale = node(graph, "ffn_residual", layer=0)
    assert codes(PIPELINE, edges(graph, lambda e: e is not read, replace(read, src=stale.id))) == {"SHAPE008"}


def test_inputs_are_what_was_written_under_their_names():
    graph = whole(PIPELINE)
    found = node(graph, "attention", layer=1)
    assert found.formals == ("rotated", "v", "cache")
    assert codes(PIPELINE, put(graph, replace(found, inputs=found.inputs[::-1]))) == {"SHAPE006"}
    assert codes(PIPELINE, put(graph, replace(found, inputs=found.inputs[:1], formals=found.formals[:1]))) >= {"SHAPE006"}
    piece = replace(found.inputs[1], shape=(1, 256))
    assert "SHAPE001" in codes(PIPELINE, put(graph, replace(found, inputs=(found.inputs[0], piece, found.inputs[2]))))


PRICES = [
    (PIPELINE, "q_proj", {"flops": 1.0}), (PIPELINE, "rope", {"bytes": 1.0}), (PIPELINE, "embedding", {"bytes": 1.0}),
    (PIPELINE, "q_proj", {"dtype": "fp32"}), (PIPELINE, "send", {"bytes": 1.0}), (PIPELINE, "o_all_reduce", {"bytes": 1.0}),
    (PARALLEL, "gather_tokens", {"bytes": 1.0}), (PARALLEL, "logits_gather", {"bytes": 1.0}),
    (SEGMENTS, "softmax", {"bytes": 1.0}), (EXPERTS, "dispatch", {"bytes": 1.0}),
    (EXPERTS, "expert_up_proj", {"batch": 1}), (EXPERTS, "unpermute", {"bytes": 1.0}),
]  # fmt: skip


@pytest.mark.parametrize(("case", "name", "changes"), PRICES)
def test_a_price_is_that_of_what_is_read_and_written(case, name, changes):
    graph = whole(case)
    assert "SHAPE010" in codes(case, put(graph, replace(node(graph, name), **changes)))


@pytest.mark.parametrize(
    ("name", "kind"),
    [("o_all_reduce", Kind.ALL_GATHER), ("o_all_reduce", Kind.ALL_TO_ALL), ("ffn_all_reduce", Kind.REDUCE_SCATTER)],
)
def test_a_collective_makes_what_it_leaves_of_what_comes(name, kind):
    graph = whole(PIPELINE)
    assert "SHAPE011" in codes(PIPELINE, put(graph, replace(node(graph, name), kind=kind)))


def test_an_all_reduce_whose_members_keep_a_part_each_is_a_reduce_scatter():
    graph = whole(PARALLEL)
    assert "SHAPE011" in codes(PARALLEL, put(graph, replace(node(graph, "o_reduce_scatter"), kind=Kind.ALL_REDUCE)))


def test_weights_are_stored_as_the_model_says():
    graph = whole(PIPELINE)
    found = node(graph, "q_proj")
    (weight,) = found.weights
    for wrong in (replace(weight, dtype="fp8"), replace(weight, shape=weight.shape[::-1]), replace(weight, name="q_b")):
        assert "SHAPE002" in codes(PIPELINE, put(graph, replace(found, weights=(wrong,))))
    assert "SHAPE002" in codes(PIPELINE, put(graph, replace(found, weights=(weight, weight))))


def test_decode_steps_follow_each_other():
    case = plan(DENSE, AttentionPartition(4), replace(DECODE, logits="last"), stages=2)
    graph = expand(case.model, case.workload, case.sizes, case.choice, steps=3)
    assert codes(case, graph) == set()
    feedback = next(n for n in graph.nodes if n.name == "feedback")
    assert "STRUCT019" in codes(case, put(graph, replace(feedback, devices=feedback.devices[::-1])))


def test_every_code_of_a_graph_is_explained():
    told = {"STRUCT017", "STRUCT018", "STRUCT019", "STRUCT020", "STRUCT021", "STRUCT022", "STRUCT023", "WORK004", "WORK005"}
    told |= {f"SHAPE{i:03}" for i in range(1, 13)} | {f"CYCLE{i:03}" for i in range(1, 9)}
    assert told <= set(CATALOG)
