"""The words of a DOT text, one after another, each with its place; every character is looked at once."""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Iterator
from typing import NamedTuple

from planner.errors import InputError

LETTER = "A-Za-z_\u0080-\U0010ffff"
SKIP = r"(?:[ \t\r\n\f\v]++|//[^\n]*+|/\*(?s:.*?)\*/|(?m:^)\#[^\n]*+)*+"
_WORDS = re.compile(
    rf"""{SKIP}(?:
      (?P<sign>[{{}}\[\]=;,:+])
    | (?P<keyword>(?i:node|edge|graph|digraph|subgraph|strict)(?![{LETTER}0-9]))
    | (?P<name>[{LETTER}][{LETTER}0-9]*+)
    | (?P<string>"(?s:[^"\\]|\\.)*+")
    | (?P<arrow>->|--)
    | (?P<number>-?(?:\.[0-9]++|[0-9]++(?:\.[0-9]*+)?))
    | (?P<end>\Z)
    )""",
    re.VERBOSE,
)
_SKIP = re.compile(SKIP, re.VERBOSE)
_ESCAPED = re.compile(r"\\(.)", re.DOTALL)
_CORNER = re.compile(r"<!--|[<>]")
_GLUED = re.compile(rf"[{LETTER}0-9.]")
END = "end of file"
MOST_WORDS = 8_000_000
VALUES = frozenset({"name", "number", "string", "html"})


class Html(str):
    """The value of an attribute that was written as `<...>`: markup, not text."""

    __slots__ = ()


class Token(NamedTuple):
    """One word: its sort, its value (quotes and what is escaped for their sake undone, no more) and where it begins.

    The sort is one of VALUES, `arrow`, `end`, or the word itself: a sign such as `{`, or a keyword in small letters.
    """

    sort: str
    value: str
    place: int

    @property
    def shown(self) -> str:
        """The token as a message shows it."""
        return END if self.sort == "end" else self.value


class Places:
    """Lines of a text, by position."""

    def __init__(self, text: str, source: str) -> None:
        self.source = source
        self._starts = [match.end() for match in re.finditer(r"\n", text)]

    def line(self, place: int) -> int:
        """The line of a position, from 1."""
        return bisect_right(self._starts, place) + 1

    def error(self, place: int, found: str, allowed: str) -> InputError:
        """An `InputError` about a position."""
        return InputError(f"line {self.line(place)}", found, allowed, self.source)


def tokens(text: str, places: Places, notes: list[str]) -> Iterator[Token]:
    """The tokens of a DOT text, one of sort `end` last; what Graphviz would warn about goes to `notes`."""
    at, match = 0, _WORDS.match
    for _ in range(MOST_WORDS):
        found = match(text, at)
        if found is None:
            skipped = _SKIP.match(text, at)
            at = skipped.end() if skipped else at
            if text[at] != "<":
                raise _unreadable(text, at, places)
            stop = _html_end(text, at, places)
            yield Token("html", Html(text[at + 1 : stop - 1]), at)
            at = stop
            continue
        sort = found.lastgroup or ""
        start, at = found.span(sort)
        value = text[start:at]
        if sort == "sign":
            sort = value
        elif sort == "keyword":
            sort = value.lower()
        elif sort == "string":
            value = _ESCAPED.sub(_undo, value[1:-1]) if "\\" in value else value[1:-1]
        elif sort == "number" and _GLUED.match(text, at):
            notes.append(f"line {places.line(start)}: {value} runs into what follows; it is read as a word of its own")
        yield Token(sort, value, start)
        if sort == "end":
            return
    raise places.error(at, "a longer text", f"at most {MOST_WORDS:,} words and signs")


def _undo(match: re.Match[str]) -> str:
    """Inside quotes only an escaped quote and an escaped line break mean something to DOT; labels know more."""
    escaped = match[1]
    return escaped if escaped == '"' else "" if escaped == "\n" else match[0]


def _html_end(text: str, at: int, places: Places) -> int:
    """Where the markup that begins at `at` ends: angle brackets balance, those in its comments aside."""
    depth, here = 0, at
    while corner := _CORNER.search(text, here):
        here = corner.end()
        if corner.group() == "<!--" and depth:
            here = text.find("-->", here) + 3
            if here < 3:
                raise places.error(corner.start(), "<!--", "a comment that ends: --> is missing")
        else:
            depth += -1 if corner.group() == ">" else 1
            if depth == 0:
                return here
    raise places.error(at, "<", "markup in <...> that ends: a > is missing")


def _unreadable(text: str, at: int, places: Places) -> InputError:
    if text[at] == '"':
        return places.error(at, text[at : at + 20], 'a string that ends: a " is missing')
    if text.startswith("/*", at):
        return places.error(at, "/*", "a comment that ends: */ is missing")
    return places.error(at, text[at], "DOT: names, numbers, strings, -> or --, and the signs { } [ ] = ; , : +")
