from __future__ import annotations

import json
from dataclasses import replace

import pytest

from planner.clusters import load_cluster
from planner.errors import InputError
from planner.models import load_model
from planner.plan import choice_to_dict
from planner.problem import library_names, load_plan, load_problem, problem_to_dict, sizes_of
from planner.problem.models import model_mapping
from planner.workload import load_workload
from search_spaces.space import RULES, SearchSpace

MODEL = {"name": "m", "hidden": 64, "layers": 2, "attention": {"heads": 4}, "ffn": {"hidden": 128}, "vocab": 0}
SMALL = {"model": MODEL, "workload": "prefill:batch=4,prompt=8", "cluster": "1x2-h100"}
PREFILL, DECODE = "prefill:batch=64,prompt=4096", "decode:batch=256,context=8192"


def mixture(**changes) -> dict[str, object]:
    ffn = {"kind": "moe", "hidden": 32, "experts": 4, "top_k": 2}
    return {**SMALL, "model": {**MODEL, "ffn": ffn}, **changes}


def test_a_problem_from_its_parts():
    problem = load_problem(model="llama-3.1-8b", workload=PREFILL)
    assert problem.name == "llama-3.1-8b-prefill-2x8-h100"
    assert problem.cluster.size == 16
    assert problem.space == problem.unrestricted == SearchSpace(problem.sizes)
    assert problem.restrictions == RULES
    assert problem.plans == {}


def test_a_file_with_paths_beside_it(tmp_path):
    (tmp_path / "model.yaml").write_text(json.dumps(MODEL))
    (tmp_path / "load.yaml").write_text("{phase: decode, batch: 4, context: 9}")
    path = tmp_path / "mine.yaml"
    path.write_text(
        "model: model.yaml\nworkload: load.yaml\ncluster: 1x2-h100\nspace: {replicas: [1, 2]}\nplans: {one: {replicas: 1}}"
    )
    problem = load_problem(path)
    assert (problem.name, problem.workload.context, problem.space.replicas) == ("mine", 9, (1, 2))
    assert "the space has replicas = [1, 2]" in problem.restrictions
    assert problem.unrestricted.replicas is None
    assert str(tmp_path) not in json.dumps(problem_to_dict(problem))
    assert load_problem(json.loads(json.dumps(problem_to_dict(problem)))) == problem
    assert load_plan(f"{path}:one")[1].replicas == (1,)


def test_sizes_of_a_mixed_cluster():
    sizes = sizes_of(load_model("mixtral-8x7b"), load_workload(DECODE), load_cluster("1x8-h100+1x8-a100-80gb"))
    assert sizes.kind_of_device == (0,) * 8 + (1,) * 8 == sizes.domain_of_device
    assert (sizes.moe, sizes.dense, sizes.experts, sizes.top_k, sizes.ffn_hidden) == (True, False, 8, 2, 0)
    assert (sizes.query_length, sizes.kv_length, sizes.context_prefill) == (1, 8193, True)


def test_sizes_of_latent_and_windowed_attention():
    cluster, workload = load_cluster("1x8-h100"), load_workload(PREFILL)
    latent = sizes_of(load_model("deepseek-v3"), workload, cluster)
    assert (latent.latent, latent.dense, latent.moe, latent.head_dim, latent.v_head_dim) == (True, True, True, 128, 128)
    assert not sizes_of(load_model("gpt-oss-20b"), workload, cluster).context_prefill
    assert not sizes_of(load_model("deepseek-v3.2"), workload, cluster).context_prefill


def test_layers_with_other_heads_are_refused():
    model = {**MODEL, "layer_overrides": [{"layers": [1], "attention": {"heads": 2}}]}
    with pytest.raises(InputError, match="the same number of heads in all layers"):
        load_problem({**SMALL, "model": model})


