"""Options that are left out of a proof: none of them is ever the best, whatever the layers and the memory."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray

from planner.certify.stages import StageTimes
from planner.certify.thin import needed
from planner.evaluate.setting import setting
from planner.evaluate.stage import stage_price, view
from planner.problem import Problem, load_problem
from tests.planner.certify.small import MIXED_MODEL

Array = NDArray[np.float64]
MIXED = {
    "model": MIXED_MODEL,
    "workload": {"phase": "decode", "batch": 16, "context": 4096}, "cluster": "2x4-h100", "space": {"replicas": [1, 2]},
}  # fmt: skip


@pytest.fixture(scope="module")
def problem() -> Problem:
    """Dense layers before mixtures, so that FFN options are told apart by neither alone."""
    return load_problem(MIXED)


def test_every_row_has_one_that_is_nowhere_above_it() -> None:
    """What is kept covers all rows, and of what is kept nothing covers anything else; of equal rows the first is kept."""
    costs = np.random.default_rng(0).integers(0, 4, size=(200, 3)).astype(float)
    kept = needed(costs)
    covers = (costs[kept][None, :, :] <= costs[:, None, :]).all(axis=2)
    assert covers.any(axis=1).all() and kept.size < 100
    assert (covers[kept].sum(axis=1) == 1).all()
    assert needed(np.ones((3, 2))).tolist() == [0]


def prices(problem: Problem, times: StageTimes) -> Iterator[tuple[tuple[object, int, int], Array, Array]]:
    """Site, micro-batch size and count, with seconds and bytes of every single option on all layers [rows, options]."""
    env, space = setting(problem.model, problem.workload, problem.cluster), times.space
    for site, (own, table) in times.grounds.items():
        for replicas, micro_batches in space.branches:
            sequences = space.sequences(replicas, micro_batches)
            usable, batch = own.usable(space.sizes, sequences).ravel(), times.sequences.index(sequences)
            if usable.any():
                price = stage_price(view(env, space.sizes, table, 0, batch, sequences * micro_batches), times.rows[0])
                seconds, memory = (x.reshape(x.shape[0], -1)[:, usable] for x in (price.seconds, price.memory))
                yield (site, sequences, micro_batches), seconds, memory


def test_the_least_of_what_is_left_is_the_least_of_all(problem: Problem) -> None:
    """For every site, micro-batch, layers and limits on memory: the same seconds as over every single option."""
    env, space = setting(problem.model, problem.workload, problem.cluster), replace(problem.space, large=1)
    every = list(prices(problem, StageTimes(env, space, np.inf)))
    bytes_ = np.sort(np.concatenate([memory.ravel() for _, _, memory in every]))
    for share in (0.02, 0.3, 1.0):
        most = float(bytes_[int(share * (bytes_.size - 1))])
        times, finite = StageTimes(env, space, most), 0
        for key, seconds, memory in every:
            plain = np.where(memory <= most, seconds, np.inf).min(axis=1)
            assert np.allclose(times.least(*key), plain, rtol=1e-12)
            finite += int(np.isfinite(plain).sum())
        assert finite


def test_the_fastest_layers_are_those_of_the_single_options(problem: Problem) -> None:
    """Where dense layers and mixtures mix, each layer is priced with the FFN that an option has for its kind."""
    env = setting(problem.model, problem.workload, problem.cluster)
    times = StageTimes(env, problem.space, np.inf)
    for sequences in times.sequences:
        least = np.full(len(env.kinds), np.inf)
        for own, table in times.grounds.values():
            batch = times.sequences.index(sequences)
            v = view(env, problem.space.sizes, table, 0, batch, sequences)
            usable = own.usable(problem.space.sizes, sequences).ravel()
            for kind in range(len(env.kinds)):
                seconds = (v.attention(kind).seconds[:, None] + v.ffn(kind).seconds).ravel()[usable]
                least[kind] = min(least[kind], seconds.min(initial=np.inf))
        counts = np.bincount(np.asarray(env.kind_of_layer))
        found = times.fastest_layers(sequences)
        assert found is not None and found[0] == pytest.approx(float(counts @ least), rel=1e-12)
