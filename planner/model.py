"""ModelSpec: a transformer as per-layer data, with an inventory of every weight tensor it owns.

Weights are written (input dim, output dim), so that `x @ weight` is the projection; a routed expert's weights are
stacked as (experts, input dim, output dim); a norm's weight is the factor itself. Only tensors that are trained and kept
are counted: no buffers that correct the choice of experts, no multi-token-prediction layers.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from math import ceil, prod
from typing import Literal

from planner.units import DTYPE_BITS

Module = Literal["embedding", "attention", "ffn", "experts", "router", "norm", "head"]
NormKind = Literal["rms", "layer"]
Scoring = Literal["softmax", "softmax_top_k", "sigmoid"]
GroupScore = Literal["max", "top2"]

# DeepSeek sparse attention keeps its keys in fp8, with one 4-byte scale for each 128 values.
_INDEX_BLOCK, _INDEX_SCALE_BYTES = 128, 4
# A layer with four norms normalises what goes into and what comes out of each half.
_NORM_NAMES = {
    0: (),
    1: ("input_norm",),
    2: ("attention_norm", "ffn_norm"),
    4: ("attention_norm", "attention_post_norm", "ffn_norm", "ffn_post_norm"),
}


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
    """DeepSeek sparse attention's indexer (DeepSeek-V3.2): scores every key, keeps the `top_k` best per query.

    `rope` tells how the first rope_dim dims of its queries and keys pair up, which may differ from the attention's own.
    """

    heads: int
    head_dim: int
    top_k: int
    rope: Literal["half", "interleaved"] = "half"

    def weights(self, hidden: int, q_lora_rank: int) -> tuple[Weight, ...]:
        """Queries from MLA's latent query, one shared key, one weight per head, and a LayerNorm of the key."""
        return (
            Weight("index_q", (q_lora_rank, self.heads * self.head_dim), "attention"),
            Weight("index_k", (hidden, self.head_dim), "attention"),
            Weight("index_w", (hidden, self.heads), "attention"),
            *_norm("index_norm", self.head_dim, "layer"),
        )

    @property
    def cache_bytes_per_token(self) -> int:
        """Bytes of the cached index key of one token in one layer."""
        return self.head_dim + _INDEX_SCALE_BYTES * ceil(self.head_dim / _INDEX_BLOCK)


@dataclass(frozen=True, slots=True)
class Attention:
    """Attention of one layer.

    `head_dim` is the query/key dim of a head (for MLA: nope_dim + rope_dim); `v_head_dim` the value dim.
    `window` (sliding) and `chunk` (chunked) limit the keys a query sees, in tokens.
    `rope` tells how dims pair up under rotation: `half` pairs i with i + rotary_dim/2, `interleaved` 2i with 2i + 1.
    `scale_dim` replaces head_dim in the score scale 1/sqrt(head_dim), where a model says so.
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
    qk_norm: Literal["none", "head"] = "none"
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
    scale_dim: float | None = None

    def weights(self, hidden: int) -> tuple[Weight, ...]:
        """Every tensor of the attention block, its inner norms included."""
        return tuple(self._mla(hidden) if self.kind == "mla" else self._gqa(hidden))

    @property
    def kv_elements_per_token(self) -> int:
        """Elements of the KV cache of one token: keys and values, or MLA's latent and its rotary key."""
        if self.kind == "mla":
            return self.kv_lora_rank + self.rope_dim
        return self.kv_heads * (self.head_dim + self.v_head_dim)

    def _gqa(self, hidden: int) -> Iterator[Weight]:
        q, k, v = self.heads * self.head_dim, self.kv_heads * self.head_dim, self.kv_heads * self.v_head_dim
        o = self.heads * self.v_head_dim
        yield Weight("q", (hidden, q), "attention")
        yield Weight("k", (hidden, k), "attention")
        yield Weight("v", (hidden, v), "attention")
        yield Weight("o", (o, hidden), "attention")
        if self.q_bias:
            yield Weight("q_bias", (q,), "attention")
        if self.kv_bias:
            yield Weight("k_bias", (k,), "attention")
            yield Weight("v_bias", (v,), "attention")
        if self.o_bias:
            yield Weight("o_bias", (hidden,), "attention")
        if self.qk_norm != "none" and self.qk_norm_weights:
            yield Weight("q_norm", (self.head_dim,), "norm")
            yield Weight("k_norm", (self.head_dim,), "norm")
        if self.sinks:
            yield Weight("sinks", (self.heads,), "attention")

    def _mla(self, hidden: int) -> Iterator[Weight]:
        q = self.heads * self.head_dim
        if self.q_lora_rank is None:
            yield Weight("q", (hidden, q), "attention")
        else:
            yield Weight("q_a", (hidden, self.q_lora_rank), "attention")
            yield Weight("q_a_norm", (self.q_lora_rank,), "norm")
            yield Weight("q_b", (self.q_lora_rank, q), "attention")
        yield Weight("kv_a", (hidden, self.kv_lora_rank + self.rope_dim), "attention")
        yield Weight("kv_a_norm", (self.kv_lora_rank,), "norm")
        yield Weight("kv_b", (self.kv_lora_rank, self.heads * (self.nope_dim + self.v_head_dim)), "attention")
        yield Weight("o", (self.heads * self.v_head_dim, hidden), "attention")
        if self.indexer is not None:
            yield from self.indexer.weights(hidden, self.q_lora_rank or 0)


