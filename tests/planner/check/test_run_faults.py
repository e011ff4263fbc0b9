"""Faults that the numeric run must catch: each is put into a plan, its graph, or one kernel, and must be found and named."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from planner.check.findings import errors
from planner.check.run import NumericRun, collectives, context, kernels, load, machine, moe, run_choice, segments, split
from planner.check.run import attention as heads_run
from planner.check.structure import check_structure
from planner.check.validate import check_choice
from planner.clusters import load_cluster
from planner.graph.nodes import Edge, Graph, Node
from planner.model import Ffn, Layer, ModelSpec
from planner.problem.sizes import sizes_of
from planner.workload import Workload
from search_spaces.attention import AttentionPartition
from search_spaces.experts import ExpertPlacement
from search_spaces.stages import Choice, StageChoice
from tests.planner.plans import MOE, Case, gqa

DENSE = ModelSpec("dense", 256, 1000, (Layer(gqa(heads=8, kv_heads=4), Ffn("dense", 512)),) * 4)
MIXED = replace(DENSE, layers=(Layer(gqa(heads=8, kv_heads=4), MOE),) * 2)
PREFILL = Workload("prefill", 8, prompt=32)
DECODE = Workload("decode", 8, context=40)
SEGMENTED = AttentionPartition(2, 2)
REPLICATED = ((0,), (1,), (1,), (0, 1), (1,), (0,))


def plan(model=DENSE, attention=SEGMENTED, workload=PREFILL, stages=1, micro_batches=2, experts=None, ways=4) -> Case:
    """A plan of equal stages of four GPUs."""
    cluster = load_cluster("2x4-h100")
    layers = len(model.layers) // stages
    made = tuple(StageChoice(layers, tuple(range(ways * i, ways * i + ways)), attention, ways, experts) for i in range(stages))
    return Case(model, workload, cluster, sizes_of(model, workload, cluster), Choice(1, micro_batches, made))


def run(case: Case, change: Callable[[Graph], Graph] | None = None) -> NumericRun:
    return run_choice(case.env, case.sizes, case.choice, change)


def departs(found: NumericRun, code: str, operator: str) -> None:
    """The run fails with this code, and the first operator that departs has this name."""
    assert found.executed and not found.matches_unsplit_model
    first = errors(found.findings)[0]
    assert first.code == code, first
    assert found.first_departure == first.where
    assert f".{operator}@" in found.first_departure, found.first_departure


def sound(case: Case) -> Case:
    """The plan, after making sure that without the fault it computes the model."""
    assert errors(check_structure(case.sizes, case.choice)) == []
    assert run(case).matches_unsplit_model
    return case


def renamed(graph: Graph, chosen: Callable[[Node], bool], **changes: object) -> Graph:
    """The graph with fields of some nodes changed."""
    return Graph(tuple(replace(n, **changes) if chosen(n) else n for n in graph.nodes), graph.edges)


def bypassed(graph: Graph, chosen: Callable[[Node], bool], keep: int = 0) -> Graph:
    """The graph without some operators: whoever read what they wrote reads their input number `keep` instead."""
    gone = {node.id: node for node in graph.nodes if chosen(node)}
    assert gone
    into = {name: [e for e in graph.into[name] if e.kind == "data"] for name in gone}
    edges, pieces = [], {}
    for edge in graph.edges:
        if edge.dst in gone:
            continue
        if edge.src not in gone:
            edges.append(edge)
            continue
        if edge.kind == "data":
            lost = gone[edge.src]
            wanted = lost.inputs[keep]
            pieces.setdefault(edge.dst, {})[edge.tensor] = wanted
            edges += [replace(edge, src=e.src, tensor=wanted.name) for e in into[edge.src] if e.tensor == wanted.name]
        edges += [replace(edge, src=e.src, kind="stream", tensor="", bytes=0.0) for e in graph.into[edge.src]]
    nodes = [n for n in graph.nodes if n.id not in gone]
    nodes = [
        n if n.id not in pieces else replace(n, inputs=tuple(pieces[n.id].get(piece.name, piece) for piece in n.inputs))
        for n in nodes
    ]
    return Graph(tuple(nodes), tuple(dict.fromkeys(edges)))


def test_segments_without_the_score_all_reduce():
    unsummed = plan(attention=replace(SEGMENTED, score_reduce=False))
    departs(run(unsummed), "NUM001", "softmax")
    exact = sound(plan())
    departs(run(exact, lambda graph: bypassed(graph, lambda n: n.name == "score_all_reduce")), "NUM001", "softmax")


def test_rope_pairs_split_across_segments(monkeypatch):
    """Segments of consecutive dims cut the pairs (i, i + d / 2) apart, and rotate what they have as if they were pairs."""
    case = sound(plan())

    def dims(self):
        spec, parts = self.attention, self.partition.dimension_segments
        return split.cut(spec.head_dim, parts, self.segment)

    monkeypatch.setattr(split.Split, "qk", property(dims))
    departs(run(case), "NUM001", "rope")


@pytest.mark.parametrize(("module", "attention", "operator"), [
    (segments, SEGMENTED, "softmax"), (heads_run, AttentionPartition(4), "attention"),
])  # fmt: skip
def test_a_softmax_scale_from_the_segments_dims(monkeypatch, module, attention, operator):
    case = sound(plan(attention=attention))
    whole = heads_run.scaled
    monkeypatch.setattr(module, "scaled", lambda spec, scores: whole(replace(spec, scale_dim=spec.head_dim / 2), scores))
    departs(run(case), "NUM001", operator)


@pytest.mark.parametrize(("name", "operator"), [("o_all_reduce", "attention_residual"), ("ffn_all_reduce", "ffn_residual")])
def test_a_missing_all_reduce(name, operator):
    case = sound(plan())
    departs(run(case, lambda graph: bypassed(graph, lambda n: n.name == name and n.layer == 1)), "NUM001", operator)


@pytest.mark.parametrize("name", ["o_all_reduce", "ffn_all_reduce"])
def test_a_doubled_all_reduce(name):
    def doubled(graph: Graph) -> Graph:
        first = next(n for n in graph.nodes if n.name == name and n.layer == 1)
        again = replace(first, id=first.id.replace("@", ".again@"), inputs=first.outputs[:1])
        edges = [replace(e, src=again.id) if e.src == first.id else e for e in graph.edges]
        edges += [Edge(first.id, again.id, "data", first.outputs[0].name), Edge(first.id, again.id, "stream")]
        place = graph.nodes.index(first) + 1
        return Graph((*graph.nodes[:place], again, *graph.nodes[place:]), tuple(edges))

    departs(run(sound(plan()), doubled), "NUM001", f"{name}.again")


def test_rows_and_columns_of_the_output_projection_mixed_up(monkeypatch):
    """Every GPU holds some columns of the output projection where its plan sums over rows."""
    case = sound(plan())
    monkeypatch.setitem(load.AXES, "o", ("output_columns", "output_rows"))
    departs(run(case), "NUM003", "o_proj")


def test_rows_of_the_output_projection_in_the_order_of_another_partition(monkeypatch):
    """The shapes fit, but the rows are consecutive ones instead of those of the GPU's heads and dims."""
    case = sound(plan())
    rows = lambda s: split.cut(s.attention.heads * s.attention.v_head_dim, s.holders, s.place % s.holders)  # noqa: E731
    monkeypatch.setitem(split._AXES, "output_rows", rows)
    departs(run(case), "NUM001", "o_all_reduce")


