"""Gradients by autograd of PyTorch: Hugging Face's own code run forward and back with our weights."""

from __future__ import annotations

from contextlib import ExitStack

import numpy as np

from planner.check.reference.backward import targets_of
from planner.check.reference.hf_config import config_of
from planner.check.reference.hf_weights import State, layers_path, state_of
from planner.check.reference.inputs import Tokens, Weights
from planner.check.reference.transformers import (
    _build,
    _double_precision,
    _hand_over_masks,
    _load,
    makes_own_masks,
)
from planner.model import ModelSpec


def torch_gradients(model: ModelSpec, weights: Weights, tokens: Tokens) -> tuple[float, State]:
    """The loss of `backward` and its gradient by every tensor of Hugging Face's class, under that class's names."""
    import torch

    with ExitStack() as stack:
        stack.enter_context(_double_precision())
        network = _build(config_of(model))
        _load(network, state_of(model, weights))
        if not makes_own_masks(model, tokens):
            _hand_over_masks(model, network.get_submodule(layers_path(model)), tokens)
        output = network(
            input_ids=torch.from_numpy(tokens.ids),
            attention_mask=torch.from_numpy(tokens.valid.astype(np.int64)),
            position_ids=torch.from_numpy(np.where(tokens.valid, tokens.positions, 0)),
            use_cache=False,
        )
        valid = torch.from_numpy(tokens.valid)
        loss = torch.nn.functional.cross_entropy(output.logits[valid], torch.from_numpy(targets_of(tokens))[valid])
        loss.backward()
    found = {name: value.grad.numpy() for name, value in network.named_parameters() if value.grad is not None}
    return float(loss.detach()), found
