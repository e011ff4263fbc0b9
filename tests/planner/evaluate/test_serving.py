"""Serving figures are what two steps of a plan say, by hand."""

from __future__ import annotations

import pytest

from planner.clusters import load_cluster
from planner.evaluate.evaluation import Evaluation, evaluate
from planner.evaluate.serving import (
    Mixing,
    Step,
    Traffic,
    continuous,
    disaggregated,
    phase_figures,
    requests_held,
    static_batch,
)
from planner.evaluate.setting import setting
from planner.models import load_model
from planner.problem.sizes import sizes_of
from planner.workload import Workload, load_workload
from search_spaces.attention import AttentionPartition
from search_spaces.stages import Choice, StageChoice


def test_one_batch_steps_through_its_tokens() -> None:
    """Prefill, then nine more tokens; twice the requests take two rounds."""
    prefill, decode = Step(0.5, 4, 2), Step(0.1, 4, 2)
    found = static_batch(prefill, decode, Traffic(100, 10, 4))
    assert (found.ttft_s, found.tpot_s, found.request_s) == (0.5, 0.1, pytest.approx(1.4))
    assert found.tokens_per_s == pytest.approx(40 / 1.4) and found.tokens_per_s_per_gpu == pytest.approx(20 / 1.4)
    assert static_batch(prefill, decode, Traffic(100, 10, 8)).request_s == pytest.approx(2.8)
    assert static_batch(prefill, decode, Traffic(100, 1, 4)).tpot_s is None


def test_prompts_pass_between_the_tokens_of_others() -> None:
    """Eight open requests of 101 tokens: seven prompts of 20 ms pass while a request takes its 100 steps of 10 ms."""
    found = continuous(Step(0.02, 1, 1), Step(0.01, 8, 1), Traffic(1000, 101, 8))
    assert found.tpot_s == pytest.approx(0.01 + 7 * 0.02 / 100)
    assert found.tokens_per_s == pytest.approx(8 * 101 / found.request_s)
    alone = continuous(Step(0.02, 1, 1), Step(0.01, 1, 1), Traffic(1000, 101, 1))
    assert (alone.ttft_s, alone.tpot_s) == (0.02, 0.01)
    mixed = continuous(Step(0.02, 1, 1), Step(0.01, 8, 1), Traffic(1000, 101, 8), Mixing(0.5, 2.0, 0.1))
    assert mixed.tpot_s == pytest.approx(0.01 + 0.5 * 7 * 0.02 / 100)
    assert mixed.ttft_s == pytest.approx(0.02 + 2.0 * 0.02 * 7 / 8 + 0.1 * 7 * 0.02)


def test_a_slow_prefill_side_holds_requests_back() -> None:
    """Requests of 2.5 s in decode: ten open ones wait where only two prompts pass in a second; GPUs of both sides count."""
    fast = disaggregated(Step(0.1, 4, 2), Step(0.025, 10, 6), Traffic(1000, 101, 10))
    assert fast.ttft_s == pytest.approx(0.1) and fast.tokens_per_s_per_gpu == pytest.approx(fast.tokens_per_s / 8)
    slow = disaggregated(Step(1.5, 3, 2), Step(0.025, 10, 6), Traffic(1000, 101, 10))
    assert slow.request_s == pytest.approx(10 / 2) and slow.tokens_per_s == pytest.approx(2 * 101)


@pytest.mark.parametrize("tensor", [1, 2])
def test_caches_hold_what_the_memory_bill_leaves(tensor: int) -> None:
    """About as many requests as `requests_held` says fit, and no more; TPOT is the price of the step."""
    model, cluster = load_model("llama-3.1-8b"), load_cluster(f"1x{tensor}-h100")
    choice = Choice(1, 1, (StageChoice(32, tuple(range(tensor)), AttentionPartition(head_groups=tensor), tensor),))

    def priced(batch: int) -> tuple[Workload, Evaluation]:
        workload = load_workload(f"decode:batch={batch},context=4096")
        return workload, evaluate(setting(model, workload, cluster), sizes_of(model, workload, cluster), choice)

    workload, small = priced(8)
    held = requests_held(workload, small)
    figures = phase_figures(workload, small)
    assert figures.tpot_s == small.latency_s and figures.concurrent_requests == held
    assert held is not None and held > 50
    assert priced(int(held * 0.95))[1].over_capacity_bytes == 0 < priced(int(held * 1.05))[1].over_capacity_bytes
