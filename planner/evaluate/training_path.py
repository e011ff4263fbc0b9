"""The longest path of a training step: passes of stages, hand-overs, what the copies exchange, the optimizer."""

from __future__ import annotations

from planner.evaluate.timeline import CriticalPath, Item, ranks_text
from planner.evaluate.training import StepPricing
from planner.graph.schedule import Step as Pass
from planner.graph.schedule import Work

NAMES = {"forward": "forward", "backward": "backward", "weights": "weight gradients"}
Key = tuple[str, int]


def training_path(pricing: StepPricing, source: str) -> CriticalPath:
    """The path of a priced step. A term is how often an item runs times its mean seconds, so that terms add up to the step."""
    trace: dict[tuple[int, Work], Pass] = {}
    step = pricing.step(pricing.ends(trace))
    found = _walk(trace, step.pipeline_s)
    last = len(pricing.stages) - 1
    for name, seconds in (("exchange of gradients and weights", step.exchange_s), ("optimizer", step.optimizer_s)):
        if seconds:
            found[name, last] = (1, seconds)
    ranks = [ranks_text(stage.devices) for stage in pricing.choice.stages]
    items = tuple(
        Item(name, "", stage, ranks[stage], f"{count} * {seconds / count!r}", count, seconds, source)
        for (name, stage), (count, seconds) in found.items()
    )
    slack = tuple((f"stage {i}", step.pipeline_s - _busy(trace, i)) for i in range(last + 1))
    return CriticalPath(step.seconds, items, " + ".join(item.term for item in items), slack)


def _walk(trace: dict[tuple[int, Work], Pass], total: float) -> dict[Key, tuple[int, float]]:
    """Count and seconds of every kind of pass and hand-over on the path that ends last, in the order of their first."""
    here: tuple[int, Work] | None = max(trace, key=lambda key: trace[key].end_s)
    path: list[tuple[Key, float]] = []
    begin = total
    while here is not None:
        own = trace[here]
        if begin > own.end_s:
            path.append(((f"hand-over from stage {here[0]}", here[0]), begin - own.end_s))
        path.append(((NAMES[here[1].kind], here[0]), own.end_s - own.begin_s))
        begin, here = own.begin_s, own.after
    if begin > 0:
        path.append((("wait", 0), begin))
    found: dict[Key, tuple[int, float]] = {}
    for key, seconds in reversed(path):
        count, spent = found.get(key, (0, 0.0))
        found[key] = (count + 1, spent + seconds)
    return found


def _busy(trace: dict[tuple[int, Work], Pass], stage: int) -> float:
    return sum(own.end_s - own.begin_s for (index, _), own in trace.items() if index == stage)
