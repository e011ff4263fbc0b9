"""Readers of the families with latent attention: deepseek_v2, deepseek_v3, kimi_k2, deepseek_v32, glm_moe_dsa."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from planner.errors import InputError
from planner.fields import Fields
from planner.model import Attention, Ffn, Indexer, Layer, ModelSpec
from planner.models.checks import MAX_LAYERS
from planner.models.hf.moe import TopKMethod, corrected, read_dense_ffn, read_grouped_moe
from planner.models.hf.shape import MAX_VOCAB


@dataclass(frozen=True, slots=True)
class _Defaults:
    """Class defaults of one family; None: the file has to say it."""

    top_k: int | None
    shared: int
    groups: tuple[int, int]
    first_dense: int | None
    q_lora_rank: int | None = 1536
    kv_lora_rank: int = 512
    nope_dim: int = 128
    rope_dim: int = 64
    v_head_dim: int = 128
    index_heads: int = 0
    index_rope: Literal["half", "interleaved"] = "half"
    greedy: bool = False  # softmax scores chosen as they are, as in V2; all others follow V3
    routed_scale: float = 2.5


_V3 = _Defaults(top_k=8, shared=1, groups=(8, 4), first_dense=3)


def read_deepseek_v2(c: Fields) -> ModelSpec:
    """DeepSeek-V2 and V2-Lite (which has no latent query)."""
    return _read(c, _Defaults(top_k=None, shared=2, groups=(1, 1), first_dense=0, greedy=True, routed_scale=1.0))


def read_deepseek_v3(c: Fields) -> ModelSpec:
    """DeepSeek-V3, R1 and V3.1; multi-token-prediction layers are not counted."""
    return _read(c, _V3)


def read_kimi_k2(c: Fields) -> ModelSpec:
    """Kimi K2: DeepSeek-V3's classes with other sizes."""
    return _read(c, _Defaults(top_k=8, shared=1, groups=(1, 1), first_dense=None))


def read_deepseek_v32(c: Fields) -> ModelSpec:
    """DeepSeek-V3.2: V3 with an indexer that picks the keys."""
    return _read(c, _Defaults(top_k=8, shared=1, groups=(8, 4), first_dense=3, index_heads=64))


def read_glm_moe_dsa(c: Fields) -> ModelSpec:
    """GLM-5: DeepSeek-V3.2's layout with other sizes, and other pairs in the indexer's rotation."""
    _refuse_shared_indexers(c)
    defaults = _Defaults(
        top_k=8,
        shared=1,
        groups=(1, 1),
        first_dense=3,
        q_lora_rank=2048,
        nope_dim=192,
        v_head_dim=256,
        index_heads=32,
        index_rope="interleaved",
    )
    return _read(c, defaults)


def _read(c: Fields, defaults: _Defaults) -> ModelSpec:
    hidden = c.integer("hidden_size", low=1)
    count = c.integer("num_hidden_layers", low=1, high=MAX_LAYERS)
    vocab = c.integer("vocab_size", low=1, high=MAX_VOCAB)
    attention = _read_attention(c, defaults)
    layers = [Layer(attention, ffn) for ffn in _read_ffns(c, defaults, count)]
    types = c.texts("layer_types", default=["indexed_attention"] * count)
    wanted = "indexed_attention" if attention.indexer else "full_attention"
    if "layer_types" in c.values and types != [wanted] * count:
        raise c.error("layer_types", f"{wanted} in each of the {count} layers")
    return ModelSpec("", hidden, vocab, tuple(layers), c.boolean("tie_word_embeddings", default=False))


