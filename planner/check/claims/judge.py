"""judge: every kind of claim against what the graph of its plan, or the price of it, gives."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from planner.check.claims.answers import Ask
from planner.check.claims.claim import Claim, Matrices
from planner.check.claims.compared import judge_comparison, judge_percentage
from planner.check.claims.judgement import Judgement, judged
from planner.check.claims.mistakes import CLOSE, Mistake
from planner.check.claims.products import EXTRA, Compared, compare, is_right, told
from planner.check.claims.quantities import QUANTITIES
from planner.check.claims.subject import Subject
from planner.check.claims.times import Leaf, TimeReader, UnstatedError, base_values, leaves
from planner.check.claims.totals import judge_total
from planner.check.claims.work import number
from planner.errors import InputError
from planner.evaluate.evaluation import Evaluation
from planner.evaluate.expression import Tree

NAMES = {
    "operators_per_layer": "operator left out",
    "products_per_layer": "heads miscounted in a number of operations",
    "computes_attention": "score reduce left out",
    "at_once": "operators of one GPU called simultaneous",
    "experts_at_once": "experts of one GPU called simultaneous",
    "sequential_layers": "layers that follow each other counted as one",
    "head_dims_per_gpu": "head dims divided on top of heads",
    "collectives_overlap": "overlap that dependencies forbid",
    "summed_after": "sum over GPUs where the plan has none",
    "largest_part": "wrong bottleneck",
    "balanced": "balance misjudged",
}
"""What a wrong statement about a quantity is called, where its kind has a name."""
Priced = Mapping[str, Evaluation]


def judge(subject: Subject, claims: Sequence[Claim], priced: Priced) -> tuple[Judgement, ...]:
    """The verdict on each claim about a plan.

    `priced` are evaluations by plan name, for claims that compare times: the plan's own and that of `Claim.rival`.
    `InputError` names the claim whose expression cannot be evaluated, or whose GPUs the plan does not have.
    """
    found = []
    for claim in claims:
        try:
            found.append(_one(subject, claim, priced))
        except InputError as error:
            raise error.within(claim.source, f"{claim.place} ({claim.id})") from None
    return tuple(found)


def _one(subject: Subject, claim: Claim, priced: Priced) -> Judgement:
    if claim.kind == "percentage":
        return judge_percentage(subject, claim, priced)
    if claim.kind == "comparison":
        return judge_comparison(subject, claim, priced)
    by_kind: dict[str, Callable[[Subject, Claim], Judgement]] = {
        "term": _term, "shape": _shape, "total": judge_total, "flops": _flops, "arithmetic": _arithmetic,
    }  # fmt: skip
    return by_kind.get(claim.kind, _quantity)(subject, claim)


def _reader(subject: Subject, claim: Claim) -> TimeReader:
    return TimeReader(base_values(subject.env), claim.where)


def _term(subject: Subject, claim: Claim) -> Judgement:
    """Get_Time of one operator, or of several that are tagged with `op`."""
    tree = claim.tree
    assert tree is not None
    counted: dict[tuple[str, ...], list[tuple[float, Leaf]]] = {}
    for times, leaf in leaves(_reader(subject, claim).time(tree)):
        counted.setdefault(leaf.operators or claim.operator, []).append((times, leaf))
    if not counted or () in counted:
        raise InputError("operator", None, "the operator that each Get_Time stands for")
    return _products(subject, claim, counted, str(claim.claim))


def _shape(subject: Subject, claim: Claim) -> Judgement:
    """Shapes that multiply, and whose product is the operator's."""
    shapes = claim.matrices
    assert shapes is not None
    reader = _reader(subject, claim)
    problem = _misfit(reader, shapes)
    left, right = ([_size(reader, tree) for tree in side] for side in (shapes.left, shapes.right))
    rows, unstated = 1.0, [name for size in (*left, *right) for name in [size] if isinstance(name, str)]
    for size in left[:-1]:
        rows *= size if isinstance(size, float) else 1.0
    open_rows = any(isinstance(size, str) for size in left[:-1])
    k, n = left[-1], right[-1]
    leaf = Leaf((), None, None if open_rows else rows, k if isinstance(k, float) else None,
                n if isinstance(n, float) else None, 1.0, str(claim.claim), tuple(unstated))  # fmt: skip
    return _products(subject, claim, {claim.operator: [(1.0, leaf)]}, str(claim.claim), problem)