@pytest.mark.parametrize(
    ("sets", "path", "value"),
    [
        (["model.layers=4"], "sizes.layers", 4),
        (["model.dtype=fp8"], "model.dtype", "fp8"),
        (["workload.batch=8"], "sizes.batch", 8),
        (["cluster.nodes.0.gpus=4"], "sizes.devices", 4),
        (["cluster.nodes[0].gpus=4", "cluster.nodes[0].count=2"], "cluster.size", 8),
        (["space.micro_batches={from: 2, to: 3}"], "space.micro_batches", (2, 3)),
        (["space.attention.order=heads_inner"], "space.attention.order", ("heads_inner",)),
        (["plan.attention.dimension_segments=2"], "space.attention.dimension_segments", (2,)),
        (["plan.attention.score_reduce=false"], "space.attention.score_reduce", (False,)),
        (["plan.micro_batches=[1, 2]", "plan.micro_batches=4"], "space.micro_batches", (4,)),
        (["plan.stages=[{layers: 2, devices: [1]}]"], "space.stages", (1,)),
    ],
)
def test_a_change_reaches_the_problem_and_its_file(sets, path, value):
    problem = load_problem(SMALL, sets=sets)
    found = problem
    for name in path.split("."):
        found = getattr(found, name)
    assert found == value
    assert load_problem(problem_to_dict(problem)) == problem


def test_a_pin_leaves_hand_designed_plans_alone():
    pinned = load_problem("helix", sets=["plan.attention.head_groups=2"])
    assert pinned.plans == load_problem("helix").plans
    assert "pinned: attention.head_groups = 2" in pinned.restrictions


def test_plans_that_a_change_makes_impossible_are_left_out():
    problem = load_problem("helix", cluster="1x8-h100")
    assert problem.plans == {}
    assert "left out, as the problem was changed" in problem.plan_notes["m4n4"]
    again = load_problem(problem_to_dict(problem))
    assert replace(again, plan_notes=problem.plan_notes) == problem
    with pytest.raises(InputError, match="left out"):
        load_plan("helix:m4n4", sets=["cluster.nodes.0.count=1"])


def test_layers_of_a_model_with_different_layers_can_be_cut_but_not_added():
    problem = load_problem(model="gpt-oss-20b", workload=DECODE, sets=["model.layers=3"])
    assert problem.model.layers == load_model("gpt-oss-20b").layers[:3]
    with pytest.raises(InputError, match="at most 24"):
        load_problem(model="gpt-oss-20b", workload=DECODE, sets=["model.layers=25"])


@pytest.mark.parametrize("name", ["llama-3.1-8b", "mixtral-8x7b", "gpt-oss-20b", "deepseek-v3", "gemma-3-27b", "opt-13b"])
def test_a_model_written_as_a_mapping_is_equal(name: str):
    model = load_model(name)
    mapping = model_mapping(model)
    assert mapping is not None
    assert load_model(json.loads(json.dumps(mapping)), model.source) == model


def test_the_space_of_another_problem():
    problem = load_problem(model="mixtral-8x7b", workload=PREFILL, space="helix")
    assert problem.space.attention.context_parts == (1,)
    assert problem.space.replicas == (1,)


def test_expert_loads_match_the_experts():
    loads = {"phase": "prefill", "batch": 4, "prompt": 8, "expert_load": [1, 2, 3, 4]}
    assert load_problem(mixture(workload=loads)).workload.expert_load
    for wrong in ([1, 2], [[1, 2, 3, 4]] * 3):
        with pytest.raises(InputError, match="expert_load"):
            load_problem(mixture(workload={**loads, "expert_load": wrong}))
    with pytest.raises(InputError, match="no experts"):
        load_problem({**SMALL, "workload": loads})


WRONG = [
    ("helx", "did you mean helix"),
    ("no/such.yaml", "a file that exists"),
    ({"schema": "planner.problem/2"}, "of another version"),
    ({"schema": "planner.plan/1"}, "a problem file"),
    ({**SMALL, "modle": 1}, "did you mean model"),
    ({"model": MODEL}, "workload"),
    ({**SMALL, "cluster": 3}, "cluster is 3"),
    ({**SMALL, "model": "no-such-model"}, "no-such-model"),
    ({**SMALL, "space": "all"}, "full, or a mapping"),
    ({**SMALL, "space": {"replica": 1}}, "did you mean replicas"),
    ({**SMALL, "space": {"attention": {"head_group": 1}}}, "did you mean head_groups"),
    ({**SMALL, "space": {"stages": []}}, "at least one"),
    ({**SMALL, "plans": {"a": {"like": "b"}}}, "plans.a.like"),
    ({**SMALL, "plans": {"a": {"like": "b"}, "b": {"like": "a"}}}, "without a circle"),
    ({**SMALL, "plans": {"a": {"replicas": 3}}}, "plan.replicas is 3"),
    ({**SMALL, "plans": {"a": 3}}, "plans.a is 3"),
    ({**SMALL, "assumptions": [1]}, "assumptions[0]"),
]


