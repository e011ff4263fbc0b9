"""Measured expert loads (`expert_loads.csv`, with its source)."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray


def expert_loads() -> NDArray[np.float64]:
    """Tokens of every expert, one row for each layer [9, 256]."""
    text = (Path(__file__).parent / "expert_loads.csv").read_text().splitlines()
    rows = [line.split(",") for line in text if not line.startswith(("#", "prompt"))]
    return np.array([row[2:] for row in rows], dtype=np.float64)
