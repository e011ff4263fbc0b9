"""What separates fused attention kernels besides their sizes."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class AttentionClass:
    """Kernels whose times compare; decode (one query) has no mask to speak of, and its cache's dtype for its own."""

    decode: bool
    causal: bool
    shared_kv: bool
    dtype: str
    kv_dtype: str

    @classmethod
    def of(cls, q_len: float, causal: bool, shared_kv: bool, dtype: str, kv_dtype: str | None) -> AttentionClass:
        """The class of a call of `GetTime.attention`."""
        cache = kv_dtype or dtype
        return cls(True, True, shared_kv, cache, cache) if q_len == 1 else cls(False, causal, shared_kv, dtype, cache)

    @property
    def family(self) -> str:
        """The family whose constants price it: prefill, decode, or mla_decode."""
        return ("mla_decode" if self.shared_kv else "decode") if self.decode else "prefill"
