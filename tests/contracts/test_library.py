"""The promise of every problem in the library: whole, honest about its assumptions, and true to the sizes of its source."""

from __future__ import annotations

import pytest

from planner.api import choose, judge_claims
from planner.check.claims import claims_of
from planner.plan import choice_to_dict, plan_space
from planner.problem import library_names, load_plan, load_problem, problem_to_dict
from planner.problem.library import FOLDER

# source, layers, hidden, heads, head_dim, FFN hidden, experts, vocab, prompt, plans
FACTS = {
    "cross_node_ep": ("004", 4, 8192, 16, 512, 32768, 16, 0, 10000, ["ep16", "baseline_tp8_pp2"]),
    "helix": ("002", 2, 8192, 16, 512, 32768, 0, 0, 10000, ["m4n4", "m4n4_exact"]),
    "helix_two_stage": ("000", 2, 8192, 64, 128, 32768, 0, 0, 10000, ["tp8_pp2"]),
    "layer_wise": ("003", 16, 8192, 16, 512, 32768, 0, 0, 10000, ["one_layer_per_gpu", "baseline_tp8_pp2"]),
    "ma_separation": ("001", 4, 4096, 32, 128, 16384, 16, 50265, 2048, ["ma_12_4", "baseline_tp8_pp2"]),
}
PLANS = [f"{name}:{plan}" for name, facts in FACTS.items() for plan in facts[-1]]


def test_every_problem_has_its_facts_here():
    assert library_names() == sorted(FACTS)
    assert len(PLANS) == 9


@pytest.mark.parametrize("name", FACTS)
def test_sizes_are_those_of_the_source(name: str):
    source, layers, hidden, heads, head_dim, ffn, experts, vocab, prompt, plans = FACTS[name]
    problem = load_problem(name)
    model, sizes = problem.model, problem.sizes
    assert problem.source.startswith(f"{source}_")
    assert (len(model.layers), model.hidden, model.vocab) == (layers, hidden, vocab)
    assert (sizes.heads, sizes.kv_heads, sizes.head_dim) == (heads, heads, head_dim)
    assert sizes.heads * sizes.head_dim == hidden
    assert (sizes.experts, sizes.top_k) == (experts, 2 if experts else 0)
    assert model.layers[0].ffn.hidden == ffn
    assert (problem.workload.batch, problem.workload.prompt) == (1024, prompt)
    blocks = 4 * hidden**2 + 2 * hidden * ffn * max(1, experts) + hidden * experts  # projections, FFN or experts, router
    outer = 2 * vocab * hidden + 2 * hidden * (vocab > 0)  # embedding and head; weight and bias of the final norm
    assert model.parameters == layers * (blocks + 4 * hidden) + outer
    assert list(problem.plans) == plans


@pytest.mark.parametrize("name", FACTS)
def test_conventions(name: str):
    problem = load_problem(name)
    (layer,) = problem.model.layer_kinds
    assert not layer.attention.causal
    assert layer.attention.rope == "none"
    assert (layer.ffn.gated, layer.ffn.activation) == (False, "gelu")
    assert not problem.workload.keep_kv_cache
    assert problem.workload.expert_load == ()
    assert (problem.cluster.name, problem.cluster.size) == ("2x8-h100", 16)
    assert problem.space.replicas == (1,)
    assert problem.unrestricted.replicas is None
    assert {*problem.plan_notes} == {*problem.plans}


@pytest.mark.parametrize("name", FACTS)
def test_assumptions_stand_in_the_file_and_beside_the_numbers(name: str):
    problem = load_problem(name)
    said = " ".join(problem.assumptions)
    assert len(problem.assumptions) >= 8
    assert len(set(problem.assumptions)) == len(problem.assumptions)
    for word in ("GPU", "causal", "bf16", "micro-batches"):
        assert word in said
    text = (FOLDER / f"{name}.yaml").read_text(encoding="utf-8")
    assert text.startswith("# ")
    assert text.count("  # ") >= 8


CLAIMS = {"cross_node_ep": 103, "helix": 60, "helix_two_stage": 53, "layer_wise": 83, "ma_separation": 112}


@pytest.mark.parametrize("name", FACTS)
def test_every_claim_of_the_source_gets_a_verdict(name: str):
    problem = load_problem(name)
    claims = claims_of(problem.claims, name)
    assert len(claims) == len({claim.id for claim in claims}) == CLAIMS[name]
    assert all(claim.text.strip() and claim.at.startswith("line") for claim in claims)
    assert {claim.plan for claim in claims} <= {"", *problem.plans}
    judged = []
    for plan in problem.plans:
        about = [claim for claim in claims if claim.plan == plan or (not claim.plan and plan == next(iter(problem.plans)))]
        judged += judge_claims(choose(f"{name}:{plan}"), about)
    assert sorted(j.id for j in judged) == sorted(claim.id for claim in claims)
    for j in judged:
        assert j.verdict in ("holds", "wrong", "not_derivable") and j.reason
        assert (j.verdict == "wrong") == bool(j.mistakes), j
        assert "unexplained" not in j.mistakes, j
        assert j.verdict != "not_derivable" or j.reason.startswith("needs ")


