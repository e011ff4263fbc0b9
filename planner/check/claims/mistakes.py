"""The usual mistakes in counting work, each a small function that recognises one, names it, and takes it back.

A rule looks at what is claimed and what is needed, and returns the mistake with the product that is left when it is undone,
or None. Undoing one after another until nothing differs splits the whole factor into named ones.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

from planner.check.claims.work import Products, number

Part = Literal["scores", "value", "expert", "projection"]
CLOSE = 0.011
"""Sizes this near are the same one: authors round 4096 / 12 to 341."""


@dataclass(frozen=True, slots=True)
class Mistake:
    """A named mistake, by what it multiplies the work (None: the work should be none at all), and what happened."""

    name: str
    factor: float | None
    words: str


@dataclass(frozen=True, slots=True)
class Case:
    """A claimed product beside the one that a GPU needs and that of the whole model.

    `tokens`, `batch`: of the whole batch. `top_k`, `experts`, `expert_gpus`: of the mixture, 0 where there is none.
    `dense`: the author names a dense FFN where the plan's model has experts. `parts`: projections taken together.
    """

    part: Part
    claimed: Products
    needed: Products
    whole: Products
    tokens: float
    batch: int = 1
    heads: float = 1.0
    top_k: int = 0
    experts: int = 0
    expert_gpus: int = 0
    dense: bool = False
    parts: int = 1

    @property
    def split(self) -> float:
        """Among how many GPUs the plan shares this operator."""
        return self.whole.flops / self.needed.flops if self.needed.flops else 1.0

    @property
    def keys(self) -> tuple[float, float]:
        """Keys of a score or of its product with the values: claimed and needed."""
        return (self.claimed.n, self.needed.n) if self.part == "scores" else (self.claimed.k, self.needed.k)

    @property
    def dims(self) -> tuple[float, float]:
        """Dims of a head in attention: claimed and needed."""
        return (self.claimed.k, self.needed.k) if self.part == "scores" else (self.claimed.n, self.needed.n)

    def attended(
        self, rows: float | None = None, dims: float | None = None, keys: float | None = None, count: float | None = None
    ) -> Products:
        """The claimed attention product with some of its sizes replaced."""
        d, s = dims or self.dims[0], keys or self.keys[0]
        k, n = (d, s) if self.part == "scores" else (s, d)
        return Products(rows or self.claimed.rows, k, n, count or self.claimed.count)


Found = tuple[Mistake, Products] | None
Rule = Callable[[Case], Found]


def same(a: float, b: float) -> bool:
    """Whether two sizes are one, up to an author's rounding."""
    return abs(a - b) <= CLOSE * abs(b)


def table_as_product(case: Case) -> Found:
    """An embedding multiplies nothing: rows of a table are looked up."""
    if case.needed.flops:
        return None
    words = f"a look-up in a table counted as a product with k = {number(case.claimed.k)}: nothing is multiplied"
    return Mistake("look-up as product", None, words), case.needed


def another_model(case: Case) -> Found:
    """A dense FFN where the plan's model sends each token through several experts of that width."""
    if not case.dense or case.part != "expert" or not same(case.claimed.rows * case.claimed.count, case.tokens):
        return None
    words = f"another model: a dense FFN, where each token passes {case.top_k} of {case.experts} experts"
    left = replace(case.claimed, rows=case.needed.rows, count=case.needed.count)
    return Mistake("another model", case.claimed.flops / left.flops, words), left


def all_tokens_through_every_expert(case: Case) -> Found:
    """Routing sends a token through top-k experts, not through each."""
    rows, needed = case.claimed.rows, case.needed.rows
    if case.part != "expert" or not same(rows, case.tokens) or rows <= needed * (1 + CLOSE):
        return None
    words = f"all {number(rows)} tokens through every expert: with top-{case.top_k} of {case.experts} one gets {number(needed)}"
    return Mistake("all tokens through every expert", rows / needed, words), replace(case.claimed, rows=needed)


def top_k_ignored(case: Case) -> Found:
    """Each token makes top-k visits, so an expert gets top-k / experts of the tokens."""
    rows, needed = case.claimed.rows, case.needed.rows
    if case.part != "expert" or case.top_k < 2 or not same(rows * case.experts, case.tokens) or same(rows, needed):
        return None
    words = f"{number(rows)} tokens for each expert is one expert a token: with top-{case.top_k} it is {number(needed)}"
    return Mistake("top-k left out", rows / needed, words), replace(case.claimed, rows=needed)


