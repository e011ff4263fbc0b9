"""Get_Time terms: the price of a path written down as an expression, read back and evaluated to the same number.

Grammar: sums of products; a factor is a number, a bracketed sum, ``max(...)`` or a call with named or plain numbers.
``x`` multiplies, as in ``16 x [3 x Get_Time(10240000, 8192, 512) + AllReduce(1024, ranks=8)]``.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Sequence

import numpy as np

from planner.costs.groups import GroupShape
from planner.costs.pricer import Pricer
from planner.errors import InputError
from planner.graph.ops import COLLECTIVES, Kind, Op

COLLECTIVE_NAMES = {
    Kind.ALL_REDUCE: "AllReduce",
    Kind.ALL_GATHER: "AllGather",
    Kind.REDUCE_SCATTER: "ReduceScatter",
    Kind.ALL_TO_ALL: "AllToAll",
    Kind.SEND: "SendRecv",
}
OPERATIONS = {name: kind.value for kind, name in COLLECTIVE_NAMES.items()}
MAX_LENGTH = 1_000_000
MAX_DEPTH = 40
TOKEN = re.compile(r"\s*(?:(\d+(?:\.\d*)?(?:[eE][+-]?\d+)?)|(x(?=[\sA-Z\[(\d]))|([A-Za-z_][A-Za-z_0-9-]*)|([-+*/×(),=\[\]]))")


def op_term(op: Op, row: int, kind: str, shape: GroupShape | None) -> str:
    """The term of one operator at one row; `kind` is named only where a cluster has several GPU kinds."""
    if op.kind in (Kind.MATMUL, Kind.GROUPED):
        m, k, n, batch = (_at(size, row) for size in (op.m, op.k, op.n, op.batch))
        grouped = op.kind == Kind.GROUPED
        more = [f"{'groups' if grouped else 'batch'}={_number(batch)}"] if grouped or batch != 1 else []
        return _call("Get_Time", [m, k, n], [*more, *_dtype(op.dtype), *_gpu(kind)])
    if op.attention is not None:
        a = op.attention
        sizes = [_at(s, row) for s in (a.batch, a.heads, a.kv_heads, a.q_len, a.kv_len, a.qk_dim, a.v_dim)]
        flags = (["causal=1"] if a.causal else []) + (["shared_kv=1"] if a.shared_kv else [])
        return _call("Attention", sizes, [*flags, *_dtype(op.dtype), *_gpu(kind)])
    if op.kind in COLLECTIVES and shape is not None:
        fields = [f"{name}={_number(int(np.asarray(getattr(shape, name))))}" for name in GroupShape.__slots__]
        return _call(COLLECTIVE_NAMES[op.kind], [_at(op.bytes, row)], fields)
    return _call("Memory", [_at(op.bytes, row)], _gpu(kind))


def transfer_term(sent: float, received: float, senders: int, receivers: int, crossing: float) -> str:
    """The term of a transfer between two disjoint sets of GPUs."""
    return _call("Transfer", [sent, received, senders, receivers, crossing], [])


def sum_terms(terms: Iterable[str]) -> str:
    """A sum in which equal neighbours are counted."""
    counted: list[tuple[str, int]] = []
    for term in terms:
        if counted and counted[-1][0] == term:
            counted[-1] = (term, counted[-1][1] + 1)
        else:
            counted.append((term, 1))
    return " + ".join(times(count, term) for term, count in counted) or "0"


def times(count: int, term: str) -> str:
    """A counted term; sums are bracketed."""
    if count == 1:
        return term
    return f"{count} x [{term}]" if " + " in term else f"{count} x {term}"


def _call(name: str, plain: Sequence[float], named: Sequence[str]) -> str:
    return f"{name}({', '.join([*(_number(x) for x in plain), *named])})"


def _number(value: float) -> str:
    return str(int(value)) if float(value).is_integer() else repr(float(value))


def _at(size: object, row: int) -> float:
    array = np.asarray(size)
    return float(array if array.ndim == 0 else array[row])


def _dtype(dtype: str) -> list[str]:
    return [] if dtype == "bf16" else [f"dtype={dtype}"]


def _gpu(kind: str) -> list[str]:
    return [f"gpu={kind}"] if kind else []


Value = float | str
Function = Callable[[list[Value], dict[str, Value]], float]


def evaluate_expression(text: str, pricer: Pricer) -> float:
    """Seconds of an expression on the cluster of a pricer."""
    return Reader(text, functions(pricer)).value()


def functions(pricer: Pricer) -> dict[str, Function]:
    """What an expression may call."""
    default = next(iter(pricer.sources))

    def source(named: dict[str, Value]):  # type: ignore[no-untyped-def]  # noqa: ANN202
        name = str(named.get("gpu", default))
        if name not in pricer.sources:
            raise InputError("gpu", name, "one of " + ", ".join(pricer.sources), "expression")
        return pricer.sources[name]

    def get_time(plain: list[Value], named: dict[str, Value]) -> float:
        m, k, n = (float(x) for x in plain)
        dtype = str(named.get("dtype", "bf16"))
        if "groups" in named:
            return float(source(named).grouped(m, k, n, float(named["groups"]), dtype))
        return float(source(named).get_time(m, k, n, float(named.get("batch", 1)), dtype))

    def attention(plain: list[Value], named: dict[str, Value]) -> float:
        b, h, kv, q, length, qk, v = (float(x) for x in plain)
        flags = bool(named.get("causal", 0)), str(named.get("dtype", "bf16")), None, bool(named.get("shared_kv", 0))
        return float(source(named).attention(b, h, kv, q, length, qk, v, *flags))

    def memory(plain: list[Value], named: dict[str, Value]) -> float:
        return float(source(named).elementwise(float(plain[0])))

    def transfer(plain: list[Value], named: dict[str, Value]) -> float:
        return float(pricer.collectives.m2n_time(*(float(x) for x in plain)))

    def collective(operation: str) -> Function:
        def price(plain: list[Value], named: dict[str, Value]) -> float:
            shape = GroupShape(**{key: int(float(value)) for key, value in named.items()})
            return float(pricer.collectives.time(operation, float(plain[0]), shape))

        return price

    table: dict[str, Function] = {"Get_Time": get_time, "Attention": attention, "Memory": memory, "Transfer": transfer}
    table["max"] = lambda plain, named: max(float(x) for x in plain)
    return table | {name: collective(operation) for name, operation in OPERATIONS.items()}


class Reader:
    """Reads an expression by recursive descent, refusing what is too long, too deep or unknown."""

    def __init__(self, text: str, known: dict[str, Function]) -> None:
        if len(text) > MAX_LENGTH:
            raise InputError("expression", text[:40], f"at most {MAX_LENGTH} characters")
        self.text, self.known, self.at, self.depth = text, known, 0, 0
        self.tokens = list(self._tokens())

    def _tokens(self) -> Iterable[str]:
        at, text = 0, self.text.rstrip()
        while at < len(text):
            match = TOKEN.match(text, at)
            if match is None:
                raise InputError("expression", text[at : at + 20], f"numbers, names, + - x / ( ) [ ] at character {at}")
            yield match.group(match.lastindex or 0)
            at = match.end()

    def value(self) -> float:
        """The value of the whole text."""
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

    def _sum(self) -> float:
        self.depth += 1
        if self.depth > MAX_DEPTH:
            raise self._error(f"at most {MAX_DEPTH} nested brackets")
        parts = [self._product()]
        while self._peek() in ("+", "-"):
            sign = 1.0 if self._peek() == "+" else -1.0
            self.at += 1
            parts.append(sign * self._product())
        self.depth -= 1
        return math.fsum(parts)

    def _product(self) -> float:
        found = self._factor()
        while self._peek() in ("x", "*", "×", "/"):
            divide = self._peek() == "/"
            self.at += 1
            other = self._factor()
            if divide and other == 0:
                raise self._error("a divisor that is not zero")
            found = found / other if divide else found * other
        return found

    def _factor(self) -> float:
        token = self._peek()
        if token in ("(", "["):
            self.at += 1
            found = self._sum()
            self._take(")" if token == "(" else "]")
            return found
        if token == "-":
            self.at += 1
            return -self._factor()
        if token[:1].isdigit():
            self.at += 1
            return float(token)
        if token in self.known:
            self.at += 1
            return self._call(self.known[token])
        raise self._error("a number, a bracket, or one of " + ", ".join(self.known))

    def _call(self, function: Function) -> float:
        self._take("(")
        plain: list[Value] = []
        named: dict[str, Value] = {}
        while self._peek() != ")":
            following = self.tokens[self.at + 1] if self.at + 1 < len(self.tokens) else ""
            if following == "=":
                name = self._peek()
                self.at += 2
                word = self._peek()[:1].isalpha() and self._peek() not in self.known
                named[name] = self._word() if word else self._sum()
            else:
                plain.append(self._sum())
            if self._peek() != ")":
                self._take(",")
        self._take(")")
        try:
            return function(plain, named)
        except (TypeError, ValueError, IndexError) as error:
            raise self._error(f"arguments that the function takes ({error})") from error

    def _word(self) -> str:
        self.at += 1
        return self.tokens[self.at - 1]
