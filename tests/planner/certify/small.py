"""A small model that several tests of certificates ask about: two dense layers, then three mixtures."""

MIXED_MODEL = {
    "name": "mixed", "hidden": 512, "vocab": 1000, "layers": 5,
    "attention": {"heads": 8, "kv_heads": 2, "head_dim": 64},
    "ffn": {"kind": "moe", "hidden": 256, "experts": 8, "top_k": 2},
    "layer_overrides": [{"layers": "0-1", "ffn": {"kind": "dense", "hidden": 2048}}],
}  # fmt: skip
