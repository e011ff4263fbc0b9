"""Wrong input: one line that names the field and what is allowed, exit code 2, and nothing begun."""

from __future__ import annotations

import pytest

BAD_FIELDS = [
    ("workload.batch=many", "workload.batch", "'many'"),
    ("workload.batch=1.5", "workload.batch", "1.5"),
    ("workload.batch=0", "workload.batch", "from 1"),
    ("workload.prompt=-1", "workload.prompt", "-1"),
    ("workload.batch=true", "workload.batch", "True"),
    ("workload.batch=99999999999999999999999999", "workload.batch", "allowed: an integer from 1"),
    ("workload.batch=.inf", "workload.batch", "inf"),
    ("workload.bacth=4", "workload.bacth", "did you mean batch"),
    ("workload=3", "--set", "PATH=VALUE"),
    ("wrkload.batch=3", "--set", "did you mean workload"),
    ("model.hidden=0", "model.hidden", "0"),
    ("model.attention.heads=-4", "model.attention.heads", "-4"),
    ("model.attention.kv_heads=5", "kv_heads", "5"),
    ("model.layers=[2]", "model.layers", "[2]"),
    ("model.dtype=bf61", "model.dtype", "did you mean bf16"),
    ("cluster.nodes=[]", "cluster.nodes", "0 GPUs"),
    ("space.attention.head_groups=17", "space.attention.head_groups", "17"),
    ("plan.micro_batches=0", "micro_batches", "0"),
    ("plan.attention.score_reduce=perhaps", "score_reduce", "true, false"),
]


@pytest.mark.parametrize(("change", "field", "told"), BAD_FIELDS, ids=lambda value: str(value)[:40])
def test_a_wrong_field_is_named(refused, change, field, told, tmp_path):
    message = refused("search", "helix", "--set", change, "--out", tmp_path / "out")
    assert field in message and told in message
    assert not (tmp_path / "out").exists()


BAD_PLANS = [
    ("helix:m4n4", "plan.stages[0].devices[3]=16", "devices[3]"),  # a GPU that does not exist
    ("helix:m4n4", "plan.stages[0].devices[3]=-1", "devices[3]"),
    ("helix:m4n4", "plan.stages[0].devices[3]=2", "devices"),  # a GPU twice
    ("helix:m4n4", "plan.attention.heads_per_group=[4,4,4,3]", "heads_per_group"),  # heads that nobody covers
    ("helix:m4n4", "plan.attention.heads_per_group=[4,4,4,5]", "heads_per_group"),
    ("helix:m4n4", "plan.stages[0].layers=1", "layers"),  # a layer nowhere
    ("helix:m4n4", "plan.micro_batches=7", "micro_batches"),
    ("helix:m4n4", "plan.experts.tensor_ways=2", "experts"),  # a model without experts
    ("ma_separation:ma_12_4", "plan.experts.placement=[0,0,0,0,1,1,1,1,2,2,2,2,3,3,3]", "placement"),  # one nowhere
    ("ma_separation:ma_12_4", "plan.experts.placement=[[0,0],0,0,0,1,1,1,1,2,2,2,2,3,3,3,3]", "placement"),  # one twice
    ("ma_separation:ma_12_4", "plan.experts.placement=[4,0,0,0,1,1,1,1,2,2,2,2,3,3,3,3]", "placement"),
]


@pytest.mark.parametrize(("plan", "change", "field"), BAD_PLANS, ids=lambda value: str(value)[:50])
@pytest.mark.parametrize("verb", ["evaluate", "validate", "dag"])
def test_a_plan_that_contradicts_itself_is_refused(refused, verb, plan, change, field):
    assert field in refused(verb, plan, "--set", change)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", "top level"),
        ("- a\n- b\n", "top level"),
        ("just text\n", "top level"),
        ("a: [1\n", "well-formed"),
        ("a: 1\na: 2\n", "line 2"),
        ("a: &x 1\nb: *x\n", "aliases"),
        ("schema: planner.problem/9\nmodel: gpt2\n", "schema"),
        ("model: gpt2\nworkload: {phase: decode, batch: 1, context: 8}\nextra: 1\n", "extra"),
        ("model: gpt2\n", "workload"),
        ("workload: {phase: decode, batch: 1, context: 8}\n", "model"),
    ],
)
def test_a_file_that_is_no_problem_is_refused_by_name(refused, tmp_path, text, told):
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    message = refused("search", path, "--out", tmp_path / "out")
    assert "mine.yaml" in message and told in message
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["search", "helx"], "did you mean helix"),
        (["search"], "PROBLEM"),
        (["search", "none.yaml"], "none.yaml"),
        (["search", "--model", "gpt2"], "workload"),
        (["search", "--model", "lama-3.1-8b", "--workload", "decode:batch=1,context=8"], "did you mean llama-3.1-8b"),
        (["search", "helix", "--cluster", "2x8-h10"], "h100"),
        (["search", "helix", "--cluster", "0x8-h100"], "cluster"),
        (["search", "helix", "--workload", "prefil:batch=1"], "prefill:batch"),
        (["search", "helix", "--workload", "prefill:batch=1"], "prompt"),
        (["search", "helix", "--workload", "training:global_batch=512"], "sequence"),
        (["search", "helix", "--space", "helx"], "did you mean helix"),
        (["search", "helix", "--objective", "speed"], "--objective"),
        (["search", "helix", "--top", "0"], "--top"),
        (["search", "helix", "--time-limit", "0"], "--time-limit"),
        (["search", "helix", "--time-limit", "nan"], "--time-limit"),
        (["search", "helix", "--seed", "-1"], "--seed"),
        (["search", "helix", "--workers", "none"], "--workers"),
        (["search", "helix", "--frobnicate"], "--frobnicate"),
        (["search", "helix", "--all"], "--all"),
        (["evaluate", "helix:m5"], "m4n4"),
        (["evaluate", "helix:"], "PROBLEM:PLAN"),
        (["evaluate"], "PLAN"),
        (["dag", "helix:m4n4_exact", "--view", "moe"], "--view"),
        (["dag", "helix:m4n4_exact", "--layer", "2"], "--layer"),
        (["dag", "helix:m4n4_exact", "-o", "no/such/folder/x.svg"], "--output"),
        (["list", "modles"], "models"),
        (["show", "gpt-22"], "gpt2"),
        (["paretto", "helix"], "paretto"),
    ],
    ids=" ".join,
)
def test_a_wrong_word_is_named_with_what_is_allowed(refused, arguments, told):
    assert told in refused(*arguments)


def test_a_folder_that_is_a_file_is_refused_before_the_search(refused, tmp_path):
    (tmp_path / "file").write_text("kept")
    assert "--out" in refused("search", "helix", "--out", tmp_path / "file" / "runs")
    assert (tmp_path / "file").read_text() == "kept"
