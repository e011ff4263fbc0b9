"""Kernels: a shape as work for PyTorch, which a timer can start."""

from __future__ import annotations

from collections.abc import Callable

from planner.profile.device import Device
from planner.profile.shapes import Attention, Product

Run = Callable[[], object]


def product_kernel(device: Device) -> str:
    """What a table calls the kernel of products."""
    return f"torch.matmul on {device.kind}"


def attention_kernel(device: Device) -> str:
    """What a table calls the kernel of attention."""
    return f"torch scaled_dot_product_attention on {device.kind}"


def product_run(device: Device, shape: Product) -> Run | None:
    """The work of a product; None for a dtype that PyTorch cannot multiply on the device.

    fp8 is quantized first, as a layer whose activations arrive in bf16 does it, and accumulates in fp32.
    """
    torch, dtype = device.torch, device.dtype(shape.dtype)
    if dtype is None:
        return None
    if shape.dtype == "fp8":
        return _scaled_run(device, shape) if device.kind == "cuda" and shape.batch == 1 else None
    many = () if shape.batch == 1 else (shape.batch,)
    left = torch.ones((*many, shape.m, shape.k), dtype=dtype, device=device.kind)
    right = torch.ones((*many, shape.n, shape.k), dtype=dtype, device=device.kind).transpose(-1, -2)  # as a Linear layer's
    return lambda: torch.matmul(left, right)


def _scaled_run(device: Device, shape: Product) -> Run | None:
    """fp8: the activations are cast, then multiplied with weights that are fp8 already."""
    if shape.k % 16 or shape.n % 16:  # what the kernel takes
        return None
    torch, dtype = device.torch, device.dtype("fp8")
    left = torch.ones((shape.m, shape.k), dtype=torch.bfloat16, device=device.kind)
    right = torch.ones((shape.n, shape.k), dtype=torch.bfloat16, device=device.kind).to(dtype).t()
    one = torch.ones((), dtype=torch.float32, device=device.kind)
    product = getattr(torch, "_scaled_mm", None)
    if product is None:
        return None
    return lambda: product(left.to(dtype), right, scale_a=one, scale_b=one, out_dtype=torch.bfloat16)


def attention_run(device: Device, shape: Attention) -> Run | None:
    """The work of a fused attention kernel; None for a dtype that it does not take."""
    torch, dtype = device.torch, device.dtype(shape.dtype)
    if dtype is None or shape.dtype == "fp8" or shape.heads % shape.kv_heads:
        return None
    if shape.causal and 1 < shape.q_len != shape.kv_len:
        return None  # the mask would be another one than the planner means
    sizes = ((shape.heads, shape.q_len, shape.qk_dim), (shape.kv_heads, shape.kv_len, shape.qk_dim),
             (shape.kv_heads, shape.kv_len, shape.v_dim))  # fmt: skip
    query, key, value = (torch.ones((shape.batch, *size), dtype=dtype, device=device.kind) for size in sizes)
    attend, causal = torch.nn.functional.scaled_dot_product_attention, shape.causal and shape.q_len > 1
    if shape.heads == shape.kv_heads:
        return lambda: attend(query, key, value, is_causal=causal)
    return lambda: attend(query, key, value, is_causal=causal, enable_gqa=True)
