"""What goes into the unsplit reference and what comes out of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Weights = Mapping[tuple[int | None, str], Array]
"""Tensors by (layer, or None outside the layers; name in the model's inventory), in the inventory's shape."""


@dataclass(frozen=True, slots=True)
class Tokens:
    """The input: sequences that may differ in length, padded to one.

    Parameters
    ----------
    ids: token of the vocabulary, [sequences, length]
    positions: absolute position, from any offset on, [sequences, length]
    valid: False where a sequence is padded, [sequences, length]
    embedded: input of the first layer for a model without an embedding, [sequences, length, hidden]

    """

    ids: NDArray[np.int64]
    positions: NDArray[np.int64]
    valid: NDArray[np.bool_]
    embedded: Array | None = None


@dataclass(frozen=True, slots=True)
class Trace:
    """Every named intermediate of one forward pass, by (layer, or None outside the layers; name).

    What stands at padded tokens is finite and means nothing.
    """

    values: dict[tuple[int | None, str], NDArray[Any]]