def _size(reader: TimeReader, tree: Tree) -> float | str:
    try:
        return reader.size(tree)
    except UnstatedError as name:
        return str(name)


def _misfit(reader: TimeReader, shapes: Matrices) -> Mistake | None:
    """Why two shapes are no product, or give another result than is printed."""
    left, right, result = ([_size(reader, tree) for tree in side] for side in (shapes.left, shapes.right, shapes.result))
    shown = [", ".join(map(_written, side)) for side in (left, right, result)]
    if left[-1] != right[-2]:
        sizes = f"{_written(left[-1])} columns, {_written(right[-2])} rows"
        words = f"shapes that do not multiply: [{shown[0]}] by [{shown[1]}] ({sizes})"
        return Mistake("shapes do not fit", 1.0, words)
    if result and _product([*left[:-1], right[-1]]) != _product(result):
        given = ", ".join(map(_written, [*left[:-1], right[-1]]))
        return Mistake("shapes do not fit", 1.0, f"[{shown[0]}] x [{shown[1]}] is [{given}], not [{shown[2]}]")
    return None


def _written(size: float | str) -> str:
    return size if isinstance(size, str) else f"{size:.15g}"


def _product(sizes: Sequence[float | str]) -> tuple[float, tuple[str, ...]]:
    total = 1.0
    for size in sizes:
        total *= size if isinstance(size, float) else 1.0
    return total, tuple(sorted(size for size in sizes if isinstance(size, str)))


def _products(
    subject: Subject,
    claim: Claim,
    counted: Mapping[tuple[str, ...], Sequence[tuple[float, Leaf]]],
    claimed: str,
    misfit: Mistake | None = None,
) -> Judgement:
    """Operators with their claimed products; right when each of them is."""
    found: list[Compared] = []
    for operators, parts in counted.items():
        gpus = [leaf.gpu for _, leaf in parts if leaf.gpu is not None] or claim.gpus
        one = None if operators == (EXTRA,) or misfit else compare(subject, operators, parts, gpus, claim.per)
        if misfit is not None:
            return judged(claim, "wrong", claimed, "-", misfit.words, None, [misfit])
        if one is None:
            reason = "this product is no operator of the plan" + ("" if operators == (EXTRA,) else f" ({', '.join(operators)})")
            extra = Mistake("operator that the plan does not have", None, reason)
            return judged(claim, "wrong", claimed, "no product", extra.words, None, [extra])
        found.append(one)
    mistakes = told([(one, None) for one in found])
    derived = "; ".join(f"{one.needed} = {one.needed.flops:.4g} FLOP" for one in found)
    needed, work = sum(one.needed.flops for one in found), sum(one.claimed.flops for one in found)
    factor = work / needed if needed else None
    if mistakes or not all(is_right(one) for one in found):
        return judged(claim, "wrong", claimed, derived, "; ".join(m.words for m in mistakes), factor, mistakes)
    names = sorted({name for parts in counted.values() for _, leaf in parts for name in leaf.names})
    if names:
        rows = number(found[0].needed.rows)
        return judged(claim, "not_derivable", claimed, derived, f"needs {', '.join(names)}; right for {rows}")
    remarks = "; ".join(one.remark for one in found if one.remark) or "the work is what the plan needs"
    return judged(claim, "holds", claimed, derived, remarks, factor)


