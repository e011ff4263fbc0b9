"""Placements that are fast: bounded by whole experts, no slower than the load-balanced ones, optimal where all can be tried."""

from __future__ import annotations

import numpy as np
import pytest

from planner.clusters import load_cluster
from planner.evaluate.setting import setting
from planner.models import load_model
from planner.solve.experts.costs import Mixture
from planner.solve.experts.load import balance
from planner.solve.experts.timed import fastest
from planner.workload import load_workload
from search_spaces.experts import legal_placement
from tests.golden.expert_loads import expert_loads
from tests.planner.solve.experts.test_load import placements


def mixture(model: str, cluster: str, tokens: int, form: str = "dispatch", gpus: int = 0) -> Mixture:
    hardware = load_cluster(cluster)
    env = setting(load_model(model), load_workload(f"decode:batch={tokens},context=1024"), hardware)
    layer = next(kind for kind in env.kinds if kind.moe)
    return Mixture(env, layer, form, 1, tuple(range(gpus or hardware.size)), tokens)  # type: ignore[arg-type]


@pytest.mark.parametrize("tokens", [64, 2048])
@pytest.mark.parametrize("slots", [8, 9])
def test_measured_loads_come_close_to_a_bound_of_whole_experts(tokens: int, slots: int) -> None:
    loads, case = expert_loads()[:3], mixture("deepseek-v3", "4x8-h100", tokens)
    found = fastest(case, loads, slots)
    even = balance(loads, 32, slots, exact=False)
    balanced = case.placed_seconds([a.placement for a in even], [tuple(row) for row in loads.tolist()])
    for answer, other in zip(found, balanced.tolist(), strict=True):
        assert legal_placement(answer.placement, 256, 32)
        assert answer.bound <= answer.seconds <= min(other, answer.greedy_s)
        assert answer.gap < 0.06
        count = np.bincount([g for held in answer.placement for g in held], minlength=32)
        assert count.max() <= slots
        assert answer.extra_bytes == pytest.approx(max(0, int(count.max()) - 8) * case.expert_bytes())


@pytest.mark.parametrize(("form", "tokens", "slots"), [("dispatch", 4, 5), ("dispatch", 4096, 4), ("local", 4096, 5)])
def test_bounds_hold_and_the_best_of_all_placements_is_nearly_met(form: str, tokens: int, slots: int) -> None:
    case, loads = mixture("mixtral-8x7b", "1x2-h100", tokens, form), np.array([[900.0, 300, 200, 100, 50, 40, 30, 20]])
    (answer,) = fastest(case, loads, slots)
    every = list(placements(8, 2, slots))
    best = case.placed_seconds(every, [tuple(loads[0].tolist())] * len(every)).min()
    assert answer.bound <= best * (1 + 1e-9)
    assert best <= answer.seconds <= best * 1.01


def test_fewer_copies_stand_where_reading_them_costs_more_than_they_save() -> None:
    loads = expert_loads()[:1]
    (few,), (many,) = (fastest(mixture("deepseek-v3", "4x8-h100", tokens), loads, 9, effort=0) for tokens in (32, 16384))
    assert few.copies < many.copies
    assert many.extra_bytes == pytest.approx(mixture("deepseek-v3", "4x8-h100", 32).expert_bytes())