def experts_miscounted(case: Case) -> Found:
    """A GPU computes all the experts it holds, one share of its time each."""
    claimed, needed = case.claimed.count, case.needed.count
    if case.part != "expert" or same(claimed, needed):
        return None
    left = replace(case.claimed, count=needed)
    if claimed == 1:
        words = f"{number(needed)} experts of one GPU counted as one: they share the GPU, their work adds up"
        return Mistake("experts of a GPU counted once", 1 / needed, words), left
    total = claimed * case.expert_gpus
    words = f"{number(claimed)} experts on a GPU that holds {number(needed)}"
    if not same(total, case.experts):
        words += f" (on {case.expert_gpus} GPUs {number(total)} in all, the layer has {case.experts})"
        return Mistake("another model", claimed / needed, words), left
    return Mistake("experts per GPU miscounted", claimed / needed, words), left


def batch_as_one_sequence(case: Case) -> Found:
    """Attention is within a sequence: a query meets the keys of its own, not of the whole batch."""
    claimed, needed = case.keys
    if case.part not in ("scores", "value") or case.batch < 2 or claimed < needed * case.batch * (1 - CLOSE):
        return None
    words = (
        f"one product over all {case.batch} sequences at once: {number(claimed)} keys a query instead of "
        f"{number(claimed / case.batch)}"
    )
    return Mistake("batch as one sequence", float(case.batch), words), case.attended(keys=claimed / case.batch)


def tokens_divided_by_heads(case: Case) -> Found:
    """Every head attends with all tokens; heads divide the width, not the tokens."""
    rows, count = case.claimed.rows, case.claimed.count
    if case.part not in ("scores", "value") or count < 2 or not same(rows * count, case.needed.rows):
        return None
    words = f"tokens divided among {number(count)} heads: each head attends with all {number(case.needed.rows)}"
    return Mistake("tokens divided by heads", 1 / count, words), case.attended(rows=case.needed.rows)


def heads_counted_twice(case: Case) -> Found:
    """The heads of a GPU stand in more than one of count, rows, dims and keys."""
    heads = case.needed.count
    if case.part not in ("scores", "value") or heads < 2:
        return None
    ratios = {
        "count": case.claimed.count,
        "m": case.claimed.rows / case.needed.rows,
        "the head dims": case.dims[0] / case.dims[1],
        "the keys": case.keys[0] / case.keys[1],
    }
    places = [place for place, ratio in ratios.items() if same(ratio, heads)]
    if not places or (len(places) == 1 and case.claimed.count == heads):
        return None
    left = case.attended(
        case.needed.rows if "m" in places else None, case.dims[1] if "the head dims" in places else None,
        case.keys[1] if "the keys" in places else None, heads if case.claimed.count in (1, heads) else None,
    )  # fmt: skip
    if len(places) == 1:
        return Mistake("", case.claimed.flops / left.flops, f"its {number(heads)} heads stand in {places[0]}"), left
    words = f"its {number(heads)} heads stand in {' and in '.join(places)}: each head is counted {number(heads)} times"
    words = (
        words if len(places) == 2 else words.replace(f"{number(heads)} times", f"{number(heads ** (len(places) - 1))} times")
    )
    return Mistake("heads counted twice", case.claimed.flops / left.flops, words), left


def head_dims_divided(case: Case) -> Found:
    """Heads are shared among the GPUs, so each head keeps all its dims."""
    claimed, needed = case.dims
    if case.part not in ("scores", "value") or claimed >= needed * (1 - CLOSE):
        return None
    words = f"head dims divided on top of the heads: {number(claimed)} instead of {number(needed)}"
    return Mistake("head dims divided on top of heads", claimed / needed, words), case.attended(dims=needed)


def heads_miscounted(case: Case) -> Found:
    """Another number of heads than the GPU holds."""
    claimed, needed = case.claimed.count, case.needed.count
    if case.part not in ("scores", "value") or same(claimed, needed):
        return None
    words = f"{number(claimed)} head{'' if claimed == 1 else 's'} where there are {number(needed)}"
    return Mistake("heads per GPU miscounted", claimed / needed, words), case.attended(count=needed)


def counted_unsplit(case: Case) -> Found:
    """The whole operator on every GPU, though the plan shares it."""
    if case.split < 1 + CLOSE or not _like(case.claimed, case.whole):
        return None
    words = f"counted unsplit: all of it on every GPU, where the plan shares it among {number(case.split)}"
    return Mistake("unsplit operator where the plan splits it", case.split, words), case.needed


