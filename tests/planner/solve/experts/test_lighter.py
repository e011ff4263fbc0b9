"""Many different loads: compared under a few, priced and bounded under all."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from planner.evaluate.evaluation import evaluate
from planner.graph.experts import moe_rows
from planner.graph.least import least_table
from planner.problem import Problem, load_problem
from planner.search import search
from planner.solve.experts.lighter import MOST, floor_load, floor_workload, lighter
from planner.solve.experts.options import different_loads, with_placements
from planner.solve.optimum import SpaceSearch
from search_spaces.experts import ExpertPlacement
from tests.planner.solve.experts.test_search import MODEL, ONE_STAGE, env_of

ROWS = [[float(x) for x in row] for row in np.random.default_rng(0).uniform(0.2, 6.0, (9, 8)).round(2)]


def problem(rows: list[list[float]] = ROWS) -> Problem:
    """A mixture with a row of loads for each layer."""
    workload = {"phase": "prefill", "batch": 16, "prompt": 2048, "expert_load": rows}
    space = {**ONE_STAGE, "use_all": False, "experts": {"form": "dispatch", "tensor_ways": 1}}
    return load_problem(model={**MODEL, "layers": len(rows)}, cluster="1x4-h100", workload=workload, space=space)  # type: ignore[arg-type]


def test_a_few_loads_stand_for_all() -> None:
    asked = problem()
    few = lighter(env_of(asked), with_placements(env_of(asked), asked.space))
    assert few is not None
    assert len(few.expert_load) == len(ROWS)
    assert len(set(few.expert_load)) == MOST
    assert set(few.expert_load) <= set(asked.workload.expert_load)
    assert lighter(env_of(problem(ROWS[:MOST])), problem(ROWS[:MOST]).space) is None


def test_the_answer_is_priced_under_all_loads_and_no_worse_than_what_is_searched_under_all() -> None:
    asked = problem()
    found = search(asked)
    assert found.choice is not None
    assert found.value is not None
    assert found.bound is not None
    env = env_of(asked)
    assert evaluate(env, asked.sizes, found.choice).latency_s == pytest.approx(found.value, rel=1e-9)
    under_all = SpaceSearch(env, with_placements(env, asked.space)).run()
    assert found.bound <= found.value <= under_all.value * (1 + 1e-9)
    assert any("different expert loads" in rule for rule in found.problem.restrictions)
    assert not found.decisions


@pytest.mark.parametrize("seed", range(5))
def test_the_floor_of_loads_is_below_each_of_them(seed: int) -> None:
    """It majorizes every row, so that the least rows of a mixture are at most those of every row."""
    rng = np.random.default_rng(seed)
    rows = tuple(tuple(row) for row in rng.exponential(1.0, (6, 8)).tolist())
    floor = floor_load(rows)
    assert sum(floor) == pytest.approx(1.0)
    assert (np.diff(floor) <= 1e-12).all()
    for row in rows:
        shares = np.sort(np.array(row) / sum(row))[::-1]
        assert (np.cumsum(floor) >= np.cumsum(shares) - 1e-12).all()
    ffn, at = problem().model.layers[0].ffn, np.arange(2)
    for tokens in (1, 3, 17, 400):

        def least(load: tuple[float, ...], tokens: int = tokens) -> np.ndarray:
            table = least_table(ffn, [(ExpertPlacement("dispatch"), 4)], load)
            rows = moe_rows(table, at, at * 0 + tokens, at * 0 + 4, at * 0 + 1, ffn.top_k)
            return np.stack([rows.active, rows.routed, rows.experts])

        assert all((least(floor) <= least(row)).all() for row in rows)


def test_the_bound_under_floors_is_below_the_bound_under_all_loads() -> None:
    asked = problem()
    env = replace(env_of(asked), any_placement=True)
    floors = floor_workload(asked.workload)
    assert len(set(floors.expert_load)) == MOST
    below = SpaceSearch(replace(env, workload=floors), asked.space).run(prove=False).bound
    assert below <= SpaceSearch(env, asked.space).run(prove=False).bound * (1 + 1e-12)
    assert len(different_loads(env)) == len(ROWS)
