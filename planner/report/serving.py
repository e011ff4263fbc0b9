"""Serving figures of a plan in words: when tokens come, how fast for each user and GPU, and how many requests fit."""

from __future__ import annotations

from planner.insight.serving import OtherPhase, PlanServing
from planner.report.document import Block, Bullets, Section
from planner.report.show import count, gigabytes, seconds

TITLE = "Serving"
OVER = "; {over} GB more than the memory of a GPU"


def serving_sections(found: PlanServing | None) -> tuple[Section, ...]:
    """One section, none for a workload that serves nobody."""
    return () if found is None else (Section(TITLE, serving_blocks(found)),)


def serving_blocks(found: PlanServing) -> tuple[Block, ...]:
    """TTFT, TPOT with its rates, and the requests that the KV caches hold."""
    f, lines = found.figures, []
    prompts = f"{count(found.batch, 'prompt')} of {found.prompt_tokens:,} tokens"
    if f.ttft_s is not None:
        lines.append(
            f"Time to first token: {seconds(f.ttft_s)}, {prompts} going through together{_own(found.other, 'prefill')}."
        )
    if f.tpot_s is not None and f.tokens_per_s_per_user is not None:
        lines.append(
            f"Time per output token: {seconds(f.tpot_s)}, that is {f.tokens_per_s_per_user:,.4g} tokens/s for each user and "
            f"{f.tokens_per_s:,.0f} for {count(found.batch, 'request')}, {f.tokens_per_s_per_gpu:,.4g} on each GPU"
            f"{_own(found.other, 'decode')}."
        )
    else:
        lines.append(f"Prompt tokens: {f.tokens_per_s:,.0f} per second, {f.tokens_per_s_per_gpu:,.4g} on each GPU.")
    if f.concurrent_requests is not None:
        held = f"{count(f.concurrent_requests, 'request')} of {found.prompt_tokens:,} tokens"
        lines.append(f"KV caches: room for {held} at once beside everything else ({found.batch:,} asked).")
    return (Bullets(tuple(lines)),)


def _own(other: OtherPhase | None, phase: str) -> str:
    """What is told about a figure of the phase that the plan was not made for."""
    if other is None or other.phase != phase:
        return ""
    over = OVER.format(over=gigabytes(other.over_capacity_bytes)) if other.over_capacity_bytes else ""
    return f" (the same plan with {count(other.micro_batches, 'micro-batch')}{over})"
