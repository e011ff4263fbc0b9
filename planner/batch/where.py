"""Filters of `planner results`: a small language of comparisons, turned into SQL whose values are all parameters.

    condition = comparison | `not` condition | condition `and` condition | condition `or` condition | ( condition )
    comparison = FIELD (= | != | < | <= | > | >= | ~) VALUE | FIELD `in` ( VALUE, ... ) | FIELD `is` [`not`] `null`

`~` means that a text contains another, whatever the case. A field is a column, or a path that the sweep varies.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field

from planner.errors import InputError

LONGEST = 10_000
DEEPEST = 50
MOST_VALUES = 500
TOKEN = re.compile(
    r"\s*(?:(?P<number>[-+]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][-+]?[0-9]{1,3})?)(?![\w.])"
    r"|(?P<word>[A-Za-z_][\w.\[\]-]*)"
    r"|(?P<text>'[^']*'|\"[^\"]*\")"
    r"|(?P<sign><=|>=|!=|==|[=<>~(),]))",
    re.ASCII,
)
SIGNS = {"=": "=", "==": "=", "!=": "<>", "<": "<", "<=": "<=", ">": ">", ">=": ">="}
Column = Callable[[str], tuple[str, list[object]]]
"""From the name of a field to its SQL expression and the values of that."""


@dataclass
class _Parser:
    text: str
    column: Column
    values: list[object] = field(default_factory=list)
    at: int = 0
    terms: int = 0
    kind: str = ""
    token: str = ""

    def next(self) -> None:
        """Go on to the next token; `kind` is `end` after the last."""
        found = TOKEN.match(self.text, self.at)
        if found is None:
            rest = self.text[self.at :].strip()
            if rest:
                raise self.wrong(f"a condition; it is not understood from {rest[:40]!r} on")
            self.kind, self.token = "end", ""
            return
        self.at = found.end()
        self.kind = str(found.lastgroup)
        self.token = found.group(self.kind)

    def wrong(self, allowed: str) -> InputError:
        """What to say of the whole text."""
        return InputError("--where", self.text, allowed)

    def keyword(self, word: str) -> bool:
        """Whether the token is a keyword; goes on if so."""
        if self.kind == "word" and self.token.lower() == word:
            self.next()
            return True
        return False

    def sign(self, sign: str) -> bool:
        """Whether the token is a sign; goes on if so."""
        if self.kind == "sign" and self.token == sign:
            self.next()
            return True
        return False

    def any_of(self, depth: int) -> str:
        """Conditions joined by `or`."""
        parts = [self.all_of(depth)]
        while self.keyword("or"):
            parts.append(self.all_of(depth))
        return parts[0] if len(parts) == 1 else "(" + " OR ".join(parts) + ")"

    def all_of(self, depth: int) -> str:
        """Conditions joined by `and`."""
        parts = [self.one(depth)]
        while self.keyword("and"):
            parts.append(self.one(depth))
        return parts[0] if len(parts) == 1 else "(" + " AND ".join(parts) + ")"

    def one(self, depth: int) -> str:
        """A comparison, or a condition that is negated or in parentheses."""
        if depth > DEEPEST:
            raise self.wrong(f"at most {DEEPEST} levels of parentheses and negations")
        if self.keyword("not"):
            return f"(NOT {self.one(depth + 1)})"
        if self.sign("("):
            inner = self.any_of(depth + 1)
            if not self.sign(")"):
                raise self.wrong("a closing parenthesis for each opening one")
            return inner
        return self.comparison()

    def comparison(self) -> str:
        """A field and what it is compared with."""
        if self.kind != "word":
            raise self.wrong("FIELD OPERATOR VALUE, such as status = optimal and batch >= 64")
        sql, own = self.column(self.token)
        self.values += own
        self.terms += 1
        self.next()
        if self.keyword("is"):
            negated = self.keyword("not")
            if not self.keyword("null"):
                raise self.wrong("null after is")
            return f"{sql} IS {'NOT ' if negated else ''}NULL"
        if self.keyword("in"):
            return f"{sql} IN ({', '.join('?' * self.listed())})"
        if self.sign("~"):
            self.values.append(str(self.value()).lower())
            return f"instr(lower({sql}), ?) > 0"
        for sign, meaning in SIGNS.items():
            if self.sign(sign):
                self.values.append(self.value())
                return f"{sql} {meaning} ?"
        raise self.wrong("one of = != < <= > >= ~ in is after a field")

    def listed(self) -> int:
        """Take a list of values; returns how many they are."""
        if not self.sign("("):
            raise self.wrong("a list in parentheses after in")
        count = 0
        while True:
            self.values.append(self.value())
            count += 1
            if self.sign(")"):
                return count
            if not self.sign(","):
                raise self.wrong("values with commas between them after in")

    def value(self) -> object:
        """A number, a text in quotes, or a plain word."""
        kind, token = self.kind, self.token
        if kind not in ("number", "word", "text"):
            raise self.wrong("a number, a word, or a text in quotes to compare with")
        self.next()
        if kind == "number":
            whole = re.fullmatch(r"[-+]?[0-9]{1,18}", token)
            return int(token) if whole else float(token)
        return token[1:-1] if kind == "text" else token


def parse_where(text: str, column: Column) -> tuple[str, list[object]]:
    """The SQL of a filter and the values of its parameters; `InputError` for what the language does not have.

    `column` turns the name of a field into SQL and refuses unknown ones: nothing of the text itself gets into the SQL.
    """
    if len(text) > LONGEST:
        raise InputError("--where", text, f"at most {LONGEST:,} characters")
    parser = _Parser(text, column)
    parser.next()
    sql = parser.any_of(0)
    if parser.kind != "end":
        raise parser.wrong(f"and, or, or the end where {parser.token[:40]!r} stands")
    if max(parser.terms, len(parser.values)) > MOST_VALUES:  # SQLite's own limit lies at 1000
        raise parser.wrong(f"at most {MOST_VALUES} comparisons and values")
    return sql, parser.values
