"""Software stacks scale starts and nothing else; intervals follow from what a time is made of."""

from __future__ import annotations

from math import exp

import pytest

from planner.clusters import load_cluster, load_gpu
from planner.costs import GroupShape, Roofline
from planner.costs.calibration import calibration
from planner.costs.intervals import QUANTILE, relative_interval
from planner.costs.stacks import (
    Mechanisms,
    find_stack,
    load_stack,
    mechanisms,
    pricer_with,
    scaled,
    schedules,
    stack_pricer,
    stacks,
)
from planner.errors import InputError
from planner.evaluate.serving import Mixing


def test_starts_alone_are_scaled() -> None:
    """A product of nothing but its start costs a share of it, a large one nearly what it did; without starts none is left."""
    cluster = load_cluster("1x8-h100")
    usual, half = Roofline(load_gpu("h100")), pricer_with(cluster, scaled(calibration(), Mechanisms(0.5, 0.25, 0.0)))
    start = calibration()["gpus"]["h100"]["gemm"]["bf16"]["launch_s"]
    for sizes in ((1, 128, 128), (8192, 8192, 8192)):
        assert usual.get_time(*sizes) - half.sources["h100"].get_time(*sizes) == pytest.approx(0.5 * start, rel=1e-6)
    shape = GroupShape(8, 1, 8)
    lone = calibration()["collectives"]["h100"]["all_reduce"]
    saved = pricer_with(cluster, calibration()).collectives.time("all_reduce", 1e6, shape) - half.collectives.time(
        "all_reduce", 1e6, shape
    )
    assert saved == pytest.approx(0.75 * (lone["start_s"] + 7 * lone["step_s"]), rel=1e-6)
    assert calibration()["gpus"]["h100"]["gemm"]["bf16"]["launch_s"] == start


def test_a_narrow_cache_is_read_faster() -> None:
    """Decode attention over a long fp8 cache takes less than over one of bf16."""
    cluster, stack = load_cluster("1x1-h100"), load_stack("vllm")
    wide, narrow = (stack_pricer(cluster, stack, cache).sources["h100"] for cache in (None, "fp8"))
    sizes = (64, 8, 8, 1, 8192, 128, 128)
    assert narrow.attention(*sizes) < 0.75 * wide.attention(*sizes)


def test_stacks_are_found_by_name_date_and_machine() -> None:
    """One name is three stacks: that of 2024, that of today, and that on AMD; unknown words are none."""
    asked = (("vLLM", "2024-09", ""), ("vllm", "", ""), ("vLLM", "2024-09", "MI300X-192GB"))
    found = [find_stack(*words) for words in asked]
    assert [stack.name for stack in found if stack] == ["vllm-2024", "vllm", "vllm-rocm"]
    assert find_stack("trtllm", "2023-10") == load_stack("tensorrt-llm-0") and find_stack("own") is None
    with pytest.raises(InputError):
        load_stack("own")


def test_every_stack_has_a_design_a_schedule_and_a_source() -> None:
    """Shares are sound, and a step grows with its requests only where the scheduler works between steps."""
    for stack in stacks().values():
        assert stack.design in mechanisms() and Mixing(**schedules()[stack.schedule]).tokens <= 1.0 and stack.source
        assert 0.0 <= stack.step_s < 0.05 and stack.host_s(64) >= stack.host_s(1)
    assert load_stack("tensorrt-llm").host_s(64) == load_stack("tensorrt-llm").step_s


def test_intervals_by_hand() -> None:
    """Two classes of equal time that are independently 10 % off: 7 % together, and the run's own spread on top."""
    given = {"run": 0.0, "gemm": 0.1, "attention": 0.1}
    low, high = relative_interval({"gemm": 1.0, "attention": 1.0}, given)
    assert high == pytest.approx(exp(QUANTILE * 0.1 / 2**0.5)) and low == pytest.approx(1.0 / high)
    assert relative_interval({"gemm": 1.0}, given)[1] == pytest.approx(exp(QUANTILE * 0.1))
    assert relative_interval({}, given | {"run": 0.2})[1] == pytest.approx(exp(QUANTILE * 0.2))
