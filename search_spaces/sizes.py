"""Sizes: the plain integers that a choice may depend on."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Literal

LARGE_CLUSTER = 64
"""GPUs above which a space has fewer plans, by rules of its own."""


@dataclass(frozen=True, slots=True)
class Sizes:
    """What a search space knows of a problem: integers only, never a price.

    `dense` and `moe` say whether the model has layers of that kind. `query_length` is the tokens of one sequence that
    pass through the model at once (1 in decode), `kv_length` the keys a query may see.
    `kind_of_device` and `domain_of_device` number the GPU kind and the scale-up domain of every rank. `expert_rows` has for
    every layer with experts, in order, the first one whose expert loads are the same: these share a placement. `gpus` has the
    GPU of the cluster's list that every rank is, where ranks count them in another order; else it is empty. `link_of_device`
    numbers the link inside every rank's domain; it is empty where all domains have the same.
    """

    phase: Literal["prefill", "decode"]
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    v_head_dim: int
    latent: bool
    dense: bool
    moe: bool
    ffn_hidden: int
    experts: int
    expert_hidden: int
    top_k: int
    vocab: int
    batch: int
    query_length: int
    kv_length: int
    kind_of_device: tuple[int, ...]
    domain_of_device: tuple[int, ...]
    context_prefill: bool = True
    expert_rows: tuple[int, ...] = ()
    gpus: tuple[int, ...] = ()
    link_of_device: tuple[int, ...] = ()

    @property
    def devices(self) -> int:
        """Number of GPUs."""
        return len(self.kind_of_device)

    @property
    def looks(self) -> tuple[object, ...]:
        """What tells GPUs apart, rank by rank: their kind, and the link of their domain."""
        return tuple(zip(self.kind_of_device, self.link_of_device, strict=True)) if self.link_of_device else self.kind_of_device

    @property
    def least_domain(self) -> int:
        """GPUs of the smallest scale-up domain."""
        return min(Counter(self.domain_of_device).values())


def share(total: int, parts: int, index: int) -> int:
    """Items of part `index` when `total` items go to `parts` parts as evenly as can be, the larger parts first."""
    return (total + parts - 1 - index) // parts


def divisors(number: int) -> tuple[int, ...]:
    """All divisors of a positive number, ascending."""
    small = [d for d in range(1, int(number**0.5) + 1) if number % d == 0]
    return tuple(sorted({*small, *(number // d for d in small)}))