def test_columns_of_the_network_where_its_rows_should_be(monkeypatch):
    """Down-projection and up-projection split by different columns of the inner dim."""
    case = sound(plan())
    backwards = lambda s: np.arange(s.layer.ffn.hidden)[::-1][split._network_columns(s)]  # noqa: E731
    monkeypatch.setitem(split._AXES, "rows", backwards)
    monkeypatch.setitem(load.AXES, "down", ("rows", ""))
    departs(run(case), "NUM001", "ffn_all_reduce")


@pytest.mark.parametrize(("workload", "operator"), [(PREFILL, "attention"), (DECODE, "attention")])
def test_kv_heads_replicated_wrongly(monkeypatch, workload, operator):
    """Query head h reads KV head h mod n, as if the groups lay side by side; four KV heads on two groups of GPUs."""
    case = sound(plan(attention=AttentionPartition(2, batch_parts=2), workload=workload))
    wrong = lambda self: np.arange(len(self.heads)) % len(self.kv_heads)  # noqa: E731
    monkeypatch.setattr(split.Split, "kv_of_head", property(wrong))
    departs(run(case), "NUM001", operator)


def test_a_copy_of_the_wrong_kv_head(monkeypatch):
    """A GPU that needs a copy of a cut group's KV head gets its neighbour's: its projection is another one."""
    case = sound(plan(attention=AttentionPartition(8), ways=8))
    right = split.Split.kv_heads.func
    wrong = lambda self: (right(self) + self.group % 2) % self.attention.kv_heads  # noqa: E731
    monkeypatch.setattr(split.Split, "kv_heads", property(wrong))
    monkeypatch.setattr(split.Split, "kv_of_head", property(lambda self: np.zeros(len(self.heads), dtype=np.int64)))
    departs(run(case), "NUM001", "attention")


