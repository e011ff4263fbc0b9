"""Our weights under the names, and in the layouts, of Hugging Face's classes.

A linear layer there is (output dim, input dim). Gemma stores a norm's factor less one; some classes fuse q, k and v or gate
and up into one tensor, side by side or interleaved.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from planner.check.reference.inputs import Array, Weights
from planner.model import ModelSpec

State = dict[str, Array]
_Own = Mapping[str, Array]


@dataclass(frozen=True, slots=True)
class _Names:
    """Where a class keeps its parts; `norms` are those of a layer, in our inventory's order."""

    layers: str = "model.layers"
    embedding: str = "model.embed_tokens"
    positions: str = ""
    final_norm: str = "model.norm"
    norms: tuple[str, ...] = ("input_layernorm", "post_attention_layernorm")
    attention: str = "self_attn"
    output: str = "o_proj"
    ffn: str = "mlp"
    router: str = "gate"
    shared: str = "shared_experts"


_GEMMA = _Names(
    norms=("input_layernorm", "post_attention_layernorm", "pre_feedforward_layernorm", "post_feedforward_layernorm")
)
_NAMES = {
    "gemma2": _GEMMA,
    "gemma3_text": _GEMMA,
    "gpt2": _Names(
        layers="transformer.h",
        embedding="transformer.wte",
        positions="transformer.wpe",
        final_norm="transformer.ln_f",
        norms=("ln_1", "ln_2"),
    ),
    "gpt_neox": _Names(
        layers="gpt_neox.layers",
        embedding="gpt_neox.embed_in",
        final_norm="gpt_neox.final_layer_norm",
        attention="attention",
        output="dense",
    ),
    "gpt_oss": _Names(router="router"),
    "llama4_text": _Names(ffn="feed_forward", router="router", shared="shared_expert"),
    "opt": _Names(
        layers="model.decoder.layers",
        embedding="model.decoder.embed_tokens",
        positions="model.decoder.embed_positions",
        final_norm="model.decoder.final_layer_norm",
        norms=("self_attn_layer_norm", "final_layer_norm"),
        output="out_proj",
    ),
}
_INNER_NORMS = {"q_norm": "q_norm", "k_norm": "k_norm", "q_a_norm": "q_a_layernorm", "kv_a_norm": "kv_a_layernorm"}
_LATENT = {"q": "q_proj", "q_a": "q_a_proj", "q_b": "q_b_proj", "kv_a": "kv_a_proj_with_mqa", "kv_b": "kv_b_proj"}
_INDEXER = {"index_q": "wq_b", "index_k": "wk", "index_w": "weights_proj"}


def layers_path(model: ModelSpec) -> str:
    """Where the class of the model's architecture keeps its list of layers."""
    return _NAMES.get(model.architecture, _Names()).layers


def state_of(model: ModelSpec, weights: Weights) -> State:
    """The state dict of the class of the model's architecture, complete but for an absent embedding and head."""
    names = _NAMES.get(model.architecture, _Names())
    outer = {name: value for (layer, name), value in weights.items() if layer is None}
    less = 1.0 if names is _GEMMA else 0.0
    state: State = {}
    if model.vocab:
        state[f"{names.embedding}.weight"] = outer["embedding"]
        state["lm_head.weight"] = outer["embedding"] if model.tied_embeddings else outer["head"].T
    if model.positions:
        state[f"{names.positions}.weight"] = outer["positions"]
    if model.final_norm:
        state |= _norm(names.final_norm, outer, "final_norm", less)
    for index, layer in enumerate(model.layers):
        own = {name: value for (at, name), value in weights.items() if at == index}
        ours: tuple[str, ...] = ("attention_norm", "ffn_norm")
        if layer.norms == 4:
            ours = ("attention_norm", "attention_post_norm", "ffn_norm", "ffn_post_norm")
        parts: State = {}
        for theirs, mine in zip(names.norms, ours, strict=True):
            parts |= _norm(theirs, own, mine, less)
        parts |= dict(_attention(model, names, own, less))
        parts |= dict(_ffn(model, names, own, layer.ffn.kind == "moe"))
        state |= {f"{names.layers}.{index}.{name}": value for name, value in parts.items()}
    return state


def _norm(theirs: str, own: _Own, mine: str, less: float) -> State:
    state = {f"{theirs}.weight": own[mine] - less}
    if f"{mine}_bias" in own:
        state[f"{theirs}.bias"] = own[f"{mine}_bias"]
    return state


def _linear(theirs: str, own: _Own, mine: str) -> Iterator[tuple[str, Array]]:
    yield f"{theirs}.weight", own[mine].T
    if f"{mine}_bias" in own:
        yield f"{theirs}.bias", own[f"{mine}_bias"]


def _joined(theirs: str, own: _Own, mine: tuple[str, ...]) -> Iterator[tuple[str, Array]]:
    """Projections side by side in one tensor."""
    yield f"{theirs}.weight", np.concatenate([own[name] for name in mine], axis=-1).T
    if f"{mine[0]}_bias" in own:
        yield f"{theirs}.bias", np.concatenate([own[f"{name}_bias"] for name in mine])


