"""Wrong input: one line that names the field and what is allowed, exit code 2, and nothing begun."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

SMALL = ("--model", "qwen3-0.6b", "--cluster", "1x2-h100", "--workload", "prefill:batch=2,prompt=64")
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
        (
            "problem: helix\nstages: 2\n",
            "problem is 'helix'; allowed: no field of a problem file; a plan file is for planner eval",
        ),
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
        (["search", "nope"], "ma_separation, or a path to a problem file"),
        (["search", "none.yaml"], "none.yaml"),
        (["search", "--model", "gpt2"], "workload is missing; allowed: a workload, since no problem is named"),
        (["search", "--model", "lama-3.1-8b", "--workload", "decode:batch=1,context=8"], "did you mean llama-3.1-8b"),
        (["search", "helix", "--cluster", "2x8-h10"], "h100"),
        (["search", "helix", "--cluster", "0x8-h100"], "allowed: NODES: an integer from 1 to 1048576"),
        (["search", "helix", "--cluster", "1x99999999-h100"], "allowed: GPUS: an integer from 0 to 1048576"),
        (["batch"], "SWEEP is missing; allowed: a sweep's YAML file"),
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


@pytest.mark.parametrize(
    "arguments",
    [
        ("search", *SMALL, "--certificate", "{}/c.json"),
        ("search", *SMALL, "--out", "{}/runs"),
        ("pareto", *SMALL, "--out", "{}/f.svg"),
        ("dag", "helix:m4n4", "-o", "{}/a.dot"),
    ],
)
def test_a_place_that_cannot_be_written_is_refused_before_the_search(refused, tmp_path, monkeypatch, arguments):
    """Whether a folder may be written to is asked of the system, which lets the root write anywhere."""
    monkeypatch.setattr(os, "access", lambda place, mode: Path(place) != tmp_path)
    monkeypatch.setattr("planner.search.search", None)
    assert "that you may write to" in refused(*(argument.format(tmp_path) for argument in arguments))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("loads", "told"),
    [
        ("[1, 2, 3]", "w.yaml: workload.expert_load is '3 loads'; allowed: one for each of the 8 experts"),
        (
            "[[1, 2], [3, 4]]",
            "w.yaml: workload.expert_load is '2 rows'; allowed: one row, or one for each of the 32 MoE layers",
        ),
        ("[1, 1, 1, 1, 1, 1, 1, .nan]", "w.yaml: workload.expert_load[7] is '.nan'; allowed: a number from 0 to 1e15"),
        ("[[1, 1, -1]]", "w.yaml: workload.expert_load[0][2] is -1; allowed: a number from 0 to 1e15"),
        ("[0, 0]", "w.yaml: workload.expert_load is [0, 0]; allowed: loads that are not all zero"),
        ("[[]]", "w.yaml: workload.expert_load[0] is []; allowed: a list with one number for each expert"),
    ],
)
def test_loads_of_experts_are_refused_by_file_and_entry(refused, tmp_path, loads, told):
    (tmp_path / "w.yaml").write_text(f"phase: prefill\nbatch: 8\nprompt: 512\nexpert_load: {loads}\n")
    assert told in refused("search", "--model", "mixtral-8x7b", "--cluster", "1x8-h100", "--workload", tmp_path / "w.yaml")


def test_a_plan_of_an_unknown_problem_names_its_file(refused, tmp_path):
    (tmp_path / "mine.yaml").write_text("problem: nope\nstages:\n  - {layers: 2, devices: [0]}\n")
    assert f"{tmp_path / 'mine.yaml'}: problem is 'nope'" in refused("validate", tmp_path / "mine.yaml")


@pytest.mark.parametrize(
    ("arguments", "instead"),
    [
        (("compare", "{}", "{}"), "planner evaluate prices each of them"),
        (("explain", "{}"), "planner search tells the best plan of every other decision"),
        (("search", "{}", "--certificate", "c.json"), "--out stores the plan with its bound"),
    ],
)
def test_what_training_plans_do_not_have_yet(refused, tmp_path, arguments, instead):
    (tmp_path / "t.yaml").write_text(
        "model: {name: m, layers: 2, hidden: 512, vocab: 0, attention: {heads: 4}, ffn: {hidden: 2048}}\n"
        "cluster: 1x1-h100\nworkload: {phase: training, global_batch: 2, sequence: 256}\n"
    )
    message = refused(*(argument.format(tmp_path / "t.yaml") for argument in arguments))
    assert "does not answer for training plans yet; " + instead in message
