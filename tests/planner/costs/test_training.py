"""Training stacks: what they weigh, that the plain one changes nothing, and that every price stays a constant that grows."""

from dataclasses import replace

import numpy as np
import pytest

from planner.clusters import load_cluster
from planner.costs.pricer import Pricer, Sites
from planner.costs.training import PLAIN, TrainingPricer, calibrated, load_stack, stack_names, sustained
from planner.errors import InputError
from planner.evaluate.setting import Setting
from planner.evaluate.training import Step, training_step
from planner.evaluate.training_classes import class_seconds
from planner.graph.ops import Kind, Op, Tensor
from planner.models import load_model
from planner.problem.sizes import sizes_of
from planner.workload import load_workload
from search_spaces.attention import AttentionPartition
from search_spaces.stages import Choice, StageChoice
from search_spaces.training import TrainingChoice

MODEL = {
    "name": "gpt", "layers": 4, "hidden": 1024, "vocab": 0, "norm_kind": "layer", "dtype": "bf16",
    "attention": {"heads": 16, "rope": "none"}, "ffn": {"hidden": 4096, "activation": "gelu"},
}  # fmt: skip


LONE = replace(PLAIN, name="lone")
"""Nothing weighed but the clock that products sustain."""


def _step(stack=None, *, stages=2, gradient="fp32", **training) -> Step:
    model, cluster = load_model(MODEL), load_cluster("1x8-a100-80gb")
    workload = load_workload(f"training:global_batch=8,sequence=1024,gradient_dtype={gradient}")
    partition = AttentionPartition(head_groups=2)
    split = tuple(StageChoice(4 // stages, (2 * i, 2 * i + 1), partition, 2) for i in range(stages))
    choice = Choice(2, 4, split, 1, TrainingChoice(**training))
    env = Setting(model, workload, cluster, Pricer(cluster))
    return training_step(env, sizes_of(model, workload, cluster), choice, stack=stack)


def test_the_plain_stack_changes_nothing() -> None:
    assert _step(PLAIN).seconds == _step().seconds


def test_stacks_are_named_and_unknown_ones_refused() -> None:
    assert {"megatron-core", "pytorch-fsdp"} <= set(stack_names())
    assert all(load_stack(name).source.startswith("fitted") for name in stack_names())
    with pytest.raises(InputError, match="megatron-core"):
        load_stack("megatron-cor")


@pytest.mark.parametrize(
    "more",
    [
        {"host_s": 1e-4}, {"gemm": 2.0}, {"attention": {"ampere": 3.0}}, {"memory": 2.0}, {"communication": 2.0},
        {"gradients": 3.0}, {"exposed": 1.0}, {"accumulate_bytes": 40.0}, {"blocking": 1.0}, {"step_s": 0.1},
    ],
)  # fmt: skip
def test_each_constant_costs_time(more: dict[str, object]) -> None:
    assert _step(replace(LONE, **more)).seconds > _step(LONE).seconds


def test_gradients_of_the_product_s_own_width_need_no_sum_of_their_own() -> None:
    summed = replace(LONE, accumulate_bytes=40.0)
    assert _step(summed, gradient="bf16").seconds == _step(LONE, gradient="bf16").seconds


def test_a_pass_takes_nearly_the_longer_of_host_and_gpu() -> None:
    stack = load_stack("megatron-core")
    assert stack.pass_seconds(3.0, 0.0) == 3.0
    assert max(3.0, 2.0) < stack.pass_seconds(3.0, 2.0) < 3.0 + 2.0
    assert stack.pass_seconds(1e-3, 5.0) == pytest.approx(5.0)


def test_classes_add_up_to_the_step_on_its_busiest_stage() -> None:
    step = _step(load_stack("megatron-core"))
    assert sum(class_seconds(step, 4).values()) == pytest.approx(step.seconds, rel=1e-9)


@pytest.mark.parametrize(("columns", "penalty"), [(4096, 1.0), (4104, 1.5)])
def test_products_of_odd_rows_are_slower(columns: int, penalty: float) -> None:
    cluster = load_cluster("1x8-a100-80gb")
    op = Op("up_proj", Kind.MATMUL, ("x",), Tensor("y", (2048, columns), "bf16"), m=2048, k=1024, n=columns)
    sites = Sites(((0,),), np.zeros(1, dtype=np.int64), "a100-80gb")
    kind, lone = cluster.kinds["a100-80gb"], Pricer(cluster).seconds(op, sites)
    weighed = TrainingPricer(cluster, LONE).seconds(op, sites)
    assert weighed / lone == pytest.approx(sustained(kind, "bf16", calibrated()) * penalty)
