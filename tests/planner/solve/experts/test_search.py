"""Placements in a search: better than consecutive experts, sound, bounded for every placement, and paid for in memory."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from planner.check.validate import check_choice
from planner.costs.memory import reserve_bytes
from planner.evaluate.evaluation import evaluate
from planner.evaluate.setting import Setting, setting
from planner.graph.experts import moe_rows, moe_table
from planner.graph.least import least_table
from planner.plan import choice_to_dict, plan_space
from planner.problem import Problem, load_problem
from planner.search import Result, search
from planner.solve.experts.options import different_loads, with_placements
from planner.solve.optimum import SpaceSearch
from search_spaces.experts import ExpertPlacement
from tests.planner.solve.experts.test_load import placements

LOAD = [40.0, 30, 5, 5, 4, 3, 2, 1]
MODEL = {
    "name": "tiny", "layers": 4, "hidden": 4096, "attention": {"heads": 32, "kv_heads": 8, "head_dim": 128},
    "ffn": {"kind": "moe", "experts": 8, "top_k": 2, "hidden": 14336}, "vocab": 0, "dtype": "bf16",
}  # fmt: skip
ONE_STAGE = {"replicas": 1, "stages": 1, "use_all": True, "micro_batches": 1, "experts": {"form": "dispatch", "tensor_ways": 1}}


def problem(load: object = LOAD, prompt: int = 2048, **space: object) -> Problem:
    workload = {"phase": "prefill", "batch": 16, "prompt": prompt, "expert_load": load}
    experts = {**ONE_STAGE["experts"], **space}  # type: ignore[dict-item]
    return load_problem(model=MODEL, cluster="1x4-h100", workload=workload, space={**ONE_STAGE, "experts": experts})  # type: ignore[arg-type]


def found(asked: Problem) -> Result:
    return search(asked, details=False)


def env_of(asked: Problem) -> Setting:
    return setting(asked.model, asked.workload, asked.cluster)


def test_a_search_places_experts_better_than_in_a_row_and_its_plan_is_sound() -> None:
    plain, better = found(problem(placement="consecutive")), found(problem())
    assert plain.value is not None
    assert better.value is not None
    assert better.choice is not None
    assert plain.status == "optimal"
    assert plain.choice is not None
    assert not plain.choice.stages[0].experts.placement  # type: ignore[union-attr]
    assert better.value < 0.8 * plain.value
    (told,) = better.experts
    assert told.load < told.consecutive_load
    assert told.copies > 0
    assert told.extra_bytes > 0
    assert told.load_bound <= told.load
    assert told.seconds_bound <= told.seconds < told.consecutive_s
    env, sizes = env_of(problem()), better.problem.sizes
    assert not [f for f in check_choice(env, sizes, better.choice) if f.severity == "error"]
    assert evaluate(env, sizes, better.choice).latency_s == pytest.approx(better.value, rel=1e-9)
    written = choice_to_dict(better.choice, sizes)
    assert better.choice in list(plan_space(written, problem().space, "").choices())


def test_the_bound_is_one_of_any_placement_and_the_status_says_so() -> None:
    result = found(problem())
    assert result.gap is not None
    assert result.bound is not None
    assert result.status == ("optimal" if result.gap <= 1e-6 else "feasible")
    assert any("placement search" in rule for rule in result.problem.restrictions)
    asked = problem()
    env = env_of(asked)
    tried = list(placements(8, 4, 2))[::400]
    space = replace(asked.space, experts=replace(asked.space.experts, placement=tuple(tried)))
    assert result.bound <= SpaceSearch(env, space).run().value * (1 + 1e-9)


def test_loads_of_layers_are_balanced_together_and_never_worse_than_in_a_row() -> None:
    loads = [LOAD, LOAD[::-1], [1.0] * 8, [9.0, 1, 1, 1, 9, 1, 1, 1]]
    plain, better = found(problem(load=loads, placement="consecutive")), found(problem(load=loads))
    assert plain.value is not None
    assert better.value is not None
    assert better.value < plain.value
    assert len(different_loads(env_of(problem(load=loads)))) == 3


def test_copies_are_left_out_where_the_memory_has_no_room_for_them() -> None:
    asked = problem(prompt=256)
    roomy = found(asked)
    assert roomy.evaluation is not None
    fullest = max((device.memory for device in roomy.evaluation.devices), key=lambda memory: memory.total_bytes)
    kind = next(iter(asked.cluster.kinds.values()))

    def with_memory(tensors: float) -> Result:
        """The answer where a GPU has so many bytes besides its reserve, part of which grows with its memory."""
        share = (reserve_bytes(kind) - reserve_bytes(replace(kind, memory_bytes=0))) / kind.memory_bytes
        memory = (tensors + reserve_bytes(replace(kind, memory_bytes=0))) / (1.0 - share)
        kinds = {kind.name: replace(kind, memory_bytes=int(memory))}
        return found(replace(asked, cluster=replace(asked.cluster, kinds=kinds)))

    needed = fullest.total_bytes - fullest.reserve_bytes
    tight = with_memory(needed - 2 * roomy.experts[0].extra_bytes)  # four layers hold the copies
    assert tight.value is not None
    assert roomy.value is not None
    assert tight.value > roomy.value
    assert sum(s.extra_bytes for s in tight.experts) < sum(s.extra_bytes for s in roomy.experts)
    assert with_memory(needed / 4).status == "infeasible"


def test_a_bound_by_whole_experts_comes_close() -> None:
    workload = {"phase": "prefill", "batch": 16, "prompt": 4096, "expert_load": [900.0, 300, 200, 100, 50, 40, 30, 20]}
    result = search(load_problem(model="mixtral-8x7b", cluster="1x8-h100", workload=workload), details=False)
    assert result.gap is not None
    assert 0.0 <= result.gap < 0.001


def test_equal_loads_leave_the_space_as_it_is() -> None:
    even = problem(load=[1.0] * 8)
    assert found(even).problem.space == even.space
    skewed = problem()
    assert with_placements(env_of(skewed), skewed.space).size() > skewed.space.size()


@pytest.mark.parametrize("tokens", [1, 7, 64, 4096])
def test_the_least_rows_are_below_the_fullest_gpu_of_every_placement(tokens: int) -> None:
    ffn = problem().model.layers[0].ffn
    load = tuple(LOAD)

    def rows(table: object, entries: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        at = np.arange(entries)
        found = moe_rows(table, at, at * 0 + tokens, at * 0 + 4, at * 0 + 1, ffn.top_k)  # type: ignore[arg-type]
        return found.routed, found.active, found.experts

    least = least_table(ffn, [(ExpertPlacement("dispatch"), 4)], load)
    routed, active, experts = rows(least, 2)
    rng = np.random.default_rng(tokens)
    for _ in range(40):
        placement = tuple(tuple(sorted(rng.choice(4, rng.integers(1, 4), replace=False).tolist())) for _ in LOAD)
        table = moe_table(ffn, [(ExpertPlacement("dispatch", 1, 0, placement), 4)], load)
        real = rows(table, table.owner.size)
        assert real[0].max() >= routed[0]
        assert real[1].max() >= active[1]
        assert real[2].max() >= experts.max()
        assert table.reach[0] >= least.reach[0] - 1e-12
        assert table.spread[0] >= least.spread[0]
    assert active[0] == 1
