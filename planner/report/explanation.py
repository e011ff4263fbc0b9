"""An explanation in sentences and tables: what binds a plan, what would help, how far it is from the bounds."""

from __future__ import annotations

from planner.insight.explain import Explanation, filled, stage_of
from planner.insight.resources import TIMED, Resource
from planner.report.document import Block, Bullets, Section, Text, table, to_text
from planner.report.show import count, gigabytes, percent, seconds
from planner.report.side_by_side import CLASSES
from planner.report.words import plan_words

RESOURCES: dict[Resource, str] = {
    Resource.COMPUTE: "arithmetic (peak FLOP/s)", Resource.MEMORY: "memory bandwidth",
    Resource.OVERHEAD: "kernel launches and other fixed times of kernels",
    Resource.INSIDE: "links inside a scale-up domain", Resource.BETWEEN: "network between domains",
    Resource.LATENCY: "start-up times of messages", Resource.CAPACITY: "memory capacity",
}  # fmt: skip
BINDING_NOTE = (
    "An operator is bound by the resource that would take most of its time if all others cost nothing, as the price source "
    'itself answers. When that resource gets better, another may bind soon: see "If the hardware were better".'
)
SENSITIVITY_NOTE = (
    "Every price asked again with one resource twice as good (start-up and fixed times: half as long). As it is: this plan. "
    "Chosen anew: the best plan of the space on that hardware, against the best on today's."
)
CHANGE_NOTE = "One decision of this plan chosen anew, every other one kept; what makes it faster, the largest gain first."
OTHER_NOTE = (
    "Each value of a decision held while all others are chosen anew; * marks the value that this plan has. "
    "The ratio is to this plan's latency: below 1 is faster."
)
BOUND_NOTE = "No plan can be faster than these. The last one is the best plan of the space itself."
HARDWARE = {"work": "the work alone", "bandwidth": "reading weights and cache once"}
NEAR = 1e-6


def explanation_report(found: Explanation) -> str:
    """An explanation for the terminal."""
    sections = [
        Section("What binds", _binding(found)),
        Section("Memory", (Text(memory_text(found)),)),
        Section("What to change", _changes(found)),
        Section("If the hardware were better", _sensitivity(found)),
        Section("Distance to the bounds", _bounds(found)),
        Section("Other values of single decisions", _others(found)),
        Section("Assumptions", (Bullets(found.assumptions),)),
    ]
    if found.cut:
        sections.append(Section("Left out or cut short by the time limit", (Bullets(found.cut),)))
    return to_text(summary_text(found), sections)


def summary_text(found: Explanation) -> str:
    """What binds, what would help most, and how far the plan is from the bounds, in one paragraph."""
    label = f"{found.chosen.problem.name}:{found.chosen.name}"
    over = found.evaluation.over_capacity_bytes
    fits = f", if it fitted: it needs {gigabytes(over)} GB more on a GPU" if over else ""
    resource = max(TIMED, key=lambda r: found.path[r])
    largest = found.operators[0]
    return " ".join((
        f"{label} takes {seconds(found.latency_s)}{fits}.",
        f"{percent(found.path[resource], found.latency_s)} of its longest path ({seconds(found.path[resource])}) is bound by "
        f"{RESOURCES[resource]}; its largest operator is {largest.op} ({seconds(largest.seconds)}, "
        f"{percent(largest.seconds, found.latency_s)}).",
        f"GPUs wait for {percent(_waits(found), 1)} of their time.",
        _change_text(found), _hardware_text(found), _distance_text(found),
    ))  # fmt: skip


def _waits(found: Explanation) -> float:
    return found.waiting.bubble + found.waiting.stages + found.waiting.gpus


def _change_text(found: Explanation) -> str:
    if not found.changes and not found.asked_every_change:
        return "Which single decision would help most was not asked: the time was up."
    if not found.changes:
        return "No single decision, chosen anew by itself, makes it faster."
    best = found.changes[0]
    return (
        f"The one change that helps most: {best.decision}, from {best.now} to {best.then}, gives {seconds(best.latency_s)} "
        f"({best.gain:.2f} times as fast)."
    )


def _hardware_text(found: Explanation) -> str:
    best = min(found.sensitivity, key=lambda s: s.latency_s)
    return (
        f"Of the hardware, twice as good {RESOURCES[best.resource]} would help this plan most: {seconds(best.latency_s)} "
        f"({found.latency_s / best.latency_s:.2f} times as fast)."
    )


def _distance_text(found: Explanation) -> str:
    nearest = max((bound for bound in found.bounds if bound.name in HARDWARE), key=lambda bound: bound.seconds)
    times, what = found.latency_s / nearest.seconds, HARDWARE[nearest.name]
    from_work = f"{times:.2f} times the bound of {what} ({seconds(nearest.seconds)})"
    best = found.best.seconds
    if best is None:
        return f"No plan of its space fits; this one takes {from_work}."
    proven = "the proven best" if found.best.complete else "the best found within the time limit, perhaps not the best"
    if abs(found.latency_s - best) <= NEAR * best:
        return f"It is {proven} of its space, at {from_work}."
    if found.latency_s < best:
        return f"It is faster than {proven} of its space ({seconds(best)}), which does not hold it; it takes {from_work}."
    return f"It takes {found.latency_s / best:.2f} times {proven} of its space ({seconds(best)}), and {from_work}."


