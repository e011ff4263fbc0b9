"""The critical path of a linear pipeline: one micro-batch through every stage, the rest behind the slowest stage or send."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

from planner.evaluate.pipeline import (
    TOKEN_ID_BYTES,
    crossing_fraction,
    feedback_seconds,
    makespan,
    send_seconds,
    transfer_bytes,
)
from planner.evaluate.runs import RoleRun, StageRuns
from planner.evaluate.setting import Setting
from planner.evaluate.term import sum_terms, times, transfer_term
from planner.evaluate.timeline import CriticalPath, Item, items_of, ranks_text, transfer_item
from search_spaces.sizes import Sizes
from search_spaces.stages import Choice


@dataclass(frozen=True)
class _Machine:
    """A stage or a send: seconds per micro-batch, its term and its items."""

    name: str
    seconds: float
    term: str
    items: tuple[Item, ...]


def linear_path(env: Setting, sizes: Sizes, choice: Choice) -> CriticalPath:
    """Critical path of a plan whose stages each compute whole layers."""
    sequences = sizes.batch // choice.replicas // choice.micro_batches
    stages, start = [], 0
    for index, stage in enumerate(choice.stages):
        key = (stage, index, index == len(choice.stages) - 1, start, sequences)
        stages.append(env.once("machines", key, partial(stage_machine, env, sizes, choice, index, start, sequences)))
        start += stage.layers
    sends = _sends(env, choice, sequences)
    decode = env.workload.phase == "decode"
    latency = makespan([s.seconds for s in stages], [s.seconds for s in sends], choice.micro_batches, decode)
    chain = [m for pair in zip(stages, sends, strict=False) for m in pair] + stages[len(sends) :]
    slowest = max([*stages, *sends], key=lambda m: m.seconds)
    items, expression = _path(chain, slowest, choice.micro_batches, decode, latency)
    slack = tuple((m.name, (slowest.seconds - m.seconds) * (choice.micro_batches - 1)) for m in chain)
    return CriticalPath(latency, tuple(items), expression, slack)


def stage_machine(env: Setting, sizes: Sizes, choice: Choice, index: int, start: int, sequences: int) -> _Machine:
    """One stage: its roles in order, equal layers counted."""
    stage, runs = choice.stages[index], StageRuns(env, sizes, choice.stages[index], sequences)
    first, last = index == 0, index == len(choice.stages) - 1
    parts: list[tuple[tuple[RoleRun, ...], int, str]] = []
    if first and env.has_embedding:
        parts.append(((runs.embedding(),), 1, "embedding"))
    if not first:
        parts.append(((runs.receive(),), 1, "entry"))
    kinds = env.kind_of_layer[start : start + stage.layers]
    for kind in dict.fromkeys(kinds):
        layer = env.kinds[kind]
        where = ranks_text(tuple([start + i for i, k in enumerate(kinds) if k == kind]))
        parts.append(((runs.attention(layer), runs.ffn(layer)), kinds.count(kind), where))
    if last and env.has_head:
        parts.append(((runs.head(),), 1, "head"))
    terms = [times(count, sum_terms(t for run in group for t in [run.expression] if t != "0")) for group, count, _ in parts]
    seconds = sum(count * sum(run.seconds for run in group) for group, count, _ in parts)
    items = [item for group, count, where in parts for run in group for item in items_of(run, index, where, count)]
    return _Machine(f"stage {index}", seconds, sum_terms(t for t in terms if t != "0"), tuple(items))


def _sends(env: Setting, choice: Choice, sequences: int) -> list[_Machine]:
    """Hand-overs between neighbours, in decode also the sampled tokens' way back."""
    found = []
    for index, (a, b) in enumerate(zip(choice.stages, choice.stages[1:], strict=False)):
        near, far = a.attention_devices, b.attention_devices
        seconds = send_seconds(env, near, far, sequences)
        sent, received = transfer_bytes(env, near, far, sequences)
        crossing = crossing_fraction(env.cluster.domain_of, near, far)
        term = transfer_term(sent, received, len(near), len(far), crossing)
        found.append(_machine(env, f"send {index}-{index + 1}", index, a.devices, term, seconds))
    if env.workload.phase == "decode" and len(choice.stages) > 1:
        last, first = choice.stages[-1].devices[-1:], choice.stages[0].devices[:1]
        amount = float(sequences * TOKEN_ID_BYTES)
        term = transfer_term(amount, amount, 1, 1, crossing_fraction(env.cluster.domain_of, last, first))
        seconds = feedback_seconds(env, last, first, sequences)
        found.append(_machine(env, "token feedback", len(choice.stages) - 1, last, term, seconds))
    return found


def _machine(env: Setting, name: str, stage: int, devices: tuple[int, ...], term: str, seconds: float) -> _Machine:
    source = env.pricer.collectives.sources[env.cluster.device_kinds[devices[0]]]
    return _Machine(name, seconds, term, (transfer_item(name, stage, devices, term, seconds, 1, source),))


def _path(chain: list[_Machine], slowest: _Machine, micro: int, decode: bool, latency: float) -> tuple[list[Item], str]:
    """Items and expression of the longest path."""
    if decode and micro * slowest.seconds >= latency:
        return [_repeat(item, micro) for item in slowest.items], times(micro, slowest.term)
    items = [item for machine in chain for item in machine.items]
    terms = [machine.term for machine in chain]
    if not decode and micro > 1:
        items += [_repeat(item, micro - 1) for item in slowest.items]
        terms.append(times(micro - 1, slowest.term))
    return items, " + ".join(terms)


def _repeat(item: Item, count: int) -> Item:
    return Item(item.op, item.layer, item.stage, item.device, item.term, item.count * count, item.seconds * count, item.source)
