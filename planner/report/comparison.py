"""Hand-designed plans beside the best one, and the answer with the number of replicas open."""

from __future__ import annotations

from planner.hand_designed import HandDesigned, PlanReading
from planner.report.document import Block, Bullets, Text, table
from planner.report.show import count, difference, gigabytes, objective_value
from planner.report.words import plan_words
from planner.search import Result

NOTE = (
    "As written: as its author left it (one micro-batch unless the plan says otherwise). Fewest micro-batches: the first count "
    "that fits in memory. Best completion: everything its author left open chosen as well as can be. Ratio: best completion "
    "over the best plan of the space, 1 or more."
)
NEVER = "no completion fits in memory"
BEYOND = "no completion meets the limits"
SOUND = "sound"


def hand_designed_blocks(result: Result) -> tuple[Block, ...]:
    """A row for each plan, then what was found wrong and how the best completion looks."""
    rows = [
        (hand.name, _written(hand.as_written, result), _fitting(hand.fewest_micro_batches, result),
         _fitting(hand.best_completion, result), f"{hand.ratio_to_best:.3f}" if hand.ratio_to_best else "-",
         verdict(hand) if result.caps.none or hand.best_completion.choice is not None else BEYOND)
        for hand in result.hand_designed
    ]  # fmt: skip
    headers = ("plan", "as written", "fewest micro-batches", "best completion", "ratio", "verdict")
    return Text(NOTE), table(headers, rows, ("ratio",)), Bullets(tuple(_remarks(result)))


def verdict(hand: HandDesigned) -> str:
    """Whether a plan is sound, or the codes of what is wrong with it."""
    if hand.best_completion.choice is None:
        return "does not fit"
    codes = list(dict.fromkeys(f"{finding.code} ({finding.severity})" for finding in hand.findings))
    return "\n".join([*([] if any(f.severity == "error" for f in hand.findings) else [SOUND]), *codes])


def _written(reading: PlanReading, result: Result) -> str:
    """The plan as written: its time, and where and by how much it does not fit."""
    if reading.choice is None:
        return reading.where or "cannot be built"
    text = f"{count(reading.choice.micro_batches, 'micro-batch')}: {_value(reading, result)}"
    if reading.over_capacity_bytes:
        text = f"does not fit: {reading.where} {gigabytes(reading.over_capacity_bytes)} GB over\nif it did, {text}"
    return text


def _fitting(reading: PlanReading, result: Result) -> str:
    if reading.choice is None and not result.caps.none:
        return BEYOND
    if reading.choice is None:
        over = f", {gigabytes(reading.over_capacity_bytes)} GB over at least" if reading.over_capacity_bytes else ""
        return NEVER + over
    return f"{count(reading.choice.micro_batches, 'micro-batch')}: {_value(reading, result)}"


def _value(reading: PlanReading, result: Result) -> str:
    return objective_value(result.objective, reading.objective) if reading.objective is not None else "-"


def _remarks(result: Result) -> list[str]:
    """The author's remark, the best completion in words, and every error with its message."""
    lines = []
    for hand in result.hand_designed:
        lines += [f"{hand.name}: {hand.note}"] if hand.note else []
        if hand.best_completion.choice is not None:
            lines.append(f"{hand.name}, best completion: {plan_words(hand.best_completion.choice, result.problem.sizes)}")
        lines += list(dict.fromkeys(f"{hand.name}: {f.code}: {f.message}" for f in hand.findings if f.severity == "error"))
    left_out = [name for name in result.problem.plan_notes if name not in result.problem.plans]
    return [*lines, *(f"{name}: {result.problem.plan_notes[name]}" for name in left_out)]


def unrestricted_text(result: Result) -> str:
    """The best plan when the batch may be shared by any number of copies of the model."""
    if result.unrestricted is None or result.value is None:
        return ""
    value, choice = result.unrestricted
    words = plan_words(choice, result.problem.sizes)
    apart = difference(value, result.value)
    compared = "no better than the best plan above" if apart == "best" else f"{apart} against the best plan above"
    shown = objective_value(result.objective, value)
    return f"Another question, as the space above fixes the replicas: {shown} ({compared}). The plan: {words}."
