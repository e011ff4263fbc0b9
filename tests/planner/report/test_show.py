import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from planner.report.document import Bullets, Code, Section, Text, table, to_markdown, to_text
from planner.report.show import count, difference, escape_markdown, objective_value, plain, ranges, runs, safe_name


@given(st.text(max_size=200))
def test_a_folder_name_is_harmless(name):
    safe = safe_name(name)
    assert re.fullmatch(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,79}", safe)


@pytest.mark.parametrize("name", ["../../etc/passwd", "/abs", "..", ".", "", "a/b\\c", "x" * 500, "CON\x00\n"])
def test_hostile_folder_names(name):
    assert "/" not in safe_name(name) and not safe_name(name).startswith(".") and 0 < len(safe_name(name)) <= 80


@given(st.text(max_size=100))
def test_shown_text_is_one_line_without_control_characters(text):
    assert all(c.isprintable() or c == " " for c in plain(text))


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("a|b", "a\\|b"), ("<script>", "\\<script>"), ("[x](y)", "\\[x\\](y)"), ("# head", "\\# head"), ("- item", "\\- item"),
        ("1. item", "1\\. item"), ("4.5 s", "4.5 s"), ("q_proj", "q_proj"), ("_em_", "\\_em\\_"), ("> quote", "\\> quote"),
        ("\x1b[31mred", "?\\[31mred"), ("`code`", "\\`code\\`"), ("$x$", "\\$x\\$"),
    ],
)  # fmt: skip
def test_markdown_is_escaped(text, shown):
    assert escape_markdown(text) == shown


def test_amounts():
    assert objective_value("latency", 3.5721) == "3.572 s"
    assert objective_value("throughput", 2272823.1) == "2,272,823 tokens/s"
    assert objective_value("cost", 0.01234) == "0.01234 US dollars"
    assert difference(1.0, 1.0) == "best" and difference(1.05, 1.0) == "+5 %" and difference(0.5, 1.0) == "-50 %"
    assert count(1, "micro-batch") == "1 micro-batch" and count(2, "micro-batch") == "2 micro-batches"
    assert ranges([3, 0, 1, 2, 8]) == "0-3, 8"
    assert runs([3, 3, 2], "head") == "2 of 3 heads, 1 of 2 heads"


def test_a_document_in_both_forms():
    blocks = (Text("words | more"), table(("a", "b"), [("x|y", 1)], ("b",)), Bullets(("one",)), Code("```\nrun"))
    sections = [Section("Part", blocks)]
    text, markdown = to_text("Head", sections), to_markdown("T", "Head", sections)
    assert "PART" in text and "x|y" in text and "- one" in text and "  run" in text
    assert "## Part" in markdown and "x\\|y" in markdown and "````\n```\nrun\n````" in markdown
    rows = [line for line in markdown.splitlines() if line.startswith("|")]
    assert {len(re.findall(r"(?<!\\)\|", row)) for row in rows} == {3}
