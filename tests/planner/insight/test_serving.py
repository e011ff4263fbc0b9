"""Serving figures of a plan: its own phase's, and the other phase priced on the same stages."""

from __future__ import annotations

import json

import pytest

from planner.api import evaluate
from planner.cli import main
from planner.clusters import load_cluster
from planner.evaluate.evaluation import evaluate as price
from planner.evaluate.setting import setting
from planner.insight.serving import plan_serving
from planner.models import load_model
from planner.problem.sizes import sizes_of
from planner.report.serving import serving_blocks, serving_sections
from planner.workload import load_workload
from search_spaces.attention import AttentionPartition
from search_spaces.stages import Choice, StageChoice

LLAMA = load_model("llama-3.1-8b")
CLUSTER = load_cluster("1x2-h100")
ONE_STAGE = Choice(1, 1, (StageChoice(32, (0, 1), AttentionPartition(head_groups=2), 2),))


def served(workload, choice=ONE_STAGE, model=LLAMA):
    env = setting(model, load_workload(workload), CLUSTER)
    found = price(env, sizes_of(model, env.workload, CLUSTER), choice)
    return found, plan_serving(env, choice, found)


def test_a_decode_plan_tells_the_prefill_of_its_contexts():
    own, found = served("decode:batch=16,context=2048")
    there, _ = served("prefill:batch=16,prompt=2048")
    assert found.figures.tpot_s == own.latency_s and found.figures.tokens_per_s == pytest.approx(16 / own.latency_s)
    assert found.figures.tokens_per_s_per_gpu == pytest.approx(8 / own.latency_s)
    assert found.other.phase == "prefill" and found.other.over_capacity_bytes == 0
    assert found.figures.ttft_s == found.other.latency_s <= there.latency_s * (1 + 1e-12)


def test_a_prefill_plan_tells_the_decode_step_with_its_own_micro_batches():
    many = Choice(1, 8, (StageChoice(32, (0, 1), AttentionPartition(head_groups=2), 2),))
    own, found = served("prefill:batch=16,prompt=2048", many)
    there, _ = served("decode:batch=16,context=2048")
    assert found.figures.ttft_s == own.latency_s
    assert (found.figures.tpot_s, found.other.micro_batches) == (there.latency_s, 1)  # one pass of the weights, not eight
    text = serving_blocks(found)[0].items[1]
    assert "(the same plan with 1 micro-batch)" in text and "tokens/s for each user" in text


def test_a_prefill_that_does_not_fit_says_by_how_much():
    _, found = served("decode:batch=512,context=8192")
    assert found.other.over_capacity_bytes > 0
    assert "GB more than the memory of a GPU" in serving_blocks(found)[0].items[0]


def test_who_serves_nobody_gets_no_figures():
    _, found = served("prefill:batch=1,prompt=64")
    assert found is not None
    env = setting(LLAMA, load_workload({"phase": "prefill", "batch": 1, "prompt": 64, "keep_kv_cache": False}), CLUSTER)
    nobody = plan_serving(env, ONE_STAGE, price(env, sizes_of(LLAMA, env.workload, CLUSTER), ONE_STAGE))
    assert nobody is None and serving_sections(nobody) == ()


def test_evaluate_tells_them_as_text_and_json(capsys, tmp_path):
    plan = tmp_path / "plan.yaml"
    plan.write_text(
        "problem: {model: gpt2, workload: 'decode:batch=4,context=64', cluster: 1x1-h100, name: tiny}\n"
        "stages: [{layers: 12, devices: [0]}]\nmicro_batches: 1\n",
        encoding="utf-8",
    )
    assert main(["evaluate", str(plan), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["serving"]["tpot_s"] == told["latency_s"] == evaluate(plan).latency_s
    assert (told["serving"]["batch"], told["serving"]["prompt_tokens"], told["serving"]["other_phase"]["phase"]) == (
        4,
        64,
        "prefill",
    )
    assert main(["evaluate", str(plan)]) == 0
    assert "Time to first token" in capsys.readouterr().out
    assert main(["evaluate", "helix:m4n4", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["serving"] is None
