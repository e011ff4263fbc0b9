"""Intervals of training steps: the spread of residuals by what a step goes to, fitted to runs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from tests.benchmarks.training_model import Sample, seconds, shares

NAMES = ("run", "gemm", "moe", "attention", "memory", "communication", "host", "exchange", "bubble")
START = (0.05, 0.08, 0.2, 0.15, 0.2, 0.2, 0.2, 0.3, 0.2)
WIDEST = 0.5  # residuals beyond are other things than spread: rows that contradict themselves


def fit_spreads(samples: Sequence[Sample], data: Mapping[str, Any]) -> dict[str, float]:
    """Standard deviations that make the residuals of the samples most likely, every group weighed by the root of its size."""
    from scipy.optimize import minimize

    groups = Counter(sample.group for sample in samples)
    weight = np.array([groups[sample.group] ** -0.5 for sample in samples])
    residual = np.clip(np.log([seconds(s, data) / s.measured for s in samples]), -WIDEST, WIDEST)
    parts = np.array([[shares(s, data).get(name, 0.0) for name in NAMES[1:]] for s in samples])

    def unlikely(x: np.ndarray) -> float:
        spread = np.exp(x)
        variance = spread[0] ** 2 + ((parts * spread[1:]) ** 2).sum(axis=1)
        pull = 0.02 * weight.sum() * ((x - np.log(START)) ** 2).sum()
        return float((weight * (np.log(variance) + residual**2 / variance)).sum() / 2.0 + pull)

    found = minimize(unlikely, np.log(START), method="L-BFGS-B")
    return dict(zip(NAMES, map(float, np.exp(found.x)), strict=True))
