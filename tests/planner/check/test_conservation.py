"""Work and weights over all GPUs against the unsplit model: exact for every mask, operator and micro-batch."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from planner.check.conservation import check_conservation
from planner.check.declared import computed_pairs, kept_pairs
from planner.check.findings import Finding
from planner.check.validate import check_graph, sample_graph
from planner.graph.expand import expand
from planner.graph.nodes import Graph, Node
from planner.graph.ops import Kind
from planner.model import Indexer
from planner.workload import Workload
from search_spaces.attention import AttentionPartition
from search_spaces.experts import ExpertPlacement
from search_spaces.stages import Choice, StageChoice
from tests.planner.check.test_run_faults import DECODE, DENSE, MIXED, PREFILL, plan
from tests.planner.plans import MOE, Case, gqa, mla

FUSED = AttentionPartition(4)


def graph_of(case: Case) -> Graph:
    return sample_graph(case.env, case.sizes, case.choice)


def work(case: Case, graph: Graph) -> list[Finding]:
    return list(check_conservation(case.model, case.workload, case.sizes, case.choice, graph))


def faults(found: list[Finding]) -> list[Finding]:
    return [finding for finding in found if finding.severity != "info"]


def changed(graph: Graph, name: str, **changes: object) -> Graph:
    """The graph with the first operator of a name changed."""
    node = next(n for n in graph.nodes if n.name == name)
    return Graph(tuple(replace(n, **changes) if n is node else n for n in graph.nodes), graph.edges)


def without(graph: Graph, node: Node) -> Graph:
    edges = tuple(e for e in graph.edges if node.id not in (e.src, e.dst))
    return Graph(tuple(n for n in graph.nodes if n is not node), edges)


def attending(**spec: object) -> Case:
    model = replace(DENSE, layers=tuple(replace(layer, attention=gqa(heads=8, kv_heads=4, **spec)) for layer in DENSE.layers))
    return plan(model, FUSED)


@settings(max_examples=60)
@given(
    st.integers(1, 40), st.sampled_from(("none", "window", "chunk", "top_k")), st.integers(1, 50), st.booleans(), st.booleans()
)
def test_pairs_that_a_mask_keeps_are_those_that_can_be_counted(keys, kind, limit, causal, decode):
    limits = {kind: limit} if kind in ("window", "chunk") else {}
    indexer = Indexer(4, 32, limit) if kind == "top_k" else None
    spec = replace(gqa(causal=causal), **limits, indexer=indexer)
    work = Workload("decode", 1, context=keys - 1) if decode else Workload("prefill", 1, prompt=keys)
    query, key = np.arange(keys)[:, None], np.arange(keys)[None, :]
    seen = (key <= query) if causal else np.full((keys, keys), True)
    reach = min(limit, keys)
    if not causal or decode:  # of what it may see a query keeps as many as the limit allows
        counted = np.minimum(seen.sum(axis=1) if not decode else keys, reach) if kind != "none" else seen.sum(axis=1)
        counted = np.full(keys, min(keys, reach if kind != "none" else keys)) if decode else counted
    elif kind == "chunk":
        counted = (seen & (query // limit == key // limit)).sum(axis=1)
    else:
        counted = np.minimum(seen.sum(axis=1), reach if kind != "none" else keys)
    wanted = counted[-1] if decode else counted.sum()
    assert kept_pairs(spec, work) == wanted


@pytest.mark.parametrize(("spec", "more"), [
    ({"causal": True}, 1.0), ({"causal": False}, 1.0), ({"causal": True, "chunk": 8}, 1.0),
    ({"causal": True, "window": 8}, 32 * 8 / (36 + 24 * 8)), ({"causal": True, "chunk": 12}, 3 * 78 / (2 * 78 + 36)),
])  # fmt: skip
def test_a_fused_kernel_computes_its_triangle_band_or_chunks_and_no_other_number(spec, more):
    """The full band of a window and a last chunk in full are declared, and what is beyond is told by factor."""
    case = attending(**spec)
    first = case.model.layers[0].attention
    declared = computed_pairs(first, case.workload, FUSED) / kept_pairs(first, case.workload)
    assert declared == pytest.approx(more)
    graph = graph_of(case)
    assert faults(work(case, graph)) == []
    told = [f for f in work(case, graph) if f.code == "WORK003" and f.where.endswith(".attention")]
    assert len(told) == (declared > 1.0)
    flops = next(n.flops for n in graph.nodes if n.name == "attention")
    for factor, code in ((0.99, "WORK001"), (1.01, "WORK002")):
        (finding,) = faults(work(case, changed(graph, "attention", flops=flops * factor)))
        assert finding.code == code and finding.where == "stages[0].layer 0.attention"
        assert finding.measured == pytest.approx(finding.expected * (1 + (factor - 1) / 4))


@pytest.mark.parametrize("form", [
    AttentionPartition(2, 2), AttentionPartition(1, context_parts=4), AttentionPartition(2, context_parts=2),
])  # fmt: skip
@pytest.mark.parametrize("workload", [PREFILL, DECODE])
@pytest.mark.parametrize("spec", [gqa(heads=8, kv_heads=4), gqa(heads=8, kv_heads=8, causal=False), mla(heads=8, kv_heads=8)])
def test_segments_rings_and_merges_compute_what_they_declare(form, workload, spec):
    if spec.kind == "mla" and workload is DECODE and form.dimension_segments > 1:
        return  # absorbed latent attention has no segments
    model = replace(DENSE, layers=tuple(replace(layer, attention=spec) for layer in DENSE.layers))
    case = plan(model, form, workload)
    graph = graph_of(case)
    assert faults(work(case, graph)) == []
    core = next(n for n in graph.nodes if n.name in ("scores", "attention", "attention_0"))
    assert {f.code for f in faults(work(case, without(graph, core)))} == {"WORK001"}
    again = Graph((*graph.nodes, replace(core, id="again")), graph.edges)
    assert {f.code for f in faults(work(case, again))} == {"WORK002"}


DENSE_CLASSES = ["q", "k", "v", "o", "up", "down", "embedding", "head", "attention_norm", "ffn_norm", "final_norm"]
MIXED_CLASSES = ["router", "expert_gate", "expert_up", "expert_down", "shared_gate", "shared_up", "shared_down"]


@pytest.mark.parametrize("name", DENSE_CLASSES)
def test_a_weight_of_every_class_is_missed_and_told_twice_by_name_and_factor(name):
    shared_by_four(plan(DENSE, FUSED), name)


@pytest.mark.parametrize("name", MIXED_CLASSES)
@pytest.mark.parametrize("form", ["local", "dispatch"])
def test_a_weight_of_a_mixture_is_missed_and_told_twice_by_name_and_factor(name, form):
    mixture = replace(MOE, shared_hidden=72)
    model = replace(MIXED, layers=tuple(replace(layer, ffn=mixture) for layer in MIXED.layers))
    shared_by_four(plan(model, FUSED, experts=ExpertPlacement(form, 2)), name)


def shared_by_four(case: Case, name: str) -> None:
    """One of four GPUs forgets its shard of a weight, or has it twice: found as such, the factor from the elements."""
    graph = graph_of(case)
    assert faults(work(case, graph)) == []
    node = next(n for n in graph.nodes if any(w.name == name for w in n.weights))
    total = sum(w.elements for n in graph.nodes for w in n.weights if w.name == name and n.layer == node.layer)
    own = next(w.elements for w in node.weights if w.name == name)
    for weights, code in (((), "WORK001"), (node.weights * 2, "WORK002")):
        new = Graph(tuple(replace(n, weights=weights) if n is node else n for n in graph.nodes), graph.edges)
        found = next(f for f in faults(work(case, new)) if f"weight {name} " in f.message)
        assert found.code == code and found.where.endswith(f".{name}")
        sign = 1 if weights else -1
        assert found.measured / found.expected == pytest.approx((total + sign * own) / total)
        assert f"{(total + sign * own) / total:.3g}" in found.message


@pytest.mark.parametrize("name", ["q_proj", "attention", "o_proj", "up_proj", "down_proj", "lm_head", "kv_write"])
def test_every_micro_batch_is_counted(name):
    """What the second micro-batch lacks is told of it alone."""
    case = plan(DENSE, FUSED, replace(PREFILL, keep_kv_cache=True, logits="last"))
    graph = expand(case.model, case.workload, case.sizes, case.choice)
    assert faults(work(case, graph)) == []
    node = next(n for n in graph.nodes if n.name == name and n.micro_batch == 1)
    found = faults(work(case, without(graph, node)))
    assert {f.code for f in found} == {"WORK001"}
    assert all("micro-batch 1" in f.where for f in found)


@pytest.mark.parametrize("workload", [DECODE, replace(PREFILL, keep_kv_cache=True)])
@pytest.mark.parametrize("form", [AttentionPartition(2, 2), AttentionPartition(2, context_parts=2), AttentionPartition(4)])
def test_new_cache_entries_are_kept_once_and_as_often_as_declared(workload, form):
    case = plan(DENSE, form, workload)
    graph = graph_of(case)
    assert faults(work(case, graph)) == []
    node = next(n for n in graph.nodes if n.name == "kv_write")
    (finding,) = faults(work(case, without(graph, node)))
    assert (finding.code, finding.where) == ("WORK001", "stages[0].layer 0.cache")
    (finding,) = faults(work(case, Graph((*graph.nodes, replace(node, id="again")), graph.edges)))
    assert (finding.code, finding.where) == ("WORK002", "stages[0].layer 0.cache")


def test_a_replica_that_serves_all_tokens_is_found_in_the_graph():
    """Sums over GPUs cannot tell: the rows of all products together are as many as before."""
    case = plan(MIXED, FUSED, experts=ExpertPlacement("dispatch", 1, placement=((0, 1), (2, 3), *((e,) for e in (0, 1, 2, 3)))))
    graph = graph_of(case)
    assert faults(list(check_graph(case.env, case.sizes, case.choice, graph))) == []
    shares = {n.devices[0]: n.output.shape[0] for n in graph.nodes if n.name == "expert_up_proj"}
    moved = shares[0] // 3

    def served(node: Node) -> Node:
        if node.kind != Kind.GROUPED or node.devices[0] > 1:
            return node
        rows = node.output.shape[0] + (moved if node.devices[0] == 0 else -moved)
        output = replace(node.output, shape=(rows, node.output.shape[1]))
        return replace(node, outputs=(output,), m=-(-rows // node.batch), flops=2.0 * rows * node.k * node.n)

    uneven = Graph(tuple(served(node) for node in graph.nodes), graph.edges)
    assert faults(work(case, uneven)) == []
    found = [f for f in check_graph(case.env, case.sizes, case.choice, uneven) if f.code == "WORK004"]
    assert {f.where.rsplit("@")[-1] for f in found} == {"0", "1"}
    assert all(f.expected == shares[0] for f in found)


def test_heads_that_another_gpu_should_have_are_found():
    """Three heads and one instead of two and two: in total as many as before."""
    case = plan(replace(DENSE, layers=DENSE.layers[:1]), FUSED)
    (stage,) = case.choice.stages
    other = replace(stage, attention=replace(stage.attention, heads_per_group=(3, 1, 2, 2)))
    graph = expand(case.model, case.workload, case.sizes, Choice(1, 2, (other,)))
    found = [f for f in check_graph(case.env, case.sizes, case.choice, graph, complete=True) if f.severity == "error"]
    assert {f.code for f in found} == {"WORK005"}
    assert {f.where.rsplit("@")[-1] for f in found} == {"0", "1"}
    assert any("[256, 192]" in f.message and "[256, 128]" in f.message for f in found)


GRIDS = [
    AttentionPartition(8), AttentionPartition(4, 2), AttentionPartition(2, 2, batch_parts=2),
    AttentionPartition(4, context_parts=2),
]  # fmt: skip


@pytest.mark.parametrize("workload", [replace(PREFILL, logits="all"), DECODE])
@pytest.mark.parametrize("grid", GRIDS)
def test_all_gpus_together_do_what_one_gpu_would(grid, workload):
    """FLOPs of every projection over all layers and micro-batches: split over eight GPUs, and on one GPU that holds it all."""
    spec = gqa(heads=8, kv_heads=8, causal=False)
    model = replace(DENSE, layers=tuple(replace(layer, attention=spec) for layer in DENSE.layers))
    split = plan(model, grid, workload, ways=8)
    alone = StageChoice(4, (0,), AttentionPartition(), 1)
    whole = expand(split.model, split.workload, split.sizes, Choice(1, 2, (alone,)))
    parts = expand(split.model, split.workload, split.sizes, split.choice)
    assert faults(work(split, parts)) == []
    repeated = {f"{name}_proj": grid.context_parts if workload is DECODE else 1 for name in ("q", "k", "v")}
    repeated["attention"] = computed_pairs(spec, workload, grid) / kept_pairs(spec, workload)  # 41 keys in two parts are 42
    assert flops(parts) == pytest.approx({name: done * repeated.get(name, 1) for name, done in flops(whole).items()})


def flops(graph: Graph) -> Counter[str]:
    """FLOPs by operator; partial scores and their products with values count as attention."""
    found: Counter[str] = Counter()
    for node in graph.nodes:
        name = "attention" if node.name.rstrip("_0123456789") in ("scores", "attention_value", "attention") else node.name
        if node.flops:
            found[name] += node.flops
    return found
