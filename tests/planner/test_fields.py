"""Every field is checked once, and the message names its path, its value and what may stand there."""

from __future__ import annotations

import pytest

from planner.errors import InputError
from planner.fields import Fields


@pytest.mark.parametrize(
    ("read", "value"),
    [
        (lambda f: f.integer("x", low=1), 0),
        (lambda f: f.integer("x"), -1),
        (lambda f: f.integer("x"), True),
        (lambda f: f.integer("x"), 1.0),
        (lambda f: f.integer("x"), "1"),
        (lambda f: f.integer("x"), 2**41),
        (lambda f: f.integer("x"), None),
        (lambda f: f.maybe_integer("x"), []),
        (lambda f: f.integers("x"), [1, "2"]),
        (lambda f: f.integers("x"), 3),
        (lambda f: f.number("x"), float("nan")),
        (lambda f: f.number("x"), float("inf")),
        (lambda f: f.number("x"), -0.1),
        (lambda f: f.number("x"), 10**400),
        (lambda f: f.number("x"), True),
        (lambda f: f.boolean("x"), 1),
        (lambda f: f.boolean("x"), "yes"),
        (lambda f: f.text("x"), ""),
        (lambda f: f.text("x"), 5),
        (lambda f: f.choice("x", ("a", "b")), "c"),
        (lambda f: f.choice("x", ("a", "b")), ["a"]),
        (lambda f: f.mapping("x"), [1]),
        (lambda f: f.mappings("x"), [1]),
        (lambda f: f.texts("x"), [1]),
    ],
)
def test_wrong_value_is_refused_by_path(read, value):
    with pytest.raises(InputError, match=r"^file\.yaml: top\.x.* is .*; allowed: "):
        read(Fields({"x": value}, "file.yaml", "top"))


def test_missing_field_is_said_to_be_missing():
    with pytest.raises(InputError, match="x is missing; allowed: an integer from 1"):
        Fields({}).integer("x", low=1)


def test_defaults_hold_for_missing_and_null():
    fields = Fields({"null": None})
    assert fields.integer("null", default=3) == fields.integer("none", default=3) == 3
    assert fields.maybe_integer("none", default=4) == 4
    assert fields.maybe_integer("null", default=4) is None


def test_unknown_field_is_refused_with_its_near_match():
    fields = Fields({"head": 1, "extra": 2}, "f", "model")
    fields.raw("heads")
    with pytest.raises(InputError, match=r"model\.head is 1; allowed: no field of this name; did you mean heads\?"):
        fields.done()


def test_nested_fields_know_their_path():
    inner = Fields({"a": {"b": {"c": "x"}}}, "f").mapping("a").mapping("b")
    with pytest.raises(InputError, match=r"^f: a\.b\.c is 'x'"):
        inner.integer("c")
