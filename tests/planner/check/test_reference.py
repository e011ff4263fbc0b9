"""Laws that the unsplit reference keeps, and small cases that can be worked out by hand."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from planner.check.reference import NORM_EPS, ROPE_BASE, Tokens, forward, random_weights
from planner.check.reference.attention import visible
from planner.check.reference.ffn import choose, weigh
from planner.check.reference.numerics import activate, normalise, rotate, softmax
from planner.errors import InputError
from planner.model import Attention, Ffn, Layer, ModelSpec
from tests.planner.check.reference_models import CASES, VOCAB, ragged, tiny

ALL = sorted(CASES)


def case(architecture, seed=0):
    model = tiny(architecture, CASES[architecture][0])
    rng = np.random.default_rng(seed)
    return model, random_weights(model, rng), ragged(rng)


def output(model, weights, tokens):
    return forward(model, weights, tokens).values[None, "head.logits"]


@pytest.mark.parametrize("architecture", ALL)
def test_a_later_token_changes_nothing_before_it(architecture):
    model, weights, tokens = case(architecture)
    ids = tokens.ids.copy()
    ids[:, 6] = (ids[:, 6] + 1) % VOCAB
    before, after = output(model, weights, tokens), output(model, weights, replace(tokens, ids=ids))
    early = tokens.valid[:, :6]
    np.testing.assert_allclose(before[:, :6][early], after[:, :6][early], atol=1e-13)  # rows of other experts may be batched
    assert np.abs(before - after)[0, 6:].max(axis=-1).min() > 1e-6


@pytest.mark.parametrize("architecture", ALL)
def test_padding_changes_nothing(architecture):
    """Each sequence alone, without padding, gives what it gives among others, whatever stands in the padding."""
    model, weights, tokens = case(architecture)
    together = output(model, weights, replace(tokens, ids=np.where(tokens.valid, tokens.ids, 1)))
    for row in range(len(tokens.ids)):
        real = tokens.valid[row]
        alone = Tokens(
            tokens.ids[row : row + 1, real], tokens.positions[row : row + 1, real], tokens.valid[row : row + 1, real]
        )
        np.testing.assert_allclose(output(model, weights, alone)[0], together[row, real], atol=1e-12)


@pytest.mark.parametrize("architecture", [name for name in ALL if name not in ("gpt2", "opt")])
def test_rotations_know_distances_only(architecture):
    model, weights, tokens = case(architecture)
    moved = replace(tokens, positions=tokens.positions + 20)  # a multiple of every chunk
    np.testing.assert_allclose(output(model, weights, moved), output(model, weights, tokens), atol=1e-10)


@pytest.mark.parametrize("architecture", ["gpt2", "opt"])
def test_learned_positions_do_not(architecture):
    model, weights, tokens = case(architecture)
    moved = replace(tokens, positions=tokens.positions + 20)
    assert np.abs(output(model, weights, moved) - output(model, weights, tokens)).max() > 0.1


def test_position_p_is_row_p_plus_the_offset():
    model, weights, tokens = case("opt")
    assert (model.position_offset, tokens.positions[0, 0]) == (2, 7)
    y = forward(model, weights, tokens).values[None, "embedding.y"]
    expected = weights[None, "embedding"][tokens.ids[0, 0]] + weights[None, "positions"][9]
    np.testing.assert_array_equal(y[0, 0], expected)


@pytest.mark.parametrize("architecture", ALL)
def test_scores_spread_and_activations_stay_in_range(architecture):
    model = tiny(architecture, CASES[architecture][0])
    rng = np.random.default_rng(11)
    tokens = Tokens(rng.integers(0, VOCAB, (6, 24)), np.tile(np.arange(24), (6, 1)), np.ones((6, 24), dtype=bool))
    values = forward(model, random_weights(model, rng), tokens).values
    for index, layer in enumerate(model.layers):
        spread = values[index, "attention.scores"].std()
        assert 1.0 < spread < 3.0 or layer.attention.softcap == 3.0, (index, spread)
        for half in ("attention.o", "ffn.f"):
            assert 0.2 < values[index, half].std() < 4.0, (index, half)
    if any(layer.ffn.kind == "moe" for layer in model.layers):
        last = values[len(model.layers) - 1, "ffn.routes"]
        assert len(np.unique(last)) >= 4


@pytest.mark.parametrize("architecture", ALL)
def test_weights_are_the_inventory_and_all_different(architecture):
    model, weights, _ = case(architecture)
    shapes = {(layer, weight.name): weight.shape for layer, weight in model.weights()}
    buffers = {
        (index, "correction_bias"): (layer.ffn.experts,)
        for index, layer in enumerate(model.layers)
        if layer.ffn.kind == "moe" and layer.ffn.correction_bias
    }
    assert {key: value.shape for key, value in weights.items()} == shapes | buffers
    everything = np.concatenate([value.ravel() for value in weights.values()])
    assert len(np.unique(everything)) == everything.size
    assert np.abs(everything).min() > 0


NAMES = {
    "llama": "x xn q k v q_rotated k_rotated scores probabilities a o y",
    "gemma3_text": "x xn q k v q_normed k_normed q_rotated k_rotated scores probabilities a o on y",
    "deepseek_v3": "x xn qa qan q kva kvan kv q_rope k_rope scores probabilities a o y",
    "deepseek_v32": "x xn qa qan q kva kvan kv q_rope k_rope iq ik ikn iw index_scores picked scores probabilities a o y",
}
MIXED = "x xn router_scores routes route_weights expert_output f y"
SHARED = f"{MIXED} shared_gate_proj shared_up shared_active shared"


@pytest.mark.parametrize("architecture", NAMES)
def test_every_intermediate_has_its_name(architecture):
    model, weights, tokens = case(architecture)
    values = forward(model, weights, tokens).values
    found = {name for index, name in values if index == 0}
    dense = "x xn gate up active f y" + (" fn" if architecture == "gemma3_text" else "")
    assert found == {f"attention.{n}" for n in NAMES[architecture].split()} | {f"ffn.{n}" for n in dense.split()}
    assert {name for index, name in values if index is None} == {"embedding.y", "head.xn", "head.logits"}
    if model.layers[1].ffn.kind == "moe":
        assert {name[4:] for index, name in values if index == 1 and name[:4] == "ffn."} == set(SHARED.split())


def test_shapes_of_a_latent_layer():
    model, weights, tokens = case("deepseek_v32")
    values = {name: value.shape for (index, name), value in forward(model, weights, tokens).values.items() if index == 1}
    assert values["attention.q"] == (3, 13, 6, 16)
    assert values["attention.kva"] == (3, 13, 24)
    assert values["attention.kv"] == (3, 13, 6, 17)
    assert values["attention.k_rope"] == (3, 13, 6)
    assert values["attention.scores"] == values["attention.probabilities"] == (3, 6, 13, 13)
    assert values["attention.picked"] == (3, 13, 13)
    assert values["ffn.expert_output"] == (3, 13, 3, 48)


def test_expanded_and_absorbed_latent_attention_agree():
    """Queries multiplied into the latent space give the same scores, and mixing latents the same values."""
    model, weights, tokens = case("deepseek_v3")
    values, own = forward(model, weights, tokens).values, model.layers[0].attention
    expand = weights[0, "kv_b"].reshape(own.kv_lora_rank, own.heads, own.nope_dim + own.v_head_dim)
    keys, mixed = expand[..., : own.nope_dim], expand[..., own.nope_dim :]
    into_latent = np.einsum("sqhd,rhd->sqhr", values[0, "attention.q"][..., : own.nope_dim], keys)
    scores = np.einsum("sqhr,skr->shqk", into_latent, values[0, "attention.kvan"])
    scores += np.einsum("sqhr,skr->shqk", values[0, "attention.q_rope"], values[0, "attention.k_rope"])
    np.testing.assert_allclose(scores / 4.0, values[0, "attention.scores"], atol=1e-12)  # head_dim is 16
    latents = np.einsum("shqk,skr->sqhr", values[0, "attention.probabilities"], values[0, "attention.kvan"])
    np.testing.assert_allclose(np.einsum("sqhr,rhv->sqhv", latents, mixed), values[0, "attention.a"], atol=1e-12)


def positions(*rows):
    places = np.array(rows)
    return Tokens(np.zeros_like(places), places, np.ones(places.shape, dtype=bool))


GQA = Attention("gqa", 2, 1, 4, 4)


def test_masks():
    tokens = positions([3, 4, 5, 6, 7])
    seen = {
        name: visible(attention, tokens)[0].astype(int).tolist()
        for name, attention in {
            "window": replace(GQA, window=2),
            "chunk": replace(GQA, chunk=3),
            "full": replace(GQA, causal=False),
        }.items()
    }
    assert seen["window"] == [[1, 0, 0, 0, 0], [1, 1, 0, 0, 0], [0, 1, 1, 0, 0], [0, 0, 1, 1, 0], [0, 0, 0, 1, 1]]
    assert seen["chunk"] == [[1, 0, 0, 0, 0], [1, 1, 0, 0, 0], [1, 1, 1, 0, 0], [0, 0, 0, 1, 0], [0, 0, 0, 1, 1]]
    assert seen["full"] == [[1] * 5] * 5
    padded = replace(tokens, valid=np.array([[False, True, True, True, False]]))
    assert visible(replace(GQA, causal=False), padded)[0].astype(int).tolist() == [[0, 1, 1, 1, 0]] * 5


def test_sinks_take_a_share_and_softcaps_bound():
    logits, sink = np.array([[0.0, math.log(2.0)]]), np.array([[0.0]])
    np.testing.assert_allclose(softmax(logits, extra=sink), [[0.25, 0.5]])
    np.testing.assert_allclose(softmax(logits), [[1 / 3, 2 / 3]])
    np.testing.assert_array_equal(softmax(logits, np.array([[False, False]])), [[0.0, 0.0]])
    model, weights, tokens = case("gemma2")
    assert np.abs(forward(model, weights, tokens).values[0, "attention.scores"]).max() < 3.0
    assert np.abs(output(model, weights, tokens)).max() < 2.0


def test_the_indexer_keeps_the_best_keys_that_may_be_seen():
    model, weights, tokens = case("deepseek_v32")
    values = forward(model, weights, tokens).values
    scores, picked = values[0, "attention.index_scores"], values[0, "attention.picked"]
    query = 9
    assert picked[0, query].sum() == 5
    assert set(np.flatnonzero(picked[0, query])) == set(np.argsort(-scores[0, query, : query + 1])[:5])
    assert picked[0, 2].tolist() == [True] * 3 + [False] * 10
    assert not values[0, "attention.probabilities"][0, :, query][:, ~picked[0, query]].any()


SCORES = np.array([[[0.1, 0.9, 0.25, 0.8, 0.5, 0.6, 0.7, 0.3]]])  # four groups of two


def logit(scores):
    return np.log(scores / (1 - scores))


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, [1, 3, 6]),
        ({"expert_groups": 4, "top_k_groups": 2, "group_score": "max"}, [1, 3, 2]),
        ({"expert_groups": 4, "top_k_groups": 2, "group_score": "top2"}, [3, 5, 4]),
        ({"expert_groups": 2, "top_k_groups": 1, "group_score": "top2"}, [1, 3, 2]),
    ],
)
def test_groups(changes, expected):
    ffn = Ffn("moe", 4, experts=8, top_k=3, scoring="sigmoid", **changes)
    assert choose(ffn, logit(SCORES))[0, 0].tolist() == expected


def test_a_correction_moves_the_choice_and_not_the_weights():
    ffn = Ffn("moe", 4, experts=8, top_k=2, scoring="sigmoid", correction_bias=True, routed_scale=2.5)
    correction = np.array([0.85, 0, 0, 0, 0, 0, 0, 0])
    routes = choose(ffn, logit(SCORES), correction)
    assert routes[0, 0].tolist() == [0, 1]
    np.testing.assert_allclose(weigh(ffn, logit(SCORES), routes)[0, 0], [0.25, 2.25])
    unnormed = replace(ffn, renormalize=False)
    np.testing.assert_allclose(weigh(unnormed, logit(SCORES), routes)[0, 0], [0.25, 2.25])
    np.testing.assert_allclose(weigh(replace(unnormed, routed_scale=1.0), logit(SCORES), routes)[0, 0], [0.1, 0.9])


def test_softmax_before_and_after_the_choice():
    logits = np.log(np.array([[[1.0, 2.0, 4.0, 1.0]]]))
    all_experts = Ffn("moe", 4, experts=4, top_k=2, renormalize=False)
    routes = choose(all_experts, logits)
    assert routes[0, 0].tolist() == [2, 1]
    np.testing.assert_allclose(weigh(all_experts, logits, routes)[0, 0], [0.5, 0.25])
    for same in (replace(all_experts, renormalize=True), replace(all_experts, scoring="softmax_top_k")):
        np.testing.assert_allclose(weigh(same, logits, routes)[0, 0], [2 / 3, 1 / 3])


def test_of_equal_experts_the_first_is_chosen():
    assert choose(Ffn("moe", 4, experts=6, top_k=4), np.zeros((1, 1, 6)))[0, 0].tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize("architecture", ["mixtral", "deepseek_v3", "llama4_text", "gpt_oss"])
def test_forced_routes(architecture):
    model, weights, tokens = case(architecture)
    free = forward(model, weights, tokens).values
    mixtures = [i for i, layer in enumerate(model.layers) if layer.ffn.kind == "moe"]
    own = {i: free[i, "ffn.routes"] for i in mixtures}
    np.testing.assert_array_equal(forward(model, weights, tokens, own).values[None, "head.logits"], free[None, "head.logits"])
    ffn = model.layers[mixtures[0]].ffn
    forced = {mixtures[0]: (np.arange(39).reshape(3, 13, 1) + np.arange(ffn.top_k)) % ffn.experts}
    values = forward(model, weights, tokens, forced).values
    np.testing.assert_array_equal(values[mixtures[0], "ffn.routes"], forced[mixtures[0]])
    expected = weigh(ffn, values[mixtures[0], "ffn.router_scores"], forced[mixtures[0]])
    np.testing.assert_array_equal(values[mixtures[0], "ffn.route_weights"], expected)
    assert np.abs(values[None, "head.logits"] - free[None, "head.logits"]).max() > 1e-3


@pytest.mark.parametrize("scale_input", [False, True])
def test_one_token_of_a_mixture_by_hand(scale_input):
    ffn = Ffn("moe", 3, experts=4, top_k=2, scale_input=scale_input, shared_hidden=5, shared_gate=True)
    model = ModelSpec("m", 6, 0, (Layer(GQA, ffn),), final_norm=False)
    rng = np.random.default_rng(1)
    weights = random_weights(model, rng)
    tokens = replace(positions([0, 1, 2]), embedded=rng.standard_normal((1, 3, 6)))
    values = {name[4:]: value for (_, name), value in forward(model, weights, tokens).values.items() if name[:4] == "ffn."}
    own = {name: value for (index, name), value in weights.items() if index == 0}
    x, expected = values["xn"][0, 1], np.zeros(6)
    for expert, share in zip(values["routes"][0, 1], values["route_weights"][0, 1], strict=True):
        given = share * x if scale_input else x
        gate, up = given @ own["expert_gate"][expert], given @ own["expert_up"][expert]
        answer = (gate / (1 + np.exp(-gate)) * up) @ own["expert_down"][expert]
        expected += answer if scale_input else share * answer
    gate, up = x @ own["shared_gate"], x @ own["shared_up"]
    opening = 1 / (1 + np.exp(-(x @ own["shared_router"])))
    expected += opening * ((gate / (1 + np.exp(-gate)) * up) @ own["shared_down"])
    np.testing.assert_allclose(values["f"][0, 1], expected, atol=1e-13)
    np.testing.assert_allclose(values["shared_gate"][0, 1], opening, atol=1e-13)


def test_attention_and_network_side_by_side():
    model, weights, tokens = case("gpt_neox")
    values = forward(model, weights, tokens).values
    x, o, f, y = (values[0, name] for name in ("attention.x", "attention.o", "ffn.f", "ffn.y"))
    np.testing.assert_array_equal(values[0, "ffn.x"], x)
    np.testing.assert_allclose(y, x + o + f)
    apart = replace(model, layers=tuple(replace(layer, parallel_residual=False) for layer in model.layers))
    np.testing.assert_array_equal(forward(apart, weights, tokens).values[0, "ffn.x"], x + o)


@pytest.mark.parametrize(
    ("name", "expected"),
    [("silu", 0.7310585786300049), ("gelu", 0.8413447460685429), ("gelu_tanh", 0.8411919906082768), ("relu", 1.0)],
)
def test_activations(name, expected):
    one, minus = np.array([1.0]), np.array([-1.0])
    assert activate(name, one, None)[0] == pytest.approx(expected, abs=1e-15)
    assert activate(name, minus, None)[0] == pytest.approx(expected - 1.0, abs=1e-15)
    assert activate(name, np.array([3.0]), one)[0] == pytest.approx(3 * expected, abs=1e-14)


def test_clamped_swiglu():
    up, gate = np.array([1.0, 9.0, -9.0]), np.array([2.0, 9.0, -9.0])
    bounded = [2.0, 7.0, -9.0]  # the gate has no lower limit
    factors = [u + 1 for u in (1.0, 7.0, -7.0)]
    expected = [f * g / (1 + math.exp(-1.702 * g)) for f, g in zip(factors, bounded, strict=True)]
    np.testing.assert_allclose(activate("swiglu_clamped", up, gate), expected)
    with pytest.raises(ValueError, match="gated"):
        activate("swiglu_clamped", up, None)


def test_norms():
    x = np.array([3.0, 5.0])
    np.testing.assert_allclose(normalise(x, None, None, "rms"), x / math.sqrt(17 + NORM_EPS))
    np.testing.assert_allclose(
        normalise(x, np.array([2.0, 3.0]), np.array([1.0, 1.0]), "layer"), np.array([-2.0, 3.0]) / math.sqrt(1 + NORM_EPS) + 1
    )


def test_rotations_turn_pairs():
    x = np.array([1.0, 2.0, 3.0, 4.0, 5.0]).reshape(1, 1, 1, 5)
    place = np.array([[2]])
    angles = [2.0, 2.0 / math.sqrt(ROPE_BASE)]

    def turned(a, b, angle):
        return a * math.cos(angle) - b * math.sin(angle), b * math.cos(angle) + a * math.sin(angle)

    (p, r), (q, s) = turned(1, 3, angles[0]), turned(2, 4, angles[1])
    np.testing.assert_allclose(rotate(x, place, 4, "half")[0, 0, 0], [p, q, r, s, 5])
    (p, q), (r, s) = turned(1, 2, angles[0]), turned(3, 4, angles[1])
    np.testing.assert_allclose(rotate(x, place, 4, "interleaved")[0, 0, 0], [p, q, r, s, 5])
    np.testing.assert_array_equal(rotate(x, place, 4, "none"), x)


def test_a_model_without_an_embedding_needs_its_input():
    model = ModelSpec("m", 6, 0, (Layer(GQA, Ffn("dense", 5)),), final_norm=False)
    weights = random_weights(model, np.random.default_rng(2))
    with pytest.raises(InputError, match="embedded"):
        forward(model, weights, positions([0, 1]))
    embedded = np.random.default_rng(3).standard_normal((1, 2, 6))
    values = forward(model, weights, replace(positions([0, 1]), embedded=embedded)).values
    np.testing.assert_array_equal(values[None, "embedding.y"], embedded)
    assert not {(None, "head.xn"), (None, "head.logits")} & set(values)


def test_one_norm_before_both_halves():
    side_by_side = ModelSpec("m", 6, 5, (Layer(GQA, Ffn("dense", 5), norms=1, parallel_residual=True),))
    weights = random_weights(side_by_side, np.random.default_rng(2))
    values = forward(side_by_side, weights, positions([0, 1])).values
    np.testing.assert_array_equal(values[0, "attention.xn"], values[0, "ffn.xn"])
    apart = replace(side_by_side, layers=(replace(side_by_side.layers[0], parallel_residual=False),))
    with pytest.raises(InputError, match="norms"):
        forward(apart, weights, positions([0, 1]))