def _binding(found: Explanation) -> tuple[Block, ...]:
    busiest = found.busiest
    rows = [
        (RESOURCES[r], seconds(found.path[r]), percent(found.path[r], found.latency_s),
         seconds(busiest.seconds[r]), percent(busiest.seconds[r], found.latency_s))
        for r in TIMED
    ]  # fmt: skip
    rows.append(("waiting", "-", "-", seconds(busiest.waiting_s), percent(busiest.waiting_s, found.latency_s)))
    headers = ("bound by", "longest path", "share", f"busiest GPU ({busiest.rank})", "share ")
    ops = [
        (op.op, CLASSES[op.kind], RESOURCES[op.resource], f"{op.count:,}", seconds(op.seconds),
         percent(op.seconds, found.latency_s))
        for op in found.operators[:10]
    ]  # fmt: skip
    columns = ("largest operators", "class", "bound by", "times", "seconds", "share")
    return (
        Text(BINDING_NOTE), table(headers, rows, headers[1:]), table(columns, ops, columns[3:]),
        Text(waiting_text(found)),
    )  # fmt: skip


def waiting_text(found: Explanation) -> str:
    """The GPU-seconds in one sentence, and the slowest machine."""
    w, micro = found.waiting, found.chosen.choice.micro_batches
    slowest, *rest = sorted(w.machines, key=lambda machine: (-machine.seconds, machine.name != w.slowest))
    following = f" (next: {rest[0].name}, {seconds(rest[0].seconds)})" if rest else ""
    return (
        f"Of the GPU-seconds {percent(w.busy, 1)} are computation, {percent(w.communication, 1)} collectives, "
        f"{percent(w.bubble, 1)} pipeline bubble, {percent(w.stages, 1)} waiting for the slowest stage or transfer, and "
        f"{percent(w.gpus, 1)} waiting inside a stage for larger shares or unhidden transfers. The slowest is {w.slowest}: "
        f"{seconds(slowest.seconds)} for each of {count(micro, 'micro-batch')}{following}."
    )


def memory_text(found: Explanation) -> str:
    """How full the fullest GPU is, and whether memory keeps faster plans out."""
    full, limit = found.fullest, found.capacity
    unlimited = seconds(limit.unlimited_latency_s or 0)
    text = (
        f"GPU {full.rank} is the fullest (stage {stage_of(found.chosen.choice, full.rank)}): "
        f"{gigabytes(full.memory.total_bytes)} of {gigabytes(full.memory.capacity_bytes)} GB, "
        f"{percent(filled(full.memory), 1)}. "
    )
    if limit.binds is None:
        text += "Whether memory keeps faster plans out was not asked or has no answer. "
    elif limit.binds and limit.best_latency_s is None:
        text += f"No plan of the space fits; with unlimited memory the best would take {unlimited}. "
    elif limit.binds:
        text += (
            f"Memory binds: with unlimited memory the best plan of the space would take {unlimited} instead of "
            f"{seconds(limit.best_latency_s or 0)}. "
        )
    else:
        text += "Memory does not bind: no plan of the space would be faster with unlimited memory. "
    own, now = limit.own_unlimited_micro_batches, found.chosen.choice.micro_batches
    if own is not None and own != now:
        shown = seconds(limit.own_unlimited_latency_s or 0)
        text += f"This plan would take {shown} without the limit, with {count(own, 'micro-batch')} instead of {now}."
    elif own is not None:
        text += f"Without the limit this plan would keep its {count(now, 'micro-batch')}."
    return text


def _changes(found: Explanation) -> tuple[Block, ...]:
    if not found.changes:
        return (Text(_change_text(found)),)
    headers = ("decision", "from", "to", "latency", "times as fast")
    rows = [(c.decision, c.now, c.then, seconds(c.latency_s), f"{c.gain:.3f}") for c in found.changes]
    return Text(CHANGE_NOTE), table(headers, rows, headers[3:])


def _sensitivity(found: Explanation) -> tuple[Block, ...]:
    headers = ("twice as good", "as it is", "times as fast", "chosen anew", "times as fast ")
    rows = []
    for s in found.sensitivity:
        best, now = s.best_latency_s, found.best.seconds
        gain = f"{now / best:.3f}" if best and now else "-"
        own = (seconds(s.latency_s), f"{found.latency_s / s.latency_s:.3f}")
        rows.append((RESOURCES[s.resource], *own, seconds(best) if best else "-", gain))
    return Text(SENSITIVITY_NOTE), table(headers, rows, headers[1:])


def _bounds(found: Explanation) -> tuple[Block, ...]:
    headers = ("bound", "seconds", "this plan is", "what it is")
    rows = [
        (b.name, seconds(b.seconds), f"{found.latency_s / b.seconds:.4g} times" if b.seconds else "-",
         b.meaning if b.proven else f"{b.meaning} (what the time limit allowed)")
        for b in found.bounds
    ]  # fmt: skip
    return Text(BOUND_NOTE), table(headers, rows, headers[1:3], wide=70)


def _others(found: Explanation) -> tuple[Block, ...]:
    if not found.others:
        return (Text("No decision of the space has another value."),)
    headers = ("decision", "value", "latency", "ratio", "plan")
    rows, plans = [], list(dict.fromkeys(o.choice for o in found.others if o.choice is not None))
    for o in found.others:
        value = f"{o.value} *" if o.own else o.value
        if o.latency_s is None or o.choice is None:
            rows.append((o.decision, value, "none fits", "-", "-"))
            continue
        number = str(plans.index(o.choice) + 1)
        rows.append((o.decision, value, seconds(o.latency_s), f"{o.latency_s / found.latency_s:.3f}", number))
    words = (f"plan {at}: {plan_words(plan, found.chosen.problem.sizes)}" for at, plan in enumerate(plans, start=1))
    return Text(OTHER_NOTE), table(headers, rows, headers[2:], wide=60), Bullets(tuple(words))