@dataclass(frozen=True, slots=True)
class Ffn:
    """Feed-forward network of one layer; for a mixture of experts `hidden` is the width of one routed expert.

    `shared_hidden` is the width of all shared experts together; `bias` of a mixture is that of its routed experts.
    `activation` is silu, gelu (with erf), gelu_tanh, relu, or swiglu_clamped (gpt-oss: gate and up are clamped to 7, and
    (up + 1) * gate * sigmoid(1.702 * gate) goes on).

    How the router chooses: `scoring` turns its logits into scores, by softmax over all experts, by softmax over the chosen
    ones alone, or by sigmoid. `correction_bias` is added to the scores for the choice only; it is a buffer
    ``correction_bias`` of shape (experts,), not a counted weight. Of `expert_groups` the best `top_k_groups` are open, by
    their `group_score`: their best expert or the sum of their two best. The chosen scores are divided by their sum
    (`renormalize`) and multiplied by `routed_scale`; they weigh the experts' outputs, or their inputs (`scale_input`).
    """

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
    scoring: Scoring = "softmax"
    renormalize: bool = True
    routed_scale: float = 1.0
    correction_bias: bool = False
    scale_input: bool = False
    group_score: GroupScore = "max"

    def weights(self, hidden: int) -> tuple[Weight, ...]:
        """Every tensor of the feed-forward block: dense, or router, routed experts and shared experts."""
        if self.kind == "dense":
            return tuple(_network("", hidden, self.hidden, self.gated, self.bias, "ffn"))
        return tuple(self._mixture(hidden))

    @property
    def active_share(self) -> tuple[int, int]:
        """Routed experts that one token visits, and how many there are; (1, 1) for a dense network."""
        return (self.top_k, self.experts) if self.kind == "moe" else (1, 1)

    def _mixture(self, hidden: int) -> Iterator[Weight]:
        yield Weight("router", (hidden, self.experts), "router")
        if self.router_bias:
            yield Weight("router_bias", (self.experts,), "router")
        for weight in _network("expert_", hidden, self.hidden, self.gated, self.bias, "experts"):
            yield Weight(weight.name, (self.experts, *weight.shape), "experts")
        if self.shared_hidden:
            yield from _network("shared_", hidden, self.shared_hidden, self.gated, False, "ffn")
        if self.shared_gate:
            yield Weight("shared_router", (hidden, 1), "router")


@dataclass(frozen=True, slots=True)
class Layer:
    """One transformer block: norms (`norms` of them, each of `norm_kind`), attention and FFN.

    `parallel_residual`: attention and FFN read the same input, and their outputs are added (GPT-NeoX).
    """

    attention: Attention
    ffn: Ffn
    norms: int = 2
    norm_kind: NormKind = "rms"
    parallel_residual: bool = False

    def norm_weights(self, hidden: int) -> tuple[Weight, ...]:
        """The tensors of the norms around attention and FFN; a LayerNorm has a bias as well."""
        names = _NORM_NAMES[self.norms]
        return tuple(weight for name in names for weight in _norm(name, hidden, self.norm_kind))

    def weights(self, hidden: int) -> tuple[Weight, ...]:
        """Every tensor of the block."""
        return (*self.norm_weights(hidden), *self.attention.weights(hidden), *self.ffn.weights(hidden))


