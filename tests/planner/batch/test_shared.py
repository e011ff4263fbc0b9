"""Sharing between problems: the same bytes as alone, whatever came before."""

from __future__ import annotations

import pytest

from planner.evaluate import devices
from planner.evaluate.shared import Shared, sharing
from planner.problem import load_problem
from planner.search import search
from planner.store import run_files
from tests.planner.batch.stores import tiny_sweep

OBJECTIVES = ("latency", "cost", "throughput")
MOE = {**tiny_sweep()["model"], "name": "tiny-moe", "layers": 2, "ffn": {"kind": "moe", "hidden": 64, "experts": 4, "top_k": 2}}


def problem(batch, phase="prefill", **more):
    length = {"prompt": 32, "logits": "none"} if phase == "prefill" else {"context": 64, "logits": "none"}
    model = more.pop("model", {**tiny_sweep()["model"], "layers": 2})
    workload = {"phase": phase, "batch": batch, **length}
    return load_problem({"name": "x", "model": model, "cluster": "1x4-h100", "workload": workload, **more})


@pytest.mark.parametrize("phase", ["prefill", "decode"])
@pytest.mark.parametrize("model", ["dense", "moe"])
def test_an_answer_does_not_depend_on_what_came_before(phase, model):
    more = {"model": MOE} if model == "moe" else {}
    asked = [(problem(batch, phase, **more), objective) for batch in (4, 6, 8, 1) for objective in ("latency", "cost")]
    alone = [run_files(search(one, objective=objective, details=False)) for one, objective in asked]
    for order in (1, -1):
        with sharing(Shared()):
            together = [run_files(search(one, objective=objective, details=False)) for one, objective in asked[::order]]
        assert together[::order] == alone


def test_a_stage_is_priced_once_for_all_problems_that_have_it(monkeypatch):
    priced = []
    monkeypatch.setattr(devices, "_sides", lambda env, build, real=devices._sides: priced.append(build) or real(env, build))
    with sharing(Shared()):
        found = [search(problem(batch), objective=objective, details=False) for batch in (4, 8, 4) for objective in OBJECTIVES]
    stages = [(stage, r.problem.workload.batch // r.choice.micro_batches) for r in found for stage in r.choice.stages]
    assert len(priced) == len(set(stages)) < len(stages)


def test_another_family_starts_afresh():
    shared = Shared()
    first, other = problem(4), problem(4, "decode")
    kept = shared.enter(first.model, first.workload, first.cluster)
    assert shared.enter(first.model, problem(8).workload, first.cluster) is kept
    assert shared.enter(other.model, other.workload, other.cluster) is not kept


def test_too_much_is_dropped(monkeypatch):
    monkeypatch.setattr("planner.evaluate.shared.MOST_BYTES", 1)
    shared, one = Shared(), problem(4)
    with sharing(shared):
        search(one, details=False)
    kept = shared.enter(one.model, one.workload, one.cluster)
    assert kept.bytes() == 0
