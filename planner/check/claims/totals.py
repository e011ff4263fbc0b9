"""Totals: an author's whole expression against all the work of the longest path, operator by operator."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence

from planner.check.claims.claim import Claim
from planner.check.claims.judgement import Judgement, judged
from planner.check.claims.mistakes import Mistake, same
from planner.check.claims.products import EXTRA, Compared, compare, told
from planner.check.claims.subject import Subject
from planner.check.claims.times import Largest, Leaf, Time, TimeReader, amount, base_values, leaves, maxima, waits
from planner.check.claims.work import ENDS, Products, number
from planner.errors import InputError

Group = tuple[tuple[str, ...], int | None]


def judge_total(subject: Subject, claim: Claim) -> Judgement:
    """The operators that are there, those left out, maxima over what follows each other, and communication."""
    assert claim.tree is not None
    time = TimeReader(base_values(subject.env), claim.where).time(claim.tree)
    needed = _needed(subject, claim)
    layers = sum(times for layer, times in subject.scope(claim.scope) if layer != ENDS)
    compared = _compared(subject, time, layers)
    filled = {leaf: leaf.filled(one.needed) for leaf, one in _by_leaf(time, compared)}
    claimed = amount(time, lambda leaf: filled[leaf].flops)
    required = _required(subject, time, needed)
    factor = claimed / required if required else None
    mistakes = [*told([(one, gpu) for (_, gpu), one in compared.items()]), *_extra(time), *_left_out(needed, compared)]
    mistakes += [m for largest in maxima(time) for m in _dependent(subject, largest, filled)]
    mistakes += _ignored(subject, claim, time)
    seconds = amount(time, lambda leaf: _seconds(subject, filled[leaf]))
    stated, derived = f"{claimed:.4g} FLOP", f"{required:.4g} FLOP"
    if mistakes or factor is None or not same(factor, 1):
        mistakes = mistakes or [Mistake("unexplained", factor, f"the longest path needs {derived} on a GPU")]
        return judged(claim, "wrong", stated, derived, "; ".join(m.words for m in mistakes), factor, mistakes, seconds)
    open_names = sorted(
        {n for _, leaf in leaves(time) for n in leaf.names} | {w.name for w in waits(time) if w.kind == "unstated"}
    )
    if open_names:
        reason = f"needs {', '.join(open_names)}; what is stated is right"
        return judged(claim, "not_derivable", stated, derived, reason, factor, (), seconds)
    return judged(claim, "holds", stated, derived, _remarks(subject, compared, time), factor, (), seconds)


def _needed(subject: Subject, claim: Claim) -> dict[str, float]:
    """FLOPs that the claim should cover: all of its scope, or those of the operators it names."""
    found = subject.needed(claim.scope)
    wanted = subject.operators(claim.operator)[0]
    return {operator: flops for operator, flops in found.items() if not wanted or operator in wanted}


def _required(subject: Subject, time: Time, needed: Mapping[str, float]) -> float:
    """FLOPs of the longest path: those of all its operators, or, where the expression takes the maximum of two sides that
    several micro-batches in flight keep at work together, those of the busier side.
    """
    apart = [largest for largest in maxima(time) for pair in _pairs(subject, largest) if _apart(subject, pair)]
    sides: dict[frozenset[int], float] = {}
    for operator, flops in needed.items():
        side = frozenset(work.gpu for work in subject.works((operator,))) if apart else frozenset[int]()
        sides[side] = sides.get(side, 0.0) + flops
    return max(sides.values(), default=0.0)


def _grouped(time: Time) -> dict[Group, list[tuple[float, Leaf]]]:
    found: dict[Group, list[tuple[float, Leaf]]] = {}
    for times, leaf in leaves(time):
        if not leaf.operators:
            raise InputError("claim", leaf.text, "Get_Time(m, k, n, op=OPERATOR) in a total, to say whose time it is")
        found.setdefault((leaf.operators, leaf.gpu), []).append((times, leaf))
    return found


def _compared(subject: Subject, time: Time, layers: float) -> dict[Group, Compared]:
    """Every operator that the expression names, as one GPU's work in one layer."""
    found = {}
    for (operators, gpu), counted in _grouped(time).items():
        ends = operators[0] in ("embedding", "lm_head")
        gpus = () if gpu is None else (gpu,)
        one = None if operators == (EXTRA,) else compare(subject, operators, counted, gpus, "gpu", 1 if ends else layers)
        if one is not None:
            found[operators, gpu] = one
    return found


