"""What must hold between the sizes of one model, whichever file they came from."""

from __future__ import annotations

from planner.errors import InputError
from planner.model import Attention, Ffn, Layer, ModelSpec

MAX_LAYERS = 10_000
MAX_PARAMETERS = 2**50  # a thousand times today's largest; keeps every later byte count inside 64 bits


def checked(model: ModelSpec) -> ModelSpec:
    """`model` itself; `InputError` names the first pair of sizes that contradict each other."""
    for kind in model.layer_kinds:
        where = f"layer {model.layers.index(kind)}"
        try:
            _check_layer(kind)
        except InputError as error:
            raise InputError(f"{where} {error.field}", error.value, error.allowed, model.source) from None
    if model.parameters > MAX_PARAMETERS:
        raise InputError("parameters", model.parameters, f"a model of at most {MAX_PARAMETERS} parameters", model.source)
    return model


def _check_layer(layer: Layer) -> None:
    _check_attention(layer.attention)
    if layer.ffn.kind == "moe":
        _check_mixture(layer.ffn)


def _check_attention(attention: Attention) -> None:
    if attention.heads % attention.kv_heads:
        raise InputError("attention.kv_heads", attention.kv_heads, f"a divisor of the {attention.heads} heads")
    if attention.rope != "none" and (attention.rotary_dim % 2 or not 2 <= attention.rotary_dim <= attention.head_dim):
        allowed = f"an even number from 2 to head_dim = {attention.head_dim}, since rotation works on pairs"
        raise InputError("attention.rotary_dim", attention.rotary_dim, allowed)
    if attention.indexer is not None and attention.q_lora_rank is None:
        raise InputError("attention.q_lora_rank", None, "a rank, since the indexer's queries come from the latent query")
    if attention.window is not None and attention.chunk is not None:
        raise InputError("attention.chunk", attention.chunk, "null beside a sliding window")


def _check_mixture(ffn: Ffn) -> None:
    if ffn.top_k > ffn.experts:
        raise InputError("ffn.top_k", ffn.top_k, f"at most the {ffn.experts} experts")
    if ffn.experts % ffn.expert_groups:
        raise InputError("ffn.expert_groups", ffn.expert_groups, f"a divisor of the {ffn.experts} experts")
    if ffn.top_k_groups > ffn.expert_groups:
        raise InputError("ffn.top_k_groups", ffn.top_k_groups, f"at most the {ffn.expert_groups} expert_groups")
    reachable = ffn.experts // ffn.expert_groups * ffn.top_k_groups
    if ffn.top_k > reachable:
        raise InputError("ffn.top_k", ffn.top_k, f"at most the {reachable} experts in {ffn.top_k_groups} groups")
    if ffn.shared_gate and not ffn.shared_hidden:
        raise InputError("ffn.shared_gate", True, "false where there are no shared experts")
