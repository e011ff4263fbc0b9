"""Hugging Face's own code as the reference: its class for the model's architecture, our weights, float64 throughout.

PyTorch and transformers are an optional extra and are imported only when a model is run. The classes compute norms,
softmax, rotations and routers in float32 whatever the weights are; while one runs here, each such conversion goes to
float64 instead, and every LayerNorm takes our epsilon.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import inspect
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import numpy as np

from planner.check.reference.attention import visible
from planner.check.reference.constants import NORM_EPS
from planner.check.reference.hf_config import config_of
from planner.check.reference.hf_weights import layers_path, state_of
from planner.check.reference.inputs import Array, Tokens, Weights
from planner.errors import InputError
from planner.model import ModelSpec

_OLDEST = 5
# Their configs ask for a hidden size that is a multiple of the heads, which nothing in the classes needs.
_GUARDED = ("deepseek_v2", "gemma2", "gemma3_text", "llama")
_CLASSES = {"kimi_k2": "deepseek_v3"}  # Kimi K2 is published as DeepSeek-V3 with other sizes


@dataclass(frozen=True, slots=True)
class HfTrace:
    """What Hugging Face's class computed, meaningless at padded tokens.

    Parameters
    ----------
    hidden: output of each layer, [sequences, length, hidden]
    logits: [sequences, length, vocab]; None for a model without a head
    version: of transformers
    own_masks: whether the class made its masks itself from lengths, windows and chunks; otherwise they were handed to it

    """

    hidden: tuple[Array, ...]
    logits: Array | None
    version: str
    own_masks: bool


def available() -> bool:
    """Whether PyTorch and a new enough transformers are installed; neither is imported."""
    if any(importlib.util.find_spec(package) is None for package in ("torch", "transformers")):
        return False
    return int(importlib.metadata.version("transformers").split(".")[0]) >= _OLDEST


def reference_logits(model: ModelSpec, weights: Weights, tokens: Tokens) -> HfTrace | str:
    """Run `model` as Hugging Face would; a text says why that is not possible.

    Where positions allow it, the class is told only which tokens are padding, and makes its masks itself. It counts chunks
    from the start of a sequence and knows no one-sided windows without causality; there, the masks are ours.
    """
    if not available():
        return f"torch and transformers >= {_OLDEST} are not installed"
    try:
        config = config_of(model)
    except InputError as error:
        return f"transformers has no class for this model: {error}"
    return _run(model, config, weights, tokens)


def makes_own_masks(model: ModelSpec, tokens: Tokens) -> bool:
    """Whether a class of transformers, told which tokens are valid, would mask as positions, windows and chunks say."""
    if not all(layer.attention.causal for layer in model.layers):
        return False
    windows = {layer.attention.window for layer in model.layers}
    if model.architecture in ("mistral", "phi3", "mixtral", "qwen3_moe") and len(windows) > 1:
        return False
    chunks = {layer.attention.chunk for layer in model.layers} - {None}
    for positions, valid in zip(tokens.positions, tokens.valid, strict=True):
        places = np.flatnonzero(valid)
        if not places.size:
            continue
        own = positions[places]
        if np.ptp(places) + 1 != places.size or np.ptp(own - places):
            return False
        if any(own[0] % chunk for chunk in chunks if chunk):
            return False
    return True


def _run(model: ModelSpec, config: dict[str, Any], weights: Weights, tokens: Tokens) -> HfTrace | str:
    import torch
    import transformers

    with ExitStack() as stack:
        stack.enter_context(_double_precision())
        stack.enter_context(torch.no_grad())
        try:
            network = _build(config)
        except Exception as error:  # whatever the checks of a config class raise, they refuse this model
            return f"transformers refuses this model: {' '.join(str(error).split())[:300]}"
        _load(network, state_of(model, weights))
        layers = network.get_submodule(layers_path(model))
        hidden: list[Array] = []
        for layer in layers:
            layer.register_forward_hook(lambda _layer, _inputs, output: hidden.append(_first(output).numpy().copy()))
        own_masks = makes_own_masks(model, tokens)
        if not own_masks:
            _hand_over_masks(model, layers, tokens)
        output = network(
            attention_mask=torch.from_numpy(tokens.valid.astype(np.int64)),
            position_ids=torch.from_numpy(np.where(tokens.valid, tokens.positions, 0)),
            use_cache=False,
            **_inputs(model, tokens),
        )
    logits = output.logits.numpy().copy() if model.vocab else None
    return HfTrace(tuple(hidden), logits, transformers.__version__, own_masks)


def _first(output: Any) -> Any:
    return output[0] if isinstance(output, tuple) else output


def _inputs(model: ModelSpec, tokens: Tokens) -> dict[str, Any]:
    import torch

    if model.vocab:
        return {"input_ids": torch.from_numpy(tokens.ids)}
    return {"inputs_embeds": torch.from_numpy(np.asarray(tokens.embedded, dtype=np.float64))}


def _build(config: dict[str, Any]) -> Any:
    """The class with random weights, in float64, with eager attention and experts one by one."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    name = config["model_type"]
    arguments = {key: value for key, value in config.items() if key != "model_type"}
    tokens = dict.fromkeys(("pad_token_id", "bos_token_id", "eos_token_id"))
    hidden = arguments.get("hidden_size")
    if name in _GUARDED:
        arguments["hidden_size"] = arguments["num_attention_heads"]
    built = AutoConfig.for_model(_CLASSES.get(name, name), **tokens, **arguments)
    if name in _GUARDED:
        built.hidden_size = hidden
    network = AutoModelForCausalLM.from_config(
        built, attn_implementation="eager", experts_implementation="eager", dtype=torch.float64
    )
    for module in network.modules():
        if isinstance(module, torch.nn.LayerNorm):
            module.eps = NORM_EPS
    return network.double().eval()