@dataclass(frozen=True)
class ModelSpec:
    """A decoder: embedding, layers, final norm and head. Two layers that compare equal are of one kind.

    Parameters
    ----------
    vocab: rows of the embedding; 0 means neither embedding nor head (only the layers are looked at)
    positions: rows of a learned position table, 0 for none; position p is row p + `position_offset`
    embedding_scale: factor on a token's row of the embedding before the first layer (Gemma: the root of hidden)
    architecture: Hugging Face's model_type where it is known, empty otherwise
    dtype: storage of weights, and of activations and KV cache where nothing else is said
    module_dtypes: storage of single modules, such as ``{"experts": "mxfp4"}``
    kv_dtype: storage of the KV cache; None means `dtype`
    source: where the facts come from

    """

    name: str
    hidden: int
    vocab: int
    layers: tuple[Layer, ...]
    tied_embeddings: bool = False
    positions: int = 0
    norm_kind: NormKind = "rms"
    final_norm: bool = True
    head_bias: bool = False
    dtype: str = "bf16"
    module_dtypes: dict[Module, str] = field(default_factory=dict, hash=False)
    kv_dtype: str | None = None
    final_softcap: float | None = None
    source: str = ""
    position_offset: int = 0
    embedding_scale: float = 1.0
    architecture: str = ""

    @cached_property
    def layer_kinds(self) -> tuple[Layer, ...]:
        """The different layers, in order of first appearance."""
        return tuple(dict.fromkeys(self.layers))

    @cached_property
    def kind_of_layer(self) -> tuple[int, ...]:
        """For each layer the index of its kind in `layer_kinds`."""
        index = {layer: i for i, layer in enumerate(self.layer_kinds)}
        return tuple(index[layer] for layer in self.layers)

    @cached_property
    def layers_of_kind(self) -> tuple[int, ...]:
        """For each kind how many layers are of it."""
        counts = Counter(self.kind_of_layer)
        return tuple(counts[i] for i in range(len(self.layer_kinds)))

    def outer_weights(self) -> tuple[Weight, ...]:
        """Tensors outside the layers: embedding, positions, final norm and head (a tied head owns no tensor)."""
        return tuple(self._outer())

    def weights(self) -> Iterator[tuple[int | None, Weight]]:
        """Every tensor with the index of its layer; None for those outside the layers."""
        for weight in self.outer_weights():
            yield None, weight
        of_kind = [layer.weights(self.hidden) for layer in self.layer_kinds]
        for index, kind in enumerate(self.kind_of_layer):
            for weight in of_kind[kind]:
                yield index, weight

    @cached_property
    def parameters(self) -> int:
        """Number of trained elements; a tied embedding counts once."""
        return sum(weight.parameters for weight in self.outer_weights()) + sum(
            count * sum(weight.parameters for weight in layer.weights(self.hidden))
            for layer, count in zip(self.layer_kinds, self.layers_of_kind, strict=True)
        )

    @cached_property
    def active_parameters(self) -> int:
        """Elements that one token meets: of the routed experts only the top k. The input embedding is included."""
        idle = 0
        for layer, count in zip(self.layer_kinds, self.layers_of_kind, strict=True):
            visited, experts = layer.ffn.active_share
            routed = sum(w.parameters for w in layer.ffn.weights(self.hidden) if w.module == "experts")
            idle += count * (routed // experts) * (experts - visited)
        return self.parameters - idle

    @cached_property
    def kv_cache_bytes_per_token(self) -> int:
        """Bytes that one token adds over all layers while no window is full; an indexer's keys are counted apart."""
        bits = DTYPE_BITS[self.kv_dtype or self.dtype]
        elements = sum(layer.attention.kv_elements_per_token for layer in self.layers)
        return ceil(elements * bits / 8)

    @cached_property
    def index_cache_bytes_per_token(self) -> int:
        """Bytes that the indexers' keys of one token take over all layers."""
        indexers = (layer.attention.indexer for layer in self.layers)
        return sum(indexer.cache_bytes_per_token for indexer in indexers if indexer is not None)

    def dtype_of(self, module: Module) -> str:
        """The dtype in which a module's weights are stored."""
        return self.module_dtypes.get(module, self.dtype)

    def _outer(self) -> Iterator[Weight]:
        if self.vocab:
            yield Weight("embedding", (self.vocab, self.hidden), "embedding")
        if self.positions:
            yield Weight("positions", (self.positions, self.hidden), "embedding")
        if self.final_norm:
            yield from _norm("final_norm", self.hidden, self.norm_kind)
        if self.vocab and not self.tied_embeddings:
            yield Weight("head", (self.hidden, self.vocab), "head")
        if self.vocab and self.head_bias:
            yield Weight("head_bias", (self.vocab,), "head")


def _norm(name: str, width: int, kind: NormKind) -> Iterator[Weight]:
    yield Weight(name, (width,), "norm")
    if kind == "layer":
        yield Weight(f"{name}_bias", (width,), "norm")


def _network(prefix: str, hidden: int, width: int, gated: bool, bias: bool, module: Module) -> Iterator[Weight]:
    """Up and down projections, and a gate beside up where the network is gated."""
    widening = ("gate", "up") if gated else ("up",)
    for name in widening:
        yield Weight(f"{prefix}{name}", (hidden, width), module)
    yield Weight(f"{prefix}down", (width, hidden), module)
    if bias:
        for name in widening:
            yield Weight(f"{prefix}{name}_bias", (width,), module)
        yield Weight(f"{prefix}down_bias", (hidden,), module)
