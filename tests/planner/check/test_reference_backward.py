"""The unsplit model's own reverse pass: against finite differences, and against autograd of PyTorch where it is installed."""

from __future__ import annotations

import numpy as np
import pytest

from planner.check.reference import available, backward, forward, random_weights, targets_of
from planner.check.reference.hf_weights import state_of
from planner.check.reference.numerics import softmax
from planner.errors import InputError
from tests.planner.check.reference_models import CASES, ragged, tiny

SERIAL = [(name, number) for name, cases in CASES.items() for number in range(len(cases))]
INDEXER = ("index_q", "index_k", "index_w", "index_norm", "index_norm_bias")


def _model(architecture, number):
    model = tiny(architecture, CASES[architecture][number])
    if any(layer.parallel_residual for layer in model.layers):
        pytest.skip("parallel residuals are not trained")
    return model


def _loss(model, weights, tokens, routes):
    logits = forward(model, weights, tokens, routes).values[None, "head.logits"]
    chosen = np.take_along_axis(softmax(logits), targets_of(tokens)[..., None], axis=-1)[..., 0]
    return -np.log(chosen[tokens.valid]).mean()


@pytest.mark.parametrize(("architecture", "number"), [pair for pair in SERIAL if pair[1] == 0])
def test_gradients_are_those_of_finite_differences(architecture, number):
    """Along a random direction of every tensor, with the choice of experts held."""
    model, rng = _model(architecture, number), np.random.default_rng(number)
    weights, tokens = random_weights(model, rng), ragged(rng)
    trace = forward(model, weights, tokens)
    routes = {layer: value for (layer, name), value in trace.values.items() if name == "ffn.routes"}
    found, step = backward(model, weights, tokens, trace), 1e-7
    kinds = {(layer and 1, name): (layer, name) for layer, name in weights}  # one layer shows the others
    for key in kinds.values():
        if key[1] == "correction_bias" or key[1] in INDEXER:
            continue
        direction = rng.standard_normal(weights[key].shape)
        high, low = (_loss(model, {**weights, key: weights[key] + s * direction}, tokens, routes) for s in (step, -step))
        measured, along = (high - low) / (2 * step), float((found.weights[key] * direction).sum())
        scale = np.abs(found.weights[key]).max() * np.sqrt(direction.size)
        assert abs(along - measured) < 2e-4 * scale + 1e-6, key


def test_the_stream_has_the_gradient_of_what_enters_it():
    """Of the embedding of a token that stands in one place: its row is what enters there."""
    model, rng = tiny("llama", {}), np.random.default_rng(0)
    weights, tokens = random_weights(model, rng), ragged(rng)
    found = backward(model, weights, tokens, forward(model, weights, tokens))
    alone = next(t for t in range(41) if (tokens.ids == t).sum() == 1 and tokens.valid[tokens.ids == t].all())
    assert np.allclose(found.weights[None, "embedding"][alone], found.stream[0, "attention.x"][tokens.ids == alone][0])
    assert np.all(found.stream[1, "ffn.x"][~tokens.valid] == 0)


def test_no_loss_without_a_vocabulary():
    model, rng = tiny("llama", {}), np.random.default_rng(0)
    bare = type(model)(model.name, model.hidden, 0, model.layers)
    with pytest.raises(InputError, match="vocabulary"):
        backward(bare, random_weights(model, rng), ragged(rng), forward(model, random_weights(model, rng), ragged(rng)))


@pytest.mark.skipif(not available(), reason="torch and transformers are not installed")
@pytest.mark.parametrize(("architecture", "number"), SERIAL)
def test_autograd_finds_the_same_gradients(architecture, number):
    """Along a random direction of each of our tensors, under the names and in the layouts of Hugging Face's class."""
    from planner.check.reference.torch_gradients import torch_gradients

    model, rng = _model(architecture, number), np.random.default_rng(number)
    weights, tokens = random_weights(model, rng), ragged(rng, offsets=(20, 0, 40))
    ours = backward(model, weights, tokens, forward(model, weights, tokens))
    loss, theirs = torch_gradients(model, weights, tokens)
    assert ours.loss == pytest.approx(loss, rel=1e-12)
    here = state_of(model, weights)
    for key, gradient in ours.weights.items():
        direction = rng.standard_normal(gradient.shape)
        there = state_of(model, {**weights, key: weights[key] + direction})
        along = sum(float((theirs[name] * (there[name] - here[name])).sum()) for name in theirs)
        assert float((gradient * direction).sum()) == pytest.approx(along, rel=1e-8, abs=1e-10), key