@pytest.mark.parametrize(("ref", "said"), WRONG)
def test_what_is_wrong_is_named(ref, said):
    with pytest.raises(InputError) as error:
        load_problem(ref)
    assert said in str(error.value)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("layers=2", "PATH=VALUE"),
        ("model.layers", "PATH=VALUE"),
        ("modell.layers=2", "did you mean model"),
        ("model.layers=[1", "well-formed"),
        ("model.layers=2\nname: x", "one line"),
        ("model.layer=2", "did you mean layers"),
        ("model.layers=!!python/object:os.system {}", "well-formed"),
        ("cluster.nodes.7.gpus=2", "a position from 0 to 0"),
        ("plan.stages.0.layers=2", "how many stages"),
    ],
)
def test_a_change_that_is_wrong_is_named(text, said):
    with pytest.raises(InputError) as error:
        load_problem(SMALL, sets=[text])
    assert said in str(error.value)


def test_a_problem_needs_a_model_and_a_workload():
    with pytest.raises(InputError, match="no problem is named"):
        load_problem(model="llama-3.1-8b")


def test_plan_files_and_results(tmp_path):
    problem = load_problem(SMALL)
    choice = next(problem.space.choices())
    written = {**choice_to_dict(choice, problem.sizes), "problem": problem_to_dict(problem)}
    (tmp_path / "best.json").write_text(json.dumps(written))
    found, space, name = load_plan(tmp_path / "best.json")
    assert (found, list(space.choices()), name) == (problem, [choice], "best")
    run = tmp_path / "run"
    run.mkdir()
    result = {"schema": "planner.result/1", "status": "optimal", "plan": choice_to_dict(choice, problem.sizes)}
    (run / "result.json").write_text(json.dumps(result))
    with pytest.raises(InputError, match="the plan's problem"):
        load_plan(run / "result.json")
    (run / "problem.yaml").write_text(json.dumps(problem_to_dict(problem)))
    found, space, name = load_plan(str(run / "result.json"))
    assert (found, list(space.choices()), name) == (problem, [choice], "run")
    (run / "result.json").write_text(json.dumps({**result, "plan": None, "status": "infeasible"}))
    with pytest.raises(InputError, match="its status is infeasible"):
        load_plan(run / "result.json")


def test_a_plan_file_may_be_like_a_plan_of_its_problem(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("{schema: planner.plan/1, problem: helix, like: m4n4, micro_batches: 8}")
    _, space, name = load_plan(path)
    assert name == "mine"
    assert space == replace(load_problem("helix").plans["m4n4"], micro_batches=(8,))


@pytest.mark.parametrize(
    ("ref", "said"),
    [
        ("helix", "helix:m4n4, helix:m4n4_exact"),
        ("helix:m4", "did you mean m4n4"),
        ("helx:m4n4", "did you mean helix"),
        ("nothing", "PROBLEM:PLAN"),
        ("helix:", "PROBLEM:PLAN"),
        ("none.json", "a file that exists"),
    ],
)
def test_a_plan_that_is_not_there_is_named(ref, said):
    with pytest.raises(InputError) as error:
        load_plan(ref)
    assert said in str(error.value)


def test_a_problem_file_is_no_plan(tmp_path):
    path = tmp_path / "p.yaml"
    path.write_text("schema: planner.problem/1")
    with pytest.raises(InputError, match=r"p\.yaml:PLAN"):
        load_plan(path)
    path.write_text("schema: other/1")
    with pytest.raises(InputError, match=r"planner\.plan/1 or planner\.result/1"):
        load_plan(path)


def test_a_change_of_a_plan():
    _, space, _ = load_plan(
        "helix:m4n4", sets=["plan.micro_batches=8", "plan.attention.score_reduce=true", "workload.batch=64"]
    )
    assert space.micro_batches == (8,)
    assert space.sizes.batch == 64
    assert space.layout[0].attention.score_reduce == (True,)
    by_rank = "{by_rank: {'12': [0, 4, 8, 12], '13': [1, 5, 9, 13], '14': [2, 6, 10, 14], '15': [3, 7, 11, 15]}}"
    _, moved, _ = load_plan("ma_separation:ma_12_4", sets=[f"plan.experts.placement={by_rank}"])
    assert moved.layout[0].experts.placement == (tuple((e % 4,) for e in range(16)),)


def test_library_names():
    assert library_names() == ["cross_node_ep", "helix", "helix_two_stage", "layer_wise", "ma_separation"]