def _flops(subject: Subject, claim: Claim) -> Judgement:
    """A FLOP figure: two for each multiply-add, and the sum that is printed beside it must give it."""
    stated = float(claim.claim) if isinstance(claim.claim, float) else 0.0
    leaf = Leaf((), None, None, None, None, 1.0, "")
    one = compare(subject, claim.operator, [(1.0, leaf)], claim.gpus, claim.per)
    if one is None:
        return judged(claim, "not_derivable", f"{stated:.4g}", "-", "needs the operator that is meant")
    needed = one.needed
    factor, mistakes = stated / needed.flops, list[Mistake]()
    claimed = f"{stated:.4g} FLOP"
    if claim.working is not None:
        worked = _reader(subject, claim).size(claim.working)
        if not _near(stated, worked, claim):
            words = f"the product printed beside it is {worked:.4g}, not {stated:.4g}; the plan needs {needed}"
            mistakes.append(Mistake("arithmetic", stated / worked, words))
    share = compare(subject, claim.operator, [(1.0, leaf)], claim.gpus) if claim.per == "whole" else None
    if share is not None and _near(stated, share.needed.flops / 2, claim) and share.needed.flops < needed.flops:
        part = share.needed.flops / needed.flops
        mistakes.append(Mistake("one GPU's share called the whole", part, f"one GPU's multiply-adds: {share.needed}"))
        mistakes.append(Mistake("MACs called FLOPs", 0.5, "a multiply-add is two FLOPs"))
    elif _near(factor, 0.5, claim):
        words = f"multiply-adds called FLOPs: {needed} is {needed.flops:.4g} FLOP at two for each multiply-add"
        mistakes.append(Mistake("MACs called FLOPs", 0.5, words))
    elif not _near(factor, 1.0, claim) and not mistakes:
        mistakes.append(Mistake("unexplained", factor, f"the plan needs {needed}"))
    derived = f"{needed.flops:.4g} FLOP"
    if mistakes:
        return judged(claim, "wrong", claimed, derived, "; ".join(m.words for m in mistakes), factor, mistakes)
    return judged(claim, "holds", claimed, derived, f"{needed}, two FLOPs for each multiply-add", factor)


def _arithmetic(subject: Subject, claim: Claim) -> Judgement:
    """A printed sum and its printed result."""
    assert claim.working is not None and isinstance(claim.claim, float)
    worked = _reader(subject, claim).size(claim.working)
    factor = claim.claim / worked if worked else None
    if _near(claim.claim, worked, claim):
        return judged(claim, "holds", number(claim.claim), number(worked), "the sum gives the number", factor)
    mistake = Mistake("arithmetic", factor, f"the sum gives {number(worked)}")
    return judged(claim, "wrong", number(claim.claim), number(worked), mistake.words, factor, [mistake])


def _quantity(subject: Subject, claim: Claim) -> Judgement:
    """A number, a truth value or a word that is derived from the problem, the plan or its graph."""
    quantity = QUANTITIES[claim.of]
    answer = quantity.derive(subject, Ask(claim.operator, claim.gpus))
    claimed, derived = _shown(claim.claim), "-" if answer.value is None else _shown(answer.value)
    if answer.value is None:
        return judged(claim, "not_derivable", claimed, derived, f"needs {answer.needs}")
    why = answer.why or quantity.words
    if claim.kind != "structure" and answer.why:
        why = f"{quantity.words}: {answer.why}"
    numeric = not isinstance(answer.value, bool | str) and not isinstance(claim.claim, bool | str)
    factor = None
    if numeric and isinstance(claim.claim, float) and answer.value:
        factor = claim.claim / float(answer.value)
    if _agrees(claim, answer.value):
        return judged(claim, "holds", claimed, derived, why, factor)
    mistake = Mistake(_named(claim, answer.value), factor, why)
    return judged(claim, "wrong", claimed, derived, why, factor, [mistake])


def _named(claim: Claim, derived: float | bool | str) -> str:
    """The name of a wrong statement."""
    if claim.of in ("layers_per_stage", "layers_per_gpu", "total_experts", "experts_per_gpu"):
        return "counts that do not add up"
    if claim.of == "tokens_per_expert" and isinstance(derived, float) and isinstance(claim.claim, float):
        return "top-k left out" if claim.claim < derived else "tokens per expert miscounted"
    return NAMES.get(claim.of, "wrong structure" if claim.kind == "structure" else "wrong count")


def _agrees(claim: Claim, derived: float | bool | str) -> bool:
    stated = claim.claim
    if isinstance(stated, bool) or isinstance(derived, bool):
        return stated is derived
    if isinstance(stated, str) or isinstance(derived, str):
        return _words(str(stated)) == _words(str(derived))
    if isinstance(stated, tuple):
        return stated[0] <= derived <= stated[1]
    return abs(stated - derived) <= (claim.tolerance or 1e-9) * max(abs(derived), abs(stated))


def _words(text: str) -> list[str]:
    return text.replace("→", ",").replace("->", ",").replace(",", " ").split()


def _near(a: float, b: float, claim: Claim) -> bool:
    return abs(a - b) <= (claim.tolerance or CLOSE / 2) * abs(b)


def _shown(value: object) -> str:
    if isinstance(value, tuple):
        return f"{number(value[0])} to {number(value[1])}"
    if isinstance(value, bool):
        return "true" if value else "false"
    return number(float(value)) if isinstance(value, int | float) else str(value)
