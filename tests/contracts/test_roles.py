"""Every role builder, over every catalog model: on one GPU the graph reads each weight of the model exactly once."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from planner.evaluate.rows import attention_rows, partition_table
from planner.graph.attention import AttentionSignature, attention_role
from planner.graph.context import RoleContext
from planner.graph.experts import moe_rows, moe_table
from planner.graph.head import embedding_role, head_role
from planner.graph.mlp import mlp_role
from planner.graph.moe import dispatch_role, local_role
from planner.graph.ops import Role
from planner.graph.rows import FfnRows
from planner.model import Layer, ModelSpec
from planner.models import catalog_names, load_model
from planner.workload import Workload
from search_spaces.attention import AttentionPartition
from search_spaces.experts import ExpertPlacement

TOKENS = 64
ONE = np.array([1], dtype=np.int64)


def context(model: ModelSpec, phase: str) -> RoleContext:
    """One sequence of 64 tokens, or one token after 63."""
    decode = phase == "decode"
    return RoleContext(model, Workload("decode", 1, context=TOKENS - 1) if decode else Workload("prefill", 1, prompt=TOKENS))


def ffn_rows(tokens: int) -> FfnRows:
    """One GPU."""
    return FfnRows(ONE * tokens, ONE, ONE, ONE, ONE * 0)


def layer_roles(ctx: RoleContext, layer: Layer, form: str) -> list[Role]:
    """Attention and FFN of a layer on one GPU."""
    tokens = ctx.workload.query_length
    table = partition_table([AttentionPartition()], layer.attention, ctx.workload.phase)
    attention = attention_role(ctx, layer, AttentionSignature("fused"), attention_rows(table, ONE * 0, ONE))
    if layer.ffn.kind == "dense":
        return [attention, mlp_role(ctx, layer, ffn_rows(tokens))]
    experts = moe_table(layer.ffn, [(ExpertPlacement(), 1)], ())
    rows = moe_rows(experts, ONE * 0, ONE * tokens, ONE, ONE, layer.ffn.top_k)
    return [attention, (dispatch_role if form == "dispatch" else local_role)(ctx, layer, rows)]


def elements(roles: list[Role]) -> Counter[str]:
    """Elements of each weight that the roles read."""
    found: Counter[str] = Counter()
    for role in roles:
        for op in role.ops:
            for shard in op.weights:
                found[shard.name] += int(np.max(shard.elements))
    return found


@pytest.mark.parametrize("name", catalog_names())
@pytest.mark.parametrize(("phase", "form"), [("prefill", "local"), ("prefill", "dispatch"), ("decode", "local")])
def test_the_graph_reads_every_weight_once(name: str, phase: str, form: str) -> None:
    """Elements read by all roles on one GPU are the model's parameters, matrix by matrix."""
    model = load_model(name)
    ctx = context(model, phase)
    kinds = {layer: elements(layer_roles(ctx, layer, form)) for layer in model.layer_kinds}
    for layer, found in kinds.items():
        wanted = Counter({w.name: w.parameters for w in layer.weights(model.hidden)})
        matrices = {w.name for w in layer.weights(model.hidden) if len(w.shape) > 1}
        assert {n: found[n] for n in matrices} == {n: wanted[n] for n in matrices}
        assert found.total() == wanted.total()
    ends = elements([embedding_role(ctx, ffn_rows(1)), head_role(ctx, ffn_rows(1), ONE)])
    if model.tied_embeddings:
        ends -= Counter({"head": ends["head"]})
    total = sum(kinds[layer].total() for layer in model.layers) + ends.total()
    assert total == model.parameters


@pytest.mark.parametrize("name", catalog_names())
def test_every_operator_has_work_and_an_output(name: str) -> None:
    """No operator of a one-GPU graph is empty unless it is a collective, and each input is made before it is read."""
    ctx = context(load_model(name), "prefill")
    for layer in ctx.model.layer_kinds:
        for role in layer_roles(ctx, layer, "local"):
            made = {"x", "x_in"} if role.x is None else {role.x.name, "x_in"}
            for op in role.ops:
                assert made & set(op.inputs) or not op.inputs, (role.name, op.name)
                made.add(op.output.name)
                if op.group is None:
                    assert np.max(op.flops) > 0 or np.max(np.asarray(op.bytes)) > 0, op.name