def _by_leaf(time: Time, compared: Mapping[Group, Compared]) -> Iterable[tuple[Leaf, Compared]]:
    nothing = Compared((EXTRA,), 0, Products(0, 0, 0), Products(0, 0, 0), ())
    for _, leaf in leaves(time):
        yield leaf, compared.get((leaf.operators, leaf.gpu), nothing)


def _extra(time: Time) -> list[Mistake]:
    texts = dict.fromkeys(leaf.text for _, leaf in leaves(time) if leaf.operators == (EXTRA,))
    return [Mistake("operator that the plan does not have", None, f"{text} is no operator of the plan") for text in texts]


def _left_out(needed: Mapping[str, float], compared: Mapping[Group, Compared]) -> list[Mistake]:
    """Operators of the longest path without a term."""
    there = {operator for (names, _), one in compared.items() for operator in (*one.operators, *_core(names))}
    missing = [operator for operator in needed if operator not in there]
    if not missing:
        return []
    share = sum(needed[operator] for operator in missing) / sum(needed.values())
    words = f"left out: {', '.join(missing)} ({100 * share:.3g} % of the work)"
    return [Mistake("operator left out", 1 - share, words)]


def _core(names: Sequence[str]) -> tuple[str, ...]:
    return ("scores", "attention_value") if "attention" in names else ()


def _dependent(subject: Subject, largest: Largest, filled: Mapping[Leaf, Products]) -> list[Mistake]:
    """A maximum over operators of which one waits for another. On different GPUs it is the limit of many in flight."""
    pair = next((pair for pair in _pairs(subject, largest) if not _apart(subject, pair)), None)
    if pair is None:
        return []
    all_of = amount(largest, lambda leaf: filled[leaf].flops, added=True)
    most = amount(largest, lambda leaf: filled[leaf].flops)
    words = f"max() over operators that follow each other ({pair[0]}, then {pair[1]}, on the same GPUs): they add up"
    return [Mistake("max() of dependent operators", most / all_of if all_of else None, words)]


def _pairs(subject: Subject, largest: Largest) -> Iterator[tuple[str, str]]:
    """Operators of different branches of which one waits for the other; branches of the same operators are other GPUs'."""
    branches = [list(dict.fromkeys(o for _, leaf in leaves(b) for o in _meant(subject, leaf))) for b in largest.branches]
    for one, other in itertools.combinations(branches, 2):
        if set(one) != set(other):
            yield from ((a, b) for a in one for b in other if a != b and _waits(subject, a, b))


def _meant(subject: Subject, leaf: Leaf) -> tuple[str, ...]:
    return () if leaf.operators == (EXTRA,) else subject.operators(leaf.operators)[0]


def _waits(subject: Subject, a: str, b: str) -> bool:
    return a in subject.behind.get(b, ()) or b in subject.behind.get(a, ())


def _apart(subject: Subject, pair: tuple[str, str]) -> bool:
    """Whether two operators have GPUs of their own and several micro-batches keep both at work."""
    one, other = ({work.gpu for work in subject.works((operator,))} for operator in pair)
    return not one & other and subject.choice.in_flight > 1


def _ignored(subject: Subject, claim: Claim, time: Time) -> list[Mistake]:
    """No word of communication, though the longest path has some; a total of named operators may leave it out."""
    share = subject.communication_share
    if claim.operator or share < 1e-6 or any(wait.kind == "communication" for wait in waits(time)):
        return []
    words = f"collectives left out: {100 * share:.3g} % of the longest path at the planner's prices"
    return [Mistake("collectives left out", 1 - share, words)]


def _seconds(subject: Subject, product: Products) -> float:
    """Seconds of a product at the planner's own Get_Time, one after another where it is counted."""
    if not product.flops:
        return 0.0
    source = next(iter(subject.env.pricer.sources.values()))
    dtype = subject.env.model.dtype
    return product.count * float(source.get_time(product.rows, product.k, product.n, 1, dtype))


def _remarks(subject: Subject, compared: Mapping[Group, Compared], time: Time) -> str:
    remarks = list(dict.fromkeys(one.remark for one in compared.values() if one.remark))
    named = [wait.name for wait in waits(time) if wait.kind == "communication"]
    if named:
        remarks.append(
            f"communication is {100 * subject.communication_share:.3g} % of the longest path at the planner's prices"
        )
    return "; ".join(remarks) or f"all {number(len(compared))} operators have the work that the plan needs"
