"""The numeric run: sound plans compute the model, and the small twin keeps what decides whether a plan is right."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import assume, given, settings

from planner.check.findings import errors
from planner.check.reference import ffn as reference
from planner.check.run import run_choice, worlds
from planner.check.run.isomorphic import difference
from planner.check.run.moe import serving
from planner.check.run.split import Split
from planner.check.run.twin import Twin, cut_micro_batches, kept_layers, twin_of
from planner.check.run.world import StageTokens, World
from planner.check.structure import check_structure
from planner.graph.expand import expand
from planner.graph.nodes import Graph
from planner.model import Ffn, Layer
from planner.models import load_model
from planner.workload import Workload
from search_spaces.attention import AttentionPartition
from search_spaces.experts import ExpertPlacement, rows_of
from search_spaces.stages import StageChoice
from tests.planner.check.test_run_faults import DECODE, DENSE, MIXED, PREFILL, REPLICATED, plan, run
from tests.planner.check.test_validate import case as plan_case
from tests.planner.plans import Case, cases, gqa, mla

MARGIN = 1e-6


def twin_case(case: Case) -> Twin:
    return twin_of(case.model, case.workload, case.cluster, case.sizes, case.choice)


def sound(case: Case) -> bool:
    return not errors(check_structure(case.sizes, case.choice))


def summed(case: Case) -> bool:
    """Whether the scores of segments are summed wherever there are segments."""
    return all(s.attention.score_reduce or s.attention.dimension_segments == 1 for s in case.choice.stages)


@settings(max_examples=60)
@given(cases())
def test_every_sound_plan_computes_the_model(case):
    assume(sound(case) and summed(case))
    found = run_choice(case.env, case.sizes, case.choice)
    assert found.executed and found.matches_unsplit_model, found.findings
    assert [f.code for f in found.findings] == ["NUM002"]
    assert found.max_abs_error <= found.tolerance
    assert found.compared > 0 and found.first_departure == ""


@pytest.mark.parametrize("order", ["segments_inner", "heads_inner"])
@pytest.mark.parametrize("workload", [PREFILL, DECODE])
@pytest.mark.parametrize("spec", [gqa(heads=8, kv_heads=2), gqa(heads=6, kv_heads=6, causal=False), mla(heads=8, kv_heads=8)])
def test_unsummed_scores_never_pass(spec, workload, order):
    if spec.kind == "mla" and workload is DECODE:
        return  # absorbed latent attention has no segments
    case = plan(replace(DENSE, layers=(Layer(spec, DENSE.layers[0].ffn),)), AttentionPartition(2, 2, order=order), workload)
    assert run(case).matches_unsplit_model
    (stage,) = case.choice.stages
    unsummed = replace(stage, attention=replace(stage.attention, score_reduce=False))
    found = run_choice(case.env, case.sizes, replace(case.choice, stages=(unsummed,)))
    assert not found.matches_unsplit_model
    assert ".softmax@" in found.first_departure


@settings(max_examples=40)
@given(cases())
def test_the_twin_has_the_graph_of_the_plan(case):
    """Kinds, edges and devices of both graphs, after cutting layers and micro-batches, are the same."""
    assume(sound(case))
    twin = twin_case(case)
    full = expand(case.model, case.workload, case.sizes, case.choice, layers=kept_layers(case.model, case.choice),
                  micro_batches=cut_micro_batches(case.choice))  # fmt: skip
    small = expand(twin.model, twin.workload, twin.sizes, twin.choice)
    assert difference(full, small, twin) == ""
    assert len(full.nodes) == len(small.nodes) and len(full.edges) == len(small.edges)


def test_a_graph_of_another_shape_is_told_apart():
    case = plan()
    twin = twin_case(case)
    small = expand(twin.model, twin.workload, twin.sizes, twin.choice)
    assert difference(small, small, twin) == ""
    assert difference(small, Graph(small.nodes[:-1], small.edges), twin) == small.nodes[-1].id
    lost = small.edges[5]
    assert difference(small, Graph(small.nodes, small.edges[:5] + small.edges[6:]), twin).startswith(lost.src)


@settings(max_examples=60)
@given(cases())
def test_the_twin_keeps_what_shrinking_must_not_destroy(case):
    assume(sound(case))
    twin, stages = twin_case(case), case.choice.stages
    small, model = twin.model, case.model
    grids = {n for s in stages for n in (len(s.attention_devices), s.attention.head_groups, s.attention.dimension_segments)}
    keys = small.hidden, twin.workload.kv_length
    assert len(set(keys)) == 2 and not {*keys} & grids  # no size is a number of GPUs, groups or segments, or another size
    for stage in stages:
        assert small.hidden % len(stage.attention_devices) == model.hidden % len(stage.attention_devices)
        if model.vocab:
            assert small.vocab % len(stage.attention_devices) == model.vocab % len(stage.attention_devices)
    for index, layer in enumerate(small.layers):
        full = model.layers[twin.layers[index]]
        spec, was = layer.attention, full.attention
        assert (spec.kind, spec.heads, spec.kv_heads, spec.rope, spec.causal) == (
            was.kind,
            was.heads,
            was.kv_heads,
            was.rope,
            was.causal,
        )
        assert (layer.ffn.kind, layer.ffn.experts, layer.ffn.top_k) == (full.ffn.kind, full.ffn.experts, full.ffn.top_k)
        assert bool(layer.ffn.shared_hidden) == bool(full.ffn.shared_hidden)
        for limit, before in ((spec.window, was.window), (spec.chunk, was.chunk)):
            assert (limit is None) == (before is None)
            assert limit is None or (limit < twin.workload.kv_length) == (before < case.workload.kv_length)
        for stage in stages:
            segments = stage.attention.dimension_segments
            assert spec.head_dim // 2 >= segments and spec.head_dim // 2 % segments == was.head_dim // 2 % segments
            if layer.ffn.kind == "dense":
                assert layer.ffn.hidden % stage.mlp_ways == full.ffn.hidden % stage.mlp_ways
    for stage, shrunk in zip(stages, twin.choice.stages, strict=True):
        assert replace(stage, layers=shrunk.layers, experts=shrunk.experts) == shrunk  # devices, groups, segments as they were
        if stage.experts is not None and shrunk.experts is not None and stage.experts.by_layer:
            kept = [index for index in twin.layers if model.layers[index].ffn.kind == "moe"]
            moe = [index for index, layer in enumerate(model.layers) if layer.ffn.kind == "moe"]
            rows = tuple(rows_of(stage.experts.placement)[moe.index(index)] for index in kept)
            assert shrunk.experts == replace(stage.experts, placement=rows)
        else:
            assert shrunk.experts == stage.experts
        if case.workload.phase == "prefill":
            assert twin.workload.prompt >= 2 * stage.attention.context_parts


def test_sequences_differ_in_length_and_begin_anywhere():
    case = plan(workload=PREFILL)
    twin = twin_case(case)
    tokens = worlds.make_tokens(twin, np.random.default_rng(0))
    assert len(set(tokens.valid.sum(axis=1))) > 1
    assert len(set(tokens.positions[:, 0])) > 1


@pytest.mark.parametrize("form", ["local", "dispatch"])
@pytest.mark.parametrize("workload", [PREFILL, DECODE])
def test_forced_routes_give_every_expert_and_replica_tokens(form, workload):
    case = plan(MIXED, AttentionPartition(4), workload, experts=ExpertPlacement(form, 2, placement=REPLICATED))
    twin = twin_case(case)
    world = worlds.make_world(twin)
    forced = worlds.make_world(twin, worlds.forced_routes(twin, world.length))
    for layer in range(len(twin.model.layers)):
        for micro in range(twin.choice.micro_batches):
            served = _served(forced, layer, micro)
            assert set(served) == {(expert, group) for expert, held in enumerate(REPLICATED) for group in held}
            assert min(served.values()) >= (2 if workload is PREFILL else 1)


def test_copies_on_gpus_of_their_own_take_turns_for_all_senders():
    """However many more GPUs send than hold experts."""
    stage = StageChoice(2, tuple(range(8)), AttentionPartition(6), 6, ExpertPlacement("separate", 1, 2, REPLICATED))
    found = run(plan_case(MIXED, (stage,)))
    assert found.matches_unsplit_model
    assert not errors(found.findings)


def _served(world: World, layer: int, micro: int) -> dict[tuple[int, int], int]:
    """Tokens of every expert on every group of GPUs in one micro-batch."""
    at = StageTokens(world, world.twin.choice.stages[0], micro)
    chosen = Split(world, at, 0, world.twin.model.layers[layer])
    experts = world.routes[layer][at.order]
    pairs = np.stack([experts.ravel(), serving(chosen, experts).ravel()], axis=1)
    found, counts = np.unique(pairs, axis=0, return_counts=True)
    return {(int(e), int(g)): int(n) for (e, g), n in zip(found, counts, strict=True)}


@pytest.mark.parametrize("name", ["mixtral-8x7b", "deepseek-v3", "gpt-oss-20b", "qwen3-30b-a3b"])
def test_no_token_is_near_a_tie_between_experts(name):
    twin = _whole_model(name)
    world = worlds.make_world(twin)
    margins = [_margin(world, i, layer.ffn) for i, layer in enumerate(twin.model.layers) if layer.ffn.kind == "moe"]
    assert margins and min(margins) > MARGIN


def _margin(world: World, index: int, ffn: Ffn) -> float:
    """The least distance between the last that is chosen and the first that is not, of groups and of experts."""
    ranked = reference.scores(ffn, world.expected(index, "ffn.router_scores"))
    ranked = ranked + world.weights.get((index, "correction_bias"), 0.0)
    found = np.inf
    if ffn.top_k_groups < ffn.expert_groups:
        grouped = ranked.reshape(len(ranked), ffn.expert_groups, -1)
        strength = np.sort(grouped, axis=2)[:, :, -1 if ffn.group_score == "max" else -2 :].sum(axis=2)
        found = _gap(strength, ffn.top_k_groups)
        weakest = np.sort(strength, axis=1)[:, [-ffn.top_k_groups]]
        ranked = np.where((strength >= weakest)[:, :, None], grouped, -np.inf).reshape(ranked.shape)
    return min(found, _gap(ranked, ffn.top_k))


def _gap(scores: np.ndarray, chosen: int) -> float:
    falling = -np.sort(-scores, axis=1)
    return float(np.min(falling[:, chosen - 1] - falling[:, chosen]))


def _whole_model(name: str) -> Twin:
    model = load_model(name)
    placement = ExpertPlacement() if any(layer.ffn.kind == "moe" for layer in model.layers) else None
    case = plan(model, AttentionPartition(4), Workload("prefill", 8, prompt=64), experts=placement)
    return twin_case(case)


@pytest.mark.parametrize("name", ["llama-3.1-8b", "deepseek-v3", "gemma-2-9b", "gpt-oss-20b"])
def test_scores_are_far_from_uniform(name):
    """The standard deviation of what goes into the softmax: a wrong scale or a missing sum shows."""
    twin = _whole_model(name)
    world = worlds.make_world(twin)
    for index in range(len(twin.model.layers)):
        scores = world.trace.values[index, "attention.scores"]
        assert 1.0 <= np.std(scores) <= 3.0


def test_a_plan_that_is_not_attention_says_so_with_its_error():
    case = plan(DENSE, replace(AttentionPartition(2, 2), score_reduce=False))
    found = run(case)
    (first, *_) = errors(found.findings)
    assert first.code == "NUM001" and first.measured > 1e3 * first.expected
    assert "does not compute the model" in first.message
