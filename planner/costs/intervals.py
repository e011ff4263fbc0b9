"""Intervals: how far a predicted time may be off, from what it is made of.

Each class of operators has a spread, fitted to the residuals of measured runs on a logarithmic scale (`intervals.yaml`).
The operators of one class are off together (one formula, one efficiency), different classes independently, and a run as a whole
by what no operator explains (`run`).
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from math import exp, sqrt
from pathlib import Path
from typing import Any

from planner.files import read_yaml

FILE = Path(__file__).parent / "intervals.yaml"
COVERAGE = 0.8
QUANTILE = 1.2816  # of a normal distribution: 80 % lie within so many standard deviations


@lru_cache(maxsize=1)
def spreads() -> dict[str, float]:
    """Standard deviations of the logarithm of time by operator class, and `run`."""
    found: dict[str, Any] = dict(read_yaml(FILE))
    return {name: float(value) for name, value in found["spreads"].items()}


def width_models() -> frozenset[str]:
    """Names of the models whose runs say how wide intervals are; their constants were fitted to others."""
    found: dict[str, Any] = dict(read_yaml(FILE))
    return frozenset(str(name) for name in found.get("models", ()))


def relative_interval(classes: Mapping[str, float], given: Mapping[str, float] | None = None) -> tuple[float, float]:
    """Factors (low, high) on a predicted time that 80 % of measured ones lie between; `classes` are seconds by operator class.

    Classes: gemm, moe, attention, memory, communication, host, waiting; one without a spread of its own has that of `run`.
    """
    table = spreads() if given is None else given
    total = sum(classes.values())
    variance = table["run"] ** 2
    if total > 0:
        variance += sum((seconds / total * table.get(name, table["run"])) ** 2 for name, seconds in classes.items())
    wide = exp(QUANTILE * sqrt(variance))
    return 1.0 / wide, wide
