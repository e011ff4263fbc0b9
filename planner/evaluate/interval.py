"""The interval of a predicted time: where a measured one lies in four of five cases, by what the time is made of."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from planner.costs.intervals import relative_interval
from planner.evaluate.timeline import Item

CLASS_OF = {"Get_Time": "gemm", "Attention": "attention", "Memory": "memory"}


def interval_of(
    seconds: float, classes: Mapping[str, float], spreads: Mapping[str, float] | None = None
) -> tuple[float, float]:
    """(low, high) seconds around a prediction that is made of so many seconds of each class of operators."""
    low, high = relative_interval(classes, spreads)
    return seconds * low, seconds * high


def path_classes(items: Iterable[Item]) -> dict[str, float]:
    """Seconds of the operators of a longest path by class; whatever is no product, attention or memory is communication."""
    found: dict[str, float] = {}
    for item in items:
        name = CLASS_OF.get(item.term.partition("(")[0].strip(), "communication")
        if name == "gemm" and item.op.startswith("expert_"):
            name = "moe"
        found[name] = found.get(name, 0.0) + item.seconds
    return found
