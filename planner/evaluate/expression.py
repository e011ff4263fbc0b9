"""Expressions of Get_Time as trees: read once, then evaluated or compared operator by operator.

Grammar: sums of products; a factor is a number, a known name, a bracketed sum, or a call of a known function with named or
plain arguments. ``x`` and ``×`` multiply, as in ``16 x [3 x Get_Time(10240000, 8192, 512) + AllReduce(1024, ranks=8)]``.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass

from planner.errors import InputError

MAX_LENGTH = 1_000_000
MAX_DEPTH = 40
MOST_NAMES = 30
TOKEN = re.compile(r"\s*(?:(\d+(?:\.\d*)?(?:[eE][+-]?\d+)?)|(x(?=[\sA-Z\[(\d]))|([A-Za-z_][A-Za-z_0-9-]*)|([-+*/×(),=\[\]]))")
TIMES = ("x", "*", "×")


@dataclass(frozen=True, slots=True)
class Number:
    """A number that was written down."""

    value: float


@dataclass(frozen=True, slots=True)
class Name:
    """A named constant; `at` is the word of the text where it stands."""

    name: str
    at: int


@dataclass(frozen=True, slots=True)
class Sum:
    """Parts with their signs (1 or -1)."""

    parts: tuple[tuple[float, Tree], ...]


@dataclass(frozen=True, slots=True)
class Product:
    """Factors in order; True marks a divisor. `at` is the word behind the last factor."""

    factors: tuple[tuple[bool, Tree], ...]
    at: int


@dataclass(frozen=True, slots=True)
class Call:
    """A function with its plain and its named arguments; a named argument may be a word, such as a dtype."""

    function: str
    plain: tuple[Tree, ...]
    named: tuple[tuple[str, Tree | str], ...]
    at: int


Tree = Number | Name | Sum | Product | Call
Value = float | str
Function = Callable[[list[Value], dict[str, Value]], float]


def parse_expression(text: str, functions: Collection[str], names: Collection[str] = ()) -> Tree:
    """The tree of a text that may call `functions` and use `names`; refuses what is too long, too deep or unknown."""
    return _Parser(text, functions, names).tree()


def children(tree: Tree) -> list[Tree]:
    """The trees that a tree is made of."""
    if isinstance(tree, Sum):
        return [part for _, part in tree.parts]
    if isinstance(tree, Product):
        return [factor for _, factor in tree.factors]
    if isinstance(tree, Call):
        return [*tree.plain, *(value for _, value in tree.named if not isinstance(value, str))]
    return []


def evaluate_tree(tree: Tree, functions: Mapping[str, Function], names: Mapping[str, float] | None = None) -> float:
    """The value of a tree; `InputError` for a division by zero, wrong arguments, or a value that is not finite."""
    try:
        found = _value(tree, functions, names or {})
    except OverflowError:
        found = math.inf
    if not math.isfinite(found):
        raise InputError("expression", found, "a finite value")
    return found


def _value(tree: Tree, functions: Mapping[str, Function], names: Mapping[str, float]) -> float:
    if isinstance(tree, Number):
        return tree.value
    if isinstance(tree, Name):
        return names[tree.name]
    if isinstance(tree, Sum):
        return math.fsum(sign * _value(part, functions, names) for sign, part in tree.parts)
    if isinstance(tree, Product):
        found = 1.0
        for divide, factor in tree.factors:
            other = _value(factor, functions, names)
            if divide and other == 0:
                raise InputError(f"expression, word {tree.at}", 0, "a divisor that is not zero")
            found = found / other if divide else found * other
        return found
    plain: list[Value] = [_value(argument, functions, names) for argument in tree.plain]
    named: dict[str, Value] = {
        name: argument if isinstance(argument, str) else _value(argument, functions, names) for name, argument in tree.named
    }
    try:
        return functions[tree.function](plain, named)
    except (TypeError, ValueError, IndexError) as error:
        raise InputError(
            f"expression, word {tree.at}", tree.function, f"arguments that the function takes ({error})"
        ) from error


class _Parser:
    """Recursive descent, at most `MAX_DEPTH` brackets deep."""

    def __init__(self, text: str, functions: Collection[str], names: Collection[str]) -> None:
        if len(text) > MAX_LENGTH:
            raise InputError("expression", text[:40], f"at most {MAX_LENGTH} characters")
        self.functions, self.names, self.at, self.depth = functions, names, 0, 0
        self.tokens = list(_tokens(text.rstrip()))

    def tree(self) -> Tree:
        """The tree of the whole text."""
        found = self._sum()
        if self.at < len(self.tokens):
            raise self._error("the end")
        return found

    def _peek(self) -> str:
        return self.tokens[self.at] if self.at < len(self.tokens) else ""

    def _take(self, wanted: str) -> None:
        if self._peek() != wanted:
            raise self._error(f"'{wanted}'")
        self.at += 1

    def _error(self, allowed: str) -> InputError:
        return InputError(f"expression, word {self.at + 1}", self._peek(), allowed)

    def _sum(self) -> Tree:
        self.depth += 1
        if self.depth > MAX_DEPTH:
            raise self._error(f"at most {MAX_DEPTH} nested brackets")
        parts = [(1.0, self._product())]
        while self._peek() in ("+", "-"):
            sign = 1.0 if self._peek() == "+" else -1.0
            self.at += 1
            parts.append((sign, self._product()))
        self.depth -= 1
        return parts[0][1] if len(parts) == 1 else Sum(tuple(parts))

    def _product(self) -> Tree:
        factors: list[tuple[bool, Tree]] = []
        negative = self._signs()
        factors.append((False, self._factor()))
        while self._peek() in (*TIMES, "/"):
            divide = self._peek() == "/"
            self.at += 1
            negative ^= self._signs()
            factors.append((divide, self._factor()))
        if negative:
            factors.insert(0, (False, Number(-1.0)))
        return factors[0][1] if len(factors) == 1 else Product(tuple(factors), self.at)

    def _signs(self) -> bool:
        """Whether the minus signs ahead come to one; read in a loop, since a text may hold any number of them."""
        negative = False
        while self._peek() == "-":
            self.at += 1
            negative = not negative
        return negative

    def _factor(self) -> Tree:
        token = self._peek()
        if token in ("(", "["):
            self.at += 1
            found = self._sum()
            self._take(")" if token == "(" else "]")
            return found
        if token[:1].isdigit():
            if not math.isfinite(float(token)):
                raise self._error("a finite number")
            self.at += 1
            return Number(float(token))
        if token in self.functions:
            self.at += 1
            return self._call(token)
        if token in self.names:
            self.at += 1
            return Name(token, self.at)
        known = [*self.functions, *self.names]
        more = ", ..." if len(known) > MOST_NAMES else ""
        raise self._error("a number, a bracket, or one of " + ", ".join(known[:MOST_NAMES]) + more)

    def _call(self, function: str) -> Call:
        self._take("(")
        plain: list[Tree] = []
        named: dict[str, Tree | str] = {}
        while self._peek() != ")":
            following = self.tokens[self.at + 1] if self.at + 1 < len(self.tokens) else ""
            if following == "=":
                name = self._peek()
                if name in named:
                    raise self._error("an argument that is not given already")
                self.at += 2
                named[name] = self._word() if self._is_word() else self._sum()
            else:
                plain.append(self._sum())
            if self._peek() != ")":
                self._take(",")
        self._take(")")
        return Call(function, tuple(plain), tuple(named.items()), self.at)

    def _is_word(self) -> bool:
        token = self._peek()
        return token[:1].isalpha() and token not in self.functions and token not in self.names

    def _word(self) -> str:
        self.at += 1
        return self.tokens[self.at - 1]


def _tokens(text: str) -> Iterator[str]:
    at = 0
    while at < len(text):
        match = TOKEN.match(text, at)
        if match is None:
            raise InputError("expression", text[at : at + 20], f"numbers, names, + - x / ( ) [ ] at character {at}")
        yield match.group(match.lastindex or 0)
        at = match.end()
