"""The attention role: head groups x dimension segments, context parts, grouped-query or latent attention."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from planner.graph.context import RoleContext
from planner.graph.ops import AttentionDims, Group, Kind, Layout, Op, Role, Shard, Size, Store, Tensor
from planner.graph.rows import AttentionRows, Ints, share, share_tokens
from planner.model import Attention, Layer

SCORE_DTYPE = "fp32"

Form = Literal["fused", "segments", "ring", "merge"]


@dataclass(frozen=True, slots=True)
class AttentionSignature:
    """The topology of an attention role: what rows must share to be built together.

    fused: one kernel per GPU. segments: partial scores over head-dim segments. ring: prefill with `context_parts`
    GPUs passing keys and values around. merge: decode with the cache split over context parts, merged by log-sum-exp.
    """

    form: Form
    context_parts: int = 1


@dataclass(frozen=True, slots=True)
class _Shape:
    """Sizes that the operators of one attention role share, per row."""

    sequences: Ints
    q_len: Ints
    tokens: Ints
    residual: Ints
    qk: Size
    v: Size
    own_heads: Ints
    holders: Group
    segments: Group
    context: Group


def attention_role(ctx: RoleContext, layer: Layer, signature: AttentionSignature, rows: AttentionRows) -> Role:
    """The operators of norm, attention and output projection of one layer; reads residual `x`, writes `y`."""
    spec = layer.attention
    shape = _shape(ctx, spec, signature, rows)
    hidden = ctx.model.hidden
    residual = ctx.tensor("x", shape.residual, hidden)
    normed = ctx.norm("attention_norm", "x", replace(residual, name="xn"))
    gathered = ctx.tensor("xg", shape.tokens, hidden)
    gather = Op("gather_tokens", Kind.ALL_GATHER, ("xn",), gathered, ctx.dtype, bytes=gathered.bytes, group=shape.holders,
                exists=rows.sequence_parallel)  # fmt: skip
    project = _latent_projections if spec.kind == "mla" else _projections
    ops = [normed, gather, *project(ctx, spec, rows, shape)]
    ops += _core(ctx, spec, signature, rows, shape)
    ops += _output(ctx, spec, rows, shape)
    if layer.norms > 2:
        ops.append(ctx.norm("attention_post_norm", "o", ctx.tensor("on", shape.residual, hidden)))
    summed = ops[-1].output.name
    ops.append(ctx.elementwise("attention_residual", ("x", summed), replace(residual, name="y"), passes=3.0))
    return Role("attention", residual, tuple(ops), _cache_bytes(ctx, spec, rows, shape))


def _shape(ctx: RoleContext, spec: Attention, signature: AttentionSignature, rows: AttentionRows) -> _Shape:
    sequences = rows.sequences // rows.batch_parts
    decode = ctx.workload.phase == "decode"
    q_len = np.full_like(sequences, 1) if decode else share(ctx.workload.prompt, rows.context_parts, 0)
    tokens = sequences * q_len
    holders = rows.tensor * rows.context_parts if decode else rows.tensor
    residual = np.where(rows.sequence_parallel == 1, share_tokens(tokens, holders, rows.position), tokens)
    if signature.form == "segments":
        qk: Size = _unrotated(spec, rows) + 2 * share((spec.head_dim - spec.nope_dim) // 2, rows.segments, rows.segment)
        v: Size = share(spec.v_head_dim, rows.segments, rows.segment)
    else:
        qk, v = spec.head_dim, spec.v_head_dim
    own_heads = share(rows.heads, rows.context_parts, rows.context) if decode else rows.heads
    stride = np.where(rows.heads_inner == 1, rows.groups, 1)
    return _Shape(
        sequences, q_len, tokens, residual, qk, v, own_heads,
        Group("tokens", 1, holders),
        Group("segments", stride, rows.segments),
        Group("context", rows.tensor, rows.context_parts),
    )  # fmt: skip


def _projections(ctx: RoleContext, spec: Attention, rows: AttentionRows, s: _Shape) -> Iterator[Op]:
    """Q, K, V projections, QK norm, rotation and the cache write of grouped-query attention."""
    hidden = ctx.model.hidden
    parts: tuple[tuple[str, Ints, Size, bool], ...] = (
        ("q", rows.heads, s.qk, spec.q_bias),
        ("k", rows.kv_heads, s.qk, spec.kv_bias),
        ("v", rows.kv_heads, s.v, spec.kv_bias),
    )
    for name, heads, dim, bias in parts:
        width = heads * dim
        weights = [ctx.shard(name, "attention", hidden, width)]
        if bias:
            weights.append(ctx.shard(f"{name}_bias", "attention", width))
        yield _matmul(ctx, f"{name}_proj", ("xg",), ctx.tensor(name, s.tokens, width), hidden, tuple(weights))
    queries_keys = ctx.tensor("qk_normed", s.tokens, (rows.heads + rows.kv_heads) * s.qk)
    if spec.qk_norm != "none":
        squares = Tensor("squares", (s.tokens, rows.heads + rows.kv_heads), "fp32", Layout.PARTIAL)
        yield Op("qk_norm_reduce", Kind.ALL_REDUCE, ("q", "k"), squares, "fp32", bytes=squares.bytes, group=s.segments)
        norms = (ctx.shard("q_norm", "attention", s.qk), ctx.shard("k_norm", "attention", s.qk)) if spec.qk_norm_weights else ()
        yield ctx.elementwise("qk_norm", ("q", "k", "squares"), queries_keys, weights=norms)
    if spec.rope != "none":
        source = ("qk_normed",) if spec.qk_norm != "none" else ("q", "k")
        yield ctx.elementwise("rope", source, replace(queries_keys, name="rotated"))
    if ctx.keeps_cache:
        kept: Size = rows.kv_heads * (np.asarray(s.qk) + s.v)
        yield ctx.elementwise("kv_write", (*_queries_keys(spec), "v"), _written(ctx, rows, s, kept))


def _latent_projections(ctx: RoleContext, spec: Attention, rows: AttentionRows, s: _Shape) -> Iterator[Op]:
    """Low-rank projections of multi-head latent attention: expanded in prefill, absorbed into the query in decode.

    The down-projections are computed by every GPU that holds the tokens (a declared replication).
    """
    hidden, rank, rope = ctx.model.hidden, spec.kv_lora_rank, spec.rope_dim
    width = rows.heads * s.qk
    if spec.q_lora_rank is None:
        yield _matmul(
            ctx, "q_proj", ("xg",), ctx.tensor("q", s.tokens, width), hidden, (ctx.shard("q", "attention", hidden, width),)
        )
    else:
        low = spec.q_lora_rank
        yield _matmul(
            ctx, "q_a_proj", ("xg",), ctx.tensor("qa", s.tokens, low), hidden, (ctx.shard("q_a", "attention", hidden, low),)
        )
        yield ctx.norm("q_a_norm", "qa", ctx.tensor("qan", s.tokens, low))
        yield _matmul(
            ctx, "q_b_proj", ("qan",), ctx.tensor("q", s.tokens, width), low, (ctx.shard("q_b", "attention", low, width),)
        )
    latent = ctx.tensor("kva", s.tokens, rank + rope)
    yield _matmul(ctx, "kv_a_proj", ("xg",), latent, hidden, (ctx.shard("kv_a", "attention", hidden, rank + rope),))
    yield ctx.norm("kv_a_norm", "kva", ctx.tensor("kvan", s.tokens, rank))
    nope = _unrotated(spec, rows)
    yield ctx.elementwise("rope", ("q", "kva"), ctx.tensor("rotated", s.tokens, (rows.heads + 1) * (s.qk - nope)))
    if ctx.keeps_cache:
        yield ctx.elementwise("kv_write", ("kvan", "rotated"), _written(ctx, rows, s, rank + s.qk - nope))
    up = ctx.shard("kv_b", "attention", rank, rows.heads * (nope + s.v))
    if spec.indexer is not None:
        yield from _indexer(ctx, spec, s)
    if ctx.workload.phase == "prefill":
        yield _matmul(ctx, "kv_b_proj", ("kvan",), ctx.tensor("kv", s.tokens, rows.heads * (nope + s.v)), rank, (up,))
    else:
        absorbed = ctx.tensor("ql", s.tokens, rows.heads * rank)
        yield Op(
            "q_absorb",
            Kind.MATMUL,
            ("q",),
            absorbed,
            ctx.dtype,
            m=s.tokens,
            k=spec.nope_dim,
            n=rank,
            batch=rows.heads,
            weights=(up,),
        )


def _unrotated(spec: Attention, rows: AttentionRows) -> Size:
    """Dims that a segment has of the part of each head that latent attention does not rotate (of other kinds: none)."""
    if rows.segments.max(initial=1) == 1:
        return spec.nope_dim
    return 2 * share(spec.nope_dim // 2, rows.segments, rows.segment)


def _indexer(ctx: RoleContext, spec: Attention, s: _Shape) -> Iterator[Op]:
    """The sparse-attention indexer: every GPU that holds the tokens scores all keys with all index heads."""
    index = spec.indexer
    if index is None:
        return
    hidden, low, width = ctx.model.hidden, spec.q_lora_rank or ctx.model.hidden, index.heads * index.head_dim
    source = "qan" if spec.q_lora_rank else "xg"
    yield _matmul(
        ctx, "index_q", (source,), ctx.tensor("iq", s.tokens, width), low, (ctx.shard("index_q", "attention", low, width),)
    )
    keys = ctx.tensor("ik", s.tokens, index.head_dim)
    yield _matmul(ctx, "index_k", ("xg",), keys, hidden, (ctx.shard("index_k", "attention", hidden, index.head_dim),))
    normed = ctx.tensor("ikn", s.tokens, index.head_dim)
    yield ctx.elementwise("index_norm", ("ik",), normed, weights=(ctx.shard("index_norm", "norm", 2, index.head_dim),))
    heads = ctx.tensor("iw", s.tokens, index.heads)
    yield _matmul(ctx, "index_w", ("xg",), heads, hidden, (ctx.shard("index_w", "attention", hidden, index.heads),))
    kv_len = ctx.workload.kv_length
    scores = Tensor("index_scores", (s.tokens, kv_len), "fp32", store=Store.SCORES)
    yield Op("index_score", Kind.MATMUL, ("iq", "ikn", "iw"), scores, "fp8",
             m=s.q_len * index.heads, k=index.head_dim, n=kv_len,
             batch=s.sequences)  # fmt: skip
    yield ctx.elementwise(
        "index_top_k", ("index_scores",), Tensor("picked", (s.tokens, min(index.top_k, kv_len)), "fp32"), passes=2.0
    )


def _queries_keys(spec: Attention) -> tuple[str, ...]:
    """Names of the tensors that hold the finished queries and keys."""
    if spec.rope != "none":
        return ("rotated",)
    return ("qk_normed",) if spec.qk_norm != "none" else ("q", "k")


def _attention_inputs(ctx: RoleContext, spec: Attention) -> tuple[str, ...]:
    """Names of the tensors that the attention core reads: queries, keys, values and, where kept, the cache."""
    cache = ("cache",) if ctx.keeps_cache else ()
    if spec.indexer is not None:
        cache = (*cache, "picked")
    if spec.kind == "mla":
        return ("rotated", "ql", *cache) if ctx.workload.phase == "decode" else ("rotated", "q", "kv", *cache)
    return (*_queries_keys(spec), "v", *cache)


def _written(ctx: RoleContext, rows: AttentionRows, s: _Shape, width: Size) -> Tensor:
    """The new cache entries; in decode each context part owns its share of the tokens."""
    tokens = share(s.tokens, rows.context_parts, rows.context) if ctx.workload.phase == "decode" else s.tokens
    return Tensor("cache", (tokens, width), ctx.kv_dtype)


def _core(ctx: RoleContext, spec: Attention, signature: AttentionSignature, rows: AttentionRows, s: _Shape) -> Iterator[Op]:
    """From queries, keys and values to the attention output `a` of the row's heads."""
    absorbed = spec.kind == "mla" and ctx.workload.phase == "decode"
    if signature.form == "segments":
        yield from _segmented(ctx, spec, rows, s)
    elif signature.form == "ring":
        yield from _ring(ctx, spec, signature.context_parts, rows, s)
    else:
        parts = rows.context_parts if signature.form == "merge" else 1
        width = rows.heads * (spec.kv_lora_rank if absorbed else s.v)
        attended = replace(ctx.tensor("a", s.tokens, width), layout=Layout.HEADS)
        dims = _dims(ctx, spec, rows, s, parts)
        yield Op("attention", Kind.ATTENTION, _attention_inputs(ctx, spec), attended, ctx.dtype, attention=dims,
                 weights=_sinks(ctx, spec, rows))  # fmt: skip
        if signature.form == "merge":
            yield from _merge(ctx, rows, s, spec.kv_lora_rank if absorbed else s.v)
    if absorbed:
        up = ctx.tensor("av", s.tokens, s.own_heads * s.v)
        yield Op("v_absorb", Kind.MATMUL, ("a",), up, ctx.dtype, m=s.tokens, k=spec.kv_lora_rank, n=s.v, batch=s.own_heads)


