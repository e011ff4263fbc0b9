"""Every named mistake on a constructed claim: recognised, with its factor, and nothing left unexplained."""

from __future__ import annotations

from dataclasses import replace

import pytest

from planner.check.claims.mistakes import Case, combined, explain
from planner.check.claims.work import Products

TWICE = "contracted size divided as well as the output"
UNSPLIT, SPLIT = "unsplit operator where the plan splits it", "split operator where the plan does not split it"
T = 4096.0  # tokens: 4 sequences of 1024
PROJECTION = Case("projection", Products(T, 64, 8), Products(T, 64, 8), Products(T, 64, 64), T, 4, heads=2)
QKV = replace(PROJECTION, needed=Products(T, 64, 24), whole=Products(T, 64, 192), parts=3)
SCORES = Case("scores", Products(T, 32, 1024, 2), Products(T, 32, 1024, 2), Products(T, 32, 1024, 16), T, 4, heads=2)
VALUE = replace(SCORES, part="value", needed=Products(T, 1024, 32, 2), whole=Products(T, 1024, 32, 16))
EXPERT = Case("expert", Products(1024, 64, 128, 2), Products(1024, 64, 128, 2), Products(1024, 64, 128, 8), T, 4,
              top_k=2, experts=8, expert_gpus=4)  # fmt: skip

MADE = [
    (replace(PROJECTION, needed=Products(T, 0, 64)), Products(T, 500, 64), [("look-up as product", None)]),
    (SCORES, Products(T, 32, 4096, 2), [("batch as one sequence", 4)]),
    (VALUE, Products(T, 4096, 32, 2), [("batch as one sequence", 4)]),
    (SCORES, Products(T, 64, 4096, 1), [("batch as one sequence", 4)]),
    (PROJECTION, Products(T, 64, 64), [(UNSPLIT, 8)]),
    (SCORES, Products(T, 32, 1024, 16), [(UNSPLIT, 8)]),
    (
        replace(PROJECTION, needed=PROJECTION.whole),
        Products(T, 64, 8),
        [(SPLIT, 1 / 8)],
    ),
    (PROJECTION, Products(T, 8, 8), [(TWICE, 1 / 8)]),
    (
        replace(PROJECTION, needed=Products(T, 8, 64)),
        Products(T, 8, 8),
        [(TWICE, 1 / 8)],
    ),
    (SCORES, Products(T, 32, 1024, 1), [("heads per GPU miscounted", 1 / 2)]),
    (SCORES, Products(T, 32, 1024, 4), [("heads per GPU miscounted", 2)]),
    (SCORES, Products(2 * T, 32, 2048, 1), [("heads counted twice", 2)]),
    (VALUE, Products(2 * T, 2048, 64, 1), [("heads counted twice", 4)]),
    (SCORES, Products(T, 4, 1024, 2), [("head dims divided on top of heads", 1 / 8)]),
    (SCORES, Products(T / 2, 32, 1024, 2), [("tokens divided by heads", 1 / 2)]),
    (QKV, Products(T, 64, 8, 2), [("Q, K and V miscounted", 2 / 3)]),
    (QKV, Products(T, 8, 8, 2), [("Q, K and V miscounted", 2 / 3), (TWICE, 1 / 8)]),
    (EXPERT, Products(T, 64, 128, 2), [("all tokens through every expert", 4)]),
    (EXPERT, Products(T, 64, 128, 1), [("all tokens through every expert", 4), ("experts of a GPU counted once", 1 / 2)]),
    (EXPERT, Products(512, 64, 128, 2), [("top-k left out", 1 / 2)]),
    (EXPERT, Products(1024, 64, 128, 4), [("another model", 2)]),
    (replace(EXPERT, expert_gpus=2), Products(1024, 64, 128, 4), [("experts per GPU miscounted", 2)]),
    (replace(EXPERT, dense=True, needed=Products(1024, 64, 32, 8)), Products(T, 64, 32), [("another model", 1 / 2)]),
    (PROJECTION, Products(T, 64, 56), [("unexplained", 7)]),
]


@pytest.mark.parametrize(("case", "claimed", "expected"), MADE)
def test_a_mistake_is_named_with_its_factor(case, claimed, expected):
    mistakes, _ = explain(replace(case, claimed=claimed))
    assert [m.name for m in mistakes] == [name for name, _ in expected]
    for mistake, (_, factor) in zip(mistakes, expected, strict=True):
        assert mistake.factor == (pytest.approx(factor) if factor is not None else None)
        assert len(mistake.words) > 20
    if case.needed.flops:
        assert combined(mistakes) == pytest.approx(claimed.flops / case.needed.flops)


@pytest.mark.parametrize("case", [PROJECTION, QKV, SCORES, VALUE, EXPERT])
def test_the_needed_work_is_right(case):
    assert explain(replace(case, claimed=case.needed)) == ((), "")


@pytest.mark.parametrize(
    ("case", "claimed", "word"),
    [(PROJECTION, Products(T, 8, 64), "row-parallel"),
     (replace(PROJECTION, needed=Products(T, 8, 64)), Products(T, 64, 8), "column-parallel"),
     (QKV, Products(T, 64, 8, 3), ""), (SCORES, Products(T, 64, 1024, 1), "stand in the head dims")],
)  # fmt: skip
def test_right_work_in_another_shape_holds_with_a_remark(case, claimed, word):
    mistakes, remark = explain(replace(case, claimed=claimed))
    assert mistakes == () and word in remark
