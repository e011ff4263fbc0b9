"""Ties: fewer GPUs, then fewer bytes sent, then simpler."""

from __future__ import annotations

from dataclasses import replace

import pytest

from planner.problem import load_problem
from planner.solve.candidates import ApartFound
from planner.solve.optimum import SpaceSearch
from planner.solve.ties import Found, sent_bytes
from search_spaces.attention import AttentionPartition
from search_spaces.stages import Choice, StageChoice
from tests.planner.report.small import env_of
from tests.planner.solve.test_optimum import SMALL


def _choice(*widths: int, micro_batches: int = 2) -> Choice:
    stages, first = [], 0
    for at, width in enumerate(widths):
        layers = 5 - len(widths) + 1 if at == 0 else 1
        devices = tuple(range(first, first + width))
        stages.append(StageChoice(layers, devices, AttentionPartition(head_groups=width), width, None))
        first += width
    return Choice(1, micro_batches, tuple(stages))


def test_bytes_sent_are_collectives_and_hand_overs() -> None:
    """One GPU sends nothing; a hand-over sends each token's hidden state once; a split layer sends more."""
    problem = load_problem(SMALL)
    env, sizes = env_of(problem), problem.sizes
    tokens = problem.workload.batch * problem.workload.prompt
    assert sent_bytes(env, sizes, _choice(1)) == 0
    assert sent_bytes(env, sizes, _choice(1, 1)) == tokens * 2048 * 2
    assert sent_bytes(env, sizes, _choice(1, 1, 1)) == 2 * tokens * 2048 * 2
    assert sent_bytes(env, sizes, _choice(1, 1, micro_batches=8)) == tokens * 2048 * 2
    assert sent_bytes(env, sizes, _choice(2)) > sent_bytes(env, sizes, _choice(1, 1))


def _apart(value: float, ranks: int, sent: float) -> ApartFound:
    return ApartFound(_choice(2).stages[0], 1, value, sent, ranks, value)


def test_experts_apart_tie_by_the_same_rule() -> None:
    """A better value wins; within 1e-9 fewer GPUs do, then fewer bytes; the least value of all is kept as the bound."""
    many, few, quiet = _apart(1.0, 8, 5.0), _apart(1.0 + 5e-10, 4, 5.0), _apart(1.0 + 6e-10, 4, 1.0)
    assert few.or_better(many).ranks == many.or_better(few).ranks == 4
    assert quiet.or_better(few.or_better(many)).sent == 1.0
    assert quiet.or_better(few.or_better(many)).least == 1.0
    assert _apart(0.9, 16, 9.0).or_better(many).value == 0.9 and many.or_better(None) is many


def test_the_simpler_of_two_plans_has_fewer_stages_then_micro_batches_then_replicas() -> None:
    """Where neither GPUs nor bytes tell them apart."""
    found = Found(1.0, 1.0, 4, 2, 4, None, _apart(1.0, 2, 0.0))
    assert found.simplicity > replace(found, replicas=1).simplicity > replace(found, micro_batches=2).simplicity


@pytest.mark.parametrize("objective", ["latency", "throughput", "cost"])
def test_idle_gpus_are_left_out(objective: str) -> None:
    """Where one GPU is as good as more, one is used: a batch of one sequence and one token, on GPUs that talk slowly."""
    problem = load_problem({**SMALL, "workload": {"phase": "prefill", "batch": 1, "prompt": 1}, "cluster": "4x1-l40s"})
    found = SpaceSearch(env_of(problem), problem.space, objective).run()
    best = SpaceSearch(env_of(problem), replace(problem.space, stages=(1,)), objective).run()
    assert found.choice is not None and found.value <= best.value
    used = found.choice.replicas * sum(len(stage.devices) for stage in found.choice.stages)
    fewer = [n for n in range(1, used) if _value_on(problem, objective, n) <= found.value * (1 + 1e-10)]
    assert not fewer


def _value_on(problem, objective: str, gpus: int) -> float:
    """The optimum of a space on the first GPUs alone."""
    smaller = load_problem({**SMALL, "workload": {"phase": "prefill", "batch": 1, "prompt": 1}, "cluster": f"{gpus}x1-l40s"})
    return SpaceSearch(env_of(smaller), smaller.space, objective).run().value
