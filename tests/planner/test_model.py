"""The inventory of weights: names, shapes and counts of small models that can be added up by hand."""

from __future__ import annotations

from dataclasses import replace

import pytest

from planner.model import Attention, Ffn, Indexer, Layer, ModelSpec

GQA = Attention("gqa", heads=4, kv_heads=2, head_dim=8, v_head_dim=6)
MLA = Attention("mla", 4, 4, 12, 8, q_lora_rank=16, kv_lora_rank=10, nope_dim=8, rope_dim=4)
DENSE = Ffn("dense", 64)
MOE = Ffn("moe", 16, experts=8, top_k=2, shared_hidden=32)


def shapes(weights):
    return {weight.name: weight.shape for weight in weights}


def test_grouped_query_attention():
    full = replace(GQA, q_bias=True, kv_bias=True, o_bias=True, qk_norm="head", sinks=True)
    assert shapes(full.weights(32)) == {
        **{"q": (32, 32), "k": (32, 16), "v": (32, 12), "o": (24, 32), "sinks": (4,)},
        **{"q_bias": (32,), "k_bias": (16,), "v_bias": (12,), "o_bias": (32,), "q_norm": (8,), "k_norm": (8,)},
    }
    assert "q_norm" not in shapes(replace(GQA, qk_norm="head", qk_norm_weights=False).weights(32))


def test_latent_attention():
    indexed = replace(MLA, indexer=Indexer(heads=2, head_dim=5, top_k=7))
    assert shapes(indexed.weights(32)) == {
        **{"q_a": (32, 16), "q_a_norm": (16,), "q_b": (16, 48), "kv_a": (32, 14), "kv_a_norm": (10,)},
        **{"kv_b": (10, 64), "o": (32, 32)},
        **{"index_q": (16, 10), "index_k": (32, 5), "index_w": (32, 2), "index_norm": (5,), "index_norm_bias": (5,)},
    }
    assert shapes(replace(MLA, q_lora_rank=None).weights(32))["q"] == (32, 48)


def test_networks():
    assert shapes(DENSE.weights(32)) == {"gate": (32, 64), "up": (32, 64), "down": (64, 32)}
    assert shapes(Ffn("dense", 64, gated=False, bias=True).weights(32)) == {
        **{"up": (32, 64), "down": (64, 32), "up_bias": (64,), "down_bias": (32,)}
    }
    mixture = replace(MOE, bias=True, router_bias=True, shared_gate=True)
    assert shapes(mixture.weights(32)) == {
        **{"router": (32, 8), "router_bias": (8,), "shared_router": (32, 1)},
        **{"expert_gate": (8, 32, 16), "expert_up": (8, 32, 16), "expert_down": (8, 16, 32)},
        **{"expert_gate_bias": (8, 16), "expert_up_bias": (8, 16), "expert_down_bias": (8, 32)},
        **{"shared_gate": (32, 32), "shared_up": (32, 32), "shared_down": (32, 32)},
    }
    assert {w.module for w in mixture.weights(32) if w.name.startswith("expert_")} == {"experts"}


@pytest.mark.parametrize(("norms", "kind", "count"), [(0, "rms", 0), (1, "layer", 2), (2, "rms", 2), (4, "layer", 8)])
def test_norms(norms, kind, count):
    assert len(Layer(GQA, DENSE, norms, kind).norm_weights(32)) == count


@pytest.fixture
def small() -> ModelSpec:
    return ModelSpec("small", 32, 100, (Layer(GQA, DENSE), Layer(GQA, MOE), Layer(GQA, MOE)))


def test_parameters_are_the_sum_of_the_inventory(small: ModelSpec):
    attention = 32 * 32 + 32 * 16 + 32 * 12 + 24 * 32 + 2 * 32
    mixture = 32 * 8 + 8 * 3 * 32 * 16 + 3 * 32 * 32
    assert small.parameters == 2 * 100 * 32 + 32 + 3 * attention + 3 * 32 * 64 + 2 * mixture
    assert small.parameters == sum(weight.parameters for _, weight in small.weights())
    assert small.active_parameters == small.parameters - 2 * 6 * 3 * 32 * 16


def test_tied_and_absent_embeddings(small: ModelSpec):
    assert small.parameters - replace(small, tied_embeddings=True).parameters == 3200
    bare = replace(small, vocab=0, final_norm=False)
    assert {index for index, _ in bare.weights()} == {0, 1, 2}
    assert [w.name for w in replace(small, positions=7, head_bias=True).outer_weights()] == [
        *("embedding", "positions", "final_norm", "head", "head_bias")
    ]


def test_layers_are_grouped_by_equality(small: ModelSpec):
    assert small.kind_of_layer == (0, 1, 1)
    assert small.layers_of_kind == (1, 2)
    assert small.layer_kinds == small.layers[:2]


def test_cache_bytes_and_dtypes(small: ModelSpec):
    assert small.kv_cache_bytes_per_token == 3 * 2 * (8 + 6) * 2
    assert replace(small, kv_dtype="fp8").kv_cache_bytes_per_token == 3 * 2 * (8 + 6)
    latent = Layer(replace(MLA, indexer=Indexer(2, 128, 7)), DENSE)
    indexed = replace(small, layers=(latent, latent))
    assert indexed.kv_cache_bytes_per_token == 2 * 14 * 2
    assert indexed.index_cache_bytes_per_token == 2 * 132
    mixed = replace(small, module_dtypes={"experts": "mxfp4"})
    assert (mixed.dtype_of("experts"), mixed.dtype_of("ffn")) == ("mxfp4", "bf16")
