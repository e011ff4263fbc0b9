"""ModelSpec: a transformer as per-layer data, with an inventory of every weight tensor it owns."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from math import prod
from typing import Literal

Module = Literal["embedding", "attention", "ffn", "experts", "router", "norm", "head"]


@dataclass(frozen=True, slots=True)
class Weight:
    """One parameter tensor: its role name (``q``, ``up``, ...), shape, and the module whose dtype it is stored in."""

    name: str
    shape: tuple[int, ...]
    module: Module

    @property
    def parameters(self) -> int:
        """Number of elements."""
        return prod(self.shape)


@dataclass(frozen=True, slots=True)
class Indexer:
    """DeepSeek sparse attention's indexer (DeepSeek-V3.2): scores every key, keeps the `top_k` best per query."""

    heads: int
    head_dim: int
    top_k: int


@dataclass(frozen=True, slots=True)
class Attention:
    """Attention of one layer.

    `head_dim` is the query/key dim of a head (for MLA: nope_dim + rope_dim); `v_head_dim` the value dim.
    `window` (sliding) and `chunk` (chunked) limit the keys a query sees, in tokens.
    `rope` tells how dims pair up under rotation: `half` pairs i with i + rotary_dim/2, `interleaved` 2i with 2i + 1.
    """

    kind: Literal["gqa", "mla"]
    heads: int
    kv_heads: int
    head_dim: int
    v_head_dim: int
    causal: bool = True
    window: int | None = None
    chunk: int | None = None
    q_bias: bool = False
    kv_bias: bool = False
    o_bias: bool = False
    qk_norm: Literal["none", "head", "full"] = "none"
    qk_norm_weights: bool = True
    sinks: bool = False
    softcap: float | None = None
    rope: Literal["none", "half", "interleaved"] = "half"
    rotary_dim: int = 0
    q_lora_rank: int | None = None
    kv_lora_rank: int = 0
    nope_dim: int = 0
    rope_dim: int = 0
    indexer: Indexer | None = None


@dataclass(frozen=True, slots=True)
class Ffn:
    """Feed-forward network of one layer; for a mixture of experts `hidden` is the width of one routed expert."""

    kind: Literal["dense", "moe"]
    hidden: int
    gated: bool = True
    activation: str = "silu"
    bias: bool = False
    experts: int = 0
    top_k: int = 0
    shared_hidden: int = 0
    shared_gate: bool = False
    router_bias: bool = False
    expert_groups: int = 1
    top_k_groups: int = 1


@dataclass(frozen=True, slots=True)
class Layer:
    """One transformer block: norms (`norms` of them, each of `norm_kind`), attention and FFN."""

    attention: Attention
    ffn: Ffn
    norms: int = 2
    norm_kind: Literal["rms", "layer"] = "rms"