def _sinks(ctx: RoleContext, spec: Attention, rows: AttentionRows) -> tuple[Shard, ...]:
    """The learned logit of every head that takes part in its softmax, where a model has one."""
    return (ctx.shard("sinks", "attention", rows.heads),) if spec.sinks else ()


def _dims(ctx: RoleContext, spec: Attention, rows: AttentionRows, s: _Shape, parts: Size) -> AttentionDims:
    """Dims of a fused kernel; a window or chunk shortens what is read, `parts` split the keys."""
    keys, causal, sequences, q_len = (
        ctx.workload.kv_length,
        spec.causal and ctx.workload.phase == "prefill",
        s.sequences,
        s.q_len,
    )
    limit = min(x for x in (keys, spec.window, spec.chunk, spec.indexer.top_k if spec.indexer else None) if x is not None)
    if limit < keys and causal and spec.chunk is not None and limit == spec.chunk:
        sequences, q_len = sequences * -(-keys // limit), np.minimum(q_len, limit)
    elif limit < keys:
        causal = False
    kv_len = share(limit, parts, 0)
    cache = ctx.kv_dtype if ctx.workload.phase == "decode" and ctx.kv_dtype != ctx.dtype else None
    if spec.kind == "mla" and ctx.workload.phase == "decode":
        one = np.ones_like(rows.heads)
        return AttentionDims(
            sequences, rows.heads, one, q_len, kv_len, spec.kv_lora_rank + spec.rope_dim, spec.kv_lora_rank, False, True,
            cache,
        )  # fmt: skip
    kv_heads = rows.heads if spec.kind == "mla" else rows.kv_heads
    return AttentionDims(sequences, rows.heads, kv_heads, q_len, kv_len, s.qk, s.v, causal, kv_dtype=cache)


def _segmented(ctx: RoleContext, spec: Attention, rows: AttentionRows, s: _Shape) -> Iterator[Op]:
    """Partial scores of each dimension segment, summed before softmax; softmax on every segment or on its share of rows."""
    keys, pairs = ctx.workload.kv_length, s.sequences * rows.heads
    cache = ("cache",) if ctx.workload.phase == "decode" else ()
    inputs = ("rotated", "q", "kv") if spec.kind == "mla" else (*_queries_keys(spec), *cache)
    partial = Tensor("scores", (pairs, s.q_len, keys), SCORE_DTYPE, Layout.PARTIAL, Store.SCORES)
    yield Op("scores", Kind.MATMUL, inputs, partial, ctx.dtype, m=s.q_len, k=s.qk, n=keys, batch=pairs)
    summed = rows.score_reduce == 1
    part = share(s.q_len, np.where(rows.scattered == 1, rows.segments, 1), rows.segment * rows.scattered)
    whole = Tensor("summed", (pairs, part, keys), SCORE_DTYPE, store=Store.SCORES)
    yield Op("score_all_reduce", Kind.ALL_REDUCE, ("scores",), whole, SCORE_DTYPE, bytes=partial.bytes, group=s.segments,
             exists=summed & (rows.scattered == 0))  # fmt: skip
    yield Op("score_reduce_scatter", Kind.REDUCE_SCATTER, ("scores",), whole, SCORE_DTYPE,
             bytes=partial.bytes, group=s.segments,
             exists=summed & (rows.scattered == 1))  # fmt: skip
    own = Tensor("own_probabilities", (pairs, part, keys), ctx.dtype, store=Store.SCORES)
    picked = ("picked",) if spec.indexer is not None else ()
    yield Op("softmax", Kind.ELEMENTWISE, ("summed", "scores", *picked), own, SCORE_DTYPE, bytes=whole.bytes + own.bytes,
             weights=_sinks(ctx, spec, rows))  # fmt: skip
    probabilities = Tensor("probabilities", (pairs, s.q_len, keys), ctx.dtype, store=Store.SCORES)
    yield Op("probabilities_all_gather", Kind.ALL_GATHER, ("own_probabilities",), probabilities, ctx.dtype,
             bytes=probabilities.bytes, group=s.segments, exists=rows.scattered == 1)  # fmt: skip
    value = ("kv",) if spec.kind == "mla" else ("v", *cache)
    attended = replace(ctx.tensor("a", s.tokens, rows.heads * s.v), layout=Layout.HEADS)
    yield Op(
        "attention_value",
        Kind.MATMUL,
        ("probabilities", "own_probabilities", *value),
        attended,
        ctx.dtype,
        m=s.q_len,
        k=keys,
        n=s.v,
        batch=pairs,
    )


def _ring(ctx: RoleContext, spec: Attention, parts: int, rows: AttentionRows, s: _Shape) -> Iterator[Op]:
    """Ring attention over `parts` GPUs: each step attends one block of keys while the next block arrives.

    Causal work is balanced by giving each GPU an early and a late piece of the prompt, so that the own block is a
    causal square and every other block half a square (Brandon et al., Striped Attention, arXiv:2311.09431).
    """
    latent = spec.kind == "mla"
    kv_heads = rows.heads if latent else rows.kv_heads
    local = _dims(ctx, spec, rows, s, parts)
    local = replace(local, q_len=s.q_len)
    half = replace(local, kv_len=share(local.kv_len, 2, 0), causal=False) if local.causal else local
    block = Tensor("kv_block", (s.tokens, kv_heads * (np.asarray(s.qk) + s.v)), ctx.dtype, store=Store.COMMUNICATION)
    attended = replace(ctx.tensor("a", s.tokens, rows.heads * s.v), layout=Layout.HEADS)
    own = _attention_inputs(ctx, spec)
    queries = ("rotated", "q") if latent else own[:1]
    moved, group = block.bytes, replace(s.context, name="ring")  # the same for every step, so that it is priced once
    yield Op("attention_0", Kind.ATTENTION, own, replace(attended, name="a0"), ctx.dtype, attention=local,
             weights=_sinks(ctx, spec, rows))  # fmt: skip
    for step in range(1, parts):
        passed = own if step == 1 else (f"kv{step - 1}",)
        yield Op(f"ring_{step}", Kind.SEND, passed, replace(block, name=f"kv{step}"), ctx.dtype, bytes=moved,
                 group=group, stream="transfer")  # fmt: skip
        output = replace(attended, name="a" if step == parts - 1 else f"a{step}")
        yield Op(f"attention_{step}", Kind.ATTENTION, (*queries, f"kv{step}", f"a{step - 1}"), output, ctx.dtype,
                 attention=half)  # fmt: skip


def _merge(ctx: RoleContext, rows: AttentionRows, s: _Shape, dim: Size) -> Iterator[Op]:
    """Exact merge of partial outputs over context parts: all-to-all over heads with log-sum-exp, then a weighted sum.

    Helix parallelism of Bhatia et al. (arXiv:2507.07120), decode context parallel of vLLM.
    """
    sent = Tensor("partials", (s.tokens, rows.heads * dim), ctx.dtype, store=Store.COMMUNICATION)
    weights = Tensor("log_sum_exp", (s.tokens, rows.heads), "fp32")
    yield Op("merge_all_to_all", Kind.ALL_TO_ALL, ("a",), sent, ctx.dtype, bytes=sent.bytes + weights.bytes, group=s.context)
    merged = ctx.tensor("a", s.tokens, s.own_heads * dim)
    yield Op("merge", Kind.ELEMENTWISE, ("partials",), merged, ctx.dtype, bytes=sent.bytes + merged.bytes)


def _output(ctx: RoleContext, spec: Attention, rows: AttentionRows, s: _Shape) -> Iterator[Op]:
    """Output projection: rows split and summed over the GPUs, or the output gathered and the columns split."""
    hidden, decode, holders = ctx.model.hidden, ctx.workload.phase == "decode", s.holders.size
    own, gather = s.own_heads * s.v, rows.gather == 1
    total = spec.heads * spec.v_head_dim
    gathered = ctx.tensor("ag", s.tokens, np.where(gather, total, own))
    source = "av" if spec.kind == "mla" and decode else "a"
    yield Op("gather_heads", Kind.ALL_GATHER, (source,), gathered, ctx.dtype,
             bytes=ctx.tensor("", s.tokens, total).bytes, group=s.holders,
             exists=gather)  # fmt: skip
    rows_in = np.where(gather, total, own)
    columns = np.where(gather, share(hidden, holders, rows.position), hidden)
    weights = [ctx.shard("o", "attention", rows_in, columns)]
    if spec.o_bias:
        weights.append(ctx.shard("o_bias", "attention", columns))
    partial = replace(ctx.tensor("op", s.tokens, columns), layout=Layout.PARTIAL)
    yield _matmul(ctx, "o_proj", ("ag", source), partial, rows_in, tuple(weights))
    whole, split = ctx.tensor("o", s.residual, hidden), rows.sequence_parallel == 1
    full = ctx.tensor("", s.tokens, hidden).bytes
    yield Op("o_all_reduce", Kind.ALL_REDUCE, ("op",), whole, ctx.dtype, bytes=full, group=s.holders, exists=~gather & ~split)
    yield Op("o_reduce_scatter", Kind.REDUCE_SCATTER, ("op",), whole, ctx.dtype, bytes=full, group=s.holders,
             exists=~gather & split)  # fmt: skip
    yield Op("o_all_gather", Kind.ALL_GATHER, ("op",), whole, ctx.dtype, bytes=full, group=s.holders, exists=gather & ~split)
    yield Op("o_all_to_all", Kind.ALL_TO_ALL, ("op",), whole, ctx.dtype, bytes=partial.bytes, group=s.holders,
             exists=gather & split)  # fmt: skip


def _matmul(ctx: RoleContext, name: str, inputs: tuple[str, ...], output: Tensor, k: Size, weights: tuple[Shard, ...]) -> Op:
    """A projection of tokens: (tokens x k) @ (k x columns), in the dtype its weight is stored in."""
    tokens, columns = output.shape
    return Op(name, Kind.MATMUL, inputs, output, weights[0].dtype, m=tokens, k=k, n=columns, weights=weights)


def _cache_bytes(ctx: RoleContext, spec: Attention, rows: AttentionRows, s: _Shape) -> NDArray[np.float64]:
    """Bytes that one sequence of the row's batch part keeps in the KV cache of this layer, on this GPU."""
    if not ctx.keeps_cache:
        return np.zeros(rows.heads.shape)
    limits = [x for x in (spec.window, spec.chunk) if x is not None]
    kept = share(min([ctx.workload.kv_length, *limits]), rows.context_parts, rows.context)
    if spec.kind == "mla":
        width: Size = spec.kv_lora_rank + s.qk - _unrotated(spec, rows)
    else:
        width = rows.kv_heads * (np.asarray(s.qk) + s.v)
    cache = Tensor("kv_cache", (kept, width), ctx.kv_dtype).bytes
    if spec.indexer is not None:
        cache = cache + Tensor("index_cache", (kept, spec.indexer.head_dim), "fp8").bytes
    return np.broadcast_to(cache, rows.heads.shape)