def _load(network: Any, state: dict[str, Array]) -> None:
    """Every tensor of the class must come from us, but for the embedding and head of a model that has neither."""
    import torch

    tensors = {name: torch.from_numpy(np.ascontiguousarray(value)) for name, value in state.items()}
    missing, unexpected = network.load_state_dict(tensors, strict=False)
    outside = {name for name in missing if not any(part in name for part in (".layers.", ".h."))}
    if unexpected or set(missing) - outside or (outside and "lm_head.weight" in tensors):
        raise ValueError(f"weights do not fit {type(network).__name__}: {missing} are missing, {unexpected} are unknown")


def _hand_over_masks(model: ModelSpec, layers: Any, tokens: Tokens) -> None:
    """Each layer gets its mask, whatever its class made."""
    import torch

    lowest = np.finfo(np.float64).min
    for own, layer in zip(model.layers, layers, strict=True):
        mask = torch.from_numpy(np.where(visible(own.attention, tokens), 0.0, lowest)[:, None])
        signature = inspect.signature(type(layer).forward)

        def replace(module: Any, args: Any, kwargs: Any, mask: Any = mask, signature: Any = signature) -> tuple[Any, Any]:
            bound = signature.bind(module, *args, **kwargs)
            bound.arguments["attention_mask"] = mask
            return bound.args[1:], bound.kwargs

        layer.register_forward_pre_hook(replace, with_kwargs=True)


def _double_precision() -> Any:
    """A mode in which every conversion to float32 goes to float64."""
    import torch
    from torch.overrides import TorchFunctionMode

    def widened(value: Any) -> Any:
        return torch.float64 if value is torch.float32 else value

    class DoublePrecision(TorchFunctionMode):  # type: ignore[misc]
        def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            if func is torch.Tensor.float:
                func = torch.Tensor.double
            return func(*map(widened, args), **{name: widened(value) for name, value in (kwargs or {}).items()})

    return DoublePrecision()
