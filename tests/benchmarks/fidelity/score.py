"""Scores of predictions: errors, and how good the choice of a plan by them is. Training and inference share them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass
from itertools import combinations
from math import isfinite
from statistics import fmean, median
from typing import Any, TypeVar

T = TypeVar("T")
Numbers = dict[str, float | int | None]


@dataclass(frozen=True, slots=True)
class Scored:
    """One measured figure with its prediction. `cost` turns either into what a planner minimises (GPU-seconds for the same
    work: `cost = value * per_value`, or `per_value / value` where more is better). `fitted`: constants have seen its model;
    `widened`: the widths of intervals have.
    """

    row_id: str
    group: str
    rank_group: str
    measured: float
    predicted: float
    per_value: float = 1.0
    more_is_better: bool = False
    interval: tuple[float, float] | None = None
    fitted: bool = False
    widened: bool = False
    about: str = ""

    @property
    def ratio(self) -> float:
        """Predicted over measured."""
        return self.predicted / self.measured

    def cost(self, value: float) -> float:
        """What a planner minimises."""
        return self.per_value / value if self.more_is_better else self.per_value * value

    @property
    def covered(self) -> bool | None:
        """Whether the measured figure lies in the interval; None without one."""
        return None if self.interval is None else self.interval[0] <= self.measured <= self.interval[1]


def quantile(values: Sequence[float], share: float) -> float:
    """The quantile of some values, interpolated."""
    ordered = sorted(values)
    at = share * (len(ordered) - 1)
    low = int(at)
    return ordered[low] + (at - low) * (ordered[min(low + 1, len(ordered) - 1)] - ordered[low])


def errors(ratios: Sequence[float]) -> Numbers:
    """Of predicted over measured: mean, median and 90th percentile of |ratio - 1|, and the median ratio (`bias`)."""
    off = [abs(ratio - 1.0) for ratio in ratios]
    return {
        "rows": len(off),
        "mape": fmean(off) if off else None,
        "median": median(off) if off else None,
        "p90": quantile(off, 0.9) if off else None,
        "bias": median(ratios) if ratios else None,
    }


def regret(rows: Sequence[Scored], choices: int = 1) -> float:
    """How much more the best of the `choices` plans that are predicted best costs than the best measured plan: 0 is right."""
    chosen = sorted(rows, key=lambda row: (row.cost(row.predicted), row.row_id))[:choices]
    return min(row.cost(row.measured) for row in chosen) / min(row.cost(row.measured) for row in rows) - 1.0


def kendall_tau(first: Sequence[float], second: Sequence[float]) -> float | None:
    """Rank correlation (tau-b: ties count for neither side); None where one side has a single value."""
    agree = ties_first = ties_second = pairs = 0
    for (a, b), (c, d) in combinations(zip(first, second, strict=True), 2):
        sign = (a > c) - (a < c), (b > d) - (b < d)
        agree += sign[0] * sign[1]
        pairs += 1
        ties_first += sign[0] == 0
        ties_second += sign[1] == 0
    scale = ((pairs - ties_first) * (pairs - ties_second)) ** 0.5
    return agree / scale if scale else None


def by(rows: Iterable[T], key: Callable[[T], Hashable]) -> dict[Any, list[T]]:
    """Rows by a key, in order of first appearance."""
    found: dict[Any, list[T]] = defaultdict(list)
    for row in rows:
        found[key(row)].append(row)
    return dict(found)


def ranking(rows: Sequence[Scored]) -> Numbers:
    """Regret of the first choice and of the best of three, rank correlation and share of exact best, over rank groups."""
    groups = [g for name, g in by(rows, lambda row: row.rank_group).items() if name and len(g) > 1]
    first = [regret(group) for group in groups]
    taus = [
        tau
        for group in groups
        for tau in [kendall_tau([r.cost(r.measured) for r in group], [r.cost(r.predicted) for r in group])]
        if tau is not None
    ]
    return {
        "regret_mean": fmean(first) if first else None,
        "regret_max": max(first, default=None),
        "top3_regret": fmean(regret(group, 3) for group in groups) if groups else None,
        "kendall_tau": fmean(taus) if taus else None,
        "exact_best": fmean(value <= 1e-12 for value in first) if first else None,
        "rank_groups": len(groups),
    }


def group_scores(rows: Sequence[Scored]) -> dict[str, Numbers]:
    """Errors and ranking of every group, by name."""
    found = by(rows, lambda row: row.group)
    return {name: errors([row.ratio for row in found[name]]) | ranking(found[name]) for name in sorted(found)}


def overall(groups: dict[str, Numbers]) -> Numbers:
    """Every figure averaged over the groups that have it; counts are summed, the largest regret is the largest."""
    names = list(errors([])) + list(ranking([]))
    found: Numbers = {}
    for name in names:
        values = [value for group in groups.values() for value in [group.get(name)] if value is not None and isfinite(value)]
        if name in ("rows", "rank_groups"):
            found[name] = int(sum(values))
        elif name == "regret_max":
            found[name] = max(values, default=None)
        else:
            found[name] = fmean(values) if values else None
    return found


def section(rows: Sequence[Scored], unusable: dict[str, int]) -> dict[str, Any]:
    """A part of the report: groups, their average, and why rows were left out."""
    groups = group_scores(rows)
    reasons = dict(sorted(unusable.items(), key=lambda item: (-item[1], item[0])))
    return {"groups": groups, "overall": overall(groups), "unusable": reasons}


def coverage(rows: Iterable[Scored]) -> float | None:
    """Share of the rows with an interval whose measured figure lies in it; rows that anything was fitted to do not count."""
    inside = [row.covered for row in rows if row.covered is not None and not row.fitted and not row.widened]
    return fmean(inside) if inside else None


def confusion(pairs: Iterable[tuple[bool, bool]]) -> dict[str, int]:
    """(ran, predicted to fit) pairs counted: what ran and was said not to fit is `false_oom`."""
    found = {"true_feasible": 0, "false_oom": 0, "true_oom": 0, "missed_oom": 0}
    for ran, fits in pairs:
        found[("true_feasible" if fits else "false_oom") if ran else ("missed_oom" if fits else "true_oom")] += 1
    return found
