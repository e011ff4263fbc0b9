"""Schedules against the closed forms of their papers, for stages of equal times and no sends."""

import pytest

from planner.graph.schedule import Work, finish_times, held_counts, stage_order
from search_spaces.training import Schedule

FORWARD, INPUTS, WEIGHTS = 1.0, 1.0, 1.0


def _run(schedule: Schedule, stages: int, micro_batches: int, chunks: int = 1) -> tuple[float, list[float]]:
    """Seconds, and micro-batches' worth of activations on each stage."""
    orders = [stage_order(schedule, stage, stages, micro_batches, chunks) for stage in range(stages)]

    def seconds(_stage: int, work: Work) -> float:
        parts = {"forward": FORWARD, "weights": WEIGHTS, "backward": INPUTS + (0 if schedule == "zb_h1" else WEIGHTS)}
        return parts[work.kind] / chunks

    ends = finish_times(orders, chunks, seconds, lambda *_: 0.0)
    held = [held_counts(schedule, stage, stages, micro_batches, chunks) for stage in range(stages)]
    return max(ends), [max(map(sum, counts)) / chunks for counts in held]


@pytest.mark.parametrize(("stages", "micro_batches"), [(2, 2), (4, 8), (8, 32)])
def test_bubbles_are_those_of_the_papers(stages: int, micro_batches: int) -> None:
    work = micro_batches * (FORWARD + INPUTS + WEIGHTS)
    bubble = (stages - 1) * (FORWARD + INPUTS + WEIGHTS)
    assert _run("gpipe", stages, micro_batches)[0] == pytest.approx(work + bubble)
    assert _run("1f1b", stages, micro_batches)[0] == pytest.approx(work + bubble)
    assert _run("interleaved", stages, micro_batches, 2)[0] == pytest.approx(work + bubble / 2)
    assert _run("zb_h1", stages, micro_batches)[0] == pytest.approx(work + (stages - 1) * (FORWARD + INPUTS - WEIGHTS))


@pytest.mark.parametrize(("stages", "micro_batches", "chunks"), [(4, 8, 2), (8, 32, 3)])
def test_held_activations_are_those_of_the_papers(stages: int, micro_batches: int, chunks: int) -> None:
    assert _run("gpipe", stages, micro_batches)[1] == [micro_batches] * stages
    assert _run("1f1b", stages, micro_batches)[1] == [stages - i for i in range(stages)]
    assert _run("zb_h1", stages, micro_batches)[1] == [stages] * stages
    most = _run("interleaved", stages, micro_batches, chunks)[1][0]
    assert most == pytest.approx(stages * (1 + (stages - 1) / (stages * chunks)))


def test_every_pass_runs_once_on_every_stage() -> None:
    for stage in range(4):
        order = stage_order("interleaved", stage, 4, 8, 3)
        assert len(set(order)) == len(order) == 2 * 8 * 3


def test_orders_that_wait_for_each_other_are_a_deadlock() -> None:
    orders = [[Work("backward", 0), Work("forward", 0)], [Work("forward", 0), Work("backward", 0)]]
    with pytest.raises(ValueError, match="deadlock"):
        finish_times(orders, 1, lambda *_: 1.0, lambda *_: 0.0)
