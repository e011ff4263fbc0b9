"""Pins: one decision of a priced space held at a value, to ask what the best plan is then."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from planner.evaluate.tables import FfnOption
from search_spaces.attention import AttentionPartition
from search_spaces.experts import ExpertPlacement

Pin = Mapping[str, object]
"""Fields of an attention partition or an expert placement, or `mlp_ways`, with the values they must have on every stage."""

PARTITION_FIELDS = frozenset(AttentionPartition.__slots__)
EXPERT_FIELDS = frozenset(ExpertPlacement.__slots__)


def pinned(options: Sequence[AttentionPartition | FfnOption | ExpertPlacement], pin: Pin) -> NDArray[np.bool_]:
    """Which options agree with the fields of a pin that they have."""
    return np.array([all(_agrees(option, name, value) for name, value in pin.items()) for option in options], dtype=bool)


def _agrees(option: AttentionPartition | FfnOption | ExpertPlacement, name: str, value: object) -> bool:
    if isinstance(option, AttentionPartition):
        return name not in PARTITION_FIELDS or getattr(option, name) == value
    if isinstance(option, ExpertPlacement):
        return name not in EXPERT_FIELDS or getattr(option, name) == value
    if name == "mlp_ways":
        return option.mlp_ways == value
    return name not in EXPERT_FIELDS or option.experts is None or getattr(option.experts, name) == value
