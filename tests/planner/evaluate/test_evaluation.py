"""Evaluations: one number by every road, time and memory that add up, terms that read back."""

from __future__ import annotations

import pytest

from planner.clusters import load_cluster
from planner.costs.pricer import Pricer
from planner.errors import InputError
from planner.evaluate.capacity import over_capacity
from planner.evaluate.evaluation import Evaluation, evaluate, model_flops
from planner.evaluate.expression import MAX_DEPTH, MAX_LENGTH
from planner.evaluate.setting import Setting, setting
from planner.evaluate.term import evaluate_expression
from planner.models import load_model
from planner.problem import library_names, load_problem
from planner.problem.sizes import sizes_of
from planner.solve.optimum import SpaceSearch
from planner.workload import Workload, load_workload
from search_spaces.stages import Choice, StageChoice
from tests.oracle import random_problem


@pytest.fixture(scope="module", params=library_names())
def solved(request: pytest.FixtureRequest) -> list[tuple[Setting, Choice, Evaluation, float]]:
    """Every library problem's best plan and hand-designed plans, evaluated."""
    problem = load_problem(request.param)
    env = setting(problem.model, problem.workload, problem.cluster)
    found = []
    for space in (problem.space, *problem.plans.values()):
        optimum = SpaceSearch(env, space).run()
        assert optimum.choice is not None
        found.append((env, optimum.choice, evaluate(env, problem.sizes, optimum.choice), optimum.value))
    return found


def test_path_expression_and_search_agree(solved: list[tuple[Setting, Choice, Evaluation, float]]) -> None:
    """Latency is the searched value, the sum of the path's items and the value of the expression."""
    for env, _, evaluation, value in solved:
        assert evaluation.latency_s == pytest.approx(value, rel=1e-9)
        assert sum(item.seconds for item in evaluation.critical_path) == pytest.approx(value, rel=1e-9)
        assert evaluate_expression(evaluation.expression, env.pricer) == pytest.approx(value, rel=1e-9)


def test_time_of_every_gpu_adds_up(solved: list[tuple[Setting, Choice, Evaluation, float]]) -> None:
    """Busy, communication and idle time of each GPU are the latency, and every GPU of the plan is listed once."""
    for _, choice, evaluation, _ in solved:
        ranks = [rank for stage in choice.stages for rank in stage.devices]
        assert [d.rank for d in evaluation.devices] == sorted(ranks)
        for device in evaluation.devices:
            total = device.busy_s + device.communication_s + device.idle_s
            assert total == pytest.approx(evaluation.latency_s, rel=1e-9)


def test_memory_of_every_gpu_is_within_the_stage_bill(solved: list[tuple[Setting, Choice, Evaluation, float]]) -> None:
    """No GPU holds more than the largest shares add up to, and the weights are at least the model's."""
    for env, choice, evaluation, _ in solved:
        problem_over = over_capacity(env, _sizes(env), choice)
        for device in evaluation.devices:
            m = device.memory
            items = (m.weights_bytes, m.kv_cache_bytes, m.activation_bytes, m.scores_bytes, m.logits_bytes,
                     m.gradient_bytes, m.optimizer_bytes, m.communication_buffer_bytes, m.reserve_bytes)  # fmt: skip
            assert m.total_bytes == sum(items)
            assert m.total_bytes - m.capacity_bytes <= problem_over + 16
        weights = sum(d.memory.weights_bytes for d in evaluation.devices)
        assert weights >= env.model.parameters * 2 * (1 - 1e-6)


def test_no_flop_is_lost(solved: list[tuple[Setting, Choice, Evaluation, float]]) -> None:
    """The GPUs do the unsplit model's work; more only where the router is repeated on the experts' GPUs."""
    for _, choice, evaluation, _ in solved:
        repeated = choice.stages[0].separate
        assert evaluation.flops_total >= evaluation.flops_model * (1 - 1e-9)
        assert evaluation.flops_total <= evaluation.flops_model * (1.01 if repeated else 1 + 1e-9)
        assert 0 < evaluation.mfu < 1


def _sizes(env: Setting):  # type: ignore[no-untyped-def]
    from planner.problem import sizes_of

    return sizes_of(env.model, env.workload, env.cluster)


@pytest.mark.parametrize("seed", range(0, 60, 2))
def test_expressions_of_random_plans_read_back(seed: int) -> None:
    """The expression of any plan evaluates to its latency."""
    env, space = random_problem(seed)
    found = SpaceSearch(env, space).run()
    if found.choice is not None:
        evaluation = evaluate(env, space.sizes, found.choice)
        assert evaluate_expression(evaluation.expression, env.pricer) == pytest.approx(evaluation.latency_s, rel=1e-9)


def test_model_flops_of_llama() -> None:
    """Two FLOPs per parameter and token (without the embedding) plus attention: Llama-3.1-8B, one 4096-token prompt."""
    model = load_model("llama-3.1-8b")
    flops = model_flops(model, Workload("prefill", 1, prompt=4096, logits="all"))
    matmul = 2 * 4096 * (model.parameters - 128256 * 4096 - 65 * 4096)
    attention = 32 * 2 * 32 * (4096 * 4097 / 2) * 256
    assert flops == pytest.approx(matmul + attention, rel=1e-12)


PRICER = Pricer(load_cluster("1x8-h100"))


@pytest.mark.parametrize(
    ("text", "value"),
    [("2 x 3 + 4", 10.0), ("2x[1 + 2]", 6.0), ("max(1, 2 x 5, 3)", 10.0), ("7 - 2 - 1", 4.0),
     ("8 / 2 / 2", 2.0), ("-3 + 5", 2.0)],
)  # fmt: skip
def test_arithmetic(text: str, value: float) -> None:
    """Sums, products, quotients and maxima."""
    assert evaluate_expression(text, PRICER) == value


def test_seed_style_term() -> None:
    """The style of published runtime formulas: a count glued to Get_Time."""
    one = evaluate_expression("Get_Time(10240000, 8192, 512)", PRICER)
    assert one > 0
    assert evaluate_expression("16 x [3xGet_Time(10240000, 8192, 512)]", PRICER) == pytest.approx(48 * one)


@pytest.mark.parametrize(
    "text",
    ["", "1 +", "(1", "1)", "Get_Time(1, 2)", "Get_Time(1, 2, 3, gpu=b999)", "nonsense(1)", "1 / 0", "import os", "__class__",
     "Get_Time(1, 2, 3, dtype=fp77)", "AllReduce(5, ranks=2, moons=3)", "'a'", "9" * (MAX_LENGTH + 1), "(" * (MAX_DEPTH + 5)],
)  # fmt: skip
def test_bad_expressions_are_refused(text: str) -> None:
    """One clear message, never a traceback of another kind."""
    with pytest.raises(InputError):
        evaluate_expression(text, PRICER)


def test_decode_reads_its_cache_as_it_is_stored() -> None:
    model, cluster = load_model("llama-3.1-8b"), load_cluster("1x1-h100")

    def seconds(extra: str) -> float:
        workload = load_workload(f"decode:batch=64,context=16384{extra}")
        sizes = sizes_of(model, workload, cluster)
        choice = Choice(1, 1, (StageChoice(len(model.layers), (0,)),))
        found = evaluate(setting(model, workload, cluster), sizes, choice)
        assert evaluate_expression(found.expression, Pricer(cluster)) == pytest.approx(found.latency_s, rel=1e-9)
        return found.latency_s

    assert seconds(",kv_dtype=fp8") < 0.7 * seconds("")
