"""Claimed products against the work that one GPU needs: the common part of terms, shapes, FLOP figures and totals."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from planner.check.claims.mistakes import Case, Mistake, Part, explain, same
from planner.check.claims.subject import Subject
from planner.check.claims.times import Leaf
from planner.check.claims.work import Products, Work
from planner.errors import InputError

EXTRA = "none"
CORE = ("scores", "attention_value")


@dataclass(frozen=True, slots=True)
class Compared:
    """Products of one operator (or of a few taken together): claimed, needed on `gpu`, and what makes the difference."""

    operators: tuple[str, ...]
    gpu: int
    claimed: Products
    needed: Products
    mistakes: tuple[Mistake, ...]
    remark: str = ""

    @property
    def factor(self) -> float | None:
        """Claimed over needed work; None where nothing is needed."""
        return self.claimed.flops / self.needed.flops if self.needed.flops else None


def compare(
    subject: Subject,
    operators: Sequence[str],
    counted: Sequence[tuple[float, Leaf]],
    gpus: Sequence[int] = (),
    per: str = "gpu",
    layers: float = 1.0,
) -> Compared | None:
    """Claimed products of `operators` in `layers` layers against those of the GPU with most work, or of that one of `gpus`
    where they differ most.

    None where the plan has no such operator. `per` says what one product stands for: the whole GPU, a head, an expert, or
    the layer on all GPUs.
    """
    meant, dense = subject.operators(operators)
    if meant == CORE:
        first = counted[0][1]
        scores = first.n is None or first.k is None or first.k < first.n
        meant, counted = (CORE[0] if scores else CORE[1],), [(times / 2, leaf) for times, leaf in counted]
    whole = subject.whole(meant)
    slowest = subject.slowest(meant)
    if whole is None or slowest is None:
        return None
    works = [whole] if per == "whole" else subject.works(meant, gpus) if gpus else [slowest]
    if not works:
        raise InputError("gpus", list(gpus)[:8], f"GPUs that compute {', '.join(meant)}")
    found = [_one(subject, meant, work, whole, counted, per, layers, dense) for work in works]
    return max(found, key=lambda one: _distance(one.factor))


def _distance(factor: float | None) -> float:
    """How far a factor is from 1, either way."""
    return float("inf") if not factor else max(factor, 1 / factor)


def _one(
    subject: Subject,
    meant: tuple[str, ...],
    work: Work,
    whole: Work,
    counted: Sequence[tuple[float, Leaf]],
    per: str,
    layers: float,
    dense: bool,
) -> Compared:
    needed, unsplit = work.product, whole.product
    if per in ("head", "expert"):
        needed, unsplit = replace(needed, count=1.0), replace(unsplit, count=1.0)
    claimed = together([(times / layers, leaf.filled(needed)) for times, leaf in counted])
    case = Case(
        part_of(meant), claimed, needed, unsplit, float(subject.tokens), subject.env.workload.batch,
        heads_on(subject, work.gpu), **_mixture(subject, work.gpu), dense=dense, parts=len(meant),
    )  # fmt: skip
    mistakes, remark = explain(case)
    return Compared(meant, work.gpu, claimed, needed, mistakes, remark)


def together(products: Sequence[tuple[float, Products]]) -> Products:
    """Several products as one: equal ones are counted, others stand with the largest at the FLOPs of all."""
    times, largest = max(products, key=lambda item: item[0] * item[1].flops)
    flops = sum(times * product.flops for times, product in products)
    each = replace(largest, count=1.0).flops
    return replace(largest, count=flops / each if each else times * largest.count)


def part_of(operators: Sequence[str]) -> Part:
    """Which rules apply to an operator."""
    if operators[0] in CORE:
        return "scores" if operators[0] == CORE[0] else "value"
    return "expert" if operators[0].startswith("expert_") else "projection"


def heads_on(subject: Subject, gpu: int) -> float:
    """Query heads of a GPU; those of its plan's slowest GPU where it has none."""
    works = subject.works(("scores",), (gpu,)) or subject.works(("scores",))
    return max((work.product.count for work in works), default=1.0)


def _mixture(subject: Subject, gpu: int) -> dict[str, int]:
    """Top-k, experts, and the GPUs that share them in the stage of a GPU."""
    ffn = next((layer.ffn for layer in subject.env.model.layers if layer.ffn.kind == "moe"), None)
    if ffn is None:
        return {}
    stage = next((s for s in subject.choice.stages if gpu in s.devices), subject.choice.stages[0])
    ways = stage.experts.tensor_ways if stage.experts else 1
    return {"top_k": ffn.top_k, "experts": ffn.experts, "expert_gpus": len(stage.expert_devices) // ways}


def told(compared: Sequence[tuple[Compared, int | None]]) -> list[Mistake]:
    """The mistakes of several operators, each told once with the operators that share it (and the GPU it is about)."""
    found: dict[tuple[str, float | None, str], list[str]] = {}
    for one, gpu in compared:
        names = ", ".join(one.operators) + (f" on GPU {gpu}" if gpu is not None else "")
        for mistake in one.mistakes:
            found.setdefault((mistake.name, mistake.factor, mistake.words), []).append(names)
    one_operator = len(compared) == 1
    return [
        Mistake(name, factor, words if one_operator else f"{', '.join(names)}: {words}")
        for (name, factor, words), names in found.items()
    ]


def is_right(one: Compared) -> bool:
    """Whether the claimed work is the needed one."""
    return not one.mistakes and one.factor is not None and same(one.factor, 1)
