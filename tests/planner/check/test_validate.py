"""Sound plans have no findings to fear, and every fault put into a plan or its graph is found."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings

from planner.check.conservation import check_conservation
from planner.check.cycles import check_cycles, find_circle
from planner.check.findings import CATALOG, Finding
from planner.check.shapes import check_shapes
from planner.check.structure import check_structure
from planner.check.validate import check_choice, sample_graph
from planner.clusters import load_cluster
from planner.graph.nodes import Edge, Graph
from planner.model import Ffn, Layer, ModelSpec
from planner.problem.sizes import sizes_of
from planner.workload import Workload
from search_spaces.attention import AttentionPartition
from search_spaces.experts import ExpertPlacement
from search_spaces.stages import Choice, StageChoice
from tests.planner.plans import MOE, Case, cases, gqa

DENSE = ModelSpec("dense", 256, 1000, (Layer(gqa(heads=8, kv_heads=4), Ffn("dense", 512)),) * 4)
MIXED = replace(DENSE, layers=(Layer(gqa(heads=8, kv_heads=4), MOE),) * 2)
WORK = Workload("prefill", 8, prompt=32)
GRID = AttentionPartition(2, 2)


def case(model=DENSE, stages=None, micro_batches=2, replicas=1, in_flight=1, workload=WORK) -> Case:
    cluster = load_cluster("2x4-h100")
    whole = (StageChoice(4, tuple(range(8)), AttentionPartition(8), 8),)
    choice = Choice(replicas, micro_batches, stages or whole, in_flight)
    return Case(model, workload, cluster, sizes_of(model, workload, cluster), choice)


def stage(devices=(0, 1, 2, 3), layers=2, **changes) -> StageChoice:
    return StageChoice(layers, tuple(devices), **{"attention": GRID, "mlp_ways": 4, **changes})


def codes(found) -> set[str]:
    return {finding.code for finding in found if finding.severity != "info"}


@settings(max_examples=120)
@given(cases())
def test_a_plan_of_the_space_is_sound(plan):
    found = check_choice(plan.env, plan.sizes, plan.choice)
    unsummed = any(s.attention.dimension_segments > 1 and not s.attention.score_reduce for s in plan.choice.stages)
    assert codes(found) == ({"NUM001"} if unsummed else set())


FAULTS = [
    ("STRUCT001", {"stages": (stage((0, 1, 2, 9), 4),)}),
    ("STRUCT001", {"replicas": 2, "stages": (stage((4, 5, 6, 7), 4),)}),
    ("STRUCT001", {"replicas": 16}),
    ("STRUCT002", {"stages": (stage(), stage((3, 4, 5, 6)))}),
    ("STRUCT002", {"stages": (stage((0, 1, 1, 2), 4),)}),
    ("STRUCT004", {"stages": (stage(), stage((4, 5, 6, 7), 1))}),
    ("STRUCT004", {"stages": (stage(layers=4), stage((4, 5, 6, 7), 0))}),
    ("STRUCT005", {"stages": (stage(layers=4, attention=AttentionPartition(3)),)}),
    ("STRUCT006", {"stages": (stage(layers=4, attention=AttentionPartition(2, 2, heads_per_group=(5, 4))),)}),
    ("STRUCT006", {"stages": (stage(layers=4, attention=AttentionPartition(2, 2, heads_per_group=(8, 0))),)}),
    ("STRUCT007", {"replicas": 3}),
    ("STRUCT007", {"micro_batches": 3}),
    ("STRUCT008", {"stages": (stage(layers=4, attention=AttentionPartition(2, batch_parts=2)),), "micro_batches": 8}),
    ("STRUCT009", {"stages": (stage(layers=4, mlp_ways=3),)}),
    ("STRUCT010", {"model": MIXED, "stages": (stage(experts=ExpertPlacement(placement=((0,),) * 5)),)}),
    ("STRUCT010", {"model": MIXED, "stages": (stage(experts=ExpertPlacement(placement=((0, 0),) * 6)),)}),
    ("STRUCT010", {"model": MIXED, "stages": (stage(experts=ExpertPlacement(placement=((4,),) * 6)),)}),
    ("STRUCT011", {"model": MIXED, "stages": (stage(experts=ExpertPlacement(tensor_ways=3)),)}),
    ("STRUCT024", {"model": MIXED, "stages": (stage(experts=ExpertPlacement("dispatch", 2, serve_within=3)),)}),
    ("STRUCT024", {"model": MIXED, "stages": (stage(experts=ExpertPlacement(serve_within=2)),)}),
    ("STRUCT012", {"stages": (stage(layers=4, attention=AttentionPartition(1, 2, context_parts=2)),)}),
    ("STRUCT014", {"model": MIXED, "in_flight": 3, "stages": (stage(range(6), experts=ExpertPlacement("separate", 1, 2)),)}),
    ("STRUCT015", {"stages": (StageChoice(4, tuple(range(6)), AttentionPartition(3, batch_parts=2), 2),), "micro_batches": 1}),
    ("STRUCT016", {"model": MIXED, "stages": (stage(),)}),
    ("STRUCT016", {"stages": (stage(layers=4, experts=ExpertPlacement()),)}),
]


@pytest.mark.parametrize(("code", "changes"), FAULTS)
def test_a_fault_of_structure_is_found(code, changes):
    plan = case(**changes)
    assert code in codes(check_structure(plan.sizes, plan.choice))


def test_mixed_gpus_in_a_stage_are_found():
    plan = case(stages=(stage((2, 3, 4, 5), 4),))
    sizes = replace(plan.sizes, kind_of_device=(0,) * 4 + (1,) * 4)
    assert "STRUCT013" in codes(check_structure(sizes, plan.choice))


def changed(graph: Graph, name: str, **changes) -> Graph:
    """The graph with the first operator called `name` changed."""
    node = next(n for n in graph.nodes if n.name == name)
    return Graph(tuple(replace(n, **changes) if n is node else n for n in graph.nodes), graph.edges)


def graph_of(plan: Case) -> Graph:
    return sample_graph(plan.env, plan.sizes, plan.choice)


def work(plan: Case, graph: Graph) -> list[Finding]:
    return list(check_conservation(plan.model, plan.workload, plan.sizes, plan.choice, graph))


def without(graph: Graph, *names: str) -> Graph:
    gone = {next(n.id for n in graph.nodes if n.name == name) for name in names}
    edges = tuple(e for e in graph.edges if e.src not in gone and e.dst not in gone)
    return Graph(tuple(n for n in graph.nodes if n.id not in gone), edges)


@pytest.mark.parametrize("name", ["q_proj", "k_proj", "attention", "o_proj", "up_proj", "down_proj", "lm_head", "embedding"])
def test_work_that_is_left_out_does_not_compute_the_model(name):
    plan = case()
    assert "WORK001" in codes(work(plan, without(graph_of(plan), name)))


@pytest.mark.parametrize("name", ["router", "expert_up_proj", "expert_down_proj"])
def test_an_expert_that_is_left_out_does_not_compute_the_model(name):
    plan = case(MIXED, (stage(experts=ExpertPlacement()),))
    assert codes(work(plan, graph_of(plan))) == set()
    names = [name] * 1
    graph = graph_of(plan)
    if name == "router":  # every GPU has a copy: all of them must go
        gone = {n.id for n in graph.nodes if n.name == name}
        graph = Graph(tuple(n for n in graph.nodes if n.id not in gone), ())
    else:
        graph = without(graph, *names)
    assert "WORK001" in codes(work(plan, graph))


def test_work_that_is_repeated_undeclared_is_redundant():
    plan = case()
    graph = graph_of(plan)
    node = next(n for n in graph.nodes if n.name == "up_proj")
    found = work(plan, Graph((*graph.nodes, replace(node, id="again")), graph.edges))
    assert codes(found) == {"WORK002"}
    assert {f.where for f in found if f.code == "WORK002"} == {"stages[0].layer 0.up"}
    assert all("1.12 times" in f.message for f in found if f.code == "WORK002")


def test_cut_kv_groups_are_declared_copies():
    plan = case()  # 4 KV heads on 8 GPUs
    told = [f for f in work(plan, graph_of(plan)) if f.code == "WORK003"]
    assert {f.where.rsplit(".")[-1] for f in told} == {"k", "v", }  # fmt: skip
    assert all(f.measured == pytest.approx(2 * f.expected) for f in told)
    assert told[0].message == "FLOPs of k are computed 2 times, as this partition declares"


@pytest.mark.parametrize(
    ("name", "changes", "code"),
    [
        ("q_proj", {"k": 128}, "SHAPE001"),
        ("q_proj", {"n": 32}, "SHAPE002"),
        ("up_proj", {"m": 7}, "SHAPE003"),
        ("down_proj", {"k": 100}, "SHAPE001"),
        ("lm_head", {"n": 100}, "SHAPE002"),
    ],
)
def test_shapes_that_disagree_are_found(name, changes, code):
    plan = case()
    assert check_shapes(graph_of(plan)) == ()
    assert code in codes(check_shapes(changed(graph_of(plan), name, **changes)))


def test_a_sum_of_different_shapes_is_found():
    graph = graph_of(case())
    node = next(n for n in graph.nodes if n.name == "attention_residual")
    wrong = tuple(replace(piece, shape=(1, 256)) for piece in node.inputs)
    assert codes(check_shapes(changed(graph, "attention_residual", inputs=wrong))) == {"SHAPE004"}


def test_a_gather_of_too_little_is_found():
    plan = case(stages=(stage(layers=4, attention=AttentionPartition(4, sequence_parallel=True)),))
    graph = graph_of(plan)
    node = next(n for n in graph.nodes if n.name == "gather_tokens")
    larger = replace(node.output, shape=(4096, 256))
    assert codes(check_shapes(changed(graph, "gather_tokens", outputs=(larger,) * 4))) >= {"SHAPE005"}


def test_a_circle_is_found():
    graph = graph_of(case())
    assert check_cycles(graph) == ()
    edge = graph.edges[len(graph.edges) // 2]
    assert codes(check_cycles(Graph(graph.nodes, (*graph.edges, Edge(edge.dst, edge.src, "stream"))))) == {"CYCLE001"}
    assert codes(check_cycles(Graph(graph.nodes, (*graph.edges, Edge("nowhere", edge.src, "stream"))))) == {"CYCLE002"}
    assert find_circle({"a": ["b"], "b": ["a"]})[0] == find_circle({"a": ["b"], "b": ["a"]})[-1]


def test_a_circle_is_told_in_the_direction_of_its_edges():
    a, b, c = graph_of(case()).nodes[:3]
    (found,) = check_cycles(Graph((a, b, c), tuple(Edge(x.id, y.id, "stream") for x, y in ((a, b), (b, c), (c, a)))))
    first, second, third, again = found.message.removeprefix("3 operators wait for each other: ").split(" -> ")
    assert (first, second) in {(a.id, b.id), (b.id, c.id), (c.id, a.id)}
    assert {first, second, third} == {a.id, b.id, c.id} and again == first


def test_a_plan_that_does_not_fit_says_where_and_by_how_much():
    plan = case(workload=Workload("prefill", 1024, prompt=100_000), micro_batches=1)
    found = [f for f in check_choice(plan.env, plan.sizes, plan.choice) if f.code == "MEM001"]
    assert [f.where for f in found] == ["stages[0]"]
    assert found[0].measured > found[0].expected


def test_unsummed_scores_are_no_attention():
    plan = case(stages=(stage(layers=4, attention=replace(GRID, score_reduce=False)),))
    found = [f for f in check_choice(plan.env, plan.sizes, plan.choice) if f.code == "NUM001"]
    assert found and found[0].severity == "error" and "does not compute attention" in found[0].message


def test_a_code_outside_the_catalog_is_refused():
    with pytest.raises(ValueError, match="NOPE"):
        Finding("NOPE", "info", "", "")
    assert all(text.endswith(".") for text in CATALOG.values())
    assert Finding("MEM001", "error", "a", "b").to_dict()["severity"] == "error"