def placed(placement: tuple[tuple[int, ...], ...], form: str = "local") -> Case:
    return plan(MIXED, AttentionPartition(4), experts=ExpertPlacement(form, 2, placement=placement))


@pytest.mark.parametrize("bad", [(), (0, 0), (2,)])
def test_an_expert_placed_nowhere_or_twice_is_found_before_anything_runs(bad):
    case = placed(((0,), bad, *((1,),) * 4))
    assert [f.code for f in errors(check_choice(case.env, case.sizes, case.choice))] == ["STRUCT010"]


@pytest.mark.parametrize("form", ["local", "dispatch"])
def test_an_expert_that_nobody_serves(monkeypatch, form):
    """Tokens of an expert go to a group of GPUs that does not hold it, or to none."""
    case = sound(placed((), form))
    whole = moe.serving

    def nowhere(chosen, experts, *more):
        return np.where(experts == 1, -1, whole(chosen, experts, *more))

    monkeypatch.setattr(moe, "serving", nowhere)
    monkeypatch.setattr(collectives, "serving", nowhere)
    departs(run(case), "NUM001", "moe_all_reduce" if form == "local" else "unpermute")


def test_tokens_that_reach_a_gpu_without_their_expert(monkeypatch):
    case = sound(placed((), "dispatch"))
    whole = moe.serving
    for module in (moe, collectives):
        monkeypatch.setattr(module, "serving", lambda *given: 1 - whole(*given))
    departs(run(case), "NUM003", "expert_gate_proj")


def test_an_expert_served_twice(monkeypatch):
    """Two groups hold expert 3 and both compute all of its tokens, as if nobody shared them."""
    case = sound(placed(REPLICATED))
    table = machine.KERNELS["", "permute"]

    def both(site):
        group = site.split.expert_group
        monkeypatch.setattr(
            moe, "serving", lambda chosen, experts, *more: np.where(experts == 3, group, whole(chosen, experts, *more))
        )
        return table(site)

    whole = moe.serving
    monkeypatch.setitem(machine.KERNELS, ("", "permute"), both)
    departs(run(case), "NUM001", "moe_all_reduce")


@pytest.mark.parametrize("form", ["local", "dispatch"])
def test_a_replica_that_serves_all_of_the_tokens_is_right_and_still_found(monkeypatch, form):
    case = sound(placed(REPLICATED, form))

    def first(chosen, experts, *_):
        return np.array([held[0] for held in chosen.expert_groups])[experts]

    monkeypatch.setattr(moe, "serving", first)
    monkeypatch.setattr(collectives, "serving", first)
    found = run(case)
    assert found.first_departure == ""  # the numbers are those of the model
    assert not found.matches_unsplit_model
    assert {f.code for f in errors(found.findings)} == {"WORK004"}
    assert all("expert 3" in f.where for f in errors(found.findings))