def _attention(model: ModelSpec, names: _Names, own: _Own, less: float) -> Iterator[tuple[str, Array]]:
    at = names.attention
    if model.architecture == "gpt2":
        yield "attn.c_attn.weight", np.concatenate([own["q"], own["k"], own["v"]], axis=-1)
        yield "attn.c_attn.bias", np.concatenate([own["q_bias"], own["k_bias"], own["v_bias"]])
        yield "attn.c_proj.weight", own["o"]
        yield "attn.c_proj.bias", own["o_bias"]
        return
    yield from _linear(f"{at}.{names.output}", own, "o")
    if model.architecture == "gpt_neox":
        yield from _by_heads(f"{at}.query_key_value", own, model.layers[0].attention.heads)
    elif model.architecture == "phi3":
        yield from _joined(f"{at}.qkv_proj", own, ("q", "k", "v"))
    elif "kv_a" in own:
        for mine, theirs in _LATENT.items():
            if mine in own:
                yield from _linear(f"{at}.{theirs}", own, mine)
    else:
        for mine in ("q", "k", "v"):
            yield from _linear(f"{at}.{mine}_proj", own, mine)
    for mine, theirs in _INNER_NORMS.items():
        if mine in own:
            yield f"{at}.{theirs}.weight", own[mine] - less
    if "sinks" in own:
        yield f"{at}.sinks", own["sinks"]
    if "index_q" in own:
        for mine, theirs in _INDEXER.items():
            yield f"{at}.indexer.{theirs}.weight", own[mine].T
        yield from _norm(f"{at}.indexer.k_norm", own, "index_norm", 0.0).items()


def _by_heads(theirs: str, own: _Own, heads: int) -> Iterator[tuple[str, Array]]:
    """GPT-NeoX: for each head its query, key and value dims, one after the other."""
    names = ("q", "k", "v")
    split = [own[name].reshape(own[name].shape[0], heads, -1) for name in names]
    yield f"{theirs}.weight", np.stack(split, axis=2).reshape(split[0].shape[0], -1).T
    if "q_bias" in own:
        yield f"{theirs}.bias", np.stack([own[f"{name}_bias"].reshape(heads, -1) for name in names], axis=1).reshape(-1)


def _ffn(model: ModelSpec, names: _Names, own: _Own, mixture: bool) -> Iterator[tuple[str, Array]]:
    at = names.ffn
    if mixture:
        yield from _mixture(model.architecture, names, own)
    elif model.architecture == "gpt2":
        for theirs, mine in (("c_fc", "up"), ("c_proj", "down")):
            yield f"mlp.{theirs}.weight", own[mine]
            yield f"mlp.{theirs}.bias", own[f"{mine}_bias"]
    elif model.architecture == "gpt_neox":
        yield from _linear("mlp.dense_h_to_4h", own, "up")
        yield from _linear("mlp.dense_4h_to_h", own, "down")
    elif model.architecture == "opt":
        yield from _linear("fc1", own, "up")
        yield from _linear("fc2", own, "down")
    elif model.architecture == "phi3":
        yield from _joined(f"{at}.gate_up_proj", own, ("gate", "up"))
        yield from _linear(f"{at}.down_proj", own, "down")
    else:
        for name in ("gate", "up", "down"):
            yield from _linear(f"{at}.{name}_proj", own, name)


def _mixture(architecture: str, names: _Names, own: _Own) -> Iterator[tuple[str, Array]]:
    at = names.ffn
    yield from _linear(f"{at}.{names.router}", own, "router")
    if "correction_bias" in own:
        yield f"{at}.{names.router}.e_score_correction_bias", own["correction_bias"]
    gate, up, down = own["expert_gate"], own["expert_up"], own["expert_down"]
    if architecture == "gpt_oss":
        yield f"{at}.experts.gate_up_proj", _interleaved(gate, up)
        yield f"{at}.experts.gate_up_proj_bias", _interleaved(own["expert_gate_bias"], own["expert_up_bias"])
        yield f"{at}.experts.down_proj", down
        yield f"{at}.experts.down_proj_bias", own["expert_down_bias"]
    elif architecture == "llama4_text":
        yield f"{at}.experts.gate_up_proj", np.concatenate([gate, up], axis=-1)
        yield f"{at}.experts.down_proj", down
    else:
        yield f"{at}.experts.gate_up_proj", np.concatenate([gate, up], axis=-1).swapaxes(1, 2)
        yield f"{at}.experts.down_proj", down.swapaxes(1, 2)
    if "shared_up" in own:
        for name in ("gate", "up", "down"):
            yield from _linear(f"{at}.{names.shared}.{name}_proj", own, f"shared_{name}")


def _interleaved(gate: Array, up: Array) -> Array:
    return np.stack([gate, up], axis=-1).reshape(*gate.shape[:-1], -1)
