"""Storage of a Hugging Face model's modules: its dtype and its quantization."""

from __future__ import annotations

from planner.errors import InputError
from planner.fields import Fields
from planner.model import Module

_DTYPES = {"bfloat16": "bf16", "float16": "fp16", "half": "fp16", "float32": "fp32", "float": "fp32", "float64": "fp64"}
_LINEAR: tuple[Module, ...] = ("attention", "ffn", "experts")
# Parts of the names in `modules_to_not_convert` that belong to modules which fp8 checkpoints never convert.
_KEPT = ("norm", "embed", "lm_head", "router", "mlp.gate", "vision", "projector")


def read_dtype(c: Fields) -> str:
    """The dtype of everything that is not quantized; bf16 where the file says nothing."""
    name = "dtype" if c.has("dtype") else "torch_dtype"
    if not c.has(name):
        return "bf16"
    word = c.text(name).removeprefix("torch.")
    if word not in _DTYPES:
        raise c.error(name, "one of " + ", ".join(_DTYPES))
    return _DTYPES[word]


def read_module_dtypes(c: Fields, model_type: str) -> dict[Module, str]:
    """Modules stored otherwise; the fp8 scales (one in 16384 elements) are left out of account."""
    quantization = c.maybe_mapping("quantization_config")
    if quantization is None:
        return {}
    method = quantization.text("quant_method")
    if method == "mxfp4" and model_type == "gpt_oss":
        return {"experts": "mxfp4"}
    if method == "fp8":
        _check_kept(quantization)
        return dict.fromkeys(_LINEAR, "fp8")
    raise quantization.error("quant_method", "fp8, or mxfp4 for gpt_oss; other quantizations are not understood")


def _check_kept(quantization: Fields) -> None:
    """Exceptions from fp8 may only name what is not fp8 here anyway."""
    for name in ("modules_to_not_convert", "ignored_layers"):
        for index, module in enumerate(quantization.texts(name, default=())):
            if not any(part in module for part in _KEPT):
                field = f"{quantization.at(name)}[{index}]"
                allowed = "norms, embeddings, routers or the head; fp8 in some layers only is not understood"
                raise InputError(field, module, allowed, quantization.source)
