"""Robust fits of a few positive constants on the logarithm of time."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields
from typing import Any

import numpy as np
from scipy.optimize import least_squares

Predict = Callable[[np.ndarray], np.ndarray]


def fit(
    names: tuple[str, ...], start: dict[str, tuple[float, float, float]], predict: Predict, seconds: np.ndarray, **options: Any
) -> dict[str, float]:
    """Constants (start, lowest, highest) that minimise the robust error of log time."""
    first, low, high = (np.log([start[name][i] for name in names]) for i in range(3))
    weight = options.get("weight", 1.0)

    def residuals(x: np.ndarray) -> np.ndarray:
        return np.asarray(weight * np.log(predict(np.exp(x)) / seconds))

    best = None
    for seed in range(options.get("starts", 5)):
        noise = np.random.default_rng(seed).normal(0.0, 0.3 * (seed > 0), len(first))
        begin = np.clip(first + noise, low + 1e-3, high - 1e-3)
        found = least_squares(residuals, begin, bounds=(low, high), loss="soft_l1", f_scale=0.05, diff_step=3e-3)
        best = found if best is None or found.cost < best.cost else best
    assert best is not None
    return {name: float(f"{value:.4g}") for name, value in zip(names, np.exp(best.x), strict=True)}


def names_of(constants: type) -> tuple[str, ...]:
    """Names of the constants of a formula."""
    return tuple(field.name for field in fields(constants))