def _read_attention(c: Fields, defaults: _Defaults) -> Attention:
    heads = c.integer("num_attention_heads", low=1)
    c.maybe_integer("num_key_value_heads", low=1)  # says how many heads the latent expands to, never how many are cached
    nope = c.integer("qk_nope_head_dim", low=1, default=defaults.nope_dim)
    rope = c.integer("qk_rope_head_dim", low=2, default=defaults.rope_dim)
    for name in ("head_dim", "qk_head_dim"):
        if c.has(name) and c.integer(name, low=1) not in (rope, nope + rope):
            raise c.error(name, f"{rope} (rotated) or {nope + rope} (all) dims of a query head")
    for name in ("attention_bias", "mlp_bias"):
        if c.boolean(name, default=False):
            raise c.error(name, "false: biases in latent attention and its networks are not understood")
    return Attention(
        "mla",
        heads,
        heads,
        nope + rope,
        c.integer("v_head_dim", low=1, default=defaults.v_head_dim),
        rope="interleaved" if c.boolean("rope_interleave", default=True) else "half",
        rotary_dim=rope,
        q_lora_rank=c.maybe_integer("q_lora_rank", low=1, default=defaults.q_lora_rank),
        kv_lora_rank=c.integer("kv_lora_rank", low=1, default=defaults.kv_lora_rank),
        nope_dim=nope,
        rope_dim=rope,
        indexer=_read_indexer(c, defaults),
    )


def _read_indexer(c: Fields, defaults: _Defaults) -> Indexer | None:
    if not defaults.index_heads:
        return None
    return Indexer(
        c.integer("index_n_heads", low=1, default=defaults.index_heads),
        c.integer("index_head_dim", low=1, default=128),
        c.integer("index_topk", low=1, default=2048),
        defaults.index_rope,
    )


def _read_ffns(c: Fields, defaults: _Defaults, count: int) -> list[Ffn]:
    """Dense networks first, then mixtures (in every `moe_layer_freq`-th layer)."""
    dense = read_dense_ffn(c)
    if "n_routed_experts" in c.values and not c.has("n_routed_experts"):
        raise c.error("n_routed_experts", "a number of experts (a model without experts is not of this family)")
    moe = _read_mixture(c, defaults)
    if defaults.first_dense is None:
        first = c.integer("first_k_dense_replace")
    else:
        first = c.integer("first_k_dense_replace", default=defaults.first_dense)
    step = c.integer("moe_layer_freq", low=1, default=1)
    sparse = [i >= first and i % step == 0 for i in range(count)]
    if c.has("mlp_layer_types"):
        words = c.texts("mlp_layer_types")
        if len(words) != count or set(words) - {"dense", "sparse"}:
            raise c.error("mlp_layer_types", f"dense or sparse for each of the {count} layers")
        sparse = [word == "sparse" for word in words]
    return [moe if there else dense for there in sparse]


def _read_mixture(c: Fields, defaults: _Defaults) -> Ffn:
    """V2's class never divides the chosen scores by their sum, whatever the file says."""
    method: TopKMethod = "greedy" if defaults.greedy else "noaux_tc"
    moe = read_grouped_moe(c, top_k=defaults.top_k, shared=defaults.shared, groups=defaults.groups, method=method)
    if not defaults.greedy:
        return corrected(moe, c, scale=defaults.routed_scale)
    scale = c.number("routed_scaling_factor", low=1e-6, default=defaults.routed_scale)
    return replace(moe, renormalize=False, routed_scale=scale)


def _refuse_shared_indexers(c: Fields) -> None:
    """From GLM-5.2 on some layers reuse an earlier layer's choice of keys: then stages may not be cut between them."""
    allowed = "an indexer in every layer; layers that share a choice of keys are not understood"
    if c.integer("index_topk_freq", default=1) > 1:
        raise c.error("index_topk_freq", allowed)
    c.integer("index_skip_topk_offset", default=2)
    if set(c.texts("indexer_types", default=())) - {"full"}:
        raise c.error("indexer_types", allowed)
    pattern = c.raw("index_topk_pattern")
    if pattern is not None and set(str(pattern)) - {"F"}:
        raise InputError(c.at("index_topk_pattern"), pattern, allowed, c.source)
