"""Expressions as trees: what they hold, what they come to, and what is refused."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from planner.errors import InputError
from planner.evaluate.expression import MAX_DEPTH, Call, Name, Number, Product, Sum, evaluate_tree, parse_expression

CALLS = {"max": lambda plain, named: max(float(x) for x in plain), "f": lambda plain, named: float(len(named))}


def test_a_tree_keeps_what_was_written():
    tree = parse_expression("16 × [3 x f(1, tokens, op=qkv) + 2]", CALLS, ["tokens"])
    assert isinstance(tree, Product) and tree.factors[0] == (False, Number(16.0))
    inner = tree.factors[1][1]
    assert isinstance(inner, Sum) and inner.parts[1] == (1.0, Number(2.0))
    call = inner.parts[0][1].factors[1][1]
    assert isinstance(call, Call) and call.named == (("op", "qkv"),)
    assert call.plain == (Number(1.0), Name("tokens", 10))


@pytest.mark.parametrize(
    ("text", "value"),
    [("2 x n + 4", 10.0), ("-n x -2", 6.0), ("--n", 3.0), ("n - -n", 6.0), ("max(1, 2 × n) / 2", 3.0),
     ("f(a=1, b=h100-sxm)", 2.0)],
)  # fmt: skip
def test_values(text: str, value: float):
    assert evaluate_tree(parse_expression(text, CALLS, ["n"]), CALLS, {"n": 3.0}) == value


@pytest.mark.parametrize(
    "text", ["1 / (2 - 2)", "1e308 x 1e308", "9" * 400, "n", "f(a=1, a=2)", "g(1)", "-" * 20_000, "(" * (MAX_DEPTH + 1) + "1"]
)
def test_refused(text: str):
    with pytest.raises(InputError):
        evaluate_tree(parse_expression(text, CALLS), CALLS)


def test_any_number_of_minus_signs_is_read_without_recursion():
    assert evaluate_tree(parse_expression("-" * 20_001 + "5", CALLS), CALLS) == -5.0


@given(st.text(alphabet="0123456789.()[]+-*/x×,= maxf_n", max_size=60))
def test_any_text_is_a_number_or_refused(text: str):
    try:
        found = evaluate_tree(parse_expression(text, CALLS, ["n"]), CALLS, {"n": 3.0})
    except InputError:
        return
    assert isinstance(found, float)
