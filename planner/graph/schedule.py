"""Pipeline schedules of training: the fixed order of work on every stage, and when it ends."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

from search_spaces.training import Schedule

Kind = Literal["forward", "backward", "weights"]


@dataclass(frozen=True, slots=True)
class Work:
    """One pass of one micro-batch through one chunk of layers of a stage.

    backward makes the gradients of inputs, and those of weights too unless the schedule has `weights` apart.
    """

    kind: Kind
    micro_batch: int
    chunk: int = 0


@lru_cache(maxsize=4096)
def stage_order(schedule: Schedule, stage: int, stages: int, micro_batches: int, chunks: int = 1) -> tuple[Work, ...]:
    """The work of one stage in the order in which it runs.

    1f1b: Narayanan et al., PipeDream-Flush (arXiv:2104.04473, section 2.2.1), interleaved: section 2.2.2, whose groups of
    as many micro-batches as there are stages take turns through the chunks. zb_h1: Qi et al., Zero Bubble (arXiv:2401.10241):
    stage i puts off the weight gradients of i micro-batches, so that none holds more than the first stage of 1f1b does.
    """
    if schedule == "gpipe":
        passes = [Work("forward", m) for m in range(micro_batches)]
        return (*passes, *(Work("backward", m) for m in range(micro_batches)))
    if schedule == "interleaved" and chunks > 1:
        return tuple(_interleaved(stage, stages, micro_batches, chunks))
    plain = tuple(_one_forward_one_backward(stage, stages, micro_batches))
    return plain if schedule != "zb_h1" else tuple(_put_off(plain, stage))


def _one_forward_one_backward(stage: int, stages: int, micro_batches: int) -> Iterator[Work]:
    ahead = min(stages - stage - 1, micro_batches)
    yield from (Work("forward", m) for m in range(ahead))
    for m in range(ahead, micro_batches):
        yield Work("forward", m)
        yield Work("backward", m - ahead)
    yield from (Work("backward", m) for m in range(micro_batches - ahead, micro_batches))


def _interleaved(stage: int, stages: int, micro_batches: int, chunks: int) -> Iterator[Work]:
    total = micro_batches * chunks
    ahead = total if micro_batches == stages else min(total, 2 * (stages - stage - 1) + (chunks - 1) * stages)

    def turn(kind: Kind, index: int) -> Work:
        group, place = divmod(index, stages * chunks)
        chunk, offset = divmod(place, stages)
        return Work(kind, group * stages + offset, chunk if kind == "forward" else chunks - 1 - chunk)

    yield from (turn("forward", k) for k in range(ahead))
    for k in range(ahead, total):
        yield turn("forward", k)
        yield turn("backward", k - ahead)
    yield from (turn("backward", k) for k in range(total - ahead, total))


def _put_off(plain: Sequence[Work], most: int) -> Iterator[Work]:
    waiting: list[int] = []
    for work in plain:
        yield work
        if work.kind == "backward":
            waiting.append(work.micro_batch)
        if len(waiting) > most:
            yield Work("weights", waiting.pop(0))
    yield from (Work("weights", m) for m in waiting)


@dataclass(frozen=True, slots=True)
class Step:
    """A pass in time: begin, end, and the pass it waited for last (None where it began at once)."""

    begin_s: float
    end_s: float
    after: tuple[int, Work] | None


@lru_cache(maxsize=4096)
def held_counts(
    schedule: Schedule, stage: int, stages: int, micro_batches: int, chunks: int = 1
) -> tuple[tuple[int, ...], ...]:
    """Micro-batches of each chunk that a stage holds at once, at those times that no other time exceeds in every chunk."""
    order = stage_order(schedule, stage, stages, micro_batches, chunks)
    last: Kind = "weights" if any(work.kind == "weights" for work in order) else "backward"
    held, seen = [0] * chunks, set[tuple[int, ...]]()
    for work in order:
        if work.kind == "forward":
            held[work.chunk] += 1
            seen.add(tuple(held))
        elif work.kind == last:
            held[work.chunk] -= 1
    return tuple(a for a in seen if not any(a != b and all(x <= y for x, y in zip(a, b, strict=True)) for b in seen))


def finish_times(
    orders: Sequence[Sequence[Work]],
    chunks: int,
    seconds: Callable[[int, Work], float],
    send: Callable[[int, int, Kind], float],
    trace: dict[tuple[int, Work], Step] | None = None,
) -> list[float]:
    """When each stage has done its work: a stage works in its order, what it passes on queues on its way.

    `seconds(stage, work)`; `send(stage, other, kind)` from one stage to another (0 where they are the same). Micro-batch m
    of chunk c goes through all stages of chunk c before the first of chunk c + 1. `trace` is filled with what each pass
    waited for.
    """
    stages = len(orders)
    end: dict[tuple[int, Work], float] = {}
    way: dict[tuple[int, int, Kind], float] = {}
    arrived: dict[tuple[int, Work], float] = {}
    free, at, left = [0.0] * stages, [0] * stages, sum(map(len, orders))
    while left:
        moved = left
        for stage, order in enumerate(orders):
            while at[stage] < len(order):
                work = order[at[stage]]
                ready = _ready(stage, work, stages, chunks, end, arrived)
                if ready is None:
                    break
                done = max(free[stage], ready) + seconds(stage, work)
                if trace is not None:
                    waited = _source(stage, work, stages, chunks) if ready > free[stage] else None
                    own = (stage, order[at[stage] - 1]) if at[stage] else None
                    trace[stage, work] = Step(max(free[stage], ready), done, waited or own)
                free[stage] = end[stage, work] = done
                at[stage] += 1
                left -= 1
                target = next_work(stage, work, stages, chunks)
                if target is not None:
                    lane = (stage, target[0], work.kind)
                    way[lane] = arrived[target] = max(way.get(lane, 0.0), done) + send(*lane)
        if moved == left:
            raise ValueError("the stages wait for each other: this order of work is a deadlock")
    return free


def next_work(stage: int, work: Work, stages: int, chunks: int) -> tuple[int, Work] | None:
    """The stage and the work that a pass hands its result to; None where the model ends."""
    place = work.chunk * stages + stage + (1 if work.kind == "forward" else -1)
    if work.kind == "weights" or not 0 <= place < chunks * stages:
        return None
    chunk, other = divmod(place, stages)
    return other, Work(work.kind, work.micro_batch, chunk)


def _source(stage: int, work: Work, stages: int, chunks: int) -> tuple[int, Work] | None:
    """The pass that makes the input of some work."""
    if work.kind == "weights":
        return stage, Work("backward", work.micro_batch, work.chunk)
    place = work.chunk * stages + stage + (-1 if work.kind == "forward" else 1)
    if place < 0:
        return None
    if place == chunks * stages:
        return stage, Work("forward", work.micro_batch, work.chunk)
    chunk, other = divmod(place, stages)
    return other, Work(work.kind, work.micro_batch, chunk)


def _ready(
    stage: int, work: Work, stages: int, chunks: int, end: dict[tuple[int, Work], float], arrived: dict[tuple[int, Work], float]
) -> float | None:
    """When the input of some work is there; None where that is not known yet."""
    if work.kind == "weights":
        return end.get((stage, Work("backward", work.micro_batch, work.chunk)))
    place = work.chunk * stages + stage
    if work.kind == "forward" and place == 0:
        return 0.0
    if work.kind == "backward" and place == chunks * stages - 1:
        return end.get((stage, Work("forward", work.micro_batch, work.chunk)))
    return arrived.get((stage, work))
