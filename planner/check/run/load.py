"""Loading: the part of a weight that a GPU holds, cut from the unsplit one."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from planner.check.run.split import Split
from planner.check.run.world import Weights

Floats = NDArray[np.float64]

ALL = ""
AXES: dict[str, tuple[str, ...]] = {
    "q": (ALL, "q"), "k": (ALL, "k"), "v": (ALL, "v"), "q_bias": ("q",), "k_bias": ("k",), "v_bias": ("v",),
    "q_norm": ("qk",), "k_norm": ("qk",), "sinks": ("heads",),
    "q_b": (ALL, "q"), "kv_b": (ALL, "latent"),
    "o": ("output_rows", "output_columns"), "o_bias": ("output_columns",),
    "gate": (ALL, "ffn"), "up": (ALL, "ffn"), "down": ("ffn", ALL), "gate_bias": ("ffn",), "up_bias": ("ffn",),
    "shared_gate": (ALL, "shared"), "shared_up": (ALL, "shared"), "shared_down": ("shared", ALL),
    "expert_gate": ("experts", ALL, "expert"), "expert_up": ("experts", ALL, "expert"),
    "expert_gate_bias": ("experts", "expert"), "expert_up_bias": ("experts", "expert"),
    "expert_down": ("experts", "expert", ALL), "expert_down_bias": ("experts", ALL),
    "embedding": ("vocab", ALL), "head": (ALL, "vocab"), "head_bias": ("vocab",),
}  # fmt: skip
"""The axis that each dimension of a weight is split by; weights that are not named are held whole."""


def load(split: Split, layer: int | None, name: str) -> Floats:
    """A GPU's part of weight `name` of a layer (by its index in the twin; None: outside the layers)."""
    return part(split, split.world.weights, layer, name)


def part(split: Split, weights: Weights, layer: int | None, name: str) -> Floats:
    """A GPU's part of one of some weights, or of their gradients.

    A LayerNorm's two vectors come as one tensor, as the graph has them. Raises KeyError for a weight that the model lacks.
    """
    if name == "head" and (None, "head") not in weights:
        return weights[None, "embedding"].T[:, split.index("vocab")]
    whole = weights[layer, name]
    if name.endswith("_norm") and name not in AXES:
        bias = weights.get((layer, f"{name}_bias"))
        return whole[None, :] if bias is None else np.stack([whole, bias])
    axes = AXES.get(name)
    if axes is None:
        return whole
    own = (np.arange(n) if axis == ALL else split.index(axis) for axis, n in zip(axes, whole.shape, strict=True))
    return np.asarray(whole[np.ix_(*own)], dtype=np.float64)
