"""Our unsplit reference against Hugging Face's own classes, for every architecture that the importer reads."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from planner.check.reference import available, forward, random_weights, reference_logits
from planner.models import load_model
from planner.models.hf import FAMILIES
from tests.planner.check.reference_models import CASES, ragged, tiny

pytest.importorskip("torch")
pytest.importorskip("transformers")

TOLERANCE = 1e-11  # relative to what a layer adds to its input; float64 leaves 1e-14 or so


def worst(model, weights, tokens, theirs):
    """The largest error over all layers, relative to the layer's own change, and over the logits."""
    ours, valid = forward(model, weights, tokens).values, tokens.valid
    errors = []
    for index, hidden in enumerate(theirs.hidden):
        y = ours[index, "ffn.y"]
        change = np.abs(y - ours[index, "attention.x"])[valid].max()
        errors.append(np.abs(y - hidden)[valid].max() / change)
    if theirs.logits is not None:
        logits = ours[None, "head.logits"]
        errors.append((np.abs(logits - theirs.logits)[valid] / np.abs(logits)[valid].max()).max())
    return max(errors)


def test_every_architecture_has_a_case():
    assert set(CASES) == set(FAMILIES)
    assert available()


@pytest.mark.parametrize(
    ("architecture", "number"), [(name, number) for name, cases in CASES.items() for number in range(len(cases))]
)
@pytest.mark.parametrize(("padding", "offsets"), [("right", (20, 0, 40)), ("left", (0, 20, 0))])
def test_same_logits_and_hidden_states(architecture, number, padding, offsets):
    """The classes make their own masks from lengths alone; positions start at multiples of every chunk."""
    model = tiny(architecture, CASES[architecture][number])
    rng = np.random.default_rng(number)
    weights, tokens = random_weights(model, rng), ragged(rng, offsets=offsets, padding=padding)
    theirs = reference_logits(model, weights, tokens)
    assert not isinstance(theirs, str), theirs
    assert theirs.own_masks
    assert len(theirs.hidden) == len(model.layers)
    assert worst(model, weights, tokens, theirs) < TOLERANCE


def test_a_wrong_weight_shows():
    """Swapping two weights of one layer moves the logits far beyond the tolerance."""
    model = tiny("llama", {})
    rng = np.random.default_rng(3)
    weights, tokens = random_weights(model, rng), ragged(rng)
    theirs = reference_logits(model, weights, tokens)
    swapped = {**weights, (1, "gate"): weights[1, "up"], (1, "up"): weights[1, "gate"]}
    assert worst(model, swapped, tokens, theirs) > 1e-2


def test_chunks_that_begin_elsewhere_get_our_masks():
    model = tiny("llama4_text", CASES["llama4_text"][0])
    rng = np.random.default_rng(4)
    weights, tokens = random_weights(model, rng), ragged(rng, offsets=(3, 0, 7))
    theirs = reference_logits(model, weights, tokens)
    assert not theirs.own_masks
    assert worst(model, weights, tokens, theirs) < TOLERANCE


@pytest.mark.parametrize("architecture", sorted(CASES))
def test_without_causality_and_without_a_vocabulary(architecture):
    model = tiny(architecture, CASES[architecture][0])
    layers = tuple(replace(layer, attention=replace(layer.attention, causal=False)) for layer in model.layers)
    model = replace(model, layers=layers, vocab=0, final_norm=False, tied_embeddings=False)
    rng = np.random.default_rng(5)
    tokens = ragged(rng)
    tokens = replace(tokens, embedded=rng.standard_normal((*tokens.ids.shape, model.hidden)))
    weights = random_weights(model, rng)
    theirs = reference_logits(model, weights, tokens)
    assert not isinstance(theirs, str), theirs
    assert theirs.logits is None
    assert not theirs.own_masks
    assert worst(model, weights, tokens, theirs) < TOLERANCE


@pytest.mark.parametrize("architecture", ["llama", "gemma2", "gemma3_text", "deepseek_v2", "mixtral", "glm4_moe"])
def test_a_hidden_size_that_heads_do_not_divide(architecture):
    model = tiny(architecture, {"head_dim": 8, **CASES[architecture][0], "hidden_size": 47})
    rng = np.random.default_rng(8)
    weights, tokens = random_weights(model, rng), ragged(rng, offsets=(20, 0, 40))
    theirs = reference_logits(model, weights, tokens)
    assert not isinstance(theirs, str), theirs
    assert worst(model, weights, tokens, theirs) < TOLERANCE


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"architecture": ""}, "architecture"),
        ({"architecture": "mixtral"}, "ffn.kind"),
        ({"final_softcap": 3.0}, "final_softcap"),
        ({"embedding_scale": 2.0}, "embedding_scale"),
        ({"positions": 40}, "positions"),
    ],
)
def test_what_no_class_computes_is_said(changes, words):
    model = replace(tiny("llama", {}), **changes)
    rng = np.random.default_rng(6)
    reason = reference_logits(model, random_weights(model, rng), ragged(rng))
    assert isinstance(reason, str)
    assert words in reason


def test_a_layer_of_another_kind_is_said():
    model = tiny("llama", {})
    own = replace(model.layers[1], attention=replace(model.layers[1].attention, window=4))
    model = replace(model, layers=(model.layers[0], own, model.layers[2]))
    rng = np.random.default_rng(6)
    assert "layer 1 attention.window" in reference_logits(model, random_weights(model, rng), ragged(rng))


def test_helix_has_no_class():
    """A model from a sheet of paper, without an architecture of Hugging Face's."""
    model = load_model({"layers": 1, "hidden": 8, "vocab": 0, "attention": {"heads": 2}, "ffn": {"hidden": 9}})
    rng = np.random.default_rng(7)
    assert "architecture" in reference_logits(model, random_weights(model, rng), ragged(rng))
