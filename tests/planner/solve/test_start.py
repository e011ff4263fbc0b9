"""What a search starts from: no answer is worse than it, and every CP model gets it as a hint."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import pytest

from planner.evaluate.setting import setting
from planner.plan import plan_space
from planner.problem import Problem, load_problem
from planner.solve import optimum as optimum_module
from planner.solve.cp import CpAnswer, PipelineModel
from planner.solve.dp import Path
from planner.solve.objective import NAMES, Name
from planner.solve.optimum import SpaceSearch
from tests.oracle_problems import random_case

TEXTBOOK = (
    ("llama-3.1-70b", "1x8-h100", "prefill:batch=16,prompt=4096"),
    ("qwen2.5-7b", "1x4-l40s", "decode:batch=64,context=4096"),
    ("mixtral-8x7b", "1x8-h100", "decode:batch=32,context=4096"),
)


@dataclass
class Monitor:
    """Every CP model of a search: what it was given to start from, and what it answered."""

    hints: list[Path] = field(default_factory=list)
    answers: list[CpAnswer] = field(default_factory=list)


@pytest.fixture
def monitor(monkeypatch: pytest.MonkeyPatch) -> Monitor:
    """Watches every CP model; one that is solved without a whole pipeline as its hint fails the test."""
    seen = Monitor()

    class Watched(PipelineModel):
        started = False

        def hint(self, path: Path) -> None:
            legs = {leg for leg, _ in self.legs}
            assert set(path.legs) <= legs, "the pipeline it starts from has been excluded from the model"
            assert path.legs[0].start == 0
            assert path.legs[-1].stop == self.table.layers
            seen.hints.append(path)
            self.started = True
            super().hint(path)
            assert len(self.model.proto.solution_hint.vars) >= len(self.legs)

        def solve(self, seed: int, workers: int, effort: float) -> CpAnswer:
            assert self.started, "a CP model without a start"
            answer = super().solve(seed, workers, effort)
            seen.answers.append(answer)
            return answer

    monkeypatch.setattr(optimum_module, "PipelineModel", Watched)
    return seen


def searched(asked: Problem, objective: Name = "latency") -> SpaceSearch:
    return SpaceSearch(setting(asked.model, asked.workload, asked.cluster), asked.space, objective)


def test_every_cp_model_starts_from_the_exact_programs_pipeline(monitor: Monitor) -> None:
    solved = 0
    for seed in range(24):
        for name in NAMES:
            answer = searched(random_case(seed), name).run()
            solved += answer.counts.iterations
            assert answer.bound <= answer.value
    assert len(monitor.hints) == len(monitor.answers) == solved > 10


@pytest.mark.parametrize("name", ["helix", "layer_wise"])
def test_the_cp_models_of_the_library_start_from_it(name: str, monitor: Monitor) -> None:
    found = searched(load_problem(name)).run()
    assert len(monitor.hints) == len(monitor.answers) == found.counts.iterations == 1
    assert monitor.answers[0].status == "OPTIMAL"


@pytest.mark.parametrize(("model", "cluster", "workload"), TEXTBOOK)
def test_no_answer_is_worse_than_the_textbook_plans(model: str, cluster: str, workload: str) -> None:
    """Equal stages of equal tensor parallel groups, replicas of them, and the exact program's answer of each branch alone."""
    asked = load_problem(model=model, cluster=cluster, workload=workload)
    best = searched(asked).run()
    size, tried = asked.cluster.size, 0
    for replicas in (1, 2, size):
        for stages in (1, 2, 4):
            ways = size // replicas // stages
            if ways == 0:
                continue
            layers = asked.sizes.layers // stages
            counts = [layers] * (stages - 1) + [asked.sizes.layers - layers * (stages - 1)]
            places = [list(range(i * ways, i * ways + ways)) for i in range(stages)]
            named = [{"layers": n, "devices": ranks} for n, ranks in zip(counts, places, strict=True)]
            written = {"replicas": replicas, "attention": {"head_groups": ways}, "stages": named}
            plain = searched(replace(asked, space=plan_space(written, asked.space, ""))).run()
            if plain.choice is not None:
                tried += 1
                assert best.value <= plain.value * (1 + 1e-9)
    assert tried > 2
    values = [value for value, _ in searched(asked).branch_optima(skip=(0, 0))]
    assert best.value == pytest.approx(min(values), rel=1e-9)
