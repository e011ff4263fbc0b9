"""The validator finds every fault that chance puts into a plan or its graph, and what it lets pass is no fault."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest

from planner.check.findings import errors
from planner.check.validate import check_choice, check_graph
from planner.graph.nodes import Edge, Graph
from tests.mutants import graphs, plans
from tests.mutants.campaign import campaign, scores
from tests.mutants.judge import EQUIVALENT, Judge
from tests.mutants.subjects import Subject, extras, library

COUNT = 260
SUBJECTS = {
    "helix:m4n4_exact", "helix_two_stage:tp8_pp2", "three stages, uneven", "decode over context parts",
    "ring over a causal prompt", "segments with a normed query", "experts apart, routed by them",
    "experts apart, routed by attention",
}  # fmt: skip


@pytest.fixture(scope="module")
def subjects() -> dict[str, Subject]:
    return {subject.name: subject for subject in (*library(), *extras()) if subject.name in SUBJECTS}


def test_no_mutant_survives(subjects):
    results = list(campaign(list(subjects.values()), COUNT, seed=1))
    survivors = [f"{r.number} {r.operator} of {r.subject}: {r.detail}" for r in results if r.verdict.survived]
    assert survivors == []
    found = sum(fates["found"] for fates in scores(results).values())
    assert found > 0.85 * COUNT
    assert {r.verdict.equivalent for r in results} <= {"", *EQUIVALENT}


def test_the_plans_that_are_broken_are_sound(subjects):
    for subject in subjects.values():
        for plan in (subject, subject.twin):
            found = check_graph(plan.env, plan.sizes, plan.choice, plan.graph, plan.complete)
            assert [f.code for f in found if f.severity != "info"] == []


def test_a_mutant_is_made_again_from_its_seed(subjects):
    subject = subjects["three stages, uneven"]
    first, second = (list(campaign([subject], 12, seed=3)) for _ in range(2))
    assert first == second
    assert first != list(campaign([subject], 12, seed=4))


def test_a_wait_that_others_imply_is_no_fault(subjects):
    """Beside an edge that carries a tensor stands one for the stream: without it the order is the same."""
    subject = subjects["ring over a causal prompt"]
    data = {(e.src, e.dst) for e in subject.graph.edges if e.tensor}
    spare = next(e for e in subject.graph.edges if e.kind == "stream" and (e.src, e.dst) in data)
    verdict = Judge(subject).graph(Graph(subject.graph.nodes, tuple(e for e in subject.graph.edges if e is not spare)))
    assert verdict.equivalent == "same order"


def test_operators_exchanged_between_two_meetings_are_no_fault(subjects):
    """One GPU alone may compute keys before queries. Where others run the same role the order is theirs, too."""
    subject = subjects["three stages, uneven"]

    def exchanged(device: int) -> Graph:
        names = {n.name: n.id for n in subject.graph.nodes if n.role == "attention" and n.devices == (device,)}
        new = {names["q_proj"]: names["k_proj"], names["k_proj"]: names["q_proj"]}
        edges = [
            replace(e, src=new.get(e.src, e.src), dst=new.get(e.dst, e.dst)) if not e.tensor else e for e in subject.graph.edges
        ]
        return Graph(subject.graph.nodes, tuple(edges))

    assert Judge(subject).graph(exchanged(0)).equivalent == "same stretches"
    assert Judge(subject).graph(exchanged(2)).found == "CYCLE008"


def test_the_run_alone_finds_faults_of_a_graph(subjects):
    """Without the other checks the numeric run still tells a residual that adds another tensor from one that does not."""
    judge = Judge(subjects["three stages, uneven"].twin)
    graph = judge.subject.graph
    assert judge.run(graph).matches_unsplit_model
    node = next(n for n in graph.nodes if n.name == "down_proj")
    wrong = replace(node, layer=node.layer + 1)
    assert (
        errors(judge.run(Graph(tuple(wrong if n is node else n for n in graph.nodes), graph.edges)).findings)[0].code
        == "NUM001"
    )


def test_a_changed_plan_is_another_sound_one_or_found(subjects):
    subject = subjects["helix_two_stage:tp8_pp2"]
    judge = Judge(subject)
    stages = subject.choice.stages
    assert judge.plan(replace(subject.choice, stages=stages[::-1])).equivalent == "another sound plan"
    assert judge.plan(replace(subject.choice, stages=stages[:1])).found == "STRUCT004"
    segments = replace(
        stages[0], attention=replace(stages[0].attention, head_groups=4, dimension_segments=2, score_reduce=False)
    )
    assert judge.plan(replace(subject.choice, stages=(segments, stages[1]))).found == "NUM001"


@pytest.mark.parametrize("operator", sorted(graphs.OPERATORS))
def test_every_operator_breaks_something(subjects, operator):
    """Of its first mutants of a pipeline's twin at least one is found."""
    subject = subjects["experts apart, routed by attention" if operator == "swap_groups" else "three stages, uneven"].twin
    judge, found = Judge(subject), ""
    if operator == "swap_groups":
        subject = subjects["segments with a normed query"]
        judge = Judge(subject)
    for number in range(20):
        mutant = graphs.mutate(random.Random(number), subject.graph, operator)
        found = judge.graph(mutant.graph).found if mutant else ""
        if found:
            break
    assert found


@pytest.mark.parametrize("operator", sorted(set(plans.OPERATORS)))
def test_every_operator_of_plans_makes_one_that_is_found(subjects, operator):
    """Some of the plans that it makes are sound. Of the others at least one is among the first that chance makes."""
    apart = operator in ("placement", "expert_form", "in_flight")
    subject = subjects["experts apart, routed by attention" if apart else "segments with a normed query"]
    if operator in ("stages", "layers"):
        subject = subjects["three stages, uneven"]
    changed = (plans.change_plan(random.Random(number), subject.sizes, subject.choice, operator) for number in range(30))
    assert any(errors(check_choice(subject.env, subject.sizes, choice)) for choice in changed if choice is not None)


def test_an_edge_twice_is_found(subjects):
    subject = subjects["ring over a causal prompt"]
    edge = subject.graph.edges[0]
    assert isinstance(edge, Edge)
    assert Judge(subject).graph(Graph(subject.graph.nodes, (*subject.graph.edges, edge))).found == "CYCLE004"