def counted_split(case: Case) -> Found:
    """A share of the operator, though the plan has all of it on each GPU."""
    ratio = case.needed.flops / case.claimed.flops if case.claimed.flops else 0.0
    if case.part in ("scores", "value") or case.split > 1 + CLOSE or ratio < 1.5 or not same(ratio, round(ratio)):
        return None
    words = f"counted as split {round(ratio)} ways: the plan has all of it on this GPU"
    return Mistake("split operator where the plan does not split it", 1 / ratio, words), case.needed


def heads_counted_as_projections(case: Case) -> Found:
    """Q, K and V are three products; the columns of each already hold all heads of the GPU."""
    claimed, each = case.claimed, case.needed.n / case.parts
    if case.part != "projection" or case.parts < 2 or not same(claimed.n, each) or claimed.count == case.parts:
        return None
    count = number(claimed.count)
    heads = f" (its {count} heads already stand in n = {number(claimed.n)})" if same(claimed.count, case.heads) else ""
    words = f"{count} product{'' if claimed.count == 1 else 's'} where Q, K and V are {case.parts}{heads}"
    left = replace(claimed, n=case.needed.n, count=1.0)
    return Mistake("Q, K and V miscounted", claimed.count / case.parts, words), left


def divided_twice(case: Case) -> Found:
    """The contracted size and the output divided, where a split divides one of them."""
    claimed, needed = case.claimed, case.needed
    if claimed.count != needed.count:
        claimed = replace(claimed, n=claimed.n * claimed.count / needed.count, count=needed.count)
    columns = needed.n
    if case.part in ("scores", "value") or case.split < 1 + CLOSE or not same(claimed.rows, needed.rows):
        return None
    k, n = claimed.k / needed.k, claimed.n / columns
    if k < 1 - CLOSE and same(n, 1) and _divides(k):
        left, what = replace(claimed, k=needed.k), f"k = {number(claimed.k)} instead of {number(needed.k)}"
    elif n < 1 - CLOSE and same(k, 1) and _divides(n):
        left, what = replace(claimed, n=columns), f"n = {number(claimed.n)} instead of {number(columns)}"
    else:
        return None
    words = f"contracted size and output both divided ({what}): one split divides one of them"
    return Mistake("contracted size divided as well as the output", claimed.flops / left.flops, words), left


def _divides(ratio: float) -> bool:
    """Whether a ratio is one over a whole number."""
    return same(1 / ratio, round(1 / ratio))


def _like(a: Products, b: Products) -> bool:
    return same(a.rows, b.rows) and same(a.k, b.k) and same(a.n * a.count, b.n * b.count)


RULES: tuple[Rule, ...] = (
    table_as_product, another_model, all_tokens_through_every_expert, top_k_ignored, experts_miscounted,
    batch_as_one_sequence, counted_unsplit, tokens_divided_by_heads, heads_counted_twice, head_dims_divided,
    heads_miscounted, heads_counted_as_projections, divided_twice, counted_split,
)  # fmt: skip


def explain(case: Case) -> tuple[tuple[Mistake, ...], str]:
    """The mistakes whose factors make up the whole difference, and a remark where the sizes differ but the work does not.

    What no rule explains is a mistake named `unexplained`.
    """
    found: list[Mistake] = []
    remark = ""
    if case.needed.flops and _like(case.claimed, case.needed) and same(case.claimed.count, case.needed.count):
        return (), ""
    for rule in RULES:
        hit = rule(case)
        if hit is None:
            continue
        mistake, left = hit
        if mistake.name:
            found.append(mistake)
        else:
            remark = mistake.words
        case = replace(case, claimed=left)
    if not case.needed.flops:
        return tuple(found), remark
    rest = case.claimed.flops / case.needed.flops
    if not same(rest, 1):
        found.append(Mistake("unexplained", rest, f"claimed {case.claimed}, the plan needs {case.needed}"))
    elif not found and not remark and not _like(case.claimed, case.needed):
        remark = shape_remark(case)
    return tuple(found), remark


def shape_remark(case: Case) -> str:
    """The work is right and the sizes are those of another split."""
    if case.claimed.k < case.needed.k and same(case.claimed.rows, case.needed.rows):
        return f"the work is right, the shape that of a row-parallel product; the plan's is {case.needed}"
    if case.claimed.k > case.needed.k and same(case.claimed.rows, case.needed.rows):
        return f"the work is right, the shape that of a column-parallel product; the plan's is {case.needed}"
    return f"the work is right, the plan's shape is {case.needed}"


def combined(mistakes: tuple[Mistake, ...]) -> float | None:
    """The factors of several mistakes together."""
    factors = [mistake.factor for mistake in mistakes]
    return None if None in factors else math.prod(f for f in factors if f is not None)
