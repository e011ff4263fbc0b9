"""Documents: sections of text, tables, lists and code, written for a terminal or as Markdown.

Content is plain text; escaping happens here and nowhere else.
"""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from tabulate import tabulate

from planner.report.show import escape_cell, escape_markdown, plain

WIDTH = 118
CELL = 46


@dataclass(frozen=True, slots=True)
class Text:
    """A paragraph."""

    text: str


@dataclass(frozen=True, slots=True)
class Table:
    """Rows of cells that are text. Columns named in `right` are aligned to the right.

    A terminal keeps the line breaks of a cell and wraps it at `wide` characters; Markdown has `; ` for a break.
    """

    headers: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    right: tuple[str, ...] = ()
    wide: int = CELL


@dataclass(frozen=True, slots=True)
class Bullets:
    """A list."""

    items: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Code:
    """Lines shown as they are, to be copied."""

    text: str


@dataclass(frozen=True, slots=True)
class Figure:
    """Lines of characters that make a picture: their spaces count."""

    text: str


Block = Text | Table | Bullets | Code | Figure


@dataclass(frozen=True, slots=True)
class Section:
    """Blocks under a title."""

    title: str
    blocks: tuple[Block, ...]


def table(headers: Sequence[str], rows: Iterable[Sequence[object]], right: Sequence[str] = (), wide: int = CELL) -> Table:
    """A table of anything that can be shown as text."""
    return Table(tuple(headers), tuple(tuple(str(cell) for cell in row) for row in rows), tuple(right), wide)


def to_text(headline: str, sections: Iterable[Section]) -> str:
    """A document for the terminal."""
    parts = [_fill(headline)]
    for section in sections:
        parts += [section.title.upper(), *(_text_block(block) for block in section.blocks)]
    return "\n\n".join(parts) + "\n"


def to_markdown(title: str, headline: str, sections: Iterable[Section]) -> str:
    """The same document as Markdown."""
    parts = [f"# {escape_markdown(title)}", escape_markdown(headline)]
    for section in sections:
        parts += [f"## {escape_markdown(section.title)}", *(_markdown_block(block) for block in section.blocks)]
    return "\n\n".join(parts) + "\n"


def _fill(text: str, first: str = "", rest: str = "") -> str:
    return textwrap.fill(
        plain(text), WIDTH, initial_indent=first, subsequent_indent=rest, break_long_words=False, break_on_hyphens=False
    )


def _text_block(block: Block) -> str:
    if isinstance(block, Text):
        return _fill(block.text)
    if isinstance(block, Bullets):
        return "\n".join(_fill(item, "- ", "  ") for item in block.items)
    if isinstance(block, Code):
        return "\n".join("  " + plain(line, 1_000_000) for line in block.text.splitlines())
    if isinstance(block, Figure):
        return "\n".join(_spaced(line) for line in block.text.splitlines())
    rows = [["\n".join(_wrapped(line, block.wide) for line in cell.split("\n")) for cell in row] for row in block.rows]
    return _tabulated(block, block.headers, rows, "simple")


def _spaced(line: str) -> str:
    """A line without signs that could steer a terminal, its spaces kept."""
    return "".join(character if character.isprintable() else "?" for character in line).rstrip()


def _wrapped(line: str, wide: int) -> str:
    return "\n".join(textwrap.wrap(plain(line), wide, subsequent_indent="  ", break_on_hyphens=False)) or ""


def _markdown_block(block: Block) -> str:
    if isinstance(block, Text):
        return escape_markdown(block.text)
    if isinstance(block, Bullets):
        return "\n".join("- " + escape_markdown(item) for item in block.items)
    if isinstance(block, Code):
        lines = "\n".join(plain(line, 1_000_000) for line in block.text.splitlines())
        fence = "`" * max([3, *(len(run) + 1 for run in re.findall(r"`+", lines))])
        return f"{fence}\n{lines}\n{fence}"
    if isinstance(block, Figure):
        return "\n".join(["```text", *(_spaced(line).replace("`", "'") for line in block.text.splitlines()), "```"])
    rows = [[escape_cell(cell.replace("\n", "; ")) for cell in row] for row in block.rows]
    return _tabulated(block, [escape_cell(header) for header in block.headers], rows, "pipe")


def _tabulated(block: Table, headers: Sequence[str], rows: list[list[str]], style: str) -> str:
    align = ["right" if header in block.right else "left" for header in block.headers]
    found = tabulate(rows, headers=list(headers), tablefmt=style, disable_numparse=True, colalign=align if rows else None)
    return "\n".join(line.rstrip() for line in found.splitlines())
