"""The front of a priced space is that of brute force."""

from __future__ import annotations

import pytest

from planner.evaluate.setting import setting
from planner.problem import load_problem
from planner.solve.answer import Limits
from planner.solve.front import FrontSearch, Pair
from planner.solve.objective import Caps
from planner.solve.optimum import SpaceSearch
from tests.measured import check_front, small_problem
from tests.planner.solve.test_optimum import SMALL

PAIRS: list[Pair] = [("latency", "cost"), ("throughput", "latency"), ("cost", "throughput")]
SEEDS = range(3000, 3048)
CHUNK = 4


@pytest.mark.parametrize("first", range(SEEDS.start, SEEDS.stop, CHUNK))
def test_brute_force_agrees(first: int) -> None:
    """No plan dominates a point, none is missing, the ends are the optima of each objective."""
    for seed in range(first, first + CHUNK):
        problem = small_problem(seed)
        if problem is not None:
            check_front(seed, PAIRS[seed % 3], *problem)


def _search(pair: Pair, limits: Limits | None = None) -> FrontSearch:
    problem = load_problem(SMALL)
    env, limits = setting(problem.model, problem.workload, problem.cluster), limits or Limits()
    return FrontSearch(SpaceSearch(env, problem.space, pair[0], limits), pair, limits)


@pytest.mark.parametrize("pair", PAIRS)
def test_fewer_points_are_points_of_the_whole_front(pair: Pair) -> None:
    """Both ends stay; what is found in between is the same as in the whole; it says that there is more."""
    whole, some = _search(pair), _search(pair)
    every, few = whole.run(1000), some.run(3)
    assert whole.closed and len(every) > 3 and len(few) == 3 and not some.closed
    found = [(corner.first, corner.second) for corner in every]
    for corner in few:
        assert any(abs(corner.first / a - 1) < 1e-6 and abs(corner.second / b - 1) < 1e-6 for a, b in found)
    assert (few[0].first, few[-1].second) == (every[0].first, every[-1].second)


def test_the_other_way_round_is_the_same_front() -> None:
    """Points do not depend on which objective comes first."""
    there, back = _search(("latency", "cost")).run(1000), _search(("cost", "latency")).run(1000)
    assert len(there) == len(back)
    for one, other in zip(there, reversed(back), strict=True):
        assert (one.first, one.second) == pytest.approx((other.second, other.first), rel=1e-6)


def test_no_time_gives_no_point_and_says_so() -> None:
    """A limit that is over at once."""
    search = _search(("latency", "cost"), Limits(seconds=0.0))
    assert search.run(10) == [] and search.stopped and not search.closed


def test_an_interrupt_keeps_what_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """The points so far, all of them proven, and no claim that there are no others."""
    search, run, calls = _search(("latency", "cost")), SpaceSearch._linear, []

    def interrupted(self, *args, **kwargs):
        calls.append(1)
        if search.searches == 7:
            raise KeyboardInterrupt
        return run(self, *args, **kwargs)

    monkeypatch.setattr(SpaceSearch, "_linear", interrupted)
    found = search.run(1000)
    assert search.interrupted and not search.closed and len(found) >= 2
    assert all(corner.proven for corner in found)


def test_caps_hold_on_every_point() -> None:
    """A front within caps ends where they bind."""
    limits = Limits(caps=Caps(gpus=3))
    found = _search(("latency", "cost"), limits).run(1000)
    assert found and all(corner.gpus <= 3 for corner in found)
