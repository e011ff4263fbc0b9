"""Where limits or memory leave no training plan, what is named fits, and a little less does not."""

from __future__ import annotations

import math
import re
from dataclasses import replace

import pytest

from planner.clusters import load_cluster
from planner.evaluate.setting import setting
from planner.models import load_model
from planner.problem.sizes import sizes_of
from planner.solve.answer import Limits
from planner.solve.objective import NO_CAPS, Caps, Name
from planner.solve.relaxation import Relaxation
from planner.solve.training import TrainingSearch
from planner.solve.training_relaxation import training_relaxation
from planner.workload import load_workload
from search_spaces.training_space import TrainingSpace

MODEL = {
    "name": "m", "layers": 2, "hidden": 2048, "vocab": 8000, "attention": {"heads": 4, "kv_heads": 2}, "ffn": {"hidden": 8192},
}  # fmt: skip


def search_of(caps: Caps = NO_CAPS, objective: Name = "latency", memory_bytes: float | None = None) -> TrainingSearch:
    """A small problem on three GPUs, of another memory where it is given."""
    model, workload, cluster = (
        load_model(MODEL),
        load_workload("training:global_batch=8,sequence=1024"),
        load_cluster("1x4-h100"),
    )
    if memory_bytes is not None:
        kinds = {name: replace(kind, memory_bytes=int(memory_bytes)) for name, kind in cluster.kinds.items()}
        cluster = replace(cluster, kinds=kinds)
    space = TrainingSpace(sizes_of(model, workload, cluster))
    return TrainingSearch(setting(model, workload, cluster), space, objective, Limits(caps=caps))


def fits(caps: Caps) -> bool:
    return search_of(caps).run(any_plan=True).choice is not None


def told(caps: Caps, objective: Name = "latency") -> Relaxation:
    asked = search_of(caps, objective)
    found = asked.run()
    assert found.choice is None and found.complete
    return training_relaxation(asked, found)


def number(pattern: str, found: Relaxation) -> float:
    match = re.search(pattern, found.change)
    assert match is not None, found
    return float(match.group(1))


@pytest.mark.parametrize("objective", ["latency", "cost"])
def test_the_latency_named_is_the_least_under_the_other_limits(objective: Name) -> None:
    """In seconds, whatever is optimized, and on the GPUs that are allowed."""
    found = told(Caps(latency_s=1e-5, gpus=2), objective)
    needed = number(r"a latency of ([\d.]+) ms", found) / 1e3
    assert fits(Caps(latency_s=needed, gpus=2)) and not fits(Caps(latency_s=needed * 0.999, gpus=2))
    assert found.constraint.startswith("no plan is under 10 us: the fastest takes ")
    best = search_of(Caps(latency_s=needed, gpus=2), objective).run()
    assert found.then == pytest.approx(best.value, rel=1e-9)


def test_the_gpus_named_are_the_fewest() -> None:
    fast = search_of(Caps(gpus=3)).run().value * 1.001
    found = told(Caps(latency_s=fast, gpus=1))
    many = int(number(r"or (\d+) GPUs", found))
    assert fits(Caps(latency_s=fast, gpus=many)) and not fits(Caps(latency_s=fast, gpus=many - 1))


@pytest.mark.parametrize("latency_s", [math.inf, 0.1])
def test_the_memory_named_is_the_least(latency_s: float) -> None:
    found = told(Caps(memory_bytes=3e9, latency_s=latency_s))
    needed = number(r"([\d.]+) GB of memory on each GPU", found) * 1e9
    assert fits(Caps(memory_bytes=needed, latency_s=latency_s))
    assert not fits(Caps(memory_bytes=needed - 1e7, latency_s=latency_s))


def test_limits_that_only_together_leave_nothing() -> None:
    fastest = search_of().run().value
    found = told(Caps(latency_s=fastest / 2, memory_bytes=1e9))
    assert "together" in found.constraint and found.then is None


def test_gpus_of_the_memory_named_fit_and_a_gigabyte_less_does_not() -> None:
    """The reserve grows with the memory: more is needed than is lacking."""
    asked = search_of(memory_bytes=1e9)
    nothing = asked.run()
    assert nothing.choice is None and nothing.complete
    found = training_relaxation(asked, nothing)
    assert found.constraint == "memory of a GPU"
    needed = number(r"^(\d+) GB of memory on each GPU", found) * 1e9
    larger = search_of(memory_bytes=needed).run()
    assert larger.value == pytest.approx(found.then, rel=1e-9)
    assert search_of(memory_bytes=needed - 1e9).run().choice is None