def test_the_mistakes_that_the_sources_are_known_for():
    """One of each source, by hand from its sizes: the factor is that of the printed numbers."""
    known = [
        ("helix_two_stage", "scores-mkn", 1024.0, "batch as one sequence"),
        ("helix", "scores-mkn", 4.0, "heads counted twice"),
        ("helix", "q-flops", 42.9e12 / (2 * 1024 * 10000 * 8192 * 512), "MACs called FLOPs"),
        ("layer_wise", "base-scores-time", 1 / 2, "heads per GPU miscounted"),
        ("ma_separation", "expert-up-time", 16 / 2, "all tokens through every expert"),
        ("cross_node_ep", "base-q-time", 1 / 8, "contracted size divided as well as the output"),
        ("cross_node_ep", "q-time", 16.0, "unsplit operator where the plan splits it"),
    ]
    for name, claim_id, factor, mistake in known:
        (claim,) = [claim for claim in claims_of(load_problem(name).claims, name) if claim.id == claim_id]
        (found,) = judge_claims(choose(f"{name}:{claim.plan}"), [claim])
        assert found.mistakes == (mistake,)
        assert found.factor == pytest.approx(factor, rel=1e-9)


@pytest.mark.parametrize("name", FACTS)
def test_a_problem_reads_back_from_what_it_is_written_as(name: str):
    problem = load_problem(name)
    assert load_problem(problem_to_dict(problem)) == problem


@pytest.mark.parametrize("name", FACTS)
def test_the_space_holds_plans_with_a_size_that_is_exact(name: str):
    problem = load_problem(name)
    assert 0 < problem.space.size() < problem.unrestricted.size()


@pytest.mark.parametrize("ref", PLANS)
def test_a_plan_leaves_a_way_to_run_it_and_pins_its_stages(ref: str):
    problem, space, name = load_plan(ref)
    assert space == problem.plans[name]
    assert space.micro_batches is None
    choices = list(space.choices())
    assert len(choices) == space.size() > 0
    ranks = sorted(rank for pin in space.layout for rank in pin.devices)
    assert ranks == list(range(16))
    for choice in choices[:: max(1, len(choices) // 5)]:
        written = choice_to_dict(choice, problem.sizes)
        assert list(plan_space(written, problem.space).choices()) == [choice]


@pytest.mark.parametrize("ref", [ref for ref in PLANS if ref != "helix:m4n4"])
def test_a_plan_that_computes_attention_is_in_the_space(ref: str):
    problem, space, _ = load_plan(ref)
    first = next(space.choices())
    again = plan_space(choice_to_dict(first, problem.sizes), problem.space)
    assert again.contains(first)
    assert all(reduce for pin in space.layout for reduce in pin.attention.score_reduce)


def test_the_published_helix_plan_sums_no_scores():
    _, space, _ = load_plan("helix:m4n4")
    for choice in space.choices():
        (stage,) = choice.stages
        assert not stage.attention.score_reduce
        assert (stage.attention.head_groups, stage.attention.dimension_segments, stage.mlp_ways) == (4, 4, 16)
        assert stage.attention.output_projection == "gather"


def test_attention_and_experts_apart():
    _, space, _ = load_plan("ma_separation:ma_12_4")
    for choice in space.choices():
        (stage,) = choice.stages
        assert (stage.attention_devices, stage.expert_devices) == (tuple(range(12)), (12, 13, 14, 15))
        assert stage.attention.heads(32) == (3,) * 8 + (2,) * 4
        assert stage.experts is not None
        groups = stage.experts.groups(16, 4)
        assert [sum(held == (g,) for held in groups) for g in range(4)] == [4, 4, 4, 4]


@pytest.mark.parametrize(
    ("ref", "form", "ways", "groups"),
    [
        ("ma_separation:baseline_tp8_pp2", "local", 8, 1),
        ("cross_node_ep:baseline_tp8_pp2", "local", 1, 8),
        ("cross_node_ep:ep16", "dispatch", 1, 16),
    ],
)
def test_experts_of_the_baselines(ref: str, form: str, ways: int, groups: int):
    _, space, _ = load_plan(ref)
    for choice in space.choices():
        for stage in choice.stages:
            assert stage.experts is not None
            assert (stage.experts.form, stage.experts.tensor_ways) == (form, ways)
            held = stage.experts.groups(16, len(stage.devices))
            assert [held.count((g,)) for g in range(groups)] == [16 // groups] * groups
