"""Drawings of points: axes with sensible ticks, text that is escaped, marks where they belong."""

from __future__ import annotations

import re
from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from planner.report.plot import LEFT, MOST_TICKS, RIGHT, TOP, WIDTH, Mark, axis, sketch, svg, tick_texts

VALUES = st.lists(st.floats(1e-9, 1e12), min_size=1, max_size=12)


@given(VALUES)
def test_every_value_is_on_its_axis(values: list[float]) -> None:
    """Inside the ends, in order, with a few ticks of different numbers."""
    scale = axis("x", values)
    places = [scale.at(value) for value in sorted(values)]
    assert all(0 <= place <= 1 for place in places) and places == sorted(places)
    assert 1 <= len(scale.ticks) <= MOST_TICKS + 1 or scale.high / scale.low < 1.001
    numbers = [number for _, number in tick_texts(scale)]
    assert all(scale.low * (1 - 1e-9) <= tick <= scale.high * (1 + 1e-9) for tick in scale.ticks)
    assert len(set(numbers)) == len(numbers) or scale.high / scale.low < 1.001


def test_ticks_a_person_would_choose() -> None:
    """Ones, twos and fives; powers of ten over a wide range."""
    assert [number for _, number in tick_texts(axis("x", [4.5, 57.2]))] == ["10", "20", "30", "40", "50", "60"]
    assert [number for _, number in tick_texts(axis("x", [2.293, 2.310]))] == ["2.295", "2.300", "2.305", "2.310"]
    assert [number for _, number in tick_texts(axis("x", [0.002, 900.0]))] == [
        "0.001",
        "0.01",
        "0.1",
        "1",
        "10",
        "100",
        "1,000",
    ]


def test_marks_stand_where_they_belong() -> None:
    """The least value left and low, the largest right and high; steps follow the direction that is better."""
    marks = [Mark(1.0, 9.0, "first"), Mark(2.0, 5.0, "middle"), Mark(3.0, 1.0, "last", filled=False)]
    across, up = axis("x", [m.x for m in marks]), axis("y", [m.y for m in marks])
    root = ElementTree.fromstring(svg("title", across, up, marks))
    circles = [e for e in root.iter() if e.tag.endswith("circle")]
    places = [(float(c.get("cx")), float(c.get("cy"))) for c in circles]
    assert [c.get("class") for c in circles] == ["proven", "proven", "open"]
    assert places == sorted(places) and places[0][0] > LEFT and places[-1][0] < WIDTH - RIGHT and places[0][1] > TOP
    paths = [re.sub(r"[-\d.]+", "", svg("t", across, up, marks, more=more).split('class="front" d="')[1].split('"')[0])
             for more in (False, True)]  # fmt: skip
    assert paths == ["M HVHV", "M VHVH"]


def test_a_long_title_fits_the_width() -> None:
    """As that of a front that was interrupted, which lost its last words."""
    for length in (20, 74, 109, 300):
        text = svg("t" * length, axis("x", [1.0, 2.0]), axis("y", [1.0, 2.0]), [Mark(1.0, 1.0, "", True)])
        found = re.search(r'class="title"[^>]*font-size:([\d.]+)px', text)
        size = float(found[1]) if found else 15.0
        assert size <= 15 and LEFT + 0.55 * size * length <= WIDTH
        assert (found is None) == (length < 74)


def test_text_is_escaped() -> None:
    """A name cannot leave its place in the drawing."""
    evil = '<script>alert("x")</script>&'
    drawn = svg(evil, axis(evil, [1.0, 2.0]), axis(evil, [1.0, 2.0]), [Mark(1.0, 2.0, evil)])
    assert "<script" not in drawn
    root = ElementTree.fromstring(drawn)
    assert evil in [e.text for e in root.iter()] and root.get("aria-label") == evil


@pytest.mark.parametrize("marks", [[Mark(1.0, 2.0, "only")], [Mark(1e-6, 5.0, "a"), Mark(1.0, 4.0, "b")]])
def test_a_sketch_shows_every_point(marks: list[Mark]) -> None:
    """One sign for each, inside the axes."""
    text = sketch(axis("x", [m.x for m in marks]), axis("y", [m.y for m in marks]), marks)
    assert text.count("*") == len(marks) and text.splitlines()[0] == "y" and text.splitlines()[-1] == "x"


def test_a_sketch_tells_unproven_points_apart() -> None:
    """Another sign."""
    marks = [Mark(1.0, 2.0, "a"), Mark(2.0, 1.0, "b", filled=False)]
    text = sketch(axis("x", [1.0, 2.0]), axis("y", [1.0, 2.0]), marks)
    assert (text.count("*"), text.count("o")) == (1, 1)
