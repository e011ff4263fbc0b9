"""The training search against brute force over every plan of small random spaces."""

from __future__ import annotations

import random
from dataclasses import replace
from itertools import islice

import pytest

from planner.clusters import load_cluster
from planner.evaluate.evaluation import evaluate
from planner.evaluate.setting import setting
from planner.evaluate.training import StepPricing, training_step
from planner.evaluate.training_stage import training_stages
from planner.model import ModelSpec
from planner.models import load_model
from planner.problem.sizes import sizes_of
from planner.solve.answer import Limits
from planner.solve.objective import NO_CAPS, Caps
from planner.solve.training import TrainingSearch
from planner.workload import load_workload
from search_spaces.training import TrainingDomain
from search_spaces.training_space import TrainingSpace


def _model(layers: int, moe: bool, vocab: int) -> ModelSpec:
    ffn = {"kind": "moe", "hidden": 512, "experts": 4, "top_k": 2} if moe else {"hidden": 2048}
    return load_model(
        {"name": "m", "layers": layers, "hidden": 512, "vocab": vocab, "attention": {"heads": 4, "kv_heads": 2}, "ffn": ffn}
    )


def _problem(seed: int) -> tuple[TrainingSearch, random.Random]:
    draw = random.Random(seed)
    model = _model(draw.choice([2, 3]), draw.random() < 0.4, draw.choice([0, 8000]))
    cluster = load_cluster(draw.choice(["1x3-h100", "2x1-a100-80gb", "1x2-h100+1x1-a100-80gb"]))
    workload = load_workload(f"training:global_batch={draw.choice([2, 4])},sequence={draw.choice([256, 1024])}")
    domain = TrainingDomain(
        recompute=draw.choice([None, ("none",), ("selective", "full")]), zero=draw.choice([None, (0,), (1, 3)]),
        overlap=draw.choice([None, (True, False)]),
    )  # fmt: skip
    space = replace(TrainingSpace(sizes_of(model, workload, cluster)), training=domain)
    return TrainingSearch(setting(model, workload, cluster), space), draw


def _brute_force(search: TrainingSearch, caps: Caps) -> float:
    """The least seconds of a plan that fits, over all plans."""
    best = float("inf")
    for choice in search.space.choices():
        pricing = StepPricing(search.env, search.sizes, choice, training_stages(search.env, search.sizes, choice))
        used = choice.replicas * sum(len(stage.devices) for stage in choice.stages)
        if pricing.over_capacity(caps.memory_bytes) <= 0 and used <= caps.gpus:
            best = min(best, pricing.step().seconds)
    return best


@pytest.mark.parametrize("seed", range(12))
def test_search_is_brute_force(seed: int) -> None:
    search, draw = _problem(seed)
    caps = draw.choice([NO_CAPS, Caps(gpus=2), Caps(memory_bytes=draw.choice([4.2e9, 4.5e9, 5e9]))])
    found = TrainingSearch(search.env, search.space, limits=Limits(caps=caps)).run()
    assert found.complete
    assert found.value == pytest.approx(_brute_force(search, caps), rel=1e-9)
    assert (found.choice is None) == (found.value == float("inf"))


@pytest.mark.parametrize("seed", range(12, 16))
def test_space_counts_its_plans_and_knows_them(seed: int) -> None:
    space = _problem(seed)[0].space
    plans = list(space.choices())
    assert len(plans) == len(set(plans)) == space.size() > 0
    assert all(space.contains(choice) for choice in islice(plans, 0, None, max(1, len(plans) // 20)))
    assert not space.contains(replace(plans[0], training=None))


def test_best_plan_of_each_value_is_no_better_than_the_best() -> None:
    search = _problem(3)[0]
    best = search.run()
    values = [search.best(lambda choice, n=n: choice.replicas == n) for n in (1, 2)]
    assert min(values) == pytest.approx(best.value) and max(values) >= best.value


def test_what_is_asked_after_the_answer_does_not_change_its_counts() -> None:
    search = _problem(3)[0]
    counts = replace(search.run().counts, dropped=dict(search.counts.dropped))
    assert counts.branches > 0
    assert search.best(lambda choice: choice.micro_batches == 1) > 0
    list(search.branch_optima(skip=(0, 0)))
    assert search.counts == counts


def test_the_best_plan_of_each_branch_is_that_of_a_search_of_the_branch_alone() -> None:
    search = _problem(3)[0]
    found = {(c.replicas, c.micro_batches): value for value, c in search.branch_optima((0, 0))}
    assert len(found) > 1
    for (replicas, micro_batches), value in found.items():
        alone = replace(search.space, replicas=(replicas,), micro_batches=(micro_batches,))
        assert value == TrainingSearch(search.env, alone).run().value


def test_time_that_runs_out_leaves_a_bound() -> None:
    search = _problem(1)[0]
    found = TrainingSearch(search.env, search.space, limits=Limits(seconds=0.0)).run()
    assert not found.complete and found.choice is None
    assert 0 < found.bound <= search.run().value


def test_evaluation_of_a_training_plan_adds_up() -> None:
    search = _problem(5)[0]
    choice = search.run().choice
    assert choice is not None
    found, step = evaluate(search.env, search.sizes, choice), training_step(search.env, search.sizes, choice)
    assert found.latency_s == step.seconds == pytest.approx(sum(item.seconds for item in found.critical_path))
    terms = [term.split(" * ") for term in found.expression.split(" + ")]
    assert sum(int(count) * float(each) for count, each in terms) == pytest.approx(found.latency_s, rel=1e-12)
    assert {d.rank for d in found.devices} == set(range(len(found.devices)))
    for device in found.devices:
        own = device.memory
        assert own.optimizer_bytes > 0 and own.gradient_bytes > 0 and own.kv_cache_bytes == 0
        assert device.busy_s + device.communication_s + device.idle_s == pytest.approx(found.latency_s)
