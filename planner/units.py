"""Units: bytes per element of each dtype, GB and GiB, and how amounts are shown to a person."""

from __future__ import annotations

from fractions import Fraction

GB = 10**9
GIB = 2**30

# Bits per element, block scales included: mxfp4 has one 8-bit scale per 32 values (OCP MX specification 1.0),
# nvfp4 one fp8 scale per 16 values.
DTYPE_BITS: dict[str, Fraction] = {
    "fp64": Fraction(64),
    "fp32": Fraction(32),
    "tf32": Fraction(32),
    "bf16": Fraction(16),
    "fp16": Fraction(16),
    "fp8": Fraction(8),
    "int8": Fraction(8),
    "mxfp4": Fraction(17, 4),
    "nvfp4": Fraction(9, 2),
    "int4": Fraction(4),
}


def dtype_bytes(dtype: str) -> float:
    """Bytes of one element of `dtype`."""
    return float(DTYPE_BITS[dtype] / 8)


def show_seconds(seconds: float) -> str:
    """A duration in the unit a person would choose."""
    for unit, scale in (("s", 1.0), ("ms", 1e-3), ("us", 1e-6)):
        if abs(seconds) >= scale:
            return f"{seconds / scale:.4g} {unit}"
    return f"{seconds / 1e-9:.4g} ns"


def show_bytes(count: float) -> str:
    """A number of bytes in decimal units."""
    for unit, scale in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("KB", 1e3)):
        if abs(count) >= scale:
            return f"{count / scale:.4g} {unit}"
    return f"{count:.0f} B"