def test_stages_in_the_wrong_order():
    """The second stage's layers run first."""
    case = sound(plan(stages=2))

    def swapped(graph: Graph) -> Graph:
        other = {0: 2, 1: 3, 2: 0, 3: 1}
        return Graph(tuple(replace(n, layer=n.layer if n.layer is None else other[n.layer]) for n in graph.nodes), graph.edges)

    departs(run(case, swapped), "NUM001", "attention_norm")


def test_a_layer_that_runs_twice_and_another_never():
    case = sound(plan(stages=2))
    found = run(case, lambda graph: renamed(graph, lambda n: n.layer == 3, layer=2))
    assert errors(found.findings)[0].code == "NUM001"
    assert "s1." in found.first_departure


@pytest.mark.parametrize("name", ["attention_residual", "ffn_residual"])
def test_a_dropped_residual(name):
    """What a half of the layer adds goes on alone; the next reader finds something else than the residual stream."""
    case = sound(plan())
    found = run(case, lambda graph: bypassed(graph, lambda n: n.name == name and n.layer == 1, keep=1))
    departs(found, "NUM001", "ffn_norm" if name == "attention_residual" else "final_norm")


def test_a_residual_sum_that_forgets_the_stream(monkeypatch):
    case = sound(plan())
    monkeypatch.setattr(kernels, "_sum", lambda site, x, change: change)
    departs(run(case), "NUM001", "attention_residual")


@pytest.mark.parametrize(("workload", "operator"), [(DECODE, "merge"), (PREFILL, "attention_1")])
def test_a_merge_of_parts_without_rescaling(monkeypatch, workload, operator):
    case = sound(plan(attention=AttentionPartition(2, context_parts=2), workload=workload))
    whole = context.merged

    def plain(parts, sums):
        return whole(parts, [np.zeros_like(own) for own in sums])

    monkeypatch.setattr(context, "merged", plain)
    departs(run(case), "NUM001", operator)


@pytest.mark.parametrize("stages", [1, 2])
def test_a_lost_micro_batch(stages):
    case = sound(plan(stages=stages))

    def lost(graph: Graph) -> Graph:
        nodes = tuple(n for n in graph.nodes if n.micro_batch != 1)
        kept = {n.id for n in nodes}
        return Graph(nodes, tuple(e for e in graph.edges if e.src in kept and e.dst in kept))

    found = run(case, lost)
    assert not found.matches_unsplit_model
    assert {f.code for f in errors(found.findings)} == {"NUM004"}
    assert all("micro-batch 1" in f.message for f in errors(found.findings))


def test_a_layer_left_out():
    case = sound(plan())

    def lost(graph: Graph) -> Graph:
        wanted = {"s0.m0.l1.", "s0.m1.l1."}
        nodes = tuple(n for n in graph.nodes if not any(n.id.startswith(w) for w in wanted))
        kept = {n.id for n in nodes}
        return Graph(nodes, tuple(e for e in graph.edges if e.src in kept and e.dst in kept))

    assert not run(case, lost).matches_unsplit_model


def test_a_tensor_that_no_edge_brings():
    case = sound(plan(stages=2))

    def unfed(graph: Graph) -> Graph:
        gone = next(e for e in graph.edges if e.kind == "data" and ".l1.attention.o_proj@0" in e.dst)
        return Graph(graph.nodes, tuple(e for e in graph.edges if e is not gone))

    departs(run(case, unfed), "NUM003", "o_proj")


def test_arrivals_without_back_pressure():
    """A stage that is slower than the one before gets its third micro-batch while it still works on the first."""
    case = sound(plan(stages=2, micro_batches=4))
    found = run(case, lambda graph: Graph(graph.nodes, tuple(e for e in graph.edges if e.kind != "buffer")))
    assert errors(found.findings)[0].code == "NUM003"
    assert "may write over" in errors(found.findings)[0].message
