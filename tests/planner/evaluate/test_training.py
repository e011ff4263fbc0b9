"""A training step against published formulas: activation memory, FLOPs, optimizer memory, recomputation."""

import pytest

from planner.clusters import load_cluster
from planner.evaluate.setting import setting
from planner.evaluate.training import Step, training_step
from planner.model import ModelSpec
from planner.models import load_model
from planner.problem.sizes import sizes_of
from planner.workload import load_workload
from search_spaces.attention import AttentionPartition
from search_spaces.stages import Choice, StageChoice
from search_spaces.training import TrainingChoice

HIDDEN, LAYERS, SEQUENCE = 1024, 8, 2048


def _gpt(vocab: int = 0) -> ModelSpec:
    return load_model(
        {
            "name": "gpt", "layers": LAYERS, "hidden": HIDDEN, "vocab": vocab, "norm_kind": "layer", "dtype": "bf16",
            "attention": {"heads": 16, "rope": "none"}, "ffn": {"hidden": 4 * HIDDEN, "activation": "gelu"},
        }
    )  # fmt: skip


def _step(
    tensor: int, training: TrainingChoice, *, stages: int = 1, replicas: int = 1, micro_batches: int = 1, batch: int = 4,
    sequence_parallel: bool = False, fused: bool = True, vocab: int = 0,
) -> Step:  # fmt: skip
    model, cluster = _gpt(vocab), load_cluster("2x8-a100-80gb")
    workload = load_workload(f"training:global_batch={batch},sequence={SEQUENCE},dropout=true,stack=plain")
    partition = AttentionPartition(head_groups=tensor, sequence_parallel=sequence_parallel)
    split = tuple(
        StageChoice(LAYERS // stages, tuple(range(i * tensor, (i + 1) * tensor)), partition, tensor) for i in range(stages)
    )
    choice = Choice(replicas, micro_batches, split, 1, training)
    return training_step(setting(model, workload, cluster), sizes_of(model, workload, cluster), choice, fused)


@pytest.mark.parametrize(
    ("tensor", "sequence_parallel", "each"),
    [(1, False, 34), (4, False, 10 + 24 / 4), (4, True, 34 / 4)],
)
def test_activations_are_those_of_korthikanti(tensor: int, sequence_parallel: bool, each: float) -> None:
    """Korthikanti et al. (arXiv:2205.05198), table 2, with a fused attention that keeps no scores: bytes per s b h."""
    step = _step(tensor, TrainingChoice(), sequence_parallel=sequence_parallel)
    assert step.memory[0].activations == pytest.approx(LAYERS * each * 4 * SEQUENCE * HIDDEN)


def test_full_recomputation_keeps_the_input_of_each_layer() -> None:
    step = _step(4, TrainingChoice(recompute="full"))
    assert step.memory[0].activations == pytest.approx(LAYERS * 2 * 4 * SEQUENCE * HIDDEN)
    kept, again = _step(4, TrainingChoice()), step.stages[0].chunks[0]
    assert again.inputs_s == pytest.approx(kept.stages[0].chunks[0].inputs_s + kept.stages[0].chunks[0].forward_s)


def test_unfused_attention_keeps_probabilities_unless_it_computes_them_again() -> None:
    plain, selective = (_step(1, TrainingChoice(recompute=r), fused=False).memory[0].activations for r in ("none", "selective"))
    probabilities = LAYERS * 2 * 4 * 16 * SEQUENCE**2
    assert plain - selective == pytest.approx(probabilities)


def test_flops_are_three_forward_passes() -> None:
    """Six for each weight and token, twelve for each layer, query, key and hidden dimension (half of them with a causal mask;
    the backward kernel computes the scores once more).
    """
    step = _step(1, TrainingChoice())
    products = 6 * 12 * LAYERS * HIDDEN**2 * 4 * SEQUENCE
    pairs = 4 * SEQUENCE * (SEQUENCE + 1) / 2 * HIDDEN * LAYERS
    assert step.flops == pytest.approx(products + (4 + 10) * pairs)


@pytest.mark.parametrize(("zero", "each"), [(0, 2 + 4 + 12), (1, 2 + 4 + 12 / 4), (2, 2 + 4 / 4 + 12 / 4)])
def test_states_are_those_of_zero(zero: int, each: float) -> None:
    """Rajbhandari et al., ZeRO (arXiv:1910.02054), with gradients in fp32: bytes for each parameter on four replicas."""
    memory = _step(1, TrainingChoice(zero=zero), replicas=4).memory[0]
    assert memory.weights + memory.gradients + memory.optimizer == pytest.approx(each * _gpt().parameters)


def test_sharded_weights_are_gathered_layer_by_layer() -> None:
    whole = _gpt().parameters
    memory = _step(1, TrainingChoice(zero=3), replicas=4).memory[0]
    assert memory.weights == pytest.approx(2 * whole / 4 + 2 * 2 * whole / LAYERS)


def test_more_replicas_share_the_batch_and_pay_for_their_exchange() -> None:
    alone = _step(1, TrainingChoice(overlap=False), batch=8)
    both = _step(1, TrainingChoice(overlap=False), batch=8, replicas=2)
    assert alone.exchange_s == 0 and both.exchange_s > 0
    assert alone.pipeline_s / 2 < both.pipeline_s < alone.pipeline_s
    assert _step(1, TrainingChoice(), batch=8, replicas=2).exchange_s < both.exchange_s


def test_zero_bubble_is_faster_than_1f1b_on_many_stages() -> None:
    plain, zero = (_step(1, TrainingChoice(s), stages=4, micro_batches=8, batch=8) for s in ("1f1b", "zb_h1"))
    assert zero.seconds < plain.seconds
    assert zero.memory[-1].activations > plain.memory[-1].activations
