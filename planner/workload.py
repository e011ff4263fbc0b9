"""Workload: what the model is asked to do (prefill or decode of a batch), with units in tokens and sequences."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Phase = Literal["prefill", "decode"]


@dataclass(frozen=True, slots=True)
class Workload:
    """A batch of sequences in one phase.

    prefill: `batch` sequences of `prompt` tokens each go through the model once.
    decode: each of `batch` sequences, holding `context` tokens in its KV cache, gets one token per step.
    `expert_load` gives each routed expert's share of the tokens relative to the mean, per MoE layer or one row for all
    (empty: equal loads). `keep_kv_cache` says whether prefill leaves its KV cache in memory.
    """

    phase: Phase
    batch: int
    prompt: int = 0
    context: int = 0
    logits: Literal["none", "last", "all"] = "last"
    keep_kv_cache: bool = True
    kv_dtype: str | None = None
    expert_load: tuple[tuple[float, ...], ...] = ()

    @property
    def query_length(self) -> int:
        """Tokens of one sequence that go through the model in one pass."""
        return self.prompt if self.phase == "prefill" else 1

    @property
    def kv_length(self) -> int:
        """Keys that one query may see: the prompt itself, or the cache plus the new token."""
        return self.prompt if self.phase == "prefill" else self.context + 1
