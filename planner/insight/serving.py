"""Serving figures of one plan: what its phase says, and what the other phase of the same requests says on the same GPUs."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from typing import Any

from planner.check.findings import errors
from planner.check.structure import check_structure
from planner.errors import InputError
from planner.evaluate.capacity import over_capacity
from planner.evaluate.evaluation import Evaluation, evaluate
from planner.evaluate.measures import measures
from planner.evaluate.serving import Serving, phase_figures
from planner.evaluate.setting import Setting, setting
from planner.model import ModelSpec
from planner.problem.sizes import sizes_of
from planner.workload import Workload
from search_spaces.sizes import Sizes
from search_spaces.stages import Choice


@dataclass(frozen=True, slots=True)
class OtherPhase:
    """The phase that a plan was not made for, on the same stages and splits.

    `micro_batches` are the fastest that fit (where none fits: the nearest to fitting, `over_capacity_bytes` too large).
    """

    phase: str
    latency_s: float
    micro_batches: int
    over_capacity_bytes: int


@dataclass(frozen=True, slots=True)
class PlanServing:
    """TTFT, TPOT, rates and capacity of a plan for its batch, and where the figures of the other phase come from.

    `figures` count output tokens where decode can be priced, else prompt tokens; `other` is None where the model cannot
    decode, or the plan cannot run the other phase. `prompt_tokens` are those that each request has.
    """

    figures: Serving
    other: OtherPhase | None
    batch: int
    prompt_tokens: int

    def to_dict(self) -> dict[str, Any]:
        """As JSON-ready data."""
        other = None if self.other is None else asdict(self.other)
        return {**self.figures.to_dict(), "batch": self.batch, "prompt_tokens": self.prompt_tokens, "other_phase": other}


def plan_serving(env: Setting, choice: Choice, evaluation: Evaluation) -> PlanServing | None:
    """The serving figures of a priced plan; None for a workload that serves nobody: training, or prefill without a cache."""
    workload = env.workload
    if workload.phase == "training" or not workload.keep_kv_cache:
        return None
    own, length = phase_figures(workload, evaluation), workload.prompt if workload.phase == "prefill" else workload.context
    found = _other(env, choice, length)
    if found is None:
        return PlanServing(own, None, workload.batch, length)
    turned, made, price, over = found
    theirs = phase_figures(turned, price)
    prefill, decode = (own, theirs) if workload.phase == "prefill" else (theirs, own)
    other = OtherPhase(turned.phase, price.latency_s, made.micro_batches, over)
    return PlanServing(replace(decode, ttft_s=prefill.ttft_s), other, workload.batch, length)


def _other(env: Setting, choice: Choice, length: int) -> tuple[Workload, Choice, Evaluation, int] | None:
    """The other phase's workload, the plan in it with its best micro-batches, its price, and bytes over the memory."""
    if length < 1 or not _decodes(env.model):
        return None
    to_decode = env.workload.phase == "prefill"
    turned = replace(
        env.workload,
        phase="decode" if to_decode else "prefill",
        prompt=0 if to_decode else length,
        context=length if to_decode else 0,
    )
    try:
        sizes = sizes_of(env.model, turned, env.cluster)
    except InputError:
        return None
    there = setting(env.model, turned, env.cluster)
    priced = [(max(round(over_capacity(there, sizes, made)), 0), made) for made in _splits(sizes, choice)]
    if not priced:
        return None
    least = min(over for over, _ in priced)
    best = min((made for over, made in priced if over == least), key=lambda made: measures(there, sizes, made).latency_s)
    return turned, best, evaluate(there, sizes, best), least


def _decodes(model: ModelSpec) -> bool:
    """Whether the model makes text token by token."""
    return model.vocab > 0 and all(layer.attention.causal for layer in model.layer_kinds)


def _splits(sizes: Sizes, choice: Choice) -> Iterator[Choice]:
    """The plan with its own number of micro-batches and with powers of two, those that are sound."""
    powers = {2**power for power in range(sizes.batch.bit_length())}
    for count in sorted({choice.micro_batches, *(power * choice.in_flight for power in powers)}):
        made = replace(choice, micro_batches=count)
        if sizes.batch % (choice.replicas * count) == 0 and not errors(check_structure(sizes, made)):
            yield made
